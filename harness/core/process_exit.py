"""Protection of the judging process from a subject that calls os._exit or os.exec*."""

from __future__ import annotations

import contextlib
import operator
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

UNFINISHED = 3  # pytest's own status for an internal error
GUARDED = ("_exit", "execv", "execve")  # the other os.exec* functions call one of these two


class ProcessExit(BaseException):
    """Raised in the subject at the call that would have ended the process.

    It is a BaseException, because few programs catch that.
    """


_guards: list[ExitGuard] = []  # those that are installed
_blocks = 0  # the number of open `subject_at_work` blocks


@contextlib.contextmanager
def subject_at_work() -> Iterator[None]:
    """Mark the code inside the block as the subject's: an installed ExitGuard then raises ProcessExit.

    A process that the subject forked inside the block is killed where it would leave it: it would go on to judge the
    next checks, and answer in place of the process that it was forked from.
    """
    global _blocks
    _blocks += 1
    process = os.getpid()
    try:
        yield
    finally:
        _blocks -= 1
        if os.getpid() != process:
            os.kill(os.getpid(), signal.SIGKILL)


def guarded_stderr() -> int | None:
    """Return standard error as it was when an ExitGuard was installed in this process; None if none is."""
    return next((guard.stderr for guard in reversed(_guards) if guard.process == os.getpid()), None)


class ExitGuard:
    """Replace os._exit, os.execv and os.execve in this process, from `install` to `remove`.

    - In the main thread, inside `subject_at_work`, a call raises ProcessExit, which becomes the check's verdict.
    - Elsewhere (another thread, an exit handler) os._exit(0) and os.exec* end the process with `status`, so that a run
      that ends early is not reported as a success. The status is UNFINISHED until `finish` sets it.
    - In a child process forked from this one, a call has its usual effect.

    A C library that ends the process is not detected; `--isolate` survives that.
    """

    def __init__(self) -> None:
        self.status = UNFINISHED
        self.process = os.getpid()
        self.stderr: int | None = None
        self._exit = os._exit
        self._originals: list[tuple[Any, str, Callable[..., Any]]] = []

    def install(self) -> None:
        """Replace the functions in `os` and in the module that `os` imports them from."""
        with contextlib.suppress(OSError):  # a process may have no standard error
            self.stderr = os.dup(2)  # a copy: while a check runs, descriptor 2 is captured
        _guards.append(self)
        for owner in (os, sys.modules[os.name]):
            for name in GUARDED:
                original = getattr(owner, name)
                self._originals.append((owner, name, original))
                setattr(owner, name, self._guarded(name, original))

    def finish(self, status: int) -> None:
        """Set the status of the finished run: a later os._exit(0) must not hide that it failed."""
        self.status = status

    def remove(self) -> None:
        """Restore the original functions, and close the copy of standard error."""
        if self in _guards:
            _guards.remove(self)
        if self.stderr is not None:
            with contextlib.suppress(OSError):  # the subject has closed it
                os.close(self.stderr)
            self.stderr = None
        while self._originals:
            owner, name, original = self._originals.pop()
            setattr(owner, name, original)

    def _guarded(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*arguments: Any, **keywords: Any) -> Any:
            first = next(iter((*arguments, *keywords.values())), None)  # a status, or the program to run instead
            if os.getpid() == self.process:
                if _blocks and threading.current_thread() is threading.main_thread():
                    raise ProcessExit(f"os.{name}({first!r}) would have ended the process that judges it")
                if self.status and (name != "_exit" or _is_success(first)):
                    self._explain(f"os.{name}({first!r})")
                    return self._exit(self.status)
            return original(*arguments, **keywords)

        return guarded

    def _explain(self, call: str) -> None:
        caller = sys._getframe(1).f_back  # None for an exit handler, which the interpreter calls
        at = f" at {caller.f_code.co_filename}:{caller.f_lineno}" if caller else ""
        text = (
            f"\ngpt-harness: {call}{at} ended this process; "
            f"it exits with status {self.status}, since the run "
            f"{'had not finished' if self.status == UNFINISHED else 'failed'}\n"
        )
        self._write(text)

    def _write(self, text: str) -> None:
        if self.stderr is not None:
            with contextlib.suppress(OSError):
                os.write(self.stderr, text.encode("utf-8", "replace"))


def _is_success(status: Any) -> bool:
    """Return True if os._exit(status) would end with status 0: the system keeps the low byte."""
    try:
        return operator.index(status) % 256 == 0
    except TypeError:
        return False  # os._exit raises
