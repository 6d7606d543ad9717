"""The work that an arm does in one call, the verification of its answer, and what a witness saw of one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.core.process_exit import ProcessExit

# What an arm may raise without ending the run. A subject that exits, by sys.exit or os._exit, must not cost other arms.
ARM_ERRORS = (Exception, SystemExit, ProcessExit)


@dataclass(frozen=True)
class Verification:
    """The verdict on an arm's answer, with a message of one line. `witness` is what was counted on the way.

    `error` is the relative error of the answer against the reference value, where there is one, and `allowed` the
    error that rounding allows.
    """

    verdict: Literal["pass", "fail", "error", "skip"]
    message: str
    witness: Mapping[str, int] = field(default_factory=dict)
    error: float | None = None
    allowed: float | None = None

    @classmethod
    def from_error(cls, error: BaseException, when: str) -> Verification:
        """Return the verdict "error" for an exception of an arm; `when` is "while it was built" or the like."""
        text = " ".join(str(error).split())[:500]
        return cls("error", f"{type(error).__name__} {when}: {text}")


@dataclass(frozen=True)
class WitnessedCall:
    """One call under the profiler, apart from its time: the ledgers of its memory in bytes, and what ran.

    `violated_claim` takes the arm's claims (`{"attention": "flash"}`) and returns a sentence about the first claim that
    the call violated, or None. `seconds` is the duration of the whole call under the profiler; 0 if only a part of the
    work was called.
    """

    ledgers: Mapping[str, int]
    witness: Mapping[str, Any] = field(default_factory=dict)
    violated_claim: Callable[[Mapping[str, Any]], str | None] = lambda claims: None
    seconds: float = 0.0


@dataclass(frozen=True)
class Sample:
    """What is kept of a timed call's output, to be verified. `number` says of which input."""

    number: int
    answer: Any


@dataclass(frozen=True)
class Work:
    """An arm that has been built: `call` is timed, and `answer` returns what is verified.

    use_input: selects the input of the calls that follow, by a number; the first is 0. None where all calls have one
        input, because it decides how much work there is, or because no output is seen.
    sample: takes the output of a timed call and the number of its input, and returns what is kept. None where no output
        is an answer, as with a step of training.
    prepare: runs before each block and is not timed.
    tokens: the tokens that one call processes.
    ledgers: further ledgers of the bytes that one call needs (a closed form, a child process), beside the allocator's.
    flops, moved_bytes, operations: the cost of one call by closed form, which is compared with the ceilings.
    passes: how many times one call moves the same bytes again: once for each token that it generates.
    computes: the dtype of its matrix products.
    witness_call: a shorter call for the witness, if a whole call has more operations than a trace should contain.
    extras: returns further figures after the timing; each name ends with its unit.
    measures_memory: False if no allocator sees the memory, as with files that are mapped.
    """

    call: Callable[[], object]
    answer: Callable[[], Any]
    tokens: int
    use_input: Callable[[int], object] | None = None
    sample: Callable[[Any, int], Sample] | None = None
    prepare: Callable[[], object] = lambda: None
    ledgers: Mapping[str, Callable[[], int]] = field(default_factory=dict)
    flops: float | None = None
    moved_bytes: float | None = None
    passes: int = 1
    operations: float | None = None
    computes: str = "float32"
    witness_call: Callable[[], object] | None = None
    extras: Callable[[], Mapping[str, float]] = dict
    measures_memory: bool = True
