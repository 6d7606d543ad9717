"""The page of the lessons' runs: what was run, and for each lesson its claim, its figure and its numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from harness.core.record_files import Row
from harness.report.formatting import date, duration, number, plain, plural
from harness.report.json_values import as_float, as_mapping
from harness.report.lessons import clipping, experts, loss_and_text, masters, schedule, throughput, two_loops
from harness.report.lessons.curves import caption
from harness.report.lessons.tables import tables
from harness.report.lessons.training_runs import LessonRuns, TrainingRun
from harness.report.markdown import code, csv_link, embed, escape, plot_anchor, prose, table
from harness.report.plot import Plot

COMMAND = "gpt-harness lessons"
FULL_SIZE = "full-size"


def plots_of(found: LessonRuns) -> dict[str, list[Plot]]:
    """Return the figures by lesson, in the order of the page."""
    drawn = {
        schedule.LESSON: schedule.plots(found),
        loss_and_text.LESSON: loss_and_text.plots(found),
        clipping.LESSON: clipping.plots(found),
        masters.LESSON: masters.plots(found),
        experts.LESSON: experts.plots(found),
        FULL_SIZE: [*loss_and_text.plots(found, FULL_SIZE), *schedule.full_size_plots(found, FULL_SIZE)],
        "speed": throughput.plots(found),
    }
    return {lesson: plots for lesson, plots in drawn.items() if plots}


def page(rows: Sequence[Row], older: Sequence[str] = ()) -> str:
    """Return the page in Markdown, from the rows of a record file. `older` are the names of earlier record files."""
    found = LessonRuns.of(rows)
    drawn = plots_of(found)
    lines = [*head(found, drawn)]
    sections: dict[str, Callable[[LessonRuns, Sequence[Plot]], Iterator[str]]] = {
        schedule.LESSON: schedule.section,
        loss_and_text.LESSON: loss_and_text.section,
        clipping.LESSON: clipping.section,
        masters.LESSON: masters.section,
        experts.LESSON: experts.section,
        FULL_SIZE: lambda runs, plots: loss_and_text.section(runs, plots, FULL_SIZE),
    }
    for lesson, write in sections.items():
        if found.arms(lesson) or lesson in found.lessons:
            lines += [*lesson_head(found, lesson), *write(found, drawn.get(lesson, []))]
    lines += ["## Two loops side by side", "", *two_loops.section()]
    lines += [*what_was_run(found, drawn.get("speed", []))]
    lines += [*files(found, older)]
    return "\n".join(lines).rstrip() + "\n"


def head(found: LessonRuns, drawn: dict[str, list[Plot]]) -> Iterator[str]:
    """Yield the title, what is missing, what the figures show, and when and where it was made."""
    yield from ("# The lessons' runs", "")
    yield from (
        "The training runs that the lessons describe, by `python -m gpt.train`, at the size that is stated with each. "
        "Where a size is smaller than the lessons' (124M parameters, 1,024 tokens of context), so is what it shows.",
        "",
    )
    footer = found.footer or {}
    seconds = as_float(footer.get("wall_seconds"))
    made = f"Made {date(found.header.get('started'))}"
    total = sum(value for run in found.runs if (value := run.number("seconds")) is not None)
    last = f"; the last command took {duration(seconds)}" if seconds else ""
    yield from (f"- {made}: {plural(len(found.runs), 'run')}, {duration(total)} of training in all{last}.",)
    yield from (f"- {escape(caption(found))}", "")
    if found.missing:
        yield from (f"**Not finished: {plural(len(found.missing), 'run')}.** `{COMMAND}` does them and goes on:", "")
        reasons = as_mapping(footer.get("unfinished")) | as_mapping(footer.get("failed"))
        for name, preset in found.missing.items():
            why = f": {escape(reasons[name])}" if name in reasons else ""
            by = f" (by {code(f'{COMMAND} --preset {preset} --budget MINUTES')})" if preset else ""
            yield f"- {code(name)}{by}{why}"
        yield ""
    shown = [plot for plots in drawn.values() for plot in plots]
    if shown:
        yield from ("What the figures show:", "")
        yield from (f"- {escape(plot.headline)} ([figure](#{plot_anchor(plot)}))" for plot in shown)
        yield ""


def lesson_head(found: LessonRuns, lesson: str) -> Iterator[str]:
    """Yield the title of a lesson, what the lessons claim, what is done here, and how to do it if it was not."""
    row = found.lessons.get(lesson, {})
    yield from (f"## {escape(row.get('title') or lesson)}", "")
    if row.get("claim"):
        yield from (f"The lessons: {prose(row['claim'])}", "")
    if row.get("about"):
        yield from (f"Here: {prose(row['about'])}", "")
    if not found.arms(lesson):
        yield from (f"Not run yet: {code(f'{COMMAND} {lesson}')}.", "")
    definition = as_mapping(found.header.get("definitions")).get("exploded_at")
    if definition and lesson == schedule.LESSON and found.arms(lesson):
        yield from (escape(definition), "")


def what_was_run(found: LessonRuns, drawn: Sequence[Plot]) -> Iterator[str]:
    """Yield the sizes of the runs, a row for each lesson and arm, and the speed."""
    yield from ("## What was run", "")
    if not found.runs:
        yield from (f"Nothing yet: run {code(COMMAND)}.", "")
        return
    heads = ["runs", "parameters", "tokens a step", "steps", "epochs", "tokens/s", "seconds a run"]
    rows = []
    for lesson in dict.fromkeys(run.lesson for run in found.runs):
        for arm, runs in found.arms(lesson).items():
            rows.append([escape(lesson), escape(arm), escape(describe(runs[0])), str(len(runs)), *sizes(runs)])
    yield from table(["lesson", "arm", "model and text", *heads], rows, right=heads)
    for plot in drawn:
        yield from embed(plot)


def describe(run: TrainingRun) -> str:
    """Return `3 layers, 96 wide, 64 context; characters of tinyshakespeare; float32; one thread, cpu`."""
    settings = run.settings
    shape = [f"{number(settings[key])} {word}" for key, word in SHAPE.items() if key in settings]
    text = plain(settings.get("text", "tinyshakespeare"), longest=60)
    cut = as_float(run.row.get("text_characters"))
    part = f"the first {cut:,.0f} characters of {text}" if cut else text
    made = as_mapping(run.row.get("made"))
    parts = [
        ", ".join(shape) or plain(settings.get("preset", "")),
        f"{plain(settings.get('vocabulary', 'gpt2'))}, {part}",
    ]
    parts += [plain(made.get("device_name") or run.row.get("device") or "")]
    return "; ".join(part for part in parts if part)


SHAPE = {"n_layer": "layers", "n_embd": "wide", "block_size": "context"}


def sizes(runs: Sequence[TrainingRun]) -> list[str]:
    """Return parameters, tokens a step, steps, epochs, tokens/s and seconds of the first of the runs."""
    run = runs[0]
    tokens, train = run.number("tokens"), run.number("train_tokens")
    found = [run.number(key) for key in ("parameters", "tokens_per_step", "steps")]
    speeds = [value for one in runs if (value := one.number("tokens_per_second")) is not None]
    seconds = [value for one in runs if (value := one.number("seconds")) is not None]
    return [
        *(f"{value:,.0f}" if value is not None else "" for value in found),
        f"{tokens / train:.1f}" if tokens and train else "",
        f"{sum(speeds) / len(speeds):,.0f}" if speeds else "",
        f"{sum(seconds) / len(seconds):,.0f}" if seconds else "",
    ]


def files(found: LessonRuns, older: Sequence[str]) -> Iterator[str]:
    """Yield links to the tables, and the names of older records."""
    yield from ("## Data", "")
    yield from (f"- {csv_link(name)}: {what}" for name, (what, _, _) in tables(found).items())
    yield from ("", "Each run's folder, with its log, samples and checkpoints, is in `reports/lessons/`.", "")
    if older:
        names = ", ".join(code(name) for name in older[:10])
        more = f" and {len(older) - 10} more" if len(older) > 10 else ""
        yield from (f"Older records: {names}{more}. {code('gpt-harness report FILE')} shows one of them.", "")
