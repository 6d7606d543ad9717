"""Measures of torch.compile: the compiled model against the same model run eagerly, and what is compiled again."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import torch

from harness.core.devices import CPU
from harness.core.errors import MissingResource
from harness.core.resources import Resources
from harness.core.sizes import SIZES, Size
from harness.measures.device.errors_in_floors import float32_model, in_floors, outputs_and_gradients, reference_run
from harness.oracle.tokens import batch
from harness.subjects.protocols import Subject
from harness.suites.measure_registry import Reading, measure

# One layer: compiling takes time with every operation, and the others are its copies.
LAYERS = 1
# Tokens of the calls, one after the other; not the whole context, where a slice of a table is the table itself.
LENGTHS = (24, 8, 12, 16, 20, 28)
# torch.compile takes the first length for a constant, and at the second one for a variable.
SETTLED = 2
# Of an installation without what Inductor needs, by the names of torch's errors.
NO_COMPILER = ("TritonMissing", "InvalidCxxCompiler")


@measure
def compiled_difference(subject: Subject, *, size: str = "debug") -> Reading:
    """Return the distance of the compiled model's outputs and gradients from the eager model's, in float32 floors.

    On the CPU the graphs that torch.compile captures are run as they are: Inductor takes a minute to compile them.
    Raises MissingResource if Inductor lacks a compiler.
    """
    return Reading(_compiled(subject, size).errors, "float32 floors", {"backend": _backend()})


@measure
def recompilations(subject: Subject, *, size: str = "debug") -> Reading:
    """Count the graphs that calls of further lengths compile again, after two; `details` has the graph breaks."""
    found = _compiled(subject, size)
    details: dict[str, Any] = {"graph breaks": found.breaks, "lengths": list(LENGTHS)}
    if found.breaks:
        details["says"] = f"torch.compile runs parts of it eagerly: {'; '.join(found.breaks)}"
    return Reading(found.recompilations, "graphs", details)


@dataclasses.dataclass(frozen=True)
class _Compiled:
    errors: dict[str, float]
    recompilations: int
    breaks: list[str]


@functools.lru_cache(maxsize=2)
def _compiled(subject: Subject, size: str) -> _Compiled:
    """Return what the checks on one compiled model share."""
    target = dataclasses.replace(SIZES[size], layers=LAYERS)
    model = float32_model(subject, target)
    eager = outputs_and_gradients(model, target)
    with _compiling() as counters:
        model.module.compile(backend=_backend())
        again, breaks = _recompiled(model.logits, target, counters)
        found = outputs_and_gradients(model, target)
    return _Compiled(in_floors(found, eager, reference_run(target)), again, breaks)


def _recompiled(call: Any, size: Size, counters: Any) -> tuple[int, list[str]]:
    """Call with each length. Return the number of graphs compiled after the first two, and the graph breaks."""
    graphs = []
    with torch.no_grad():
        for length in LENGTHS:
            call(batch(size, "random", rows=2, length=length)[0])
            graphs.append(counters["stats"]["unique_graphs"])
    return graphs[-1] - graphs[SETTLED - 1], [str(reason).splitlines()[0] for reason in counters["graph_break"]]


@contextlib.contextmanager
def _compiling() -> Iterator[Any]:
    """Forget what was compiled before the block and in it, and yield torch's counters."""
    from torch._dynamo.utils import counters  # takes seconds to import

    torch.compiler.reset()
    counters.clear()
    try:
        yield counters
    except Exception as error:
        if type(error).__name__ in NO_COMPILER or any(word in str(error) for word in NO_COMPILER):
            raise MissingResource(f"a compiler for torch.compile: {str(error).strip().splitlines()[0]}") from error
        raise
    finally:
        torch.compiler.reset()


def _backend() -> str:
    return "eager" if Resources.current.device == CPU else "inductor"
