"""The lines about ratios that a run could not decide: how well they are known, why not better, and what it takes."""

import dataclasses
import math
import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import undecided
from benchmarks.run import ComparisonRunner
from benchmarks.undecided import SETTINGS, SHOWN, command, seconds_to_decide, undecided_lines
from harness.bench.statistics import paired_ratio

QUIET = {"processor_seconds": 1.0, "fresh_pages": 0, "preemptions": 0.0, "stolen": 0.0}


def row(*, noise, metric="backward", rounds=8, effect=0.10, ratio=1.0, usage=QUIET):
    """Return the row of a comparison of two arms: a round takes 2 s, and building and verifying took 5 s."""
    rng = random.Random(0)
    seconds = {
        "subject": [math.exp(rng.gauss(0, noise)) for _ in range(rounds)],
        "hf-sdpa": [ratio * math.exp(rng.gauss(0, noise)) for _ in range(rounds)],
    }
    found = paired_ratio(seconds["hf-sdpa"], seconds["subject"], effect=effect)
    return {
        "comparison": "training",
        "metric": metric,
        "axis": "tokens",
        "point": 64,
        "effect": effect,
        "timing_seconds": 2.0 * rounds,
        "wall_seconds": 2.0 * rounds + 5.0,
        "arms": [{"arm": arm, "seconds": times, "usage": usage} for arm, times in seconds.items()],
        "ratios": [{"arm": "hf-sdpa", "against": "subject", **dataclasses.asdict(found)}],
    }


def test_decided_ratios_have_no_line():
    assert list(undecided_lines([row(noise=0.001), row(noise=0.01, ratio=2.0)])) == []


def test_an_undecided_ratio_says_how_well_it_is_known_and_which_command_decides_it():
    first, command = undecided_lines([row(noise=0.2), row(noise=0.001, metric="loss")])
    assert first.startswith("training backward, tokens=64: hf-sdpa: known to ")
    assert "% after 8 rounds" in first
    assert "decide 1 of them: pytest benchmarks/ -k '(training and backward)' --resolve 10%" in command


def test_each_size_of_difference_has_a_command_of_its_own():
    lines = list(undecided_lines([row(noise=0.3), row(noise=0.3, metric="first token", effect=0.05)]))
    assert lines[-2].endswith("-k '(training and first and token)' --resolve 5%")
    assert lines[-1].endswith("-k '(training and backward)' --resolve 10%")


@pytest.mark.parametrize(
    ("usage", "reason"),
    [
        ({**QUIET, "stolen": 0.25}, "other machines took 25% of a core"),
        ({**QUIET, "preemptions": 310.0}, "other processes took the core 310 times a second"),
        ({**QUIET, "fresh_pages": 31_000}, "a call needs 31,000 fresh pages from the kernel"),
    ],
)
def test_what_disturbed_the_blocks_is_named(usage, reason):
    assert reason in next(undecided_lines([row(noise=0.3, usage=usage)]))
    assert reason not in next(undecided_lines([row(noise=0.3)]))


def test_the_time_that_decides_grows_with_the_square_of_the_noise_and_includes_building():
    once, twice = (seconds_to_decide(row(noise=noise, rounds=48)) for noise in (0.2, 0.4))
    assert (twice - 5.0) / (once - 5.0) == pytest.approx(4, rel=0.2)


def test_of_many_a_few_have_a_line_and_all_are_in_the_command():
    rows = [row(noise=0.3, metric=f"work{number}") for number in range(SHOWN + 2)]
    *lines, more, command = undecided_lines(rows)
    assert (len(lines), more) == (SHOWN, "and 2 more")
    assert f"decide {SHOWN + 2} of them" in command
    assert all(f"(training and work{number})" in command for number in range(SHOWN + 2))


def config(folder, **options):
    chosen = {**SETTINGS, "--subject": None, **{f"--{name}": value for name, value in options.items()}}
    return SimpleNamespace(getoption=chosen.__getitem__, invocation_params=SimpleNamespace(dir=folder))


def test_the_command_has_the_folder_and_the_options_of_the_run(tmp_path):
    home = Path(undecided.__file__).parents[1]
    assert command(config(home)) == "pytest benchmarks/"
    chosen = {"subject": ["my gpt.py:GPT"], "size": "debug", "quick": True, "threads": 1}
    assert command(config(tmp_path, **chosen)) == (
        f"pytest {home}/benchmarks/ --subject 'my gpt.py:GPT' --size debug --threads 1 --quick"
    )


def test_a_run_ends_with_what_is_undecided():
    made = ComparisonRunner(config=config(Path.cwd()), declared={}, rows={("training backward", 64): row(noise=0.3)})
    lines = [line for line, _ in made.summary()]
    assert lines[lines.index("# undecided") + 1].startswith("training backward, tokens=64: hf-sdpa: known to")
