"""The measure of a GPT's own function that copies the tensors of a published checkpoint into a model."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.core.error_text import describe_error
from harness.core.errors import MissingAbility
from harness.core.sizes import SIZES, Size
from harness.oracle.hugging_face import oracle
from harness.oracle.probe_weights import State, state_of
from harness.subjects.model import Model
from harness.subjects.protocols import LoadsTensors
from harness.subjects.weight_map import family
from harness.suites.measure_registry import Reading, measure

# As many layers as GPT-2 has: the names of layers 1 and 10 begin alike.
SIZE: Size = dataclasses.replace(SIZES["debug"], name="debug: 12 layers", layers=12, context=16)
HEAD, EMBEDDING = "lm_head.weight", "transformer.wte.weight"


@dataclass(frozen=True)
class Loaded:
    """A model that the function has filled, and what it was given.

    Attributes:
        layout: How the tensors were given, a key of LAYOUTS.
        given: The published tensors.
        read: The tensors of the model, by published name.
        before: The same of a model that nothing was loaded into.
        model: The model.
        was_tied: Head and embedding were one tensor before.
    """

    layout: str
    given: State
    read: Mapping[str, Tensor]
    before: Mapping[str, Tensor]
    model: Model
    was_tied: bool

    @property
    def differing(self) -> list[str]:
        """The published names of the tensors that the model does not have as they were given."""
        absent = {row.published for row in self.model.weights.missing if row.part is None}
        return [
            name
            for name, tensor in self.given.items()
            if name not in absent and not (name in self.read and torch.equal(self.read[name].float(), tensor))
        ]

    @property
    def nothing_arrived(self) -> bool:
        """True if every tensor of the model is as it was."""
        return all(name in self.before and torch.equal(t, self.before[name]) for name, t in self.read.items())


@measure
def loaded_tensors_differing(subject: LoadsTensors, *, size: str) -> Reading:
    """Count, by family, the tensors that are not the checkpoint's after the subject's own function has loaded them.

    The checkpoint has GPT-2's 12 layers, and is given in the layouts in which people have it; the one of which most
    arrives counts. A tie that loading breaks counts, and so does a parameter in another dtype than before.

    Raises MissingAbility if the function takes none of the layouts, or nothing arrives of any: it may be there for
    files of its own.
    """
    loaded = load_by_own_function(subject)
    wrong = loaded.differing
    found = dict.fromkeys((family(name) for name in loaded.given), 0)
    for name in wrong:
        found[family(name)] += 1
    found["ties broken"] = int(loaded.was_tied and not is_tied(loaded.model))
    found["parameters that are not float32"] = sum(p.dtype != torch.float32 for p in loaded.model.module.parameters())
    hint = "; ".join(said for name in wrong[:2] if (said := instead(name, loaded)))
    line = {"line": list(subject.tensor_loader_line)} if any(found.values()) else {}
    return Reading(found, "tensors", {"given as": loaded.layout, "hint": hint, **line})


def load_by_own_function(subject: LoadsTensors) -> Loaded:
    """Return the model that has most of the checkpoint. Raises MissingAbility if nothing of any layout arrives."""
    given = state_of(SIZE, "probe")
    best: Loaded | None = None
    errors: dict[str, str] = {}
    for layout, make in LAYOUTS.items():
        try:
            model = subject.build(SIZE, seed=99)
            was_tied, before = is_tied(model), _read(model)
            model = subject.load_tensors(model, make(given))
            loaded = Loaded(layout, given, _read(model), before, model, was_tied)
        except Exception as error:
            errors.setdefault(describe_error(error), layout)
            continue
        if best is None or len(loaded.differing) < len(best.differing):
            best = loaded
        if not best.differing:
            return best
    if best is not None and best.nothing_arrived:
        raise MissingAbility(f"the function of {subject.name} that loads tensors takes nothing of GPT-2's checkpoint")
    if best is None:
        said = "; ".join(f"{layout}: {error}" for error, layout in errors.items())
        raise MissingAbility(f"the function of {subject.name} that loads tensors takes none of the layouts: {said}")
    return best


def _read(model: Model) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.published_state().items()}


def is_tied(model: Model) -> bool:
    """Return True if the model has one tensor of (vocabulary, width) for head and embedding."""
    shape = (model.size.vocab_size, model.size.width)
    tables = [p for _, p in model.module.named_parameters(remove_duplicate=False) if tuple(p.shape) == shape]
    return len({p.data_ptr() for p in tables}) == 1


def instead(name: str, loaded: Loaded) -> str:
    """Return which published tensor is in the place of another, in words; "" if none is."""
    found = loaded.read.get(name)
    if found is None:
        return ""
    for other, tensor in loaded.given.items():
        if tensor.shape == found.shape and torch.equal(tensor, found):
            return f"{name} has the numbers of {other}"
        if tensor.ndim == 2 and tensor.mT.shape == found.shape and torch.equal(tensor.mT, found):
            return f"{name} has the numbers of {other}, transposed"
    return ""


def _with_head(given: State) -> State:
    return {name: tensor.clone() for name, tensor in (*given.items(), (HEAD, given[EMBEDDING]))}


def _bare(given: State) -> State:
    """Return the tensors as the released file has them: no `transformer.`, and a causal mask in every block."""
    masks = {
        f"h.{layer}.attn.bias": torch.ones(1, 1, SIZE.context, SIZE.context).tril() for layer in range(SIZE.layers)
    }
    return {**{name.removeprefix("transformer."): tensor.clone() for name, tensor in given.items()}, **masks}


def _nested(given: State) -> dict[str, Any]:
    """Return NumPy arrays in nested dicts, as people read them from OpenAI's own checkpoint (g and b, w and b)."""
    nest: dict[str, Any] = {"blocks": [{} for _ in range(SIZE.layers)]}
    for name, tensor in given.items():
        *path, leaf = re.sub(r"^transformer\.", "", name).split(".")
        is_norm = path[-1].startswith("ln_")
        key = {"weight": "g" if is_norm else "w", "bias": "b"}[leaf]
        if path[-1] in ("wte", "wpe"):
            nest[path[-1]] = tensor.numpy().copy()
            continue
        place = nest
        if path[0] == "h":
            place, path = nest["blocks"][int(path[1])], path[2:]
        for word in path:
            place = place.setdefault(word, {})
        place[key] = tensor.numpy().copy()
    return {**nest, "g": nest["ln_f"]["g"], "b": nest["ln_f"]["b"]}  # some have the last norm at the top


LAYOUTS: Mapping[str, Callable[[State], Any]] = {
    "the state dict of Hugging Face's GPT2LMHeadModel": _with_head,
    "the tensors of the released file": _bare,
    "nested NumPy arrays, as from OpenAI's checkpoint": _nested,
    "a GPT2LMHeadModel": lambda given: oracle(SIZE, given, "float32").module,
}
