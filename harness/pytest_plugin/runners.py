"""The runner of each subject of a run, made once and shared by all items."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from harness.core.errors import SubjectError
from harness.pytest_plugin.options import deviations_of, subject_names

if TYPE_CHECKING:
    from harness.judging.runner import Runner
    from harness.subjects.protocols import Subject

_runners = pytest.StashKey[dict[str, "Runner"]]()


def runner_of(config: pytest.Config, name: str) -> Runner:
    """Return the runner of one subject. Raises SubjectError if the subject cannot be imported."""
    runners = config.stash.setdefault(_runners, {})
    if name not in runners:
        from harness.judging.runner import make_runner  # imports torch, which other projects' runs must not pay for

        runners[name] = make_runner(
            name,
            isolate=config.getoption("--isolate"),
            seconds=config.getoption("--time-limit") or None,
            memory_gib=config.getoption("--memory-limit"),
            echo=config.getoption("capture") == "no",
            own=config.getoption("--subject") is not None,
            deviations=deviations_of(config, name),
        )
    return runners[name]


def subject_of(config: pytest.Config) -> Subject:
    """Return the subject of a benchmark run. Raises SubjectError."""
    from harness.judging.in_process import InProcessJudge  # see above

    names = subject_names(config)
    judge = runner_of(config, names[0]).judge
    if len(names) > 1 or not isinstance(judge, InProcessJudge):
        raise SubjectError("benchmarks take one --subject, without --isolate")
    return judge.subject


def close_runners(config: pytest.Config) -> None:
    """Release every subject, and end the processes of isolated ones."""
    for runner in config.stash.get(_runners, {}).values():
        runner.close()
