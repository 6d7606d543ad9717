"""Find out by trying how the forward pass of a class is called."""

from __future__ import annotations

import contextlib
import inspect
import io
import itertools
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.errors import SubjectError
from harness.subjects.forward_answer import loss_in, unpack
from harness.subjects.forward_arguments import FLAGS, PADDING, Argument, candidates
from harness.subjects.forward_style import (
    POSITIONS,
    ForwardStyle,
    call_forward,
    forward_parameters,
    ids_parameter,
    remember,
    required,
    stated_style,
)

IDS = ((1, 2, 3), (4, 5, 6))  # fewer rows than tokens: a model that takes one sequence only fails
MOST_GUESSES = 200  # combinations of values
CLOSE = 1e-4  # relative; float32 rounds at 1e-7
SHIFTED_ONCE_MORE = "labels"  # Hugging Face's name; its models shift them themselves

Arguments = Mapping[str, Argument]


def find_style(module: nn.Module) -> ForwardStyle:
    """Find out how `module`, which is run for it, is called, and remember it for its class.

    What the names of the parameters say is tried first. Raises the error of that try, or a SubjectError that names the
    argument without a value, if no other call gives logits.
    """
    ids = torch.tensor(IDS, device=next((p.device for p in module.parameters()), None))
    training = module.training
    module.eval()
    try:
        with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            style = _with_targets(module, ids, _for_logits(module, ids))
    finally:
        module.train(training)
    remember(module, style)
    return style


def _for_logits(module: nn.Module, ids: Tensor) -> ForwardStyle:
    """Return the style that gives logits; where values are guessed, the first that looks back and not ahead."""
    stated, parameters = stated_style(module), forward_parameters(module)
    unknown = [name for name in required(parameters) if name not in (*POSITIONS, stated.targets)]
    first: Exception | None = None
    if not unknown:
        try:
            _logits(module, ids, stated)
            return stated
        except Exception as error:
            first = error
        if (style := _without_targets(module, ids, stated)) is not None:
            return style
    best: tuple[int, ForwardStyle] | None = None
    for one_sequence, arguments in itertools.product((False, True), _guesses(parameters, stated, unknown, first)):
        style = replace(stated, arguments=arguments, one_sequence=one_sequence)
        try:
            quality = _quality(module, ids, style)
        except Exception as error:
            first = first or error
            continue
        if best is None or quality > best[0]:
            best = quality, style
        if quality == 2:
            break
    if best is not None:
        return best[1]
    assert first is not None
    if not unknown:
        raise first
    raise SubjectError(
        f"forward({', '.join(parameters)}) needs {' and '.join(map(repr, unknown))}, and no value was found: tried "
        f"{', '.join(a.text for a in candidates(unknown[0])[:8])} and others; the first error was "
        f"{type(first).__name__}: {' '.join(str(first).split())[:200]}; give it a default, or pass it in an adapter: "
        "'Add a subject' in CONTRIBUTING.md"
    ) from first


def _without_targets(module: nn.Module, ids: Tensor, stated: ForwardStyle) -> ForwardStyle | None:
    """Return the style of a model that raises an error without targets: it is given ids for them, or another flag."""
    parameters = forward_parameters(module)
    flags = {name: FLAGS[not p.default] for name, p in parameters.items() if type(p.default) is bool}
    names = dict.fromkeys((stated.targets, *_none_by_default(parameters, stated), SHIFTED_ONCE_MORE))
    styles = [
        replace(stated, targets=name, needs_targets=True) for name in names if name in parameters and "mask" not in name
    ]
    for style in [*styles, *(replace(stated, alone={name: flag}) for name, flag in flags.items())]:
        with contextlib.suppress(Exception):
            has_loss = not style.needs_targets or _gives_loss(module, ids, style, {style.targets: ids})
            if has_loss and _quality(module, ids, style) == 2:
                return style
    return None


def _guesses(
    parameters: Mapping[str, inspect.Parameter], stated: ForwardStyle, unknown: list[str], error: Exception | None
) -> Iterator[Arguments]:
    """Yield values for the parameters without one, the likeliest first; none, if only the batch may be the trouble."""
    if unknown:
        ranked = [list(enumerate(candidates(name))) for name in unknown]
        combinations = sorted(itertools.product(*ranked), key=lambda each: sum(rank for rank, _ in each))
        for combination in combinations[:MOST_GUESSES]:
            yield dict(zip(unknown, (argument for _, argument in combination), strict=True))
        return
    yield {}
    for name in _none_by_default(parameters, stated):
        if "NoneType" in str(error) or "mask" in name or "cache" in name:
            yield from ({name: argument} for argument in candidates(name) if argument.text != "None")


def _none_by_default(parameters: Mapping[str, inspect.Parameter], stated: ForwardStyle) -> list[str]:
    own = (ids_parameter(parameters), stated.targets, SHIFTED_ONCE_MORE)
    return [name for name, p in parameters.items() if p.default is None and name not in own]


def _logits(module: nn.Module, ids: Tensor, style: ForwardStyle) -> Tensor:
    """Return the logits (2, 3, V), or (2, 1, V). Raises SubjectError for what has another shape."""
    if style.one_sequence:
        logits = torch.cat([unpack(call_forward(module, row, style), row[None])[0] for row in ids])
    else:
        logits = unpack(call_forward(module, ids, style), ids)[0]
    if logits.ndim != 3 or logits.shape[0] != ids.shape[0] or logits.shape[1] not in (1, ids.shape[1]):
        raise SubjectError(f"logits have shape {tuple(logits.shape)} for ids of shape {tuple(ids.shape)}")
    return logits


def _quality(module: nn.Module, ids: Tensor, style: ForwardStyle) -> int:
    """Return 2 if a position sees those before it and none behind it, 1 if the call only gives logits, 0 for NaN."""
    logits = _logits(module, ids, style)
    if not bool(torch.isfinite(logits).all()):
        return 0
    later, earlier = ids.clone(), ids.clone()
    later[:, -1], earlier[:, 0] = 7, 8
    causal = _same(_logits(module, later, style)[:, :-1], logits[:, :-1])
    return 2 if causal and not _same(_logits(module, earlier, style)[:, -1], logits[:, -1]) else 1


def _same(found: Tensor, expected: Tensor) -> bool:
    return bool(((found - expected).abs() <= CLOSE * expected.abs().max()).all()) if expected.numel() else True


def _with_targets(module: nn.Module, ids: Tensor, style: ForwardStyle) -> ForwardStyle:
    """Return the style with the parameter for targets, and with what else their loss needs."""
    parameters, targets = forward_parameters(module), ids.roll(-1, dims=1)
    if style.targets:
        try:
            _loss(module, ids, style, {style.targets: targets})
        except Exception:
            for name in _none_by_default(parameters, style):
                for argument in candidates(name):
                    if _gives_loss(module, ids, style, {style.targets: targets, name: argument.make(module, ids)}):
                        return replace(style, loss_needs=(name,))
        weighted = [name for name in style.arguments if _weighs_loss(module, ids, style, name)]
        return replace(style, loss_needs=tuple(weighted))
    if hasattr(getattr(module, "config", None), "use_cache"):
        return style  # transformers, whose labels are known to be shifted
    for name in [*required(parameters), *_none_by_default(parameters, ForwardStyle()), SHIFTED_ONCE_MORE]:
        given = {key: argument for key, argument in style.arguments.items() if key != name}
        if (
            name in parameters
            and "mask" not in name
            and _are_targets(module, ids, replace(style, arguments=given), name)
        ):
            return replace(style, targets=name, arguments=given)
    return style


def _loss(module: nn.Module, ids: Tensor, style: ForwardStyle, options: Mapping[str, Any]) -> Tensor | None:
    """Return the loss that a call gives, of the first row if the model takes one sequence."""
    if style.one_sequence:
        rows = {name: value[0] if isinstance(value, Tensor) else value for name, value in options.items()}
        return loss_in(call_forward(module, ids[0], style, **rows))
    return loss_in(call_forward(module, ids, style, **options))


def _gives_loss(module: nn.Module, ids: Tensor, style: ForwardStyle, options: Mapping[str, Any]) -> bool:
    try:
        loss = _loss(module, ids, style, options)
    except Exception:
        return False
    return loss is not None and bool(torch.isfinite(loss))


def _weighs_loss(module: nn.Module, ids: Tensor, style: ForwardStyle, name: str) -> bool:
    """Return True if a mask (B, T) says which targets count: the loss follows it, and the logits do not."""
    if style.arguments[name] not in PADDING or style.one_sequence:
        return False
    some = style.arguments[name].make(module, ids)
    some[:, -1] = 0
    given = {style.targets: ids.roll(-1, dims=1)}
    try:
        whole, part = (call_forward(module, ids, style, **given, **more) for more in ({}, {name: some}))
        losses = loss_in(whole), loss_in(part)
        same = torch.equal(unpack(whole, ids)[0], unpack(part, ids)[0])
    except Exception:
        return False
    return same and losses[0] is not None and losses[1] is not None and not torch.equal(losses[0], losses[1])


def _are_targets(module: nn.Module, ids: Tensor, style: ForwardStyle, name: str) -> bool:
    """Return True if a parameter takes targets: a loss follows them, and it is not over targets shifted once more."""
    losses = []
    for shift in (-1, -2):
        targets = ids.roll(shift, dims=1)
        if not _gives_loss(module, ids, style, {name: targets}):
            return False
        losses.append(_loss(module, ids, style, {name: targets}))
    if losses[0] is None or losses[1] is None or torch.equal(losses[0], losses[1]):
        return False
    if name in required(forward_parameters(module)):
        return True
    logits, targets = _logits(module, ids, style), ids.roll(-1, dims=1)
    if style.one_sequence:
        logits, targets = logits[:1], targets[:1]
    plain = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    shifted = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())
    if _same(losses[0], plain):
        return True
    return name != SHIFTED_ONCE_MORE and not _same(losses[0], shifted)
