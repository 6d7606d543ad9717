"""The HTML page in a real browser: links land, tables sort, values appear, keys and narrow windows work."""

import time

import pytest

from harness.tests.report.html import sample_pages
from harness.tests.report.html.browser import browser, executable

pytestmark = pytest.mark.skipif(executable() is None, reason="no Chromium: `apt-get install chromium` brings one")


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    texts = {"wrong": sample_pages.wrong(), "hostile": sample_pages.hostile()}
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8", errors="replace")
    return {name: folder / f"{name}.html" for name in texts}


@pytest.mark.parametrize("name", ["wrong", "hostile"])
def test_the_console_is_silent_and_nothing_is_asked_of_the_network(tab, pages, name):
    tab.open(pages[name])
    tab.evaluate("document.querySelectorAll('thead button, summary').forEach((each) => each.click())")
    assert tab.complaints() == []


def test_the_browser_test_sees_what_it_is_to_see(tab, tmp_path):
    """A script, a request, and a script in an attribute, none of which the page's policy allows."""
    policy = "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'\">"
    (tmp_path / "bad.html").write_text(f"<!doctype html>{policy}<script>alert(1)</script><img src=http://a.example/b>")
    tab.open(tmp_path / "bad.html")
    assert len(tab.complaints()) >= 2
    (tmp_path / "worse.html").write_text("<!doctype html><script>undefined.x</script>")
    tab.open(tmp_path / "worse.html")
    assert tab.complaints()


def test_nothing_runs_from_a_hostile_name(tab, pages):
    tab.open(pages["hostile"])
    assert tab.evaluate("document.scripts.length") == 1
    assert tab.evaluate("document.querySelectorAll('img, iframe, [onload], [onerror], h1').length") == 1
    assert "<script>alert(1)</script>" in tab.evaluate("document.querySelector('h1').textContent")


def test_every_link_lands_and_opens_what_it_leads_to(tab, pages):
    tab.open(pages["wrong"])
    lost = "[...document.links].filter((link) => !document.getElementById(decodeURIComponent(link.hash.slice(1))))"
    assert tab.evaluate(f"{lost}.map((link) => link.href)") == []
    row = "check-structure-parameter-count-size-124m-tied-true"
    assert tab.evaluate(f"document.getElementById('{row}').checkVisibility()") is False, "it is in closed details"
    # Without a navigation, in which Chromium would open them by itself, as other browsers do not.
    tab.evaluate(f"history.replaceState(null, '', '#{row}'); dispatchEvent(new Event('hashchange'))")
    box = tab.evaluate(f"document.getElementById('{row}').getBoundingClientRect().toJSON()")
    assert 0 <= box["top"] <= 900
    assert box["height"] > 0


COLUMN = """[...document.querySelector('#arm-attention-forward-128-naive').closest('tbody').rows]
    .map((row) => [row.cells[{}].textContent, Number(row.cells[{}].dataset.key)])"""
BUTTON = """(() => { const table = document.querySelector('#arm-attention-forward-128-naive').closest('table');
    return [...table.tHead.rows[0].cells].findIndex((head) => head.textContent === 'time') })()"""


def test_a_click_sorts_by_the_number_and_another_one_the_other_way_round(tab, pages):
    tab.open(pages["wrong"])
    column = tab.evaluate(BUTTON)
    head = f"document.querySelector('#arm-attention-forward-128-naive').closest('table').tHead.rows[0].cells[{column}]"
    for order, direction in (("ascending", 1), ("descending", -1)):
        tab.evaluate(f"{head}.querySelector('button').click()")
        assert tab.evaluate(f"{head}.getAttribute('aria-sort')") == order
        keys = [key for text, key in tab.evaluate(COLUMN.format(column, column)) if text]
        assert len(keys) > 5
        assert keys == sorted(keys, key=lambda key: direction * key)
    units = {text.split()[-1] for text, _ in tab.evaluate(COLUMN.format(column, column)) if text}
    assert {"ms", "s"} <= units, "of several units, so that the order of the texts would be another one"


def test_a_table_is_sorted_with_the_keyboard(tab, pages):
    tab.open(pages["wrong"])
    tab.evaluate("document.querySelector('thead button').focus()")
    tab.press("Enter")
    assert tab.evaluate("document.activeElement.closest('th').getAttribute('aria-sort')") == "ascending"


def test_the_first_tab_stop_leads_to_the_verdict_and_every_stop_is_visible(tab, pages):
    tab.open(pages["wrong"])
    tab.press("Tab")
    assert tab.evaluate("document.activeElement.hash") == "#content"
    tab.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "content"
    for _ in range(25):
        tab.press("Tab")
        seen = "(() => { const box = document.activeElement.getBoundingClientRect(); return box.width * box.height })()"
        assert tab.evaluate(seen) > 0
        style = tab.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert style != "none"


def test_a_screen_reader_finds_landmarks_names_and_captions(tab, pages):
    tab.open(pages["wrong"])
    nodes = [node for node in tab.call("Accessibility.getFullAXTree")["nodes"] if not node.get("ignored")]
    found = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes]
    roles = [role for role, _ in found]
    assert {"main", "banner", "navigation", "contentinfo", "heading", "table", "columnheader", "rowheader"} <= set(
        roles
    )
    for role in ("img", "image", "table", "region", "link", "button", "navigation"):
        assert all(name for each, name in found if each == role), role
    assert any(role in ("img", "image") for role in roles)


def test_values_appear_under_the_pointer(tab, pages):
    tab.open(pages["wrong"])
    at = tab.evaluate(
        "(() => { const point = document.querySelector('#figure-diagnosis g.value');"
        "point.scrollIntoView({block: 'center'}); const box = point.getBoundingClientRect();"
        "return [box.x + box.width / 2, box.y + box.height / 2] })()"
    )
    assert tab.evaluate("document.getElementById('tip').hidden") is True
    for step in range(20):  # the page hides the value when it scrolls, which it may still do
        tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=at[0] + step % 2, y=at[1])
        if tab.evaluate("document.getElementById('tip').hidden") is False:
            break
        time.sleep(0.1)
    assert tab.evaluate("document.getElementById('tip').hidden") is False
    assert "embedding" in tab.evaluate("document.getElementById('tip').textContent")


@pytest.mark.parametrize("name", ["wrong", "hostile"])
def test_a_window_of_390_pixels_scrolls_in_one_direction_only(tab, pages, name):
    tab.open(pages[name], width=390)
    tab.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true })")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390


EDGES = """(() => {
    const [box] = [...document.querySelectorAll('.scroll')].filter((each) => each.scrollWidth > each.clientWidth + 100);
    box.scrollIntoView({block: 'center'});
    box.scrollLeft = %s;
    const at = box.getBoundingClientRect();
    return [at.left + 2, at.left + box.clientWidth - 2, at.top + box.clientHeight - 3]; // without the scroll bars
})()"""


@pytest.mark.parametrize("dark", [False, True])
def test_a_table_that_goes_on_has_a_shadow_at_that_edge_and_none_where_it_ends(tab, pages, dark):
    tab.open(pages["wrong"], width=390, dark=dark)
    shadows = []
    for scrolled in ("0", "box.scrollWidth / 2 - box.clientWidth / 2", "box.scrollWidth"):
        left, right, y = tab.evaluate(EDGES % scrolled)
        pixels = tab.pixels()
        paper = pixels[int(y), 2].astype(int)  # beside the box
        shadows.append([bool(abs(pixels[int(y), int(x)].astype(int) - paper).max() > 25) for x in (left, right)])
    assert shadows == [[False, True], [True, True], [True, False]]


def test_a_table_that_goes_on_is_scrolled_with_the_keyboard(tab, pages):
    tab.open(pages["wrong"], width=390)
    tab.evaluate(EDGES % "0")
    found = "[...document.querySelectorAll('.scroll')].find((each) => each.scrollWidth > each.clientWidth + 100)"
    # Chromium gives a region that scrolls the focus by itself; other browsers need the attribute.
    attributes = "(each) => ['tabindex', 'role', 'aria-label'].map((name) => each.getAttribute(name))"
    for focus, role, label in tab.evaluate(f"[...document.querySelectorAll('.scroll')].map({attributes})"):
        assert (focus, role) == ("0", "region")
        assert label.startswith(("Table: ", "Figure: "))
    tab.evaluate(f"{found}.focus()")
    for _ in range(50):
        tab.press("ArrowRight")
        if tab.evaluate(f"{found}.scrollLeft") > 0:
            break
    assert tab.evaluate(f"{found}.scrollLeft") > 0


def test_the_link_to_the_words_opens_them(tab, pages):
    tab.open(pages["wrong"])
    assert tab.evaluate("document.getElementById('words').open") is False
    tab.evaluate("[...document.links].find((link) => link.hash === '#words').click()")
    for _ in range(20):
        if tab.evaluate("document.getElementById('words').open"):
            break
        time.sleep(0.1)
    assert tab.evaluate("document.getElementById('words').open") is True


CONTRAST = """(() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((each) => each / 255)
      .map((each) => each <= 0.03928 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (each) => {
    for (; each; each = each.parentElement) {
      const colour = getComputedStyle(each).backgroundColor;
      if (colour !== "rgba(0, 0, 0, 0)") return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const low = [];
  for (const each of document.querySelectorAll("body *:not(svg *):not(script)")) {
    const own = [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || each.classList.contains("permalink")) continue;
    const [a, b] = [light(getComputedStyle(each).color), light(behind(each))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push([each.outerHTML.slice(0, 80), ratio]);
  }
  return low.slice(0, 5);
})()"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_has_the_contrast_of_wcag_aa(tab, pages, dark):
    """4.5 to 1, of WCAG 2.2, success criterion 1.4.3."""
    tab.open(pages["wrong"], dark=dark)
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") != dark
    assert tab.evaluate(CONTRAST) == []


def test_print_shows_failures_in_full_without_the_navigation(tab, pages):
    tab.open(pages["wrong"])
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    tab.call("Emulation.setEmulatedMedia", media="print")
    assert tab.evaluate("document.querySelector('details[id^=failure]').open") is True
    assert tab.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert tab.evaluate("getComputedStyle(document.querySelector('.scroll')).overflow") == "visible"
    tab.call("Emulation.setEmulatedMedia", media="")
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert tab.evaluate("document.querySelector('details[id^=failure]').open") is False
