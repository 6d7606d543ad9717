"""The page and the figure of a sweep, from records alone."""

from pathlib import Path

import pytest

from harness.core.record_files import RecordWriter
from harness.report.sweeps.iso_flop_plot import flops_text, parabola_at, plots, size_text
from harness.report.sweeps.page import page
from harness.report.sweeps.report_files import write
from harness.report.sweeps.summary import lines
from harness.report.sweeps.sweep_rows import Sweep
from harness.tests.report.drawn_text import assert_no_word_overlaps, texts
from harness.tests.report.sweeps.sample_sweep import fits, header, rows, runs


def test_the_page_says_what_was_fitted_what_is_known_and_how_far_it_reaches():
    text = page(rows())
    assert "12 of 12 runs" in text
    assert "**Proof on a known source.** The entropy of markov is 3.8537 nats" in text
    assert "finds E = 3.860 [3.830, 3.890]: inside." in text
    assert "| markov | all parameters | iso-flop | a of N_opt ~ C^a | 0.4600 [0.4100, 0.5200] |" in text
    assert "| markov | 1.6·10¹¹ | 6 | 11,000 to 99,000 |" in text
    assert "chance explains it" in text
    assert "## How far this reaches" in text


def test_a_known_entropy_outside_the_interval_is_said_to_be_outside():
    law, frontier = fits()
    law = {**law, "values": {**law["values"], "E": [3.80, 3.77, 3.83]}}
    assert "outside, so the law does not describe these runs" in page([header(), *runs(), law, frontier])


def test_the_headline_says_whether_the_square_root_is_inside_the_interval():
    assert plots(Sweep.of(rows()))[0].headline == (
        "markov: the best size grows as C^0.46 [0.41, 0.52]; the square root is inside"
    )
    narrow = [header(), *runs(), *fits(exponent=(0.43, 0.41, 0.46))]
    assert "the square root is outside" in plots(Sweep.of(narrow))[0].headline


def test_the_figure_has_every_budget_every_slope_and_no_word_over_another():
    (plot,) = plots(Sweep.of(rows()))
    drawn = texts(plot)
    for word in ("10¹⁰", "1.6·10¹¹", "exponent 1/2", "minima: 0.46 [0.41, 0.52]", "law: 0.43 [0.39, 0.47]"):
        assert word in drawn
    assert "parameters N" in drawn
    assert "training compute C in FLOPs" in drawn
    assert_no_word_overlaps(plot)


def test_a_drawn_parabola_goes_through_its_minimum():
    (first, _) = fits()[1]["parabolas"]
    assert parabola_at(first, 11_000.0) == 4.34
    assert parabola_at(first, 11_000.0 * 2.718281828) == pytest.approx(4.40)


def test_a_fit_that_is_missing_and_a_run_without_a_loss_are_named():
    broken = {**runs()[0], "loss": None, "name": "broken", "why": "it has no validation at its end (killed)"}
    missing = {"kind": "fit", "approach": "iso-flop", "source": "markov", "count": "all", "missing": "two budgets"}
    found = [header(), *runs(), broken, missing]
    assert "Not fitted: `broken`: it has no validation at its end (killed)." in page(found)
    assert "  iso-flop   no fit: it needs two budgets" in list(lines(Sweep.of(found)))
    assert plots(Sweep.of(found)) == []


@pytest.mark.parametrize("bad", [None, "x", {"values": 3, "kind": "fit"}, {"kind": "fit", "values": {"E": ["x"]}}])
def test_records_of_another_shape_do_not_break_the_page(bad):
    found = rows() + ([bad] if isinstance(bad, dict) else [{"kind": "run", "source": bad, "parameters": bad}])
    assert "# Scaling laws of a sweep" in page(found)


def test_the_report_has_a_page_two_tables_and_a_figure(tmp_path):
    written = write(tmp_path, rows())
    names = [path.name for path in written]
    assert names == ["sweep.md", "sweep-runs.csv", "sweep-fits.csv", "sweep-1.png", "sweep-1.svg"]
    assert "markov,all,iso-flop,size_exponent,0.46,0.41,0.52" in written[2].read_text()
    assert len(written[1].read_text().splitlines()) == 13


def test_a_report_command_shows_the_newest_sweep(tmp_path, capsys):
    from harness.cli import main

    writer = RecordWriter(tmp_path / "records" / "sweep-20261129T130000Z-001.jsonl", {
        key: value for key, value in header().items() if key not in ("kind", "schema")
    })  # fmt: skip
    for row in [*runs(), *fits()]:
        writer.write(row)
    writer.close({})
    assert main(["report", "--records", str(tmp_path / "records"), "--output", str(tmp_path / "out")]) == 0
    assert Path(tmp_path, "out", "sweep.md").is_file()
    assert "sweep.md" in capsys.readouterr().out


@pytest.mark.parametrize(("value", "text"), [(11_000, "11k"), (999_999, "1M"), (2.5e9, "2.5B"), (512, "512")])
def test_sizes_are_short(value, text):
    assert size_text(value) == text


@pytest.mark.parametrize(("value", "text"), [(1e10, "10¹⁰"), (4e10, "4·10¹⁰"), (1.6e11, "1.6·10¹¹"), (9.99e20, "10²¹")])
def test_flops_are_powers_of_ten(value, text):
    assert flops_text(value) == text
