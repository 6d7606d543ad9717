"""A sweep on a Ray cluster: each run is a task, which trains in a folder of its own machine and sends its files back.

The machines share no file system: a task is sent the text and the settings. They need the same version of this package
installed. Ray repeats a task whose machine is lost; a run that was not finished starts again.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.core.errors import HarnessError
from harness.core.shipped_packages import HOME
from harness.lessons.execution import Outcome, StopRequest
from harness.lessons.lesson_file import LessonRun
from harness.lessons.progress import Progress
from harness.lessons.run_folder import ENVIRONMENT, OUTPUT, STATE, RunFolder
from harness.lessons.trainer_process import TrainerProcess
from harness.lessons.training_log import LOG
from harness.sweeps.sweep_runs import SweepRun

SENT_BACK = (STATE, LOG, ENVIRONMENT, OUTPUT)  # what the records and the report read; checkpoints stay behind
STATE_LAST = (LOG, ENVIRONMENT, OUTPUT, STATE)  # a folder with a state has its log
LOCAL_WORKERS = 2
POLL = 1.0  # seconds
LOST = 2  # times that Ray repeats a task whose worker died


def require_ray() -> Any:
    """Return the module ray. Raises HarnessError if it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise HarnessError(
            "--ray needs the package ray, which is not installed: `pip install 'gpt-harness[sweep]'`; "
            "--jobs N does the same runs on this machine without it"
        ) from error
    return ray


def execute_on_cluster(
    runs: Sequence[SweepRun], *, address: str, minutes: float, commit: str | None, progress: Progress
) -> Outcome:
    """Do the runs that are not finished as Ray tasks of one CPU each, and return what came of them.

    `address` is that of a cluster, or "local" for one of two workers on this machine. When `minutes` are over (0: no
    limit) or after Ctrl-C or SIGTERM, the tasks are cancelled: what is finished is kept, the others start again next
    time.

    Raises HarnessError without ray, and for a cluster that cannot be reached.
    """
    ray = require_ray()
    outcome = Outcome(finished=[run.name for run in runs if run.folder.finished])
    waiting = sorted((run for run in runs if not run.folder.finished), key=lambda run: -run.folder.run.seconds)
    if not waiting:
        return outcome
    _connect(ray, address)
    try:
        _collect(ray, waiting, outcome, minutes=minutes, commit=commit, progress=progress)
    finally:
        ray.shutdown()
    return outcome


def _connect(ray: Any, address: str) -> None:
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, [str(HOME), os.environ.get("PYTHONPATH")]))}}
    options: dict[str, Any] = {"runtime_env": environment, "log_to_driver": False, "include_dashboard": False}
    if address == "local":
        ray.init(address=address, num_cpus=LOCAL_WORKERS, **options)
        return
    try:
        ray.init(address=address, runtime_env=environment, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise HarnessError(
            f"--ray {address}: no cluster answers there ({error}); expected HOST:PORT, or local"
        ) from error


def _collect(
    ray: Any, waiting: Sequence[SweepRun], outcome: Outcome, *, minutes: float, commit: str | None, progress: Progress
) -> None:
    """Submit the runs, and write each one's files into its folder as soon as it is done."""
    task = ray.remote(train).options(num_cpus=1, max_retries=LOST)
    texts: dict[Path, Any] = {}
    for run in waiting:
        if run.text not in texts:
            texts[run.text] = ray.put(run.text.read_bytes())
    pending = {task.remote(_sent(run), run.folder.fingerprint, texts[run.text], commit): run for run in waiting}
    deadline = time.monotonic() + 60 * minutes if minutes else None
    with StopRequest().entered() as stop:  # Ray's own handler of SIGTERM would end this process
        while pending and not stop.signals and (deadline is None or time.monotonic() < deadline):
            for reference in ray.wait(list(pending), num_returns=1, timeout=POLL)[0]:
                _receive(ray, reference, pending.pop(reference), outcome, progress)
        outcome.signal = stop.signals[0] if stop.signals else None
    why = "stopped" if outcome.signal else "the budget was used up"
    for reference, run in pending.items():
        ray.cancel(reference, force=True)
        outcome.unfinished[run.name] = f"{why} before its end; it starts again"


def _receive(ray: Any, reference: Any, run: SweepRun, outcome: Outcome, progress: Progress) -> None:
    try:
        files, node = ray.get(reference)
    except Exception as error:  # what the task raised, or the loss of its worker
        outcome.failed[run.name] = str(error).strip().splitlines()[-1]
        progress.message(f"{run.name} failed: {outcome.failed[run.name]}")
        return
    write_files(run.folder, files)
    if run.folder.finished:
        outcome.finished.append(run.name)
        progress.finished(run.folder.run, f"finished after {run.folder.state.seconds / 60:.1f} min on {node}")
    else:
        outcome.failed[run.name] = run.folder.last_words()
        progress.message(f"{run.name} failed: {outcome.failed[run.name]}")


def write_files(folder: RunFolder, files: Mapping[str, bytes]) -> None:
    """Replace a run's folder by the files of a task, the state last."""
    shutil.rmtree(folder.path, ignore_errors=True)
    folder.path.mkdir(parents=True)
    for name in STATE_LAST:
        if name in files:
            (folder.path / name).write_bytes(files[name])


def train(sent: Mapping[str, Any], fingerprint: str, text: bytes, commit: str | None) -> tuple[dict[str, bytes], str]:
    """Train one run in a temporary folder; return its files by name, and the name of the machine. Runs on a worker."""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary, "text.txt")
        path.write_bytes(text)
        folder = RunFolder(Path(temporary), LessonRun(**sent), fingerprint)
        process = TrainerProcess(folder, minutes=0, text=path, commit=commit, threads=_threads(sent))
        try:
            while process.status is None:
                time.sleep(0.2)
        except BaseException:  # a cancelled task
            process.kill()
            raise
        process.close()
        files = {name: (folder.path / name).read_bytes() for name in SENT_BACK if (folder.path / name).is_file()}
    return files, os.uname().nodename


def _threads(sent: Mapping[str, Any]) -> int | None:
    return 1 if sent["settings"]["device"] == "cpu" else None


def _sent(run: SweepRun) -> dict[str, Any]:
    """Return a run as plain data, so that a worker needs no class of this process."""
    one = run.folder.run
    return {
        "lesson": one.lesson,
        "arm": one.arm,
        "seed": one.seed,
        "settings": dict(one.settings),
        "seconds": one.seconds,
    }
