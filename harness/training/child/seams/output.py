"""The seam of the output: the lines that a program prints, with the step at which it does."""

from __future__ import annotations

import re
import sys
from typing import Any

from harness.training.child.recorder import Recorder


class Lines:
    """Standard output or error: what is written goes on to the stream, and its lines are recorded."""

    def __init__(self, stream: Any, recorder: Recorder) -> None:
        self._stream, self._recorder = stream, recorder
        self._begun = ""

    def write(self, text: str) -> int:
        """Write a text, and record each line that it ends. A carriage return ends one too, as in progress bars."""
        count: int = self._stream.write(text)
        *lines, self._begun = re.split(r"[\r\n]", self._begun + text)
        for line in lines:
            if line.strip():
                self._recorder.printed(line)
        return count

    def writelines(self, lines: Any) -> None:
        """Write lines."""
        for line in lines:
            self.write(line)

    def end(self) -> None:
        """Record a last line that was not ended."""
        if self._begun.strip():
            self._recorder.printed(self._begun)
        self._begun = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __iter__(self) -> Any:
        return iter(self._stream)


class OutputSeam:
    """Replaces `sys.stdout` and `sys.stderr`."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._before: tuple[Any, Any] | None = None
        self._lines: list[Lines] = []

    def install(self) -> None:
        """Record what is printed from now on."""
        self._before = sys.stdout, sys.stderr
        self._lines = [Lines(stream, self.recorder) for stream in self._before]
        sys.stdout, sys.stderr = self._lines

    def remove(self) -> None:
        """Restore the streams."""
        for lines in self._lines:
            lines.end()
        if self._before is not None:
            sys.stdout, sys.stderr = self._before
