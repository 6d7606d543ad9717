"""Signals that are sent when something is true."""

import os
import signal
import threading
import time


def wait_for(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def signal_when(condition, number=signal.SIGINT):
    """Send this process a signal as soon as the condition is true, from a thread."""

    def send():
        wait_for(condition)
        os.kill(os.getpid(), number)

    threading.Thread(target=send).start()
