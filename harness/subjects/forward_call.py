"""How a GPT is called and what it answers, in the styles that people write."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.errors import SubjectError

TARGETS = ("targets", "target", "y", "tgt", "target_ids", "next_tokens", "target_tokens", "labels_shifted", "ys")
# Hugging Face's `labels` are shifted by the model once more: never passed. `return_dict` has the logits in both forms.
POSITIONS = ("pos", "position_ids", "positions", "pos_ids", "position", "pos_idx")
LOGITS = ("logits", "lm_logits", "prediction", "predictions", "output", "outputs", "preds")
# A model that answers with the last position alone, and takes no targets, is asked for each prefix: up to this length.
LONGEST_BY_PREFIX = 64
# Classes that were seen to answer with the last position alone: asked with targets from then on, once and not twice.
_last_only: weakref.WeakSet[type] = weakref.WeakSet()


def call(module: nn.Module, ids: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Logits (B, T, V) of every position, and the model's own loss where it gives one (None otherwise)."""
    keyword = targets_keyword(module)
    if targets is not None and keyword:
        return unpack(_ask(module, ids, **{keyword: targets}), ids)
    if keyword and type(module) in _last_only:
        return unpack(_ask(module, ids, **{keyword: ids}), ids)[0], None
    logits, loss = unpack(_ask(module, ids), ids)
    if logits.ndim == 3 and logits.shape[1] == 1 and ids.shape[1] > 1:
        # nanoGPT answers with the last position only, unless it is given targets.
        if keyword:
            _last_only.add(type(module))
            logits, _ = unpack(_ask(module, ids, **{keyword: ids}), ids)
        elif ids.shape[1] <= LONGEST_BY_PREFIX:
            logits = torch.cat(
                [
                    unpack(_ask(module, ids[:, :end].contiguous()), ids[:, :end])[0]
                    for end in range(1, ids.shape[1] + 1)
                ],
                dim=1,
            )
        else:
            raise SubjectError(
                "the model answers with the last position only and takes no targets; expected logits of every position"
            )
    return logits, loss if targets is None or keyword else None


def without_targets(module: nn.Module, ids: Tensor) -> Tensor:
    """The logits as they come when no targets are given: of every position, (B, T, V), or of the last, (B, 1, V)."""
    return unpack(_ask(module, ids.contiguous()), ids)[0]


def parameters_of(kind: type, method: str) -> dict[str, inspect.Parameter]:
    """The parameters of a method; where it hands **options on to a base class's, those of that one too."""
    found: dict[str, inspect.Parameter] = {}
    for base in kind.__mro__:
        if method not in vars(base) or base is nn.Module:
            continue
        try:
            parameters = inspect.signature(getattr(base, method)).parameters
        except (TypeError, ValueError):
            break
        bound = 0 if isinstance(vars(base)[method], staticmethod | classmethod) else 1  # whatever self is called
        for name, parameter in list(parameters.items())[bound:]:
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                found.setdefault(name, parameter)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            break
    return found


def forward_parameters(module: nn.Module) -> dict[str, inspect.Parameter]:
    """The parameters of `forward`, an instance's own or a compiled one's original included."""
    module = getattr(module, "_orig_mod", module)
    if "forward" in vars(module):
        return dict(inspect.signature(module.forward).parameters)
    return parameters_of(type(module), "forward")


def targets_keyword(module: nn.Module) -> str | None:
    """The parameter of `forward` that takes targets, already shifted. `labels` is not it: Hugging Face shifts those."""
    parameters = forward_parameters(module)
    return next((name for name in TARGETS if name in parameters), None)


def _ask(module: nn.Module, ids: Tensor, **more: Tensor) -> Any:
    parameters = forward_parameters(module)
    if "use_cache" in parameters and hasattr(getattr(module, "config", None), "use_cache"):
        more["use_cache"] = False  # type: ignore[assignment]  # transformers' own: a cache nobody reads
    names = list(parameters)
    for position, (name, parameter) in enumerate(parameters.items()):
        if position == 0 or parameter.default is not parameter.empty or name in more:
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if name in POSITIONS:
            more[name] = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
        elif name in TARGETS:
            more[name] = ids
        else:
            raise SubjectError(
                f"forward({', '.join(names)}) needs '{name}', of which the harness knows nothing; expected ids, and "
                f"perhaps targets ({', '.join(TARGETS[:4])}) and positions ({', '.join(POSITIONS[:3])}); give it a "
                "default, or pass it in an adapter: 'Add a subject' in CONTRIBUTING.md"
            )
    if names and parameters[names[0]].kind is inspect.Parameter.KEYWORD_ONLY:
        return module(**{names[0]: ids}, **more)
    return module(ids, **more)


def unpack(answer: Any, ids: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Logits and loss from a tensor, a tuple in either order, a dict, or an object with `.logits`.

    With `ids` (B, T), logits that were flattened to (B·T, V) get their axes back, and (B, V) is the last position's.
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
        f"calling the model gave {_described(answer)}; expected logits (batch, time, vocabulary), (logits, loss), "
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


def _described(answer: Any) -> str:
    if isinstance(answer, tuple | list):
        return f"a {type(answer).__name__} of ({', '.join(map(_described, answer))})"
    if isinstance(answer, Mapping):
        return f"a {type(answer).__name__} of {', '.join(map(str, answer))}"
    if isinstance(answer, Tensor):
        return f"a tensor of shape {tuple(answer.shape)}"
    return f"a {type(answer).__name__}"
