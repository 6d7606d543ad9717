"""Every declared check of training turns red for a wrong trainer, and for no right one."""

import pytest

from harness.judging.run_check import run
from harness.measures.all_measures import measures
from harness.tests.training.right_trainers import RIGHT_TRAINERS
from harness.tests.training.specimen_changes import SPECIMEN
from harness.tests.training.wrong_trainers import WRONG_TRAINERS
from harness.training.program import TrainingProgram


@pytest.fixture
def checks(shipped):
    """Return the checks of training programs, by suite::id."""
    return {name: check for name, check in shipped.items() if check.suite in ("data", "training")}


def rehearsals(check):
    """Return the rehearsals that a check judges."""
    parameters = measures()[check.measure].parameters
    defaults = {name: parameters[name].default for name in ("rehearsal", "other") if name in parameters}
    return {check.parameters.get(name, default) for name, default in defaults.items()}


def judged(checks, program, recorded):
    """Return the records of all checks that these rehearsals are enough for."""
    return {name: run(check, program) for name, check in checks.items() if rehearsals(check) <= recorded}


@pytest.fixture
def program(tmp_path):
    """Return a function that makes a program of the specimen with a change."""
    made = []

    def of(trainer):
        file = tmp_path / "train.py"
        file.write_text(trainer.source_text(), encoding="utf-8")
        made.append(TrainingProgram(str(file)))
        return made[-1]

    yield of
    for each in made:
        each.close()


@pytest.mark.parametrize("trainer", WRONG_TRAINERS, ids=lambda trainer: trainer.id)
def test_a_wrong_trainer_fails_its_checks_and_no_other(checks, program, trainer):
    needed = set().union(*(rehearsals(checks[name]) for name in trainer.red))
    records = judged(checks, program(trainer), needed)
    red = {name: record.message for name, record in records.items() if record.verdict in ("fail", "error")}
    assert red.keys() == set(trainer.red), red
    assert all(records[name].verdict == "fail" for name in red), red
    hints = [hint for name in red if (hint := str(records[name].details.get("hint", "")))]
    assert any(trainer.hint in hint for hint in hints) if trainer.hint else not hints, hints


@pytest.mark.parametrize("trainer", RIGHT_TRAINERS, ids=lambda trainer: trainer.id)
def test_a_right_trainer_of_another_convention_raises_no_alarm(checks, program, trainer):
    records = judged(checks, program(trainer), set(trainer.rehearsals))
    assert {name: r.message for name, r in records.items() if r.verdict in ("fail", "error")} == {}
    assert any(record.verdict == "pass" for record in records.values())


def test_the_specimen_itself_passes_every_check(checks):
    program = TrainingProgram(str(SPECIMEN))
    records = {name: run(check, program) for name, check in checks.items()}
    program.close()
    assert {name: r.message for name, r in records.items() if r.verdict != "pass"} == {}


def test_every_check_turns_red_for_a_wrong_trainer(checks):
    assert checks.keys() == {name for trainer in WRONG_TRAINERS for name in trainer.red}
