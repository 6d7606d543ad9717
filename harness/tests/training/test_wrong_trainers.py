"""Every declared check of training turns red for a wrong trainer, and for no right one."""

import pytest

from harness.core.shipped_packages import SUITES
from harness.faults.matrix import RED
from harness.faults.training import RIGHT_TRAINERS, SPECIMEN, WRONG_TRAINERS
from harness.faults.training.matrix import judge_trainer, training_checks
from harness.judging.run_check import run
from harness.training.program import TrainingProgram

# Mistakes that the diagnosis places elsewhere: where the line is not one of an event, nor of a kind that it looks for.
NOT_PLACED = frozenset(
    (
        *("loss-averaged-over-pads", "data-trains-on-val-batch", "batch-comes-again", "data-workers-repeat"),
        *("ckpt-rng-missing", "train-mode-not-restored", "data-ranks-read-same", "grad-sum-instead-of-mean"),
        "init-rank-dependent",
    )
)


def red_of(row):
    """Return the messages of a row's red checks, by suite::id."""
    return {f"{c['suite']}::{c['id']}": c["message"] for c in row["checks"] if c["verdict"] in RED}


@pytest.mark.parametrize("trainer", WRONG_TRAINERS, ids=lambda trainer: trainer.id)
def test_a_wrong_trainer_fails_its_checks_and_no_other_and_is_named_and_placed(trainer):
    row = judge_trainer(trainer, SUITES)
    assert red_of(row).keys() == set(trainer.red), red_of(row)
    assert all(check["verdict"] != "error" for check in row["checks"])
    assert row["named"], row["findings"]
    assert row["localised"] == (trainer.id not in NOT_PLACED), (row["where"], row["findings"])


@pytest.mark.parametrize("trainer", RIGHT_TRAINERS, ids=lambda trainer: trainer.id)
def test_a_right_trainer_of_another_convention_raises_no_alarm(trainer):
    row = judge_trainer(trainer, SUITES)
    assert red_of(row) == {}
    assert any(check["verdict"] == "pass" for check in row["checks"])
    assert row["findings"] == []


def test_the_specimen_itself_passes_every_check():
    program = TrainingProgram(str(SPECIMEN))
    records = {f"{check.suite}::{check.id}": run(check, program) for check in training_checks(SUITES)}
    program.close()
    others = {name: record.message for name, record in records.items() if record.verdict != "pass"}
    assert others == {"data::padding-is-no-target": f"no rows of {SPECIMEN} end in padding"}


def test_every_check_turns_red_for_a_wrong_trainer():
    checks = {f"{check.suite}::{check.id}" for check in training_checks(SUITES)}
    assert checks == {name for trainer in WRONG_TRAINERS for name in trainer.red}
