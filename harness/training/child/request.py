"""What a child process is to do: one training program, with its arguments, under the recorder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Detail = Literal["tensors", "hashes", "losses"]
PRINTED = "printed.txt"  # what the program printed, in the folder of its recording
# Of a model whose tensors are recorded; larger ones have hashes. GPT-2's vocabulary, untied, has 3.2 million at the
# width of the rehearsals.
MOST_PARAMETERS = 4_000_000
MOST_BYTES = 1024 * 2**20  # of tensors in a recording


@dataclass(frozen=True, kw_only=True)
class Request:
    """A run of a training program. Everything in it is JSON.

    Attributes:
        task: "record", or "options": find the command-line options of the program, and stop.
        folder: Where the recording goes.
        program: `train.py`, `pkg.module`, or one of them and `:function`.
        arguments: The program's arguments.
        cwd: The folder in which it runs.
        environment: Variables that are set for it.
        replaced: Literals of the program's files that are replaced in memory: file -> [line, column, value].
        detail: "tensors" of each step, their "hashes", or "losses" only.
        stop_after: Stop after this many optimizer steps; None runs to the program's own end.
        kill_after: Kill the process (SIGKILL) after this many optimizer steps.
        first_step: The number of the first step, when the program resumes.
        loader_seeds_apart: A pass over a DataLoader does not advance torch's generator by the seed that it draws.
        replay: Compute the float64 gradients of the recorded batches after the run.
    """

    task: Literal["record", "options"] = "record"
    folder: str
    program: str
    arguments: tuple[str, ...] = ()
    cwd: str = "."
    environment: Mapping[str, str] = field(default_factory=dict)
    replaced: Mapping[str, Sequence[tuple[int, int, Any]]] = field(default_factory=dict)
    detail: Detail = "tensors"
    stop_after: int | None = None
    kill_after: int | None = None
    first_step: int = 0
    loader_seeds_apart: bool = False
    replay: bool = True

    def to_json(self) -> str:
        """Return the request as one line."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Request:
        """Return the request of a line."""
        row = json.loads(line)
        return cls(**{**row, "arguments": tuple(row["arguments"])})
