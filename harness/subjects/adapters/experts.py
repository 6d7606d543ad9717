"""Find a mixture of experts beside or inside a GPT, build it, and take it apart."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.error_text import describe_error
from harness.core.errors import MissingAbility
from harness.core.seeds import seed_torch, seeded
from harness.core.sizes import Size
from harness.subjects.adapters.construction.build_settings import BuildSettings
from harness.subjects.adapters.construction.constructor import Constructor
from harness.subjects.adapters.construction.find_constructor import find_part_constructor
from harness.subjects.adapters.construction.setting_names import normalised, without_owner
from harness.subjects.adapters.construction.signature import modules_of
from harness.subjects.adapters.expert_parts import ACTIVATIONS, Expert, Experts, find_experts, find_router, find_shared
from harness.subjects.expert_layer import BALANCE, ExpertLayer
from harness.subjects.in_dtype import in_dtype

# Classes that are a mixture of experts, and what has the same words in its name and is a part of one, or has several.
LAYERS = re.compile(r"moe|mixture_?of_?experts?|mixture$|experts?_?layer|sparse_?(mlp|ff)|switch_?(ff|mlp|feed)", re.I)
OTHERS = re.compile(
    r"rout|gate$|gating|config|args|loss|noise|model|gpt|lm$|transformer|decoder|kernel|attention|(?<!of)(?<!of_)experts?$"
    r"|manager|output",
    re.I,
)
# The names of settings, compared as `setting_names` compares them.
SETTINGS: dict[str, tuple[str, ...]] = {
    "experts": (
        *("n_experts", "num_experts", "n_expert", "num_expert", "experts", "n_exp", "num_local_experts", "expert_num"),
        *("n_routed_experts", "expert_number", "number_of_experts", "expert_count", "moe_num_experts", "nexperts", "E"),
    ),
    "experts_per_token": (
        *("experts_per_token", "num_experts_per_tok", "num_experts_per_token", "top_k", "topk", "k", "n_active"),
        *("n_experts_active", "n_experts_per_token", "n_activated_experts", "num_selected_experts", "experts_active"),
        *("n_experts_per_tok", "moe_top_k", "num_active_experts", "active_experts", "expert_topk", "num_selects"),
    ),
    "capacity_factor": (
        *("capacity_factor", "expert_capacity_factor", "moe_capacity_factor", "cap_factor", "train_capacity"),
        *("eval_capacity", "capacity_factor_train", "capacity_factor_eval", "train_capacity_factor"),
        "eval_capacity_factor",
    ),
    "width": (
        *("input_size", "in_features", "input_dim", "in_dim", "output_size", "output_dim", "out_dim", "out_features"),
        *("d", "c", "d_in", "d_out", "features"),
    ),
    "feed_forward_width": ("expert_dim", "moe_intermediate_size", "expert_hidden_dim", "d_expert", "expert_hidden"),
}
MEANINGS = {normalised(name): quantity for quantity, names in SETTINGS.items() for name in names}
GROUPS = ("n_group", "num_expert_group", "n_expert_groups", "topk_group")
UNKNOWN = 1e-6  # relative: an expert that is read right leaves 1e-15, one with another activation 0.1
ROWS, LENGTH = 2, 20  # of the input that shows what bare tensors compute


def expert_classes(kind: type, module: ModuleType | None) -> list[type[nn.Module]]:
    """Return the classes beside a GPT's class that a name says are a mixture of experts, the likeliest first.

    They are those of the first module that has any: of the user's own file, if it has one.
    """
    for home in modules_of(kind, module) if module is not None else []:
        found = {
            value: (value.__module__ != home.__name__, "block" in name.lower())
            for name, value in vars(home).items()
            if inspect.isclass(value) and issubclass(value, nn.Module)
            if LAYERS.search(name) and not OTHERS.search(name)
        }
        if found:
            return sorted(found, key=lambda value: found[value])
    return []


def takes_experts(constructor: Constructor) -> bool:
    """Return True if a GPT's constructor has a setting for the number of experts."""
    return any(_meaning(word) == "experts" for word in constructor.words)


def build_layer(
    kind: type,
    constructor: Constructor,
    module: ModuleType | None,
    size: Size,
    *,
    experts: int,
    per_token: int,
    capacity_factor: float | None,
    seed: int,
    dtype: str,
    device: str,
) -> ExpertLayer:
    """Return a layer with random weights that excite every parameter, in eval mode.

    The classes that are found by name are tried in turn, and then the GPT itself, for a layer inside it. Without a
    capacity factor the layer is given one that no load exceeds. Raises MissingAbility, with what was tried.
    """
    if module is None:
        raise MissingAbility("no module was imported in which a mixture of experts could be found")
    wanted = {"experts": experts, "experts_per_token": per_token, "dropout": 0.0}
    wanted["capacity_factor"] = float(experts) if capacity_factor is None else capacity_factor
    tried = []
    for name, build in _builders(kind, constructor, module):
        try:
            seed_torch(seed)
            owner, settings = build(size, wanted)
            layer = _taken_apart(owner, name, size.width, experts, module, in_dtype=getattr(torch, dtype), seed=seed)
            taken = settings(layer)
            if capacity_factor is not None and "capacity_factor" not in taken:
                raise MissingAbility("it has no capacity factor")
        except MissingAbility as error:
            tried.append(f"{name}: {error}")
            continue
        except Exception as error:
            tried.append(f"{name}: {describe_error(error)}")
            continue
        layer.capacity_factor = capacity_factor
        if "experts_per_token" in taken:
            layer.per_token = per_token
        for setting, value in (("experts", layer.experts), ("experts_per_token", layer.per_token)):
            if setting not in taken and value not in (None, wanted[setting]):
                tried.append(f"{name}: it has {value} {setting.replace('_', ' ')}, and no setting for another number")
                break
        else:
            layer.module.to(device)
            return layer
    raise MissingAbility(f"no mixture of {experts} experts, {per_token} a token, could be built: {'; '.join(tried)}")


# What builds, and then says which of the wanted settings the layer took.
Builder = Callable[[Size, Mapping[str, Any]], tuple[nn.Module, Callable[[ExpertLayer], set[str]]]]


def _builders(kind: type, constructor: Constructor, module: ModuleType) -> Iterator[tuple[str, Builder]]:
    classes = expert_classes(kind, module)
    for found in classes:
        yield found.__name__, _builder(find_part_constructor(found, inspect.getmodule(found) or module))
    if not classes or kind.__module__ == module.__name__:  # a GPT from elsewhere is not what has these layers inside
        yield kind.__name__, _builder(constructor)


def _builder(constructor: Constructor) -> Builder:
    words = constructor.words
    if constructor.description == "a dict":
        words = words | {name for names in SETTINGS.values() for name in names}
    meanings = {word: meaning for word in words if (meaning := _meaning(word)) is not None}
    if any(constructor.meaning(word) == "width" for word in words) or "width" in meanings.values():
        hidden = ("hiddensize", "hiddendim", "hidden", "dhidden", "nhidden")
        widths = {word for word in words if constructor.meaning(word) == "width" and normalised(word) not in hidden}
        if widths or "width" in meanings.values():
            meanings |= {word: "feed_forward_width" for word in words if normalised(word) in hidden}
    made = dataclasses.replace(constructor, words=words, meanings={**constructor.meanings, **meanings})

    def build(size: Size, wanted: Mapping[str, Any]) -> tuple[nn.Module, Callable[[ExpertLayer], set[str]]]:
        taken = {setting for setting in wanted if made.takes(setting)}
        options = {setting: value for setting, value in wanted.items() if setting in taken}
        owner = made.build_with(made.arguments(size, **options), size)
        if constructor.description != "a dict":
            return owner, lambda layer: taken
        # A dict has every name; those are settings that the layer reads, when it is built or in its forward pass.
        return owner, lambda layer: {_meaning(word) or constructor.meaning(word) or "" for word in _read(made, layer)}

    return build


@torch.no_grad()
def _read(constructor: Constructor, layer: ExpertLayer) -> set[str]:
    """Return the names that a layer read from its settings so far, or reads in a forward pass."""
    with contextlib.suppress(Exception):
        layer(next(layer.module.parameters()).new_zeros(1, 2, layer.width))
    parts = (value for part in layer.module.modules() for value in vars(part).values())
    return constructor.read.union(*(value.names_read for value in parts if isinstance(value, BuildSettings)))


def _meaning(word: str) -> str | None:
    return MEANINGS.get(normalised(word)) or MEANINGS.get(normalised(without_owner(word)))


def _taken_apart(
    owner: nn.Module, name: str, width: int, wanted: int, module: ModuleType, *, in_dtype: torch.dtype, seed: int
) -> ExpertLayer:
    """Return the layer that `owner` is, or that is inside it, with random weights. Raises MissingAbility."""
    trouble: list[str] = []
    # The innermost first: a block that contains such a layer may be called as one.
    for layer in reversed([part for part in owner.modules() if _is_layer(part)]):
        try:
            return _layer(layer, name, width, wanted, module, in_dtype=in_dtype, seed=seed)
        except MissingAbility as error:
            trouble.append(str(error))
    raise MissingAbility("; ".join(dict.fromkeys(trouble)) or "nothing in it is called experts")


def _is_layer(part: nn.Module) -> bool:
    """Return True if the class of a module, or one of its own parts, is called as those of experts are."""
    name = type(part).__name__
    own = any(child == "experts" for child, _ in part.named_children())
    return own or (LAYERS.search(name) is not None and OTHERS.search(name) is None)


def _layer(
    layer: nn.Module, name: str, width: int, wanted: int, module: ModuleType, *, in_dtype: torch.dtype, seed: int
) -> ExpertLayer:
    for part in layer.modules():
        if any(isinstance(vars(part).get(word), int) and vars(part)[word] > 1 for word in GROUPS):
            raise MissingAbility(f"{type(layer).__name__} chooses among groups of experts, which no check knows")
    experts = find_experts(layer, width, wanted)
    taken = [part.parameter for parts in experts.parameters for part in parts]
    router, router_parameters = find_router(layer, width, experts.number, taken)
    convert(layer, in_dtype)
    excite(layer, router_parameters, width, seed=seeded(seed))
    layer.eval()
    code = type(layer).forward.__code__
    made = ExpertLayer(
        module=layer,
        width=width,
        experts=experts.number,
        per_token=_said_per_token(layer),
        router=router,
        expert=next(iter(experts.calls.values())),
        router_parameters=router_parameters,
        expert_parameters=experts.parameters,
        shared=find_shared(layer),
        line=(code.co_filename, code.co_firstlineno),
        balance=_balance_function(layer, module, experts.number),
    )
    call, made.expert = _fitting(made, experts)
    said = type(layer).__name__ if type(layer).__name__ == name else f"{type(layer).__name__} inside {name}"
    shared = f", {len(made.shared)} shared" if made.shared else ""
    made.description = f"{said}, {experts.number} experts{shared}; each alone is computed by {call}"
    return made


def convert(layer: nn.Module, dtype: torch.dtype) -> None:
    """Convert a layer to a dtype, in place."""
    in_dtype(layer, dtype)


@torch.no_grad()
def excite(layer: nn.Module, router: tuple[nn.Parameter, ...], width: int, *, seed: int) -> None:
    """Fill every parameter with seeded random numbers, so that no expert, bias or gain can be left out unseen.

    Matrices have a standard deviation of 1/sqrt(C), gains are near 1, and the router's logits have one of 1.5, so that
    gates differ plainly. A vector with an entry for each expert that is no bias of the router corrects its choice, and
    stays as it is.
    """
    generator = torch.Generator().manual_seed(seed)
    experts = router[0].numel() // width
    for name, parameter in layer.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if any(parameter is one for one in router):
            drawn *= 1.5 / width**0.5 if parameter.dim() > 1 else 0.5
        elif parameter.dim() >= 2:
            drawn *= 1 / width**0.5
        elif parameter.numel() == experts:
            continue
        else:
            drawn = 0.3 * drawn + (1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0)
        parameter.copy_(drawn)


def _fitting(layer: ExpertLayer, experts: Experts) -> tuple[str, Expert]:
    """Return the way in which an expert alone is called that explains most of the layer's own outputs.

    An output is explained if it is a sum of the experts' outputs for its token, with any weights. The median over the
    tokens counts, so that a layer that is wrong for some of them is read right.
    """
    if len(experts.calls) == 1:
        return next(iter(experts.calls.items()))
    x = torch.randn(ROWS, LENGTH, layer.width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x.to(next(layer.module.parameters()).dtype)
    y_is_exact = x.dtype == torch.float64
    best: tuple[float, str, Expert] | None = None
    with torch.no_grad():
        try:
            y = (layer(x).reshape(-1, layer.width) - layer.shared_output(x)).double()
        except Exception:
            return next(iter(experts.calls.items()))
        for name, call in experts.calls.items():
            layer.expert = call
            try:
                outputs = torch.stack([layer.expert_output(n, x) for n in range(layer.experts)], dim=-1).double()
            except Exception:
                continue
            gates = torch.linalg.lstsq(outputs, y[..., None]).solution
            left = float((outputs @ gates - y[..., None]).norm(dim=(1, 2)).median())
            if best is None or left < best[0]:
                best = (left, name, call)
            if left < UNKNOWN * float(y.norm(dim=1).median()):
                return name, call
    mixed = (found for found in experts.calls.items() if y_is_exact and _is_of_other_tokens(layer, found[1], y, x))
    if (found := next(mixed, None)) is not None:
        return found
    if best is None or y_is_exact:  # in 16 bits nothing is exact; the best one then serves
        return "nothing that is known", _unknown(type(layer.module).__name__)
    return best[1], best[2]


def _unknown(name: str) -> Expert:
    def call(number: int, x: Tensor) -> Tensor:
        raise MissingAbility(
            f"the experts of {name} are bare tensors, and none of the networks that people make of them "
            f"({', '.join(ACTIVATIONS)}, gated or not) explains its outputs"
        )

    return call


@torch.no_grad()
def _is_of_other_tokens(layer: ExpertLayer, call: Expert, y: Tensor, x: Tensor) -> bool:
    """Return True if an output is a sum of the experts' outputs for two tokens, whichever: the experts are read right.

    A layer that mixes up its rows is then judged, and not taken for one whose experts are unknown.
    """
    layer.expert = call
    outputs = torch.stack([layer.expert_output(n, x) for n in range(layer.experts)], dim=-1).double()  # (N, C, E)
    if 2 * layer.experts >= layer.width:
        return False
    first, second = torch.triu_indices(len(outputs), len(outputs), 1)
    pairs = torch.cat([outputs[first], outputs[second]], dim=-1)  # (N (N - 1) / 2, C, 2 E)
    for one in y[:3]:
        wanted = one.expand(len(pairs), -1)[..., None]
        left = (pairs @ torch.linalg.lstsq(pairs, wanted).solution - wanted).norm(dim=(1, 2))
        if float(left.min()) < UNKNOWN * float(one.norm()):
            return True
    return False


def _said_per_token(layer: nn.Module) -> int | None:
    for part in layer.modules():
        for name, value in vars(part).items():
            if _meaning(name) == "experts_per_token" and isinstance(value, int) and not isinstance(value, bool):
                return value
    return None


def _balance_function(layer: nn.Module, module: ModuleType, experts: int) -> Callable[[Any], Tensor | None] | None:
    """Return the balance loss as a function of what a forward pass returned, from one beside the class; None without.

    The function takes the routing or the logits of a layer, or a list of those of all layers, and it may take the
    numbers of experts.
    """
    known = {"experts": experts, "experts_per_token": _said_per_token(layer)}
    for home in dict.fromkeys((inspect.getmodule(type(layer)), module)):
        for name, function in vars(home).items() if home is not None else ():
            if not (inspect.isfunction(function) and BALANCE.search(name)):
                continue
            _, *others = inspect.signature(function).parameters.values()
            given = {p.name: known.get(_meaning(p.name) or "") for p in others}
            required = [p.name for p in others if p.default is p.empty]
            if all(given[one] is not None for one in required):
                return _of_returned(function, {word: value for word, value in given.items() if value is not None})
    return None


def _of_returned(function: Callable[..., Any], numbers: Mapping[str, int]) -> Callable[[Any], Tensor | None]:
    def balance(returned: Any) -> Tensor | None:
        if not isinstance(returned, tuple) or len(returned) < 2:
            return None
        for routing in ((returned[1],), returned[1]):
            try:
                value = function(routing, **numbers)
            except Exception:
                continue
            if isinstance(value, Tensor) and value.numel() == 1:
                return value
        return None

    return balance
