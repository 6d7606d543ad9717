"""Measures of what must stay as it is: a model's weights when it is called, its answers when another one is made."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.error_text import describe_error
from harness.core.errors import Missing, MissingAbility
from harness.core.sizes import SIZES, Size
from harness.core.source_lines import SourceLine
from harness.measures.conditions.answers_kept import built
from harness.oracle import noise_verdict
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


OTHER_SIZES: Mapping[str, Size] = {
    "the same sizes": SIZES["debug"],
    "other sizes": dataclasses.replace(SIZES["debug"], name="debug: other", heads=6, layers=1, context=16, width=36),
}
PLAIN = (int, float, str, dict, list, tuple, set, type(None))
SHOWN = 200  # characters of a value


@measure
def changed_by_another_model(subject: Subject, *, size: str, seed: int = 0) -> Reading:
    """Return how far another model, which is built and called, moves the answers of a first one, relative.

    The hint says which variable of the module, or attribute of a class, the other model changed. Sizes at which the
    subject cannot be built are left out. Raises MissingAbility if it can be built at none.
    """
    ids, _ = batch(SIZES[size], "random", rows=2, length=24, seed=seed)
    found: dict[str, float | str] = {}
    hint, line, not_judged = "", None, dict[str, str]()
    model = built(subject, size)
    for name, other_size in OTHER_SIZES.items():
        with torch.no_grad():
            expected = model.one_call(ids)[0].clone()
        before = _shared_values(model.module)
        try:
            other = subject.build(other_size, seed=99)
            with torch.no_grad():
                other.one_call(ids[:, :8].contiguous())
        except Exception as error:
            not_judged[name] = describe_error(error)
            continue
        try:
            with torch.no_grad():
                found[name] = noise_verdict.relative_distance(model.one_call(ids)[0], expected)
        except Exception as error:
            found[name] = describe_error(error)
        if found[name] and not hint:
            after = _shared_values(model.module)
            changed = [key for key in before if before[key] != after.get(key)]
            hint = "; ".join(f"{key} was {before[key]} and is {after.get(key)}" for key in changed)
            line = next(filter(None, (_where_read(model.module, key) for key in changed)), None)
    if not found:
        raise MissingAbility(next(iter(not_judged.values())))
    lines = {} if line is None else {"line": [line.file, line.number]}
    return Reading(found, "relative", {"hint": hint, "not judged": not_judged, **lines})


def _shared_values(module: nn.Module) -> dict[str, str]:
    """Return the plain values that all models share, as text: variables of modules, attributes of classes."""
    kinds = dict.fromkeys(type(part) for part in module.modules())
    own = [kind for kind in kinds if not kind.__module__.startswith("torch.")]
    found = {f"{kind.__name__}.{name}": value for kind in own for name, value in vars(kind).items()}
    for kind in own:
        found |= getattr(kind.forward, "__globals__", {})
    return {name: text for name, value in found.items() if "__" not in name and (text := _as_text(value))}


def _as_text(value: Any) -> str:
    """Return a plain value, or an object that has only such, as text; "" for anything else."""
    if isinstance(value, PLAIN):
        return repr(value)[:SHOWN]
    fields = getattr(value, "__dict__", None)
    is_config = isinstance(fields, dict) and fields and all(isinstance(each, PLAIN) for each in fields.values())
    return repr(fields)[:SHOWN] if is_config and not isinstance(value, type) else ""


def _where_read(module: nn.Module, name: str) -> SourceLine | None:
    """Return the line in which a forward pass, or else any function, reads a variable of the module or class."""
    code = getattr(type(module).forward, "__code__", None)
    with contextlib.suppress(OSError, SyntaxError, ValueError, AttributeError):
        tree = ast.parse(Path(code.co_filename).read_text(encoding="utf-8-sig"))  # type: ignore[union-attr]
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        for function in sorted(functions, key=lambda each: each.name != "forward"):
            for node in ast.walk(function):
                if isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node) == name:
                    return SourceLine(code.co_filename, node.lineno)  # type: ignore[union-attr]
    return None
