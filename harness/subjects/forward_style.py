"""How the forward pass of a class is called: found by trying, and remembered for the class."""

from __future__ import annotations

import inspect
import re
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from harness.subjects.compiled import class_of, original
from harness.subjects.forward_arguments import Argument

TARGETS = ("targets", "target", "y", "tgt", "target_ids", "next_tokens", "target_tokens", "labels_shifted", "ys")
# Hugging Face's `labels` are passed only if they are found not to be shifted once more.
POSITIONS = ("pos", "position_ids", "positions", "pos_ids", "position", "pos_idx")
OPTIONAL = ("cache", "past_key_values", "attention_mask", "routings")  # parameters that nobody needs to give
# In the name of a parameter that takes no ids.
NO_IDS = re.compile(r"mask|cache|past|memor|state|device|^pos(_|$|ition)|start_|offset|_len|^use_|^return_|^is_")


@dataclass(frozen=True)
class ForwardStyle:
    """How the forward pass of a class is called.

    `targets`: the parameter for the targets; "" if there is none. `arguments`: what else every call is given, by the
    name of the parameter. `loss_needs`: the parameters without which targets are of no use. `one_sequence`: it takes
    ids (T,) and no batch. `last_only`: without targets it returns the logits of the last position only.
    `needs_targets`: without targets it raises an error, so that it is given the ids in their place. `alone`: the
    arguments without which a call without targets raises an error.
    """

    targets: str = ""
    arguments: Mapping[str, Argument] = field(default_factory=dict)
    loss_needs: tuple[str, ...] = ()
    one_sequence: bool = False
    last_only: bool = False
    needs_targets: bool = False
    alone: Mapping[str, Argument] = field(default_factory=dict)


_styles: weakref.WeakKeyDictionary[type, ForwardStyle] = weakref.WeakKeyDictionary()


def style_of(module: nn.Module) -> ForwardStyle:
    """Return how a module is called: as it was found for its class, or else as the names of its parameters say."""
    known = _styles.get(class_of(module))
    return stated_style(module) if known is None else known


def is_known(module: nn.Module) -> bool:
    """Return True if it has been found out how this class is called."""
    return class_of(module) in _styles


def says_how_it_is_called(module: nn.Module) -> bool:
    """Return True if the parameters of `forward` are ids, targets, positions, and options that are off or known."""
    parameters = forward_parameters(module)
    own = ids_parameter(parameters)
    return all(
        name in (own, *TARGETS, *POSITIONS) or type(p.default) is bool or (name in OPTIONAL and p.default is None)
        for name, p in parameters.items()
    )


def remember(module: nn.Module, style: ForwardStyle) -> None:
    """Call all modules of this class in this style from now on."""
    _styles[class_of(module)] = style


def stated_style(module: nn.Module) -> ForwardStyle:
    """Return the style that the names of the parameters of `forward` say."""
    parameters = forward_parameters(module)
    own = ids_parameter(parameters)
    return ForwardStyle(next((name for name in TARGETS if name in parameters and name != own), ""))


def seen_last_only(module: nn.Module) -> None:
    """Remember that a class returns the last position only: from then on it is called once, with targets."""
    remember(module, replace(style_of(module), last_only=True))


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
    module = original(module)
    if "forward" in vars(module):
        return dict(inspect.signature(module.forward).parameters)
    return parameters_of(type(module), "forward")


def ids_parameter(parameters: Mapping[str, inspect.Parameter]) -> str:
    """Return the parameter that takes the ids: the first that is not known to be for something else; "" if none.

    `tgt` and `y` are words for ids too: the first parameter is that of the ids unless a later one must be.
    """
    free = [name for name in parameters if name not in (*TARGETS, "labels") and not NO_IDS.search(name.lower())]
    needed = [name for name, p in parameters.items() if p.default is inspect.Parameter.empty]
    if needed and needed[0] in TARGETS and not set(needed) & set(free):
        return needed[0]
    return next(iter(free or parameters), "")


def call_forward(module: nn.Module, ids: Tensor, style: ForwardStyle, **options: Any) -> Any:
    """Return what the forward pass returns for ids, with the further arguments of the style and the options."""
    parameters = forward_parameters(module)
    if "use_cache" in parameters and hasattr(getattr(module, "config", None), "use_cache"):
        options.setdefault("use_cache", False)  # transformers would return a cache that is not used
    arguments = {**style.arguments, **({} if style.targets in options else style.alone)}
    given = {name: argument.make(module, ids) for name, argument in arguments.items()}
    for name in required(parameters):
        if name in POSITIONS:
            given.setdefault(name, positions(ids))
        elif name == style.targets:
            given.setdefault(name, ids)
    if style.needs_targets:
        given.setdefault(style.targets, ids)
    own = ids_parameter(parameters)
    given = {name: value for name, value in given.items() if name != own}
    first = next(iter(parameters), "")
    if first and (own != first or parameters[own].kind is inspect.Parameter.KEYWORD_ONLY):
        return module(**{own: ids}, **{**given, **options})
    return module(ids, **{**given, **options})


def required(parameters: Mapping[str, inspect.Parameter]) -> list[str]:
    """Return the parameters without a default, other than the ids'."""
    own = ids_parameter(parameters)
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [n for n, p in parameters.items() if n != own and p.default is p.empty and p.kind not in kinds]


def positions(ids: Tensor) -> Tensor:
    """Return the positions of ids (B, T), each row 0 ... T - 1."""
    return torch.arange(ids.shape[-1], device=ids.device).expand(ids.shape)
