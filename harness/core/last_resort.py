"""A process that ends this one if nothing in it can: a loop in C keeps the lock that each thread of Python needs."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import signal
import threading
import time
from multiprocessing import connection

from harness.core.error_text import display_path, is_user_file
from harness.core.marked_processes import MARK, kill_marked
from harness.core.patience import Patience

LAST = 10.0  # seconds from the time that is over to the end of the process; an isolated one has 5
EXIT = 10.0  # seconds for threads and exit handlers, before the LAST ones
POLL = 0.05  # seconds between two looks at whether the watched process still lives
NEXT, OVER = b"\0", b"\1"  # of what the watched process writes: it goes on to something else; its run is over
STACK = b"(most recent call first)"  # in all that faulthandler writes
ADVICE = "What was judged is in the records. With --isolate, this costs one check"
LATE = "what runs cannot be interrupted{at}. The run ends here. " + ADVICE
STAYS = "the run is over, but an exit handler or a thread without daemon=True does not end{at}. It is ended here"


class LastResort:
    """A process forked from this one. It reads stacks that faulthandler writes when a time is over, without the lock.

    If this process does not go on within LAST seconds, in which no time counts that both were suspended (Ctrl-Z), it is
    killed, with the reason on standard error. If it ends otherwise before its run is over, that is said, too.
    """

    def __init__(self, stderr: int) -> None:
        self._owner = os.getpid()
        read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        main = threading.main_thread().ident or 0
        if os.fork() == 0:
            try:
                _close_all_but(read, stderr)
                _watch(read, stderr, self._owner, main)
            finally:
                os._exit(0)
        os.close(read)
        # Before threads are waited for and exit handlers run; what `atexit` calls comes after the threads.
        getattr(threading, "_register_atexit", lambda _: None)(self._leave)

    def arm(self, seconds: float, why: str) -> None:
        """Have this process ended if it neither is disarmed in time nor within LAST seconds after that."""
        self._say(NEXT + why.encode() + b"\n", seconds)

    def disarm(self) -> None:
        """Say that this process goes on."""
        self._say(NEXT)

    def run_is_over(self) -> None:
        """Say that this process may end now."""
        self._say(NEXT + OVER)

    def _leave(self) -> None:
        self._say(NEXT + OVER + STAYS.encode() + b"\n", EXIT)

    def _say(self, what: bytes, seconds: float | None = None) -> None:
        """Tell the other process, and have the stack written after these seconds. A forked process does nothing."""
        if os.getpid() != self._owner:
            return
        faulthandler.cancel_dump_traceback_later()
        with contextlib.suppress(OSError):  # the subject has closed it
            os.write(self._write, what)
        if seconds is not None:
            faulthandler.dump_traceback_later(seconds, file=self._write)


def _close_all_but(*kept: int) -> None:
    """Close all other descriptors: a pipe of the run ends with the run, and not with this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    last = -1
    for descriptor in (*sorted(kept), os.sysconf("SC_OPEN_MAX")):
        os.closerange(last + 1, descriptor)
        last = descriptor


def _watch(read: int, stderr: int, owner: int, main: int) -> None:
    """Be the other process: wait for a stack, and kill the owner if nothing follows it. Return when that has ended."""
    received, patience = NEXT, Patience(LAST)
    while os.getppid() == owner:
        if connection.wait([read], POLL):
            if not (piece := os.read(read, 1 << 16)):
                time.sleep(POLL)
                if os.getppid() == owner:
                    return  # the subject has closed the pipe: nothing will be known
            received, patience = (received + piece)[(received + piece).rfind(NEXT) :], Patience(LAST)
        elif STACK in received and patience.is_over():
            _say(stderr, received[1:].removeprefix(OVER).partition(b"\n")[0].decode().format(at=_place(received, main)))
            os.kill(owner, signal.SIGKILL)
            return
    if mark := os.environ.get(MARK):  # an isolated worker, which may be killed together with the run
        kill_marked(mark)
    if OVER not in received:
        _say(stderr, f"the process ended before its run did. {ADVICE}")


def _place(stack: bytes, main: int) -> str:
    """Return the innermost line of the user's in the main thread; else in any thread; "" if there is none."""
    threads = stack.decode("utf-8", "replace").split("Thread 0x")
    threads.sort(key=lambda each: not each.startswith(f"{main:016x}"))
    found = re.findall(r'File "(.+)", line (\d+)', "".join(threads))
    return next((f": it is at {display_path(file)}:{line}" for file, line in found if is_user_file(file)), "")


def _say(stderr: int, text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(stderr, f"\ngpt-harness: {text}\n".encode("utf-8", "replace"))
