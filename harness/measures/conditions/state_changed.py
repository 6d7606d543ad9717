"""Measures of what a call must leave as it is: the bytes of parameters, buffers and gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from harness.core.errors import Missing
from harness.core.sizes import SIZES
from harness.measures.conditions.answers_kept import built
from harness.oracle.tokens import batch
from harness.subjects.model import Model
from harness.subjects.protocols import Caches, Generates, Subject
from harness.suites.measure_registry import Reading, measure


@measure
def state_changed(subject: Subject, *, size: str, seed: int = 0) -> Reading:
    """Return "unchanged", or the tensors whose bytes a call changes: parameters, gradients, buffers that are saved.

    Buffers that no state dict has may be caches, which a call may fill. Calls with and without gradients, with targets,
    in training mode, generation and decoding, of one row and of several. The gradients are those of a backward pass
    before. A backward pass itself must change gradients alone.
    """
    model = built(subject, size)
    ids, targets = batch(SIZES[size], "random", rows=3, length=7, seed=seed)
    model.loss(ids, targets).backward()
    found: dict[str, str] = {}
    before = _bytes(model)
    for name, action in _actions(subject, model, ids, targets):
        try:
            action()
        except Missing:
            continue
        after = _bytes(model)
        if name == "a backward pass":
            before = {key: after.get(key, t) if key.endswith(".grad") else t for key, t in before.items()}
        changed = [key for key in dict.fromkeys((*before, *after)) if not _same(before.get(key), after.get(key))]
        found[name] = _some(changed, before, after) if changed else "unchanged"
        before = after
    return Reading(found)


def _actions(
    subject: Subject, model: Model, ids: Tensor, targets: Tensor
) -> Iterator[tuple[str, Callable[[], object]]]:
    one = ids[:1].contiguous()

    def training() -> None:
        model.module.train()
        model.one_call(ids, targets)
        model.module.eval()

    yield "a forward pass", lambda: model.one_call(ids)
    yield "a forward pass with targets", lambda: model.one_call(ids, targets)
    for rows, given in (("one row", one), ("three rows", ids)):
        yield f"a forward pass under no_grad, {rows}", torch.no_grad()(lambda given=given: model.one_call(given))
    yield "a forward pass of one token under no_grad", torch.no_grad()(lambda: model.one_call(one[:, :1].contiguous()))
    yield "a forward pass in training mode", training
    for rows, given in (("one row", one), ("three rows", ids)):
        if isinstance(subject, Caches):
            yield f"decoding with the cache, {rows}", lambda given=given: _decode(subject, model, given)  # type: ignore[misc]
        if isinstance(subject, Generates):
            yield (
                f"generate, {rows}",
                lambda given=given: subject.generate(  # type: ignore[misc]
                    model, given[:, :3].contiguous(), 3, temperature=0.0
                ),
            )
    yield "a backward pass", lambda: model.loss(ids, targets).backward()


@torch.no_grad()
def _decode(subject: Caches, model: Model, ids: Tensor) -> None:
    cache = subject.new_cache(model, len(ids))
    for start, end in ((0, 3), (3, 4), (4, 5), (5, 6)):
        subject.step(model, ids[:, start:end].contiguous(), cache)


def _bytes(model: Model) -> dict[str, Tensor]:
    """Return a copy of every parameter, of its gradient, and of every buffer that the state dict has."""
    found: dict[str, Tensor] = {}
    saved = model.module.state_dict()
    for name, parameter in model.module.named_parameters():
        found[name] = parameter.detach().clone()
        if parameter.grad is not None:
            found[f"{name}.grad"] = parameter.grad.clone()
    for name, buffer in model.module.named_buffers():
        if name in saved:
            found[name] = buffer.clone()
    return found


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    """Return True if both have the same bytes; NaN is the same NaN."""
    if one is None or other is None or one.shape != other.shape or one.dtype != other.dtype:
        return one is other
    return bool(torch.equal(one.view(-1).view(torch.uint8), other.view(-1).view(torch.uint8)))


def _some(changed: list[str], before: dict[str, Tensor], after: dict[str, Tensor]) -> str:
    """Return the names of what is changed, the first with the place of the first change."""
    first = changed[0]
    where = ""
    with contextlib.suppress(KeyError, RuntimeError, IndexError):
        where = f" at {(before[first] != after[first]).nonzero()[0].tolist()}"
    more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
    return f"{first} changed{where}{more}"
