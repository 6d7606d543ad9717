"""Weights from Hugging Face and back again, by one table of names."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gpt.config import GPTConfig
from gpt.errors import WeightsError

if TYPE_CHECKING:
    from gpt.model import GPT

# Our name, Hugging Face's, and whether theirs is stored transposed: its Conv1D keeps (in, out), nn.Linear
# (out, in). Nothing but the outputs can tell for attn.c_proj, which is square and loads either way.
# {N} is a layer. The published files leave out "transformer.", newer ones have it; both are read.
TABLE: tuple[tuple[str, str, bool], ...] = (
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

# With attention="looped", c_attn is spread over the heads: its rows (once it is (out, in)) are the queries
# of all heads, then their keys, then their values.
LOOPED = ("query", "key", "value")

# Masks that old files carry along as if they were weights.
LEGACY = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")


@dataclass(frozen=True)
class Entry:
    """One of our parameters and where it lies in Hugging Face's."""

    ours: str
    theirs: str
    transposed: bool
    rows: slice
    """Which rows of theirs, once (out, in), are ours: all of them but for a single head."""


def entries(config: GPTConfig) -> list[Entry]:
    """The table, written out for every layer (and every head) of `config`."""
    found = []
    for ours, theirs, transposed in TABLE:
        if (config.tied and ours == "lm_head.weight") or (not config.bias and ours.endswith(".bias")):
            continue
        for layer in range(config.n_layer if "{N}" in ours else 1):
            name = ours.format(N=layer)
            looped = config.attention == "looped" and ".c_attn." in name
            parts = _heads(name, config) if looped else [(name, slice(None))]
            found += [Entry(part, theirs.format(N=layer), transposed, rows) for part, rows in parts]
    return found


def _heads(name: str, config: GPTConfig) -> list[tuple[str, slice]]:
    starts = range(0, 3 * config.n_embd, config.head_size)
    parts = [(part, head) for part in LOOPED for head in range(config.n_head)]
    return [
        (name.replace(".c_attn.", f".heads.{head}.{part}."), slice(start, start + config.head_size))
        for (part, head), start in zip(parts, starts, strict=True)
    ]


class HuggingFaceWeights:
    """Someone else's weights, with either spelling of the names, read in our layout."""

    def __init__(self, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]] | None = None) -> None:
        self.tensors = tensors
        self.names: dict[str, str] = {}  # from the short spelling to the one that was found
        shapes = shapes or {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        for name in shapes:
            short = name.removeprefix("transformer.")
            if short in self.names:
                raise WeightsError(f"the weights hold both {self.names[short]} and {name}; expected only one")
            self.names[short] = name
        self.shapes = {short: shapes[name] for short, name in self.names.items()}

    def tensor(self, theirs: str) -> Tensor:
        """The tensor as it is stored."""
        tensor = self.tensors[self.names[theirs]]
        if not tensor.is_floating_point():
            raise WeightsError(f"{self.names[theirs]} is {tensor.dtype}; expected floating-point weights")
        return tensor

    def read(self, entry: Entry) -> Tensor:
        """One of our parameters: a view of the stored tensor."""
        tensor = self.tensor(entry.theirs)
        return (tensor.t() if entry.transposed else tensor)[entry.rows]

    def check_layers(self, expected: int) -> None:
        """Raise `WeightsError` if the configuration claims more layers than the weights have tensors."""
        if expected > len(self.shapes):
            raise WeightsError(
                f"the configuration has {expected:,} layers, the weights only {len(self.shapes):,} tensors; "
                "config.json or the weights are another model's"
            )

    def check_fit(self, model: "GPT") -> None:
        """Raise `WeightsError` unless every name on either side has its counterpart, of the same shape."""
        expected, ours = expected_shapes(model), {entry.theirs: entry.ours for entry in entries(model.config)}
        tied = {"lm_head.weight"} if model.config.tied else set()
        known = expected.keys() | tied | {name for name in self.shapes if LEGACY.fullmatch(name)}
        problems = {
            "missing in the weights": [f"{name} (our {ours[name]})" for name in expected if name not in self.shapes],
            "unknown to the model": [
                f"{self.names[name]} {shape}" for name, shape in self.shapes.items() if name not in known
            ],
            "of another shape": [
                f"{self.names[name]} is {self.shapes[name]}, expected {shape} for our {ours[name]}"
                for name, shape in expected.items()
                if self.shapes.get(name, shape) != shape
            ],
        }
        found = [f"{kind}: {some(names)}" for kind, names in problems.items() if names]
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


def expected_shapes(model: "GPT") -> dict[str, tuple[int, ...]]:
    """The shapes that `model` expects under Hugging Face's names, in Hugging Face's layout."""
    ours = dict(model.named_parameters(remove_duplicate=False))
    shapes: dict[str, tuple[int, ...]] = {}
    for entry in entries(model.config):
        rows, *rest = ours[entry.ours].shape
        if entry.theirs in shapes:  # one more head of the same c_attn
            rows += shapes[entry.theirs][0]
        shapes[entry.theirs] = (rows, *rest)
    transposed = {entry.theirs for entry in entries(model.config) if entry.transposed}
    return {name: shape[::-1] if name in transposed else shape for name, shape in shapes.items()}


@torch.no_grad()
def load_huggingface(model: "GPT", state: Mapping[str, Tensor]) -> None:
    """Copy Hugging Face's weights into `model`, all of them or none.

    Raises `WeightsError`, with the model untouched, unless every name is accounted for on both sides and
    every shape fits.
    """
    refuse_meta(model)
    weights = HuggingFaceWeights(state)
    weights.check_fit(model)
    ours = dict(model.named_parameters(remove_duplicate=False))
    values = [(ours[entry.ours], weights.read(entry)) for entry in entries(model.config)]
    for parameter, value in values:
        parameter.copy_(value)


def to_huggingface(model: "GPT") -> dict[str, Tensor]:
    """The weights under the names of `GPT2LMHeadModel` and in its layout; a tied head is left out."""
    refuse_meta(model)
    if not model.config.bias:
        raise WeightsError("this model has bias=False, and Hugging Face's GPT-2 always has biases")
    ours = dict(model.named_parameters(remove_duplicate=False))
    parts: dict[tuple[str, bool], list[Tensor]] = {}
    for entry in entries(model.config):
        parts.setdefault((entry.theirs, entry.transposed), []).append(ours[entry.ours].detach())
    found = {}
    for (theirs, transposed), tensors in parts.items():
        tensor = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
        name = theirs if theirs == "lm_head.weight" else f"transformer.{theirs}"
        found[name] = (tensor.t() if transposed else tensor).contiguous()
    return found


def refuse_meta(model: "GPT") -> None:
    """Raise `WeightsError` for a model that has no memory to hold weights."""
    if any(parameter.is_meta for parameter in model.parameters()):
        raise WeightsError("the model is on the meta device, without memory; call to_empty(device=...) first")


def some(names: list[str], limit: int = 4) -> str:
    """The first few of many names."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
