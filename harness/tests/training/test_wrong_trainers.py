"""Every declared check of training turns red for a wrong trainer, and for no right one."""

import ast

import pytest

from harness.core.shipped_packages import SUITES
from harness.faults.matrix import RED
from harness.faults.training import EPOCHS, FUNCTIONS, RIGHT_TRAINERS, SCRIPT, TRAINER_CLASS, WRONG_TRAINERS
from harness.faults.training.matrix import judge_trainer, training_checks
from harness.judging.run_check import run
from harness.training.program import TrainingProgram

# Mistakes that the diagnosis places elsewhere: where the line is not one of an event, nor of a kind that it looks for.
NOT_PLACED = frozenset(
    (
        *("loss-averaged-over-pads", "data-trains-on-val-batch", "batch-comes-again", "data-workers-repeat"),
        "micro-batches-are-one",  # the line that draws is found, and the mistake is on the one that calls it
        *("ckpt-rng-missing", "data-ranks-read-same", "grad-sum-instead-of-mean"),
        *("sampler-position-in-batches", "ema-has-dropout", "first-batch-of-a-shard-skipped"),
    )
)
# Of the programs of the other specimens a sample is judged here, and of the mistakes none that are only counted: the
# others are for `gpt-harness faults --training`.
DEVELOPED = [trainer for trainer in WRONG_TRAINERS if trainer.group == "training"]


def sample(trainers, every):
    """Return the script's programs, and every so-many-th of the others."""
    others = [trainer for trainer in trainers if trainer.specimen != SCRIPT]
    return [trainer for trainer in trainers if trainer.specimen == SCRIPT] + others[::every]


RANKS = {
    "training::lr-at-each-step,rehearsal=two-ranks",
    "data::rows-of-a-batch-differ,rehearsal=two-ranks",
    "training::ranks-agree",
    "training::ranks-are-one-batch",
}
OVERFIT = "training::overfits-one-batch"
MEAN, BEST = "training::mean-of-weights", "training::best-checkpoint-is-the-best"
SIDE_BY_SIDE = {"data::padding-is-no-target", "data::starts-are-uniform"}
BEST_WEIGHTS = "training::best-checkpoint-has-its-weights"
WORKERS = "data::epoch-coverage,rehearsal=workers"
BY_EPOCHS = {f"training::{check},rehearsal=epochs" for check in ("lr-at-each-step", "printed-validation-loss")}
OWN_PRECISION = {
    f"training::{check},rehearsal=own-precision"
    for check in (
        *("gradient-is-of-this-batch", "clipping", "weights-and-moments-are-float32", "few-updates-are-lost"),
    )
}
OF_STEPS = {
    *("training::lr-at-each-step,rehearsal=past-horizon", "training::printed-validation-loss,rehearsal=plain"),
    "training::validation-leaves-no-trace",
}
FINITE = "training::numbers-stay-finite,rehearsal=overfit"
ONE_TEXT = {
    f"training::{check}"
    for check in ("loss-below-entropy", "plateau-of-the-next-token", "numbers-stay-finite,rehearsal=markov")
}
MUON = {"training::muon-step"}
LACKS = {
    SCRIPT: MUON | BY_EPOCHS | OWN_PRECISION | {"data::padding-is-no-target", MEAN, WORKERS},
    TRAINER_CLASS: MUON | BY_EPOCHS | OWN_PRECISION | RANKS | SIDE_BY_SIDE | {OVERFIT, FINITE, BEST, BEST_WEIGHTS},
    FUNCTIONS: MUON | BY_EPOCHS | OWN_PRECISION | RANKS | SIDE_BY_SIDE | {MEAN, BEST, BEST_WEIGHTS, WORKERS},
    EPOCHS: MUON | RANKS | SIDE_BY_SIDE | OF_STEPS | ONE_TEXT | {OVERFIT, FINITE, BEST, MEAN},
}


def red_of(row):
    """Return the messages of a row's red checks, by suite::id."""
    return {f"{c['suite']}::{c['id']}": c["message"] for c in row["checks"] if c["verdict"] in RED}


@pytest.mark.parametrize("trainer", sample(DEVELOPED, 5), ids=lambda trainer: trainer.id)
def test_a_wrong_trainer_fails_its_checks_and_no_other_and_is_named_and_placed(trainer):
    row = judge_trainer(trainer, SUITES)
    assert red_of(row).keys() == set(trainer.red), red_of(row)
    assert all(check["verdict"] != "error" for check in row["checks"])
    assert row["named"], row["findings"]
    assert row["localised"] == (trainer.id not in NOT_PLACED), (row["where"], row["findings"])


@pytest.mark.parametrize("trainer", sample(RIGHT_TRAINERS, 4), ids=lambda trainer: trainer.id)
def test_a_right_trainer_of_another_convention_raises_no_alarm(trainer):
    row = judge_trainer(trainer, SUITES)
    assert red_of(row) == {}
    assert any(check["verdict"] == "pass" for check in row["checks"])
    assert row["findings"] == []


@pytest.mark.parametrize("specimen", [SCRIPT, TRAINER_CLASS, FUNCTIONS, EPOCHS], ids=lambda path: path.stem)
def test_a_specimen_passes_every_check_that_it_has_the_ability_for(specimen):
    program = TrainingProgram(str(specimen))
    records = {f"{check.suite}::{check.id}": run(check, program) for check in training_checks(SUITES)}
    program.close()
    others = {name: record.message for name, record in records.items() if record.verdict != "pass"}
    assert all(records[name].verdict == "skip" for name in others), others
    assert set(others) == LACKS[specimen], others


@pytest.mark.parametrize("trainer", [*WRONG_TRAINERS, *RIGHT_TRAINERS], ids=lambda trainer: trainer.id)
def test_a_change_makes_another_program_that_can_be_parsed(trainer):
    assert ast.dump(ast.parse(trainer.source_text())) != ast.dump(ast.parse(trainer.specimen.read_text()))


def test_the_ids_differ_and_half_of_the_later_mistakes_are_only_counted():
    programs = [*WRONG_TRAINERS, *RIGHT_TRAINERS]
    assert len({trainer.id for trainer in programs}) == len(programs)
    later = [trainer for trainer in WRONG_TRAINERS if trainer.by_lot]
    counted = [trainer for trainer in later if trainer.group == "training-counted"]
    assert 0.4 < len(counted) / len(later) < 0.6


def test_every_check_turns_red_for_a_wrong_trainer():
    checks = {f"{check.suite}::{check.id}" for check in training_checks(SUITES)}
    assert checks == {name for trainer in DEVELOPED for name in trainer.red}
