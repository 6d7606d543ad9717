"""The parts of a mixture of experts in other people's code: its router, its experts, and how each is called alone."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.core.errors import MissingAbility
from harness.subjects.expert_layer import ExpertPart

ROUTER = re.compile(r"router|gat(e|ing)|wg$|switch", re.IGNORECASE)
NOISE = re.compile(r"nois|jitter", re.IGNORECASE)
EXPERTS = re.compile(r"expert|mlps|ffns?|feed_?forwards?", re.IGNORECASE)
SHARED = re.compile(r"shared", re.IGNORECASE)
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "GELU (tanh)": lambda x: F.gelu(x, approximate="tanh"),
    "GELU": F.gelu,
    "ReLU": F.relu,
    "SiLU": F.silu,
    "ReLU squared": lambda x: F.relu(x).square(),
}
Expert = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class Experts:
    """The experts of a layer: how many, the ways in which one alone may be called, and the parameters of each.

    Experts that are modules, or entries of a module that computes all, can be called in one way. Experts that are bare
    tensors have one for each activation and layout that people use: their outputs say which one it is.
    """

    number: int
    calls: dict[str, Expert]
    parameters: tuple[tuple[ExpertPart, ...], ...]


def find_experts(module: nn.Module, width: int, wanted: int | None) -> Experts:
    """Return the experts of a layer; `wanted` is how many it was asked for. Raises MissingAbility if none are found."""
    lists = [
        (name, part)
        for name, part in module.named_modules()
        if isinstance(part, (nn.ModuleList, nn.ModuleDict)) and len(part) and not SHARED.search(name)
    ]
    lists.sort(key=lambda found: (len(found[1]) != wanted, not EXPERTS.search(found[0]), found[0].count(".")))
    if lists:
        held = lists[0][1]
        parts = list(held.values() if isinstance(held, nn.ModuleDict) else held)
        rows = tuple(tuple(ExpertPart(parameter) for parameter in part.parameters()) for part in parts)
        return Experts(len(parts), {"modules": lambda number, x: parts[number](x)}, rows)
    stacked = [(name, p) for name, p in module.named_parameters() if p.dim() >= 3 and not SHARED.search(name)]
    sizes = Counter(p.size(0) for _, p in stacked)
    number = wanted if wanted in sizes else next((size for size, _ in sizes.most_common(1)), None)
    if number is None:
        raise MissingAbility(
            f"{type(module).__name__} has no experts that were recognised: a ModuleList of networks, or parameters of "
            "three dimensions whose first is the expert"
        )
    owner = stacked[0][0].rpartition(".")[0]
    inside = module.get_submodule(owner) if owner else module
    # Beside matrices (E, a, b) the same module has the biases (E, b); the router's matrix (E, C) is elsewhere, or is
    # called so.
    own = {
        name: p
        for name, p in inside.named_parameters()
        if p.dim() >= 2 and p.size(0) == number and (p.dim() >= 3 or not ROUTER.fullmatch(name.split(".")[0]))
        if not (p.dim() == 2 and inside is module and ROUTER.search(name)) and not NOISE.search(name)
    }
    rows = tuple(tuple(ExpertPart(p, index) for p in own.values()) for index in range(number))
    calls = dict(_calls(own, width))
    if inside is not module:
        batched = _batched(inside, number, width)
        calls = {"all at once": batched, **calls} if batched is not None else {**calls, **_dispatched(inside)}
    if not calls:
        shapes = ", ".join(f"{name} {tuple(p.shape)}" for name, p in own.items())
        raise MissingAbility(f"the experts of {type(module).__name__} are tensors of unknown use: {shapes}")
    return Experts(number, calls, rows)


def _batched(experts: nn.Module, number: int, width: int) -> Expert | None:
    """Return the call of a module that computes all experts, (E, N, C) -> (E, N, C); None if it does not."""

    def call(index: int, x: Tensor) -> Tensor:
        found: Tensor = experts(x.expand(number, *x.shape))[index]
        return found

    try:
        with torch.no_grad():
            sample = next(experts.parameters()).new_ones(number, 5, width)
            answer = experts(sample)
        return call if isinstance(answer, Tensor) and answer.shape == sample.shape else None
    except Exception:
        return None


def _dispatched(experts: nn.Module) -> dict[str, Expert]:
    """Return the call of a module that takes tokens, the experts of each, and their weights; {} if it is none."""
    words = list(inspect.signature(experts.forward).parameters)
    index = next((word for word in words[1:] if "ind" in word or "id" in word or "select" in word), None)
    weight = next((word for word in words[1:] if word != index and re.search("weight|score|gate|prob", word)), None)
    if len(words) != 3 or index is None or weight is None:
        return {}

    def call(number: int, x: Tensor) -> Tensor:
        chosen = torch.full((x.size(0), 1), number, dtype=torch.int64, device=x.device)
        out: Tensor = experts(x, **{index: chosen, weight: x.new_ones(x.size(0), 1)})
        return out

    return {"its module, one at a time": call}


def _calls(own: dict[str, nn.Parameter], width: int) -> Iterator[tuple[str, Expert]]:
    """Yield the ways in which bare tensors may make an expert: roles of the matrices, and activations."""
    matrices = {name: p for name, p in own.items() if p.dim() == 3 and 1 not in p.shape[1:]}
    biases = [p for name, p in own.items() if name not in matrices]
    for role, (up, gate, down) in _roles(list(matrices.values())).items():
        hidden = down.numel() // down.size(0) // width
        before = next((p for p in biases if p.numel() == up.numel() // width), None)
        after = next((p for p in biases if p.numel() == p.size(0) * width and p is not before), None)
        for name, activation in ACTIVATIONS.items():
            called = ", ".join(word for word in (name, role) if word)
            yield called, _network(up, gate, down, (before, after), activation, (width, hidden), "inter" in role)


def _roles(matrices: list[nn.Parameter]) -> dict[str, tuple[nn.Parameter, nn.Parameter | None, nn.Parameter]]:
    """Return (up, gate, down) for each reading of two matrices, of two of which one is double, or of three."""
    if len(matrices) == 2:
        first, second = matrices
        if first.numel() == 2 * second.numel():
            return {"gated": (first, first, second), "gated, interleaved": (first, first, second)}
        return {"": (first, None, second), "the second one first": (second, None, first)}
    if len(matrices) == 3:
        shapes = [tuple(matrix.shape) for matrix in matrices]
        odd = next((n for n, shape in enumerate(shapes) if shapes.count(shape) == 1), 2)
        down = matrices[odd]
        first, second = (matrix for n, matrix in enumerate(matrices) if n != odd)
        return {"the first one gates": (second, first, down), "the second one gates": (first, second, down)}
    return {}


def _network(
    up: nn.Parameter,
    gate: nn.Parameter | None,
    down: nn.Parameter,
    biases: tuple[nn.Parameter | None, nn.Parameter | None],
    activation: Callable[[Tensor], Tensor],
    widths: tuple[int, int],
    interleaved: bool,
) -> Expert:
    width, hidden = widths

    def times(x: Tensor, matrix: Tensor, outputs: int) -> Tensor:
        # The two widths differ, so that a matrix says itself whether it is (in, out) or (out, in).
        return x @ (matrix if matrix.shape == (x.size(-1), outputs) else matrix.t())

    def call(index: int, x: Tensor) -> Tensor:
        wide = times(x, up[index], hidden * (2 if gate is up else 1))
        if biases[0] is not None:
            wide = wide + biases[0][index].reshape(-1)
        if gate is up:
            first, second = (wide[..., ::2], wide[..., 1::2]) if interleaved else wide.chunk(2, dim=-1)
            wide = activation(first) * second
        elif gate is not None:
            wide = wide * activation(times(x, gate[index], hidden))
        else:
            wide = activation(wide)
        out = times(wide, down[index], width)
        return out if biases[1] is None else out + biases[1][index].reshape(-1)

    return call


def find_router(
    module: nn.Module, width: int, number: int, taken: Iterable[nn.Parameter]
) -> tuple[Callable[[Tensor], Tensor], tuple[nn.Parameter, ...]]:
    """Return the router, (N, C) -> (N, E), and its parameters: one linear map from C channels to E experts.

    Raises MissingAbility if none is found.
    """
    used = {id(parameter) for parameter in taken}
    owners = {id(p): part for part in module.modules() for p in part.parameters(recurse=False)}
    found = [
        (name, p)
        for name, p in module.named_parameters()
        if id(p) not in used and not NOISE.search(name) and tuple(p.shape) in ((number, width), (width, number))
    ]
    found.sort(key=lambda each: (not ROUTER.search(each[0]), bool(SHARED.search(each[0]))))
    if not found:
        raise MissingAbility(
            f"{type(module).__name__} has no router that was recognised: a matrix from {width} channels to {number} "
            "experts"
        )
    weight = found[0][1]
    owner = owners[id(weight)]
    bias = getattr(owner, "bias", None)
    bias = bias if isinstance(bias, nn.Parameter) and tuple(bias.shape) == (number,) else None

    def router(x: Tensor) -> Tensor:
        matrix = weight if weight.size(0) == number else weight.t()  # (E, C)
        return F.linear(x, matrix.to(x.dtype), None if bias is None else bias.to(x.dtype))

    return router, (weight,) if bias is None else (weight, bias)


def find_shared(module: nn.Module) -> tuple[Callable[[Tensor], Tensor], ...]:
    """Return the experts that every token goes through, (N, C) -> (N, C): the outermost modules that are called so.

    If there is one map from the channels to a single number that is called so too, its sigmoid is their gate.
    """
    found: dict[str, nn.Module] = {}
    gate: nn.Linear | None = None
    for name, part in module.named_modules():
        last = name.rpartition(".")[2]
        if not SHARED.search(last) or any(name.startswith(f"{one}.") for one in found):
            continue
        if isinstance(part, nn.Linear) and part.out_features == 1:
            gate = part
        elif not ROUTER.search(last):
            found[name] = part
    parts = [inner for part in found.values() for inner in (part if isinstance(part, nn.ModuleList) else [part])]
    return tuple(part if gate is None else _gated(part, gate) for part in parts)


def _gated(part: nn.Module, gate: nn.Linear) -> Callable[[Tensor], Tensor]:
    def call(x: Tensor) -> Tensor:
        out: Tensor = torch.sigmoid(gate(x)) * part(x)
        return out

    return call
