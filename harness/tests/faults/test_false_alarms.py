"""Right programs are judged with other random numbers each time, and a check that flags one of them is found."""

import pytest
import torch

from harness.cli import main
from harness.core.seeds import seed_of_run
from harness.core.shipped_packages import SUITES
from harness.core.sizes import SIZES
from harness.faults.catalogue import SPECIMEN, read_catalogue
from harness.faults.false_alarms import judged_again, right_programs
from harness.measures.all_measures import measures
from harness.measures.dropout import recorded_pass
from harness.oracle import model_cache
from harness.oracle.probe_weights import state
from harness.oracle.tokens import batch
from harness.subjects.adapters import adapt
from harness.suites.suite_file import read_suite

# Initial weights must be nearer to the std of the recipe than chance brings them each time.
TOO_STRICT = """
[suite]
title = "t"
about = "a"

[[check]]
name = "too-strict"
measure = "weight_std"
parameters = { size = "debug" }
expect = { between = [0.978, 1.022] }
why = "w"
source = "s"
"""


def test_a_check_that_flags_a_right_program_under_some_seeds_is_found(tmp_path, capsys):
    (tmp_path / "t.toml").write_text(TOO_STRICT)
    options = ["--suites", str(tmp_path), "--output", str(tmp_path), "--repetitions", "4"]
    assert main(["alarms", *options]) == 1
    printed = capsys.readouterr().out
    assert "right programs, 4 times each" in printed
    assert "the-specimen, seed 2: t::too-strict: found" in printed
    assert "the-specimen: t::too-strict, 3 times of 4" in printed


def test_without_a_red_check_the_exit_status_is_0(tmp_path, capsys):
    (tmp_path / "t.toml").write_text(TOO_STRICT.replace("[0.978, 1.022]", "[0.5, 1.5]"))
    spec = f"{SPECIMEN}:GPT"
    assert main(["alarms", spec, "--suites", str(tmp_path), "--output", str(tmp_path), "--repetitions", "1"]) == 0
    programs = len(read_catalogue().controls) + 1
    assert f"1 times each, {programs} verdicts: 0 red" in capsys.readouterr().out


def test_a_pattern_that_no_check_is_like_is_a_mistake(tmp_path, capsys):
    assert main(["alarms", "--only", "drop::*", "--output", str(tmp_path)]) == 2
    assert "no check of the debug size is like drop::*" in capsys.readouterr().err


@pytest.fixture
def drawn():
    def draw(seed):
        model_cache.forget()
        with seed_of_run(seed):
            masks = recorded_pass.record(adapt(f"{SPECIMEN}:GPT"), "debug", 0.3).masks
            return {
                "weights": state("debug", "probe")["transformer.wpe.weight"],
                "tokens": batch(SIZES["debug"], "random", rows=2, length=9)[0],
                "masks": masks["embedding", None][0].dropped,
            }

    return draw


def test_another_seed_draws_other_numbers_and_the_same_seed_the_same(drawn):
    first, other, again = drawn(0), drawn(1), drawn(0)
    for name, tensor in first.items():
        assert not torch.equal(tensor, other[name]), name
        assert torch.equal(tensor, again[name]), name


def test_a_row_that_repeats_its_stop_token_is_not_judged_as_one_that_goes_on(tmp_path):
    """Under this seed a row of the batch is one token from the stop token on: the padding looks the same."""
    known = measures()
    checks = {check.name: check for check in read_suite(SUITES / "options.toml", known).checks}
    control = [each for each in read_catalogue().controls if each.id == "options-of-generate"]
    programs = list(right_programs(control, [], tmp_path))
    (row,) = judged_again(programs, [checks["stop-token-ends-its-row"]], first=3001, repetitions=1)
    assert row["verdicts"] == {"pass": 1}
