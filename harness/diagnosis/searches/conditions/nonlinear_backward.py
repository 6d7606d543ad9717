"""The search for the operation whose backward pass is not linear in the gradient from above."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from harness.core.error_text import is_user_file
from harness.core.sizes import SIZES
from harness.core.source_lines import SourceLine, location
from harness.diagnosis.finding import Finding
from harness.measures.conditions.answers_kept import built
from harness.oracle.tokens import batch
from harness.subjects.protocols import Subject
from harness.suites.record import Record

FAULT = "backward-not-linear"
FACTORS = (0.25, 2.0**-12, 2.0**12)  # powers of two: what is linear scales exactly
Passed = list[tuple[Any, tuple[Tensor | None, ...], tuple[Tensor | None, ...]]]  # node, from above, given below


def nonlinear_backward(subject: Subject, record: Record) -> list[Finding]:
    """Return the first operation, in backward order, that gets a scaled gradient and does not scale what it gives."""
    size = SIZES[str(record.check.parameters["size"])]
    model = built(subject, size.name, "float64")
    ids, targets = batch(size, "random", rows=2, length=9)
    once = _passed(model.loss(ids, targets))
    for factor in FACTORS:
        scaled = _passed(factor * model.loss(ids, targets))[1:]  # the factor itself is the first node
        if found := _first(once, scaled, factor):
            return [found]
    return []


def _first(once: Passed, scaled: Passed, factor: float) -> Finding | None:
    """Return the finding for the first node that is not linear."""
    for (node, above, below), (_, other_above, other_below) in zip(once, scaled, strict=False):
        if _scales(above, other_above, factor) and not _scales(below, other_below, factor):
            name = type(node).__name__.removesuffix("Backward")
            pairs = zip(below, other_below, strict=True)
            same = all(a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs)
            how = "does not depend on it" if same else "is not scaled with it"
            cause = f"the backward pass of {name}: what it gives {how}, the gradient from above"
            evidence = f"for loss · {factor:g} it gets {factor:g} of the gradient from above"
            return Finding("behaviour.backward", FAULT, cause, evidence, *location(_line(node)))
    return None


def _passed(scalar: Tensor) -> Passed:
    """Run the backward pass and return what every node of the graph gets and gives, in the order of execution."""
    passed: Passed = []

    def note(node: Any) -> Any:
        def hook(below: tuple[Tensor | None, ...], above: tuple[Tensor | None, ...]) -> None:
            passed.append((node, _copies(above), _copies(below)))

        return hook

    handles = [node.register_hook(note(node)) for node in _nodes(scalar)]
    scalar.backward()
    for handle in handles:
        handle.remove()
    return passed


def _copies(tensors: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    return tuple(None if tensor is None else tensor.detach().clone() for tensor in tensors)


def _nodes(scalar: Tensor) -> Iterator[Any]:
    waiting, seen = [scalar.grad_fn], set[Any]()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting += [following for following, _ in node.next_functions]


def _scales(tensors: tuple[Tensor | None, ...], others: tuple[Tensor | None, ...], factor: float) -> bool:
    """Return True if the others are `factor` times the tensors, within rounding."""
    for tensor, other in zip(tensors, others, strict=True):
        if tensor is not None and other is not None:
            difference = (factor * tensor - other).abs()
            if difference.numel() and float(difference.max()) > 1e-9 * factor * float(tensor.abs().max()):
                return False
    return True


def _line(node: Any) -> SourceLine | None:
    """Return the last line of the backward function that a user wrote; None for an operation of PyTorch's."""
    written = getattr(getattr(node, "_forward_cls", None), "backward", None)
    if written is None:
        return None
    file = inspect.getsourcefile(written)
    if file is None or not is_user_file(file):
        return None
    lines, start = inspect.getsourcelines(written)
    returns = [number for number, text in enumerate(lines) if text.strip().startswith("return")]
    return SourceLine(file, start + (returns[-1] if returns else 0))
