"""One process of the trainer: `python -m gpt.train`, started, watched and stopped."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from harness.core.shipped_packages import HOME
from harness.lessons.lesson_file import flags
from harness.lessons.run_folder import OUTPUT, RunFolder
from harness.lessons.training_log import NOT_FINITE

TRAINER = "gpt.train"  # a name, not an import: the trainer runs in processes of its own
UNTIL_SAVED = 60.0  # seconds that a stopped trainer has to save its checkpoint
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class TrainerProcess:
    """A running trainer. It has one thread, so that its result does not depend on the number of cores.

    `minutes` is the most it may take; 0 is no limit. `text` replaces the text of the settings.
    """

    def __init__(self, folder: RunFolder, *, minutes: float, text: Path | None = None, commit: str | None = None,
                 threads: int | None = 1) -> None:  # fmt: skip
        self.folder = folder
        self.started = time.monotonic()
        self.first_step = folder.log.steps_done
        resuming = folder.prepare(commit)
        arguments = command(folder, resuming=resuming, minutes=minutes, text=text)
        with (folder.path / OUTPUT).open("ab") as output:
            # In a session of its own, so that Ctrl-C reaches it once: from this process.
            self._process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=child_environment(threads),
                start_new_session=True, preexec_fn=_stop_with_parent,
            )  # fmt: skip

    @property
    def status(self) -> int | None:
        """The exit status; None while it runs."""
        return self._process.poll()

    @property
    def seconds(self) -> float:
        """The seconds since the process was started."""
        return time.monotonic() - self.started

    def interrupt(self) -> None:
        """Ask the trainer to save and stop."""
        if self.status is None:
            self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """End the trainer at once; what it did since its last checkpoint is lost."""
        self._process.kill()
        self._process.wait()

    def close(self) -> bool:
        """Note in the folder how the process ended, and return True if the run is finished.

        A run whose loss is not finite is finished too: that is its result.
        """
        finished = self.status == 0 or self.folder.log.ended == NOT_FINITE
        self.folder.add(self.seconds, finished=finished)
        return finished


def command(folder: RunFolder, *, resuming: bool, minutes: float, text: Path | None) -> Sequence[str]:
    """Return the command line of the trainer."""
    # -P: a gpt.py in the user's folder is not the trainer.
    python = [sys.executable, "-P", "-m", TRAINER]
    budget = ["--budget", f"{minutes:.3f}"]
    if resuming:
        return [*python, "--resume", str(folder.path), *budget]
    settings = {**folder.run.settings, "seed": folder.run.seed} | ({"text": str(text)} if text else {})
    return [*python, "--out", str(folder.path), *flags(settings), *budget]


def child_environment(threads: int | None) -> dict[str, str]:
    """Return the environment of a trainer: where the package is, and the number of its threads (None: torch's)."""
    found = dict(os.environ)
    found["PYTHONPATH"] = os.pathsep.join([str(HOME), *filter(None, [found.get("PYTHONPATH")])])
    if threads is not None:
        found |= {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return found


def _stop_with_parent() -> None:
    """Have Linux send SIGTERM to this process when its parent ends, even if that was killed: the trainer then saves."""
    with contextlib.suppress(OSError, AttributeError):  # other systems have no prctl
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
