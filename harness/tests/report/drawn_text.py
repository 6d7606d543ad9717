"""The text of a plot as it is drawn."""


def texts(plot):
    """Every text of a figure as drawn."""
    return [text for text, _ in words_of(plot)]


def words_of(plot):
    """Every upright text of a figure, with the pixels that it covers."""
    from matplotlib import rc_context
    from matplotlib.text import Text

    from harness.report.plot import STYLE

    with rc_context(STYLE):
        figure = plot.render()
        figure.draw_without_rendering()
        found = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
        return [
            (text.get_text(), Text.get_window_extent(text).padded(-1.5)) for text in found if not text.get_rotation()
        ]


def assert_no_word_overlaps(plot):
    """Fail if a text of the figure covers another, or leaves the figure at its left or right."""
    found = words_of(plot)
    for index, (text, box) in enumerate(found):
        over = [other for other, taken in found[index + 1 :] if box.overlaps(taken)]
        assert not over, (text, over)
        assert box.x0 >= 0, text
        assert box.x1 <= 900, text
