"""A checkpoint put into the subject: the sizes it has, which keys match, in which orientation, and what stays unset."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.errors import HarnessError, Missing
from harness.core.sizes import SIZES, Size
from harness.diagnosis.triage.evidence import Evidence
from harness.diagnosis.triage.stored_checkpoint import StoredCheckpoint
from harness.subjects.adapters.construction.setting_names import quantity_of
from harness.subjects.model import Model
from harness.subjects.protocols import ChoosesAttention, Subject
from harness.subjects.weight_map import published_shapes, some

CAUSE = "weights not loaded"
NAMES = "names of the weights"
EMBEDDINGS = {"wte": "transformer.wte.weight", "wpe": "transformer.wpe.weight"}
HEAD = "lm_head.weight"
# Beginnings that wrappers add to every name: torch.compile, DistributedDataParallel, Lightning and others.
WRAPPERS = ("_orig_mod.", "module.", "_forward_module.", "model.", "net.", "gpt.")


@dataclass(frozen=True)
class LoadedSubject:
    """The subject with a checkpoint's weights, built as often as asked, and what became of the names."""

    subject: Subject
    size: Size
    tensors: Mapping[str, Tensor]
    options: Mapping[str, Any]
    evidence: tuple[Evidence, ...] = ()

    def build(self, dtype: str = "float32") -> Model:
        """Return a new model in eval mode with the checkpoint's weights."""
        model = self.subject.build(self.size, dtype=dtype, **self.options)
        _load(model, self.tensors)
        return model


def load(stored: StoredCheckpoint, subject: Subject, *, heads: int | None = None, named: bool = True) -> LoadedSubject:
    """Return the subject with the checkpoint's weights.

    `heads` is the number of attention heads, where the checkpoint does not say it. With `named=False` the user named no
    subject, and a checkpoint that does not fit is an error rather than a finding. Raises HarnessError for sizes that
    cannot be read off.
    """
    size = size_of(stored, subject, heads)
    options = _options(stored, subject)
    model = _built(subject, size, options)
    own = dict(model.module.named_parameters(remove_duplicate=False))
    published = published_shapes(size) if model.weight_map is not None else {}
    tensors, removed = _renamed(stored.tensors, {*own, *published, HEAD})
    loaded = _load(model, tensors)
    if not named and len(loaded.unset) * 2 > len(set(map(id, own.values()))):
        raise HarnessError(
            f"{stored.name}: most of its names are none of {subject.name}'s ({some(list(loaded.unmatched))}); name the "
            "GPT that was trained with --subject FILE.py:GPT"
        )
    return LoadedSubject(subject, size, tensors, options, (_names(loaded, removed), _wrapped(removed, len(tensors))))


@dataclass(frozen=True)
class _Outcome:
    """What became of a checkpoint's tensors: names that match nothing or do not fit, parameters that nothing sets."""

    unmatched: tuple[str, ...]
    unfitting: tuple[str, ...]
    unset: tuple[str, ...]
    parameters: int
    transposed: bool


@torch.no_grad()
def _load(model: Model, tensors: Mapping[str, Tensor]) -> _Outcome:
    """Copy what matches into the model, in place: by its own names, or by GPT-2's and in the published orientation."""
    own = dict(model.module.named_parameters(remove_duplicate=False))
    ignored = {name for name, tensor in tensors.items() if name not in own and _is_mask(name, tensor)}
    given = {name: tensor for name, tensor in tensors.items() if name not in ignored}
    if _is_published(given, own, model):
        shapes = {**published_shapes(model.size), HEAD: tuple(own[HEAD].shape) if HEAD in own else ()}
        fitting = {n: t for n, t in given.items() if n in shapes and tuple(t.shape) == shapes[n]}
        model.load(fitting)
        written = {row.own for row in model.weights.rows if row.published in fitting or row.published == HEAD}
        known: Iterable[str] = shapes
    else:
        fitting = {n: t for n, t in given.items() if n in own and t.shape == own[n].shape}
        for name, tensor in fitting.items():
            own[name].copy_(tensor)
        written, known = set(fitting), own
    set_parameters = {id(own[name]) for name in written}
    return _Outcome(
        tuple(name for name in given if name not in known and name != HEAD),
        tuple(name for name in given if name in known and name not in fitting and name != HEAD),
        tuple(name for name, each in model.module.named_parameters() if id(each) not in set_parameters),
        len(set(map(id, own.values()))),
        _is_published(given, own, model) and bool(given),
    )


def _is_published(tensors: Mapping[str, Tensor], own: Mapping[str, nn.Parameter], model: Model) -> bool:
    """Return True if GPT-2's names and orientation fit more of the tensors than the subject's own do."""
    if model.weight_map is None:
        return False
    shapes = published_shapes(model.size)
    by_own = sum(name in own and tensor.shape == own[name].shape for name, tensor in tensors.items())
    return sum(shapes.get(name) == tuple(tensor.shape) for name, tensor in tensors.items()) > by_own


def _is_mask(name: str, tensor: Tensor) -> bool:
    """Return True for what old programs store beside the weights: causal masks, and the number they fill with."""
    if name.rpartition(".")[2] in ("mask", "tril", "masked_bias", "causal_mask", "attn_mask", "inv_freq"):
        return True
    if tensor.ndim < 2 or tensor.shape[-1] != tensor.shape[-2]:
        return False
    return bool((tensor == 1).any()) and bool(((tensor == 0) | (tensor == 1)).all())


def _renamed(tensors: Mapping[str, Tensor], known: set[str]) -> tuple[dict[str, Tensor], str]:
    """Return the tensors by the names that match most, and the beginning that was removed from each."""
    candidates = {"": dict(tensors)}
    begin = ""
    names = list(tensors)
    while names and (wrapper := next((w for w in WRAPPERS if all(n[len(begin) :].startswith(w) for n in names)), "")):
        begin += wrapper
        candidates[begin] = {name[len(begin) :]: tensor for name, tensor in tensors.items()}
    for removed, each in list(candidates.items()):
        prefixed = {n if n == HEAD else f"transformer.{n}": t for n, t in each.items()}
        candidates.setdefault(f"{removed}+", prefixed)
    removed, best = max(candidates.items(), key=lambda item: len(item[1].keys() & known))
    return best, removed.removesuffix("+")


def _names(loaded: _Outcome, removed: str) -> Evidence:
    wrong = [
        f"{len(names)} {what}: {some(list(names))}"
        for names, what in (
            (loaded.unset, "parameters are in no tensor of the checkpoint and keep their initial values"),
            (loaded.unmatched, "tensors of the checkpoint match no parameter"),
            (loaded.unfitting, "tensors have another shape than the parameter of their name"),
        )
        if names
    ]
    layout = " in the published orientation (in, out), transposed where the GPT stores (out, in)"
    right = f"all {loaded.parameters} parameters are in the checkpoint{layout if loaded.transposed else ''}"
    return Evidence(
        CAUSE,
        "wrong" if wrong else "right",
        "; ".join(wrong) or right,
        "parameters that nothing sets",
        float(len(loaded.unset)),
        None,
        f"of {loaded.parameters}",
        "0",
        "names, shapes and values",
    )


def _wrapped(removed: str, number: int) -> Evidence:
    if not removed:
        return Evidence(NAMES, "right", "the names are the GPT's own, or GPT-2's", "names of a wrapped model",
                        0.0, None, f"of {number}", "0", "names, shapes and values")  # fmt: skip
    return Evidence(
        NAMES,
        "possible",
        f"all names begin with '{removed}', as of a wrapped model (torch.compile, DDP); here it was removed, but "
        "load_state_dict(..., strict=False) matches none of them, loads nothing and raises nothing: remove it there",
        "names of a wrapped model",
        float(number),
        None,
        f"of {number}",
        "0",
        "names, shapes and values",
    )


def size_of(stored: StoredCheckpoint, subject: Subject, heads: int | None = None) -> Size:
    """Return the sizes of the checkpoint: from its embeddings' shapes, then from the settings stored beside it."""
    settings = stored.settings
    found: dict[str, Any] = {}
    for name, value in settings.items():
        quantity = quantity_of(name, settings)
        if isinstance(value, int) and not isinstance(value, bool) and quantity is not None:
            found.setdefault(quantity, value)
    for table, (rows, width) in _tables(stored, subject).items():
        found |= {"vocab_size" if table == "wte" else "context": rows, "width": width}
    numbers = {int(n) for name in stored.tensors for n in re.findall(r"\.(\d+)\.", f".{name}")}
    if "layers" not in found and numbers:
        found["layers"] = max(numbers) + 1
    if heads is not None:
        found["heads"] = heads
    if "heads" not in found and "width" in found:
        raise HarnessError(
            f"{stored.name}: its number of attention heads is not stored, and no shape shows it; give --heads N"
        )
    missing = [name for name in ("vocab_size", "context", "layers", "heads", "width") if name not in found]
    if missing:
        raise HarnessError(
            f"{stored.name}: its {', '.join(missing)} cannot be read off, neither from settings stored beside the "
            f"tensors nor from the names {some(list(stored.tensors))}; name the GPT with --subject FILE.py:GPT, and "
            "store its configuration in the checkpoint"
        )
    return Size("checkpoint", *(found[name] for name in ("vocab_size", "context", "layers", "heads", "width")))


def _tables(stored: StoredCheckpoint, subject: Subject) -> dict[str, tuple[int, int]]:
    """Return the shapes of the token and the position embedding, by the subject's names for them or by GPT-2's."""
    names = {table: {published, published.removeprefix("transformer.")} for table, published in EMBEDDINGS.items()}
    try:
        rows = subject.build(SIZES["debug"], device="meta").weights.rows
        for table, published in EMBEDDINGS.items():
            names[table] |= {row.own for row in rows if row.published == published}
    except Exception:  # a subject of another size, or without a map: GPT-2's names are left
        rows = ()
    found = {}
    for name, tensor in stored.tensors.items():
        for table, known in names.items():
            if tensor.ndim == 2 and any(name == each or name.endswith(f".{each}") for each in known):
                found[table] = (tensor.shape[0], tensor.shape[1])
    return found


def _options(stored: StoredCheckpoint, subject: Subject) -> dict[str, Any]:
    """Return the options of the build that the tensors and the settings call for."""
    options: dict[str, Any] = {}
    names = stored.tensors
    head = next((t for n, t in names.items() if n.endswith(HEAD)), None)
    table = next((t for n, t in names.items() if n.endswith("wte.weight")), None)
    if head is not None and table is not None and (head.shape != table.shape or not torch.equal(head, table)):
        options["tied"] = False
    if not any(name.endswith("ln_f.bias") for name in names) and any(name.endswith("ln_f.weight") for name in names):
        options["bias"] = False
    attention = stored.settings.get("attention")
    if isinstance(subject, ChoosesAttention) and attention in subject.attentions:
        options["attention"] = attention
    return options


def _built(subject: Subject, size: Size, options: dict[str, Any]) -> Model:
    """Return the model; an option that the subject has no setting for is dropped from `options`."""
    for name in [*options, ""]:
        try:
            return subject.build(size, **options)
        except Missing:
            if not name:
                raise
            options.pop(name)
    raise AssertionError("the last round returns or raises")
