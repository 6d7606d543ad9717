"""`gpt-harness proof`: one small real run, its output and its record."""

import argparse

import pytest

from harness.bench import proof
from harness.commands import proof as command
from harness.core.errors import HarnessError
from harness.core.record_files import read


def run(folder, *arguments):
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    options = parser.parse_args(["proof", "--output", str(folder), *arguments])
    return options.run(options)


@pytest.fixture(autouse=True)
def _restore_threads():
    import torch

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_a_run_records_every_comparison_and_checks_the_known_memory(tmp_path, capsys):
    code = run(tmp_path, "--runs", "1", "--seconds", "0.3")
    output = capsys.readouterr().out
    (path,) = (tmp_path / "records").glob("proof-*.jsonl")
    header, naive, flash, identical, changed, footer = read(path)
    assert header["change"] == 0.05
    assert (naive["found_mib"], flash["found_mib"]) == pytest.approx((99.00, 3.61), rel=0.01)
    assert (identical["true"], changed["true"]) == (1.0, 1.05)
    assert len(changed["seconds"]) == 2
    assert footer["passed"] == (code == 0)
    assert "1 comparisons of each kind do not show it" in output


def test_an_interrupted_run_keeps_its_record(tmp_path, monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(proof, "measure", interrupted)
    assert run(tmp_path) == 130
    (path,) = (tmp_path / "records").glob("proof-*.jsonl")
    assert [row["kind"] for row in read(path)] == ["header", "proof memory", "proof memory"]
    assert str(path) in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flagged", "found", "good"), [((1, 20), (18, 20), True), ((2, 20), (20, 20), False), ((0, 20), (17, 20), False)]
)
def test_five_percent_false_alarms_and_nine_in_ten_found_are_the_limits(flagged, found, good):
    assert proof._good({"identical": proof.Tally(*flagged), "changed": proof.Tally(*found)}) is good


def test_the_output_says_that_few_runs_show_little_but_many_do_not():
    few = {"identical": proof.Tally(0, 20), "changed": proof.Tally(20, 20)}
    many = {"identical": proof.Tally(2, 200), "changed": proof.Tally(200, 200)}
    assert "do not show it" in proof._conclusion(few, change=0.05, middle=1.05)
    assert proof._conclusion(many, change=0.05, middle=1.05) == (
        "identical arms called different: 2 of 200 (1%; 95% interval 0% to 4%); expected at most 5%\n"
        "5.0% more work found slower: 200 of 200 (100%; 95% interval 98% to 100%), by 5.0% (median); "
        "expected at least 90%"
    )


@pytest.mark.parametrize("arguments", [("--runs", "0"), ("--change", "0"), ("--threads", "0")])
def test_options_out_of_range_are_an_error(tmp_path, arguments):
    with pytest.raises(HarnessError, match="expected --runs"):
        run(tmp_path, *arguments)
