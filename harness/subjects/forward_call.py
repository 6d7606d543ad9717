"""Call a GPT and unpack what it returns, in the styles that people write."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.errors import SubjectError

TARGETS = ("targets", "target", "y", "tgt", "target_ids", "next_tokens", "target_tokens", "labels_shifted", "ys")
# Hugging Face's `labels` are never passed: the model shifts them once more. `return_dict` is not needed: logits are
# found in both forms.
POSITIONS = ("pos", "position_ids", "positions", "pos_ids", "position", "pos_idx")
LOGITS = ("logits", "lm_logits", "prediction", "predictions", "output", "outputs", "preds")
# A model that returns the last position only, and takes no targets, is called for each prefix, up to this length.
LONGEST_BY_PREFIX = 64
# Classes that have returned the last position only: from then on they are called once, with targets, and not twice.
_last_only: weakref.WeakSet[type] = weakref.WeakSet()


def call(module: nn.Module, ids: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the logits (B, T, V) of every position, and the model's own loss or None.

    Raises SubjectError for a model that returns the last position only, takes no targets, and is given more than
    LONGEST_BY_PREFIX tokens.
    """
    keyword = targets_keyword(module)
    if targets is not None and keyword:
        return unpack(_forward(module, ids, **{keyword: targets}), ids)
    if keyword and type(module) in _last_only:
        return unpack(_forward(module, ids, **{keyword: ids}), ids)[0], None
    logits, loss = unpack(_forward(module, ids), ids)
    if logits.ndim == 3 and logits.shape[1] == 1 and ids.shape[1] > 1:
        # nanoGPT returns the last position only, unless it is given targets.
        if keyword:
            _last_only.add(type(module))
            logits, _ = unpack(_forward(module, ids, **{keyword: ids}), ids)
        elif ids.shape[1] <= LONGEST_BY_PREFIX:
            logits = torch.cat(
                [
                    unpack(_forward(module, ids[:, :end].contiguous()), ids[:, :end])[0]
                    for end in range(1, ids.shape[1] + 1)
                ],
                dim=1,
            )
        else:
            raise SubjectError(
                "the model returns logits of the last position only and takes no targets; expected logits of every "
                "position"
            )
    return logits, loss if targets is None or keyword else None


def without_targets(module: nn.Module, ids: Tensor) -> Tensor:
    """Return the logits of a call without targets: of every position, (B, T, V), or of the last, (B, 1, V)."""
    return unpack(_forward(module, ids.contiguous()), ids)[0]


def parameters_of(kind: type, method: str) -> dict[str, inspect.Parameter]:
    """Return the parameters of a method; if it passes **options on, those of the base class's method too."""
    found: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:
        if method not in vars(base) or base is nn.Module:
            continue
        try:
            parameters = inspect.signature(getattr(base, method)).parameters
        except (TypeError, ValueError):
            break
        bound = 0 if isinstance(vars(base)[method], staticmethod | classmethod) else 1  # skip self, under any name
        for name, parameter in list(parameters.items())[bound:]:
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                found.setdefault(name, parameter)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            break
    return found


def forward_parameters(module: nn.Module) -> dict[str, inspect.Parameter]:
    """Return the parameters of `forward`, also of one set on the instance, or of a compiled module's original."""
    module = getattr(module, "_orig_mod", module)
    if "forward" in vars(module):
        return dict(inspect.signature(module.forward).parameters)
    return parameters_of(type(module), "forward")


def targets_keyword(module: nn.Module) -> str | None:
    """Return the name of the parameter of `forward` that takes shifted targets; None if there is none.

    `labels` is not one: Hugging Face shifts those itself.
    """
    parameters = forward_parameters(module)
    return next((name for name in TARGETS if name in parameters), None)


def _forward(module: nn.Module, ids: Tensor, **options: Tensor) -> Any:
    parameters = forward_parameters(module)
    if "use_cache" in parameters and hasattr(getattr(module, "config", None), "use_cache"):
        options["use_cache"] = False  # type: ignore[assignment]  # transformers would return a cache that is not used
    names = list(parameters)
    for position, (name, parameter) in enumerate(parameters.items()):
        if position == 0 or parameter.default is not parameter.empty or name in options:
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if name in POSITIONS:
            options[name] = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
        elif name in TARGETS:
            options[name] = ids
        else:
            raise SubjectError(
                f"forward({', '.join(names)}) needs '{name}', which the harness does not know; expected ids, and "
                f"optionally targets ({', '.join(TARGETS[:4])}) and positions ({', '.join(POSITIONS[:3])}); give it a "
                "default, or pass it in an adapter: 'Add a subject' in CONTRIBUTING.md"
            )
    if names and parameters[names[0]].kind is inspect.Parameter.KEYWORD_ONLY:
        return module(**{names[0]: ids}, **options)
    return module(ids, **options)


def unpack(answer: Any, ids: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Return logits and loss from a tensor, a tuple in either order, a dict, or an object with `.logits`.

    With `ids` (B, T), logits flattened to (B·T, V) are reshaped to (B, T, V), and (B, V) are the last position's.
    Raises SubjectError if there are no logits.
    """
    if isinstance(answer, Tensor):
        return _with_axes(answer, ids), None
    if isinstance(answer, Mapping):
        for word in LOGITS:
            if isinstance(answer.get(word), Tensor):
                return _with_axes(answer[word], ids), answer.get("loss")
    if isinstance(getattr(answer, "logits", None), Tensor):
        return _with_axes(answer.logits, ids), getattr(answer, "loss", None)
    if isinstance(answer, tuple | list) and answer:
        tensors = [item for item in answer if isinstance(item, Tensor)]
        logits = next((t for t in tensors if t.ndim == 3), None)
        if logits is None:
            logits = next((t for t in tensors if t.ndim == 2 and t.is_floating_point()), None)
        loss = next((t for t in tensors if t.numel() == 1 and t is not logits), None)
        if logits is not None:
            return _with_axes(logits, ids), None if loss is None else loss.reshape(())
    raise SubjectError(
        f"calling the model returned {_describe(answer)}; expected logits (batch, time, vocabulary), (logits, loss), "
        "or an object with .logits"
    )


def _with_axes(logits: Tensor, ids: Tensor | None) -> Tensor:
    if logits.ndim == 2 and ids is not None:
        batch, time = ids.shape
        if logits.shape[0] == batch * time:
            return logits.view(batch, time, -1)
        if logits.shape[0] == batch:
            return logits[:, None]
    return logits


def _describe(answer: Any) -> str:
    if isinstance(answer, tuple | list):
        return f"a {type(answer).__name__} of ({', '.join(map(_describe, answer))})"
    if isinstance(answer, Mapping):
        return f"a {type(answer).__name__} of {', '.join(map(str, answer))}"
    if isinstance(answer, Tensor):
        return f"a tensor of shape {tuple(answer.shape)}"
    return f"a {type(answer).__name__}"
