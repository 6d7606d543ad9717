"""What tests ask of processes that they did not start themselves."""

import time
from pathlib import Path


def ends(process: int, seconds: float = 20.0) -> bool:
    """Return True if a process ends within these seconds: one that nobody waits for is then a zombie, or gone."""
    until = time.monotonic() + seconds
    while (running := is_running(process)) and time.monotonic() < until:
        time.sleep(0.1)
    return not running


def is_running(process: int) -> bool:
    """Return True if a process is there, and no zombie."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="ascii")
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
