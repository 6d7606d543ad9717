"""The page of the lessons' runs. GPT_HARNESS_UPDATE_GOLDEN=1 rewrites the golden page; read its diff."""

import math
import os
import re
from pathlib import Path

import pytest

from harness import cli
from harness.core.record_files import RecordWriter
from harness.report import write as write_index
from harness.report.lessons.page import page, plots_of
from harness.report.lessons.report_files import write, write_from
from harness.report.lessons.training_runs import LessonRuns
from harness.tests.report.drawn_text import assert_no_word_overlaps, texts
from harness.tests.report.lessons.sample_lessons import clipping, lesson_rows, row, schedule, story
from harness.tests.report.sample_run import run
from harness.tests.report.sample_verification import check
from harness.tests.report.test_hostile_records import HOSTILE

GOLDEN = Path(__file__).parent / "golden_lessons.md"
FULL_SIZE = [row("full-size", arm, settings={"preset": "gpt2-124m"}) for arm in ("cosine", "constant-6e-4")]


def plots(rows):
    return [plot for plots in plots_of(LessonRuns.of(rows)).values() for plot in plots]


def test_the_page_of_every_lesson_is_the_golden_page():
    found = page(lesson_rows(), ["lessons-20261121T090000Z-001.jsonl"])
    if os.environ.get("GPT_HARNESS_UPDATE_GOLDEN"):
        GOLDEN.write_text(found, encoding="utf-8")
    assert found == GOLDEN.read_text(encoding="utf-8")


@pytest.mark.parametrize("plot", plots(lesson_rows([*lesson_rows()[1:-1], *FULL_SIZE])), ids=lambda plot: plot.name)
def test_no_word_of_a_figure_overlaps_another_or_leaves_the_figure(plot):
    assert_no_word_overlaps(plot)


def test_headlines_say_what_was_found():
    headlines = {plot.name: plot.headline for plot in plots(lesson_rows())}
    assert headlines["lessons-higher-rates"] == (
        "A constant rate explodes at 0.1 (at step 8, then recovers to 3.40); at 6e-4 it does not. "
        "With warm-up and cosine to the same peak it does not"
    )
    assert headlines["lessons-loss-and-text"].startswith(
        "The loss starts at 10.83, where ln 50,257 is 10.82, and ends at"
    )
    assert (
        "the injected spike of 12.3 is clipped to 1, its direction kept (cosine 1.000000)"
        in headlines["lessons-clipping"]
    )
    assert headlines["lessons-masters"].endswith("pure-bfloat16 2.00, 62% of updates lost")


def test_no_rate_is_said_to_explode_that_did_not():
    calm = [row("schedule", "cosine", seed) for seed in (0, 1)] + [row("schedule", "constant-3e-3", lr=3e-3)]
    assert plots(lesson_rows(calm))[1].headline == "No constant rate up to 0.003 exploded at this size"


def test_the_lowest_rate_that_explodes_is_named():
    rates = {"constant-3e-1": 0.3, "constant-1e-1": 0.1, "constant-3e-2": 0.03}
    rows = [row("schedule", "cosine", seed) for seed in (0, 1)]
    rows += [row("schedule", arm, lr=lr, exploded_at=None if lr < 0.1 else 5) for arm, lr in rates.items()]
    for found in rows:
        found["last_loss"] = 41.5
    assert plots(lesson_rows(rows))[1].headline == "A constant rate explodes at 0.1 (at step 5); at 0.03 it does not"


def test_an_explosion_at_step_0_is_one():
    rows = [row("schedule", "cosine", seed) for seed in (0, 1)]
    rows.append(row("schedule", "constant-1", lr=1.0, exploded_at=0, last_loss=math.nan))
    assert plots(lesson_rows(rows))[1].headline == "A constant rate explodes at 1 (at step 0)"


def test_a_claimed_rate_that_explodes_is_said_to():
    rows = [row("schedule", "constant-6e-4", seed, exploded_at=None if seed else 40) for seed in (0, 1)]
    assert plots(lesson_rows(rows))[0].headline.endswith("constant-6e-4 exploded with 1 of 2 seeds")
    assert "| constant-6e-4 | 2 | 200 | 4.22 [4.20, 4.24] | 2.00 [2.00, 2.00] |  | 40 |" in page(lesson_rows(rows))


def test_the_band_is_the_lowest_and_the_highest_seed():
    rows = [row("schedule", "cosine", seed, losses=[4.2, 3.0 + seed, 2.0 + seed]) for seed in (0, 1, 2)]
    text = page(lesson_rows(rows))
    assert "| cosine | 3 | 3 | 4.20 [4.20, 4.20] |" in text
    from matplotlib.collections import PolyCollection

    (band,) = plots(lesson_rows(rows))[0].render().findobj(PolyCollection)
    ends = band.get_paths()[0].vertices
    assert {y for x, y in ends if x == 2} == {2.0, 4.0}


def test_samples_stand_beside_the_losses_that_the_lessons_name():
    text = page(lesson_rows([story()]))
    assert "| 1 | 10.83 | 0 | industrial Total/?repre |" in text
    assert re.search(r"\| 2 \| 3\.8\d \| 60 \| the the<br>and, I \|", text)
    assert "No sample of gpt2 was taken near a loss of 2." in text
    late = {**story(), "samples": [{"step": 150, "loss": 2.2, "text": "late"}]}
    assert "| 1 | 2.20 | 150 | late |" in page(lesson_rows([late]))


def test_validation_that_still_falls_does_not_part():
    falling = {**story(), "validation": [[0, 10.8], [100, 5.0], [200, 4.0]]}
    headline = plots(lesson_rows([falling]))[1].headline
    assert headline == "Validation is lowest at the end: 4.00 at step 200"


def test_a_text_is_learned_by_heart_only_if_training_falls_from_the_lowest_validation_on():
    parting = {**story(), "validation": [[0, 10.8], [60, 5.0], [200, 6.0]]}
    headline = plots(lesson_rows([parting]))[1].headline
    assert re.search(r"rises to 6\.00, while training falls from 3\.\d\d to 1\.\d\d: .* by heart$", headline)
    flat = [loss for _, loss, *_ in parting["curve"][:60]] + [4.1] * 140
    flat_run = row("loss-and-text", "gpt2", losses=flat, validation=parting["validation"])
    assert plots(lesson_rows([flat_run]))[1].headline == (
        "Validation is lowest at step 60 (5.00) and rises to 6.00, and training does not fall from there: "
        "4.10 at the end"
    )


def test_what_was_not_run_is_named_with_its_reason_and_a_page_of_nothing_can_be_written(tmp_path):
    unfinished = {"loss-and-text-gpt2-seed-0": "budget after step 40; it will be resumed"}
    rows = lesson_rows([*schedule(), *clipping()], ending={"unfinished": unfinished, "failed": {}})
    text = page(rows)
    assert "**Not finished: 6 runs.**" in text
    assert (
        "- `loss-and-text-gpt2-seed-0`: budget after step 40; it will be resumed\n- `masters-float32-seed-0`\n" in text
    )
    assert "## The title of masters" in text
    assert "Not run yet: `gpt-harness lessons masters`." in text
    write(tmp_path, lesson_rows([], footer=False))
    assert "Nothing yet: run `gpt-harness lessons`." in (tmp_path / "lessons.md").read_text()


def test_runs_of_two_presets_are_two_arms_and_a_preset_s_missing_run_has_its_command():
    debug = row("full-size", "cosine", settings={"preset": "debug"}, last_loss=9.0)
    text = page(lesson_rows([*FULL_SIZE, {**debug, "name": "debug-cosine-seed-0"}]))
    assert "| full-size | gpt2-124m cosine |" in text
    assert "| full-size | debug cosine |" in text
    assert "debug cosine 9.00" in text, "and no mean of the two"
    assert "| full-size | cosine |" in page(lesson_rows(FULL_SIZE))
    lesson = {"name": "full-size", "title": "", "runs": ["gpt2-124m-cosine-seed-0"], "preset": "gpt2-124m"}
    text = page(lesson_rows([], lessons=[lesson]))
    assert "- `gpt2-124m-cosine-seed-0` (by `gpt-harness lessons --preset gpt2-124m --budget MINUTES`)" in text


def test_a_report_written_twice_is_the_same_to_the_byte_and_links_every_file(tmp_path):
    rows = lesson_rows([story(), *clipping()])
    first = {path.name: path.read_bytes() for path in write(tmp_path / "a", rows)}
    page_path, *files = write(tmp_path / "b", rows)
    assert first == {path.name: path.read_bytes() for path in [page_path, *files]}
    links = re.findall(r"\]\(((?:tables|plots)/[^)]+)\)", page_path.read_text())
    assert {tmp_path / "b" / link for link in links} == set(files)
    write(tmp_path / "b", lesson_rows(clipping()))  # files of the earlier page go
    assert not (tmp_path / "b/plots/lessons-loss-and-text.png").exists()


def test_the_tables_have_every_sample_and_every_point_and_nan_as_a_word(tmp_path):
    exploded = row("schedule", "constant-1", losses=[4.2, math.nan, *[3.0] * 20], exploded_at=1)
    write(tmp_path, lesson_rows([story(), exploded]))
    samples = (tmp_path / "tables/lesson-samples.csv").read_text()
    assert '"the the\nand, I"' in samples
    assert (tmp_path / "tables/lesson-runs.csv").read_text().count("\n") == 3
    assert "nan" in (tmp_path / "tables/lesson-curves.csv").read_text()


def hostile_rows():
    rows = lesson_rows([*schedule(), story(), *clipping()], ending={"unfinished": {HOSTILE: HOSTILE}})
    rows[0]["lessons"] = [{"name": HOSTILE, "title": HOSTILE, "claim": HOSTILE, "about": HOSTILE, "runs": [HOSTILE]}]
    rows[0] |= {"definitions": {"exploded_at": HOSTILE}, "started": HOSTILE, "environment": {"cpu": HOSTILE}}
    for found in rows[1:-1]:
        found |= {"arm": HOSTILE + found["arm"], "ended": HOSTILE, "made": {"device_name": HOSTILE}}
        found["settings"] = {"text": HOSTILE, "vocabulary": HOSTILE, "n_layer": HOSTILE, "clip": 1.0}
        found["samples"] = [{**sample, "text": HOSTILE} for sample in found["samples"]]
    rows.insert(1, {"kind": "run", "curve": 3, "samples": [None, {}], "clipping": [[1], "x", [float("nan"), 2]]})
    return rows


def test_hostile_text_neither_breaks_the_page_nor_becomes_markup(tmp_path):
    rows = hostile_rows()
    text = page(rows)
    assert "<script" not in text
    tables = re.findall(r"(?:^\|.*\|$\n)+", text, flags=re.MULTILINE)
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1
    assert not re.search(r"^# H1|^- \*\*b", text, flags=re.MULTILINE)
    assert all(path.stat().st_size > 0 for path in write(tmp_path, rows))


def test_a_figure_of_many_points_is_smoothed_and_one_of_few_is_not():
    few = plots(lesson_rows([row("schedule", "cosine", seed, losses=[4.0, 1.0, 4.0]) for seed in (0, 1)]))[0]
    line = few.render().axes[0].lines[0]
    assert list(line.get_ydata()) == [4.0, 1.0, 4.0]
    assert "cosine" in texts(few)


def test_the_index_links_the_page_whichever_is_written_first(tmp_path):
    index = tmp_path / "index.md"
    write(tmp_path, lesson_rows(clipping()))
    assert not index.exists()
    write_index(tmp_path, run("verify", [check()]), None)
    assert index.read_text().endswith("\n## Other pages\n\n- [lessons.md](lessons.md): the lessons' training runs\n")
    (tmp_path / "lessons.md").unlink()
    write_index(tmp_path, run("verify", [check()]), None)
    assert "Other pages" not in index.read_text()
    write(tmp_path, lesson_rows(clipping()))
    write(tmp_path, lesson_rows(clipping()))
    assert index.read_text().count("(lessons.md)") == 1


def test_the_report_command_writes_the_newest_lessons_and_names_older_ones(tmp_path, capsys):
    records = tmp_path / "records"
    for stamp in ("20261121T090000Z-001", "20261122T090000Z-001"):
        header, *rows, footer = lesson_rows(clipping())
        writer = RecordWriter(records / f"lessons-{stamp}.jsonl", header)
        for found in rows:
            writer.write(found)
        writer.close(footer)
    assert cli.main(["report", "--records", str(records), "--output", str(tmp_path)]) == 0
    assert "Older records: `lessons-20261121T090000Z-001.jsonl`." in (tmp_path / "lessons.md").read_text()
    assert not (tmp_path / "index.md").exists()
    files = [str(path) for path in sorted(records.glob("*.jsonl"))]
    assert cli.main(["report", *files, "--output", str(tmp_path)]) == 2
    assert "are both of kind 'lessons'" in capsys.readouterr().err
    assert "Older records" not in write_from(tmp_path, Path(files[0]))[0].read_text()
