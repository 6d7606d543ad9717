"""What a subject prints while it is judged: taken in, counted, and cut to what a person reads."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

KEPT = 1000  # characters of each end of a long output


@dataclass
class Output:
    """How much was printed, in bytes, and how it begins."""

    size: int = 0
    begins: str = ""

    def as_row(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"bytes": self.size, "begins": self.begins}


def cut(text: str, longest: int = 2 * KEPT) -> str:
    """Both ends of a long text, and between them how much was left out."""
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half:,} characters left out ...]\n{text[-half:]}"


@contextlib.contextmanager
def captured_output(output: Output) -> Iterator[None]:
    """While open, standard output and error go nowhere but into `output`, which keeps the beginning.

    What Python prints is not stored at all; what comes by the file descriptors (C, child processes) waits in a
    temporary file, since a pipe that nobody reads in time would stop whoever fills it.
    """
    sink = _Sink()
    before = sys.stdout, sys.stderr
    with tempfile.TemporaryFile() as file, _descriptors_to(file):
        sys.stdout = sys.stderr = io.TextIOWrapper(sink, "utf-8", "replace", write_through=True)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before
            file.seek(0, os.SEEK_END)
            output.size = sink.size + file.tell()
            file.seek(0)
            output.begins = (bytes(sink.first) + file.read(KEPT))[:KEPT].decode("utf-8", "replace")


class _Sink(io.RawIOBase):
    """Counts bytes and keeps the first."""

    def __init__(self) -> None:
        self.size = 0
        self.first = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        count = len(data)
        self.size += count
        if len(self.first) < KEPT:
            self.first += bytes(data[: KEPT - len(self.first)])
        return count

    def fileno(self) -> int:
        return 1  # which is taken in as well


@contextlib.contextmanager
def _descriptors_to(file: IO[bytes]) -> Iterator[None]:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    saved = [(number, os.dup(number)) for number in (1, 2)]
    try:
        for number, _ in saved:
            os.dup2(file.fileno(), number)
        yield
    finally:
        for number, copy in saved:
            os.dup2(copy, number)
            os.close(copy)
