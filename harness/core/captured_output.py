"""The output that a subject prints while it is judged: captured, counted and shortened."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

EXCERPT = 1000  # bytes of captured output that are stored; characters at each end of a shortened text


@dataclass
class CapturedOutput:
    """The size of an output in bytes, and its beginning."""

    size: int = 0
    begins: str = ""

    def as_row(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return {"bytes": self.size, "begins": self.begins}


def shorten(text: str, longest: int = 2 * EXCERPT) -> str:
    """Return the text, with the middle replaced by the number of characters left out when it is over `longest`."""
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half:,} characters left out ...]\n{text[-half:]}"


@contextlib.contextmanager
def captured_output(output: CapturedOutput) -> Iterator[None]:
    """Capture standard output and error inside the block; fill in `output` at its end.

    Of Python's output only the size and the beginning are stored. Output that C code or child processes write to the
    file descriptors goes to a temporary file: a full pipe would block the process that writes to it.
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
            output.begins = (bytes(sink.first) + file.read(EXCERPT))[:EXCERPT].decode("utf-8", "replace")


class _Sink(io.RawIOBase):
    """Counts bytes and stores the first ones."""

    def __init__(self) -> None:
        self.size = 0
        self.first = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        count = len(data)
        self.size += count
        if len(self.first) < EXCERPT:
            self.first += bytes(data[: EXCERPT - len(self.first)])
        return count

    def fileno(self) -> int:
        return 1  # standard output, which is captured as well


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
