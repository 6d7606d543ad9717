"""The runner of each subject of a run, made once and shared by all items."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest

from harness.core.errors import SubjectError
from harness.pytest_plugin.options import (
    DEFAULT_SUBJECT,
    deviations_of,
    is_isolated,
    subject_names,
    trainer_deviations_of,
)

if TYPE_CHECKING:
    from harness.judging.runner import Runner
    from harness.judging.trainer_runner import TrainerRunner
    from harness.subjects.protocols import Subject

_runners = pytest.StashKey[dict[str, "Runner"]]()
_trainer_runners = pytest.StashKey[dict[str, "TrainerRunner"]]()


def runner_of(config: pytest.Config, name: str) -> Runner:
    """Return the runner of one subject. Raises SubjectError if the subject cannot be imported."""
    runners = config.stash.setdefault(_runners, {})
    if name not in runners:
        from harness.judging.runner import make_runner  # imports torch, which other projects' runs must not pay for

        runners[name] = make_runner(
            name,
            isolate=is_isolated(config),
            seconds=config.getoption("--time-limit") or None,
            memory_gib=config.getoption("--memory-limit"),
            echo=config.getoption("capture") == "no",
            own=config.getoption("--subject") is not None,
            deviations=deviations_of(config, name),
            two_processes=not hasattr(config, "workerinput") and not config.getoption("usepdb"),
        )
    return runners[name]


def trainer_runner_of(config: pytest.Config, name: str) -> TrainerRunner:
    """Return the runner of one training program. Raises SubjectError if there is none of this name."""
    runners = config.stash.setdefault(_trainer_runners, {})
    if name not in runners:
        from harness.judging.trainer_runner import TrainerRunner  # see above

        runners[name] = TrainerRunner(
            name,
            chosen=config.getoption("--set") or (),
            seconds=config.getoption("--time-limit") or None,
            memory_gib=config.getoption("--memory-limit"),
            echo=config.getoption("capture") == "no",
            own=config.getoption("--trainer") is not None,
            deviations=trainer_deviations_of(config, name),
        )
    return runners[name]


def subject_of(config: pytest.Config) -> Subject:
    """Return the subject of a benchmark run. Raises SubjectError."""
    from harness.judging.in_process import InProcessJudge  # see above

    names = subject_names(config) or [DEFAULT_SUBJECT]
    judge = runner_of(config, names[0]).judge
    if len(names) > 1 or not isinstance(judge, InProcessJudge):
        raise SubjectError("benchmarks take one --subject, without --isolate")
    return judge.subject


def close_runners(config: pytest.Config) -> None:
    """Release every subject and training program, and end the processes of isolated ones."""
    for runner in config.stash.get(_runners, {}).values():
        runner.close()
    for trainer_runner in config.stash.get(_trainer_runners, {}).values():
        trainer_runner.close()
    gc.freeze()  # pytest looks for garbage ten times before it ends, in all that torch creates
