"""What surrounds an answer of an isolated worker, so that nothing else on the pipe is taken for the answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from harness.core.printable import printable
from harness.core.record_files import decode, encode

SHOWN = 60  # bytes of a line that is no answer


class NoAnswer(Exception):  # noqa: N818 - says what the line is not
    """The line is not the answer to the question that was asked. The message says what was found."""


@dataclass(frozen=True)
class Envelope:
    """The number of a question, the worker's secret, and the process that answers.

    A process that the subject forked has another id, and an answer that comes late has another number. What the subject
    writes to every descriptor has no `token`, which is drawn for each worker. A subject that looks for the token in the
    memory of its own process can answer as the worker would: isolation protects from mistakes, not from an attack.
    """

    number: int
    token: str
    process: int

    def sealed(self, answer: Mapping[str, Any]) -> str:
        """Return the answer as a line."""
        return json.dumps({**asdict(self), "answer": encode(answer)}) + "\n"

    def opened(self, line: bytes) -> dict[str, Any]:
        """Return the answer in a line. Raises NoAnswer if it is not this envelope's."""
        try:
            found = decode(json.loads(line))
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or found.get("token") != self.token or not isinstance(found.get("answer"), dict):
            text = printable(line[:SHOWN].decode("utf-8", "replace"))
            raise NoAnswer(f"{text!r} came where an answer was expected: the subject writes to descriptors of others")
        if found.get("process") != self.process:
            raise NoAnswer(f"process {found.get('process')} answered, which was forked from process {self.process}")
        if found.get("number") != self.number:
            raise NoAnswer(f"the answer to question {found.get('number')} came when question {self.number} was asked")
        answer: dict[str, Any] = found["answer"]
        return answer
