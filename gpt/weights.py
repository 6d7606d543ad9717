"""Weights from Hugging Face and back again, by one weight map."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt.config import GPTConfig
from gpt.errors import WeightsError
from gpt.network import Network

# Our name, Hugging Face's, and whether theirs is stored transposed: its Conv1D stores (in, out), nn.Linear
# (out, in). attn.c_proj is square and loads either way without an error: only wrong outputs would show it.
# {N} is the number of a layer. The published files leave out "transformer.", newer ones have it; both are read.
WEIGHT_MAP: tuple[tuple[str, str, bool], ...] = (
    ("transformer.wte.weight", "wte.weight", False),
    ("transformer.wpe.weight", "wpe.weight", False),
    ("transformer.h.{N}.ln_1.weight", "h.{N}.ln_1.weight", False),
    ("transformer.h.{N}.ln_1.bias", "h.{N}.ln_1.bias", False),
    ("transformer.h.{N}.attn.c_attn.weight", "h.{N}.attn.c_attn.weight", True),
    ("transformer.h.{N}.attn.c_attn.bias", "h.{N}.attn.c_attn.bias", False),
    ("transformer.h.{N}.attn.c_proj.weight", "h.{N}.attn.c_proj.weight", True),
    ("transformer.h.{N}.attn.c_proj.bias", "h.{N}.attn.c_proj.bias", False),
    ("transformer.h.{N}.ln_2.weight", "h.{N}.ln_2.weight", False),
    ("transformer.h.{N}.ln_2.bias", "h.{N}.ln_2.bias", False),
    ("transformer.h.{N}.mlp.c_fc.weight", "h.{N}.mlp.c_fc.weight", True),
    ("transformer.h.{N}.mlp.c_fc.bias", "h.{N}.mlp.c_fc.bias", False),
    ("transformer.h.{N}.mlp.c_proj.weight", "h.{N}.mlp.c_proj.weight", True),
    ("transformer.h.{N}.mlp.c_proj.bias", "h.{N}.mlp.c_proj.bias", False),
    ("transformer.ln_f.weight", "ln_f.weight", False),
    ("transformer.ln_f.bias", "ln_f.bias", False),
    ("lm_head.weight", "lm_head.weight", False),  # absent, or equal to wte.weight, where it is tied
)

# With attention="looped", each head has its part of c_attn: the rows of c_attn, once it is (out, in), are the
# queries of all heads, then their keys, then their values.
LOOPED = ("query", "key", "value")

# Masks that old files contain as if they were weights.
LEGACY = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")


@dataclass(frozen=True)
class MappedWeight:
    """One line of the weight map: one of our parameters and the part of Hugging Face's that it equals."""

    ours: str
    theirs: str
    transposed: bool
    rows: slice
    """The rows of theirs, once (out, in), that are ours: all rows, except for a single head."""


def mapped_weights(config: GPTConfig) -> list[MappedWeight]:
    """Return the weight map with one line for every layer (and every head) of `config`.

    Raises `WeightsError` for a model with experts.
    """
    if config.n_experts:
        raise WeightsError(
            f"this model has n_experts={config.n_experts}, and Hugging Face's GPT-2 has one feed-forward network a "
            "block; save its state_dict() instead"
        )
    found = []
    for ours, theirs, transposed in WEIGHT_MAP:
        if (config.tied and ours == "lm_head.weight") or (not config.bias and ours.endswith(".bias")):
            continue
        for layer in range(config.n_layer if "{N}" in ours else 1):
            name = ours.format(N=layer)
            looped = config.attention == "looped" and ".c_attn." in name
            parts = _heads(name, config) if looped else [(name, slice(None))]
            found += [MappedWeight(part, theirs.format(N=layer), transposed, rows) for part, rows in parts]
    return found


def _heads(name: str, config: GPTConfig) -> list[tuple[str, slice]]:
    starts = range(0, 3 * config.n_embd, config.head_size)
    parts = [(part, head) for part in LOOPED for head in range(config.n_head)]
    return [
        (name.replace(".c_attn.", f".heads.{head}.{part}."), slice(start, start + config.head_size))
        for (part, head), start in zip(parts, starts, strict=True)
    ]


class HuggingFaceWeights:
    """Hugging Face's weights, with or without the prefix "transformer.", read in our layout.

    Raises `WeightsError` when a name occurs with and without the prefix.
    """

    def __init__(self, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]] | None = None) -> None:
        self.tensors = tensors
        self.names: dict[str, str] = {}  # from the name without the prefix to the name found
        shapes = shapes or {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        for name in shapes:
            short = name.removeprefix("transformer.")
            if short in self.names:
                raise WeightsError(f"the weights contain both {self.names[short]} and {name}; expected only one")
            self.names[short] = name
        self.shapes = {short: shapes[name] for short, name in self.names.items()}

    def tensor(self, theirs: str) -> Tensor:
        """Return the tensor as it is stored; `WeightsError` unless it is floating-point."""
        tensor = self.tensors[self.names[theirs]]
        if not tensor.is_floating_point():
            raise WeightsError(f"{self.names[theirs]} is {tensor.dtype}; expected floating-point weights")
        return tensor

    def read(self, weight: MappedWeight) -> Tensor:
        """Return one of our parameters, as a view of the stored tensor."""
        tensor = self.tensor(weight.theirs)
        return (tensor.t() if weight.transposed else tensor)[weight.rows]

    def check_layers(self, expected: int) -> None:
        """Raise `WeightsError` if the configuration claims more layers than the weights have tensors."""
        if expected > len(self.shapes):
            raise WeightsError(
                f"the configuration has {expected:,} layers, the weights only {len(self.shapes):,} tensors; "
                "config.json and the weights are of different models"
            )

    def check_fit(self, model: Network) -> None:
        """Raise `WeightsError` unless the names and shapes on both sides match."""
        expected, ours = expected_shapes(model), {weight.theirs: weight.ours for weight in mapped_weights(model.config)}
        tied = {"lm_head.weight"} if model.config.tied else set()
        expected_names = expected.keys() | tied | {name for name in self.shapes if LEGACY.fullmatch(name)}
        problems = {
            "missing in the weights": [f"{name} (our {ours[name]})" for name in expected if name not in self.shapes],
            "unknown to the model": [
                f"{self.names[name]} {shape}" for name, shape in self.shapes.items() if name not in expected_names
            ],
            "of another shape": [
                f"{self.names[name]} is {self.shapes[name]}, expected {shape} for our {ours[name]}"
                for name, shape in expected.items()
                if self.shapes.get(name, shape) != shape
            ],
        }
        found = [f"{problem}: {shorten(names)}" for problem, names in problems.items() if names]
        if found:
            raise WeightsError("the weights do not fit the model; " + "; ".join(found))
        if tied & self.shapes.keys():
            self._check_one_head()

    def _check_one_head(self) -> None:
        head, embedding = self.tensor("lm_head.weight"), self.tensor("wte.weight")
        if head.data_ptr() != embedding.data_ptr() and not torch.equal(head, embedding):
            raise WeightsError(
                "lm_head.weight differs from wte.weight, and this model has one parameter for both; "
                "load it into a model with tied=False"
            )


def expected_shapes(model: Network) -> dict[str, tuple[int, ...]]:
    """Return the shapes that `model` expects, by Hugging Face's names and in its layout."""
    ours = dict(model.named_parameters(remove_duplicate=False))
    shapes: dict[str, tuple[int, ...]] = {}
    for weight in mapped_weights(model.config):
        rows, *rest = ours[weight.ours].shape
        if weight.theirs in shapes:  # another head of the same c_attn
            rows += shapes[weight.theirs][0]
        shapes[weight.theirs] = (rows, *rest)
    transposed = {weight.theirs for weight in mapped_weights(model.config) if weight.transposed}
    return {name: shape[::-1] if name in transposed else shape for name, shape in shapes.items()}


@torch.no_grad()
def load_huggingface(model: Network, state: Mapping[str, Tensor]) -> None:
    """Copy Hugging Face's weights into `model`, all of them or none.

    Raises `WeightsError`, with the model untouched, unless the names and shapes on both sides match.
    """
    check_not_meta(model)
    weights = HuggingFaceWeights(state)
    weights.check_fit(model)
    ours = dict(model.named_parameters(remove_duplicate=False))
    values = [(ours[weight.ours], weights.read(weight)) for weight in mapped_weights(model.config)]
    for parameter, value in values:
        parameter.copy_(value)


def to_huggingface(model: Network) -> dict[str, Tensor]:
    """Return the weights by the names of `GPT2LMHeadModel` and in its layout; a tied head is left out.

    Raises `WeightsError` for a model on the meta device or with bias=False.
    """
    check_not_meta(model)
    if not model.config.bias:
        raise WeightsError("this model has bias=False, and Hugging Face's GPT-2 always has biases")
    ours = dict(model.named_parameters(remove_duplicate=False))
    parts: dict[tuple[str, bool], list[Tensor]] = {}
    for weight in mapped_weights(model.config):
        parts.setdefault((weight.theirs, weight.transposed), []).append(ours[weight.ours].detach())
    found = {}
    for (theirs, transposed), tensors in parts.items():
        tensor = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
        name = theirs if theirs == "lm_head.weight" else f"transformer.{theirs}"
        found[name] = (tensor.t() if transposed else tensor).contiguous()
    return found


def check_not_meta(model: Network) -> None:
    """Raise `WeightsError` for a model on the meta device, which has no memory for weights."""
    if any(parameter.is_meta for parameter in model.parameters()):
        raise WeightsError("the model is on the meta device, without memory; call to_empty(device=...) first")


def shorten(names: list[str], limit: int = 4) -> str:
    """Return the first `limit` names and the number of the others, as text."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
