"""The search for parameters that are missing, added, shared or unregistered, and for a padded vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from harness.core.sizes import SIZES
from harness.diagnosis.finding import Finding
from harness.diagnosis.recorders import ModuleCreationSites
from harness.diagnosis.source_lines import location
from harness.subjects.model import Model
from harness.subjects.protocols import Subject
from harness.subjects.weight_map import family

SIZE = "debug"
MOST_PADDING = 128  # rows that a vocabulary is padded by at most


def search(subject: Subject) -> list[Finding]:
    """Return findings about the modules and parameters of the built model."""
    with ModuleCreationSites() as sites:
        model = subject.build(SIZES[SIZE])
    return [
        *_shared(model),
        *_unregistered(model, sites),
        *_missing(model),
        *_added(model, sites),
        *_padded_vocabulary(model),
    ]


def _shared(model: Model) -> list[Finding]:
    """Return the finding for parameters that have several names."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    parameters = dict(model.module.named_parameters(remove_duplicate=False))
    # A head is tied to the token embedding, whose rows may be padded: the one table with so many.
    shared = [ns for ns in names.values() if len(ns) > 1 and max(parameters[ns[0]].shape) < SIZES[SIZE].vocab_size]
    absent = () if model.weight_map is None else model.weight_map.missing
    weights = [row for row in absent if ".h." in row.published and row.published.endswith("weight") and not row.part]
    if not shared or (model.weight_map is not None and not weights):
        return []  # each layer has its own weights: a module that is registered twice has two names
    evidence = f"{', '.join(shared[0][:3])} are one parameter"
    if len(shared) >= 8:  # about as many as a block has
        cause = "every layer is the same module ([Block()] * n): all layers share their weights"
        return [Finding("structure", "blocks-share-one-module", cause, evidence)]
    return [Finding("structure", "parameters-shared", "parameters are shared that GPT-2 does not share", evidence)]


def _attributes(model: Model) -> Iterator[tuple[str, nn.Module, Any]]:
    """Yield the name, the owner and the value of each plain attribute of the model's modules."""
    for path, module in model.module.named_modules():
        for name, value in vars(module).items():
            if not name.startswith("_"):  # PyTorch keeps registered modules, parameters and buffers in `_...`
                yield f"{path}.{name}" if path else name, module, value


def _unregistered(model: Model, sites: ModuleCreationSites) -> list[Finding]:
    """Return the finding for modules or tensors in a list, a dict or an attribute that PyTorch does not register."""
    registered = {id(t) for t in (*model.module.parameters(), *model.module.buffers())}
    found: list[Finding] = []
    for name, owner, value in _attributes(model):
        items = value if isinstance(value, list | tuple) else value.values() if isinstance(value, dict) else [value]
        at = location(sites.lines.get(owner))
        modules = [
            item
            for item in items
            if isinstance(item, nn.Module) and any(id(p) not in registered for p in item.parameters())
        ]
        if modules:
            kind = type(value).__name__
            cause = f"{name} is a plain {kind} of {len(modules)} modules, which are neither trained nor saved"
            advice = "use nn.ModuleList, nn.Sequential or nn.ModuleDict"
            return [Finding("structure", "blocks-in-python-list", cause, advice, *at)]
        tensors = [item for item in items if isinstance(item, Tensor) and item.ndim > 1 and id(item) not in registered]
        if tensors and not found:
            cause = f"{name} is a plain tensor, which .to(device) and state_dict leave out"
            found = [Finding("structure", "mask-in-an-attribute", cause, "use register_buffer", *at)]
    return found


def _missing(model: Model) -> list[Finding]:
    """Return the finding for parameters of GPT-2 that the subject does not have."""
    if model.weight_map is None:
        return []
    rows = model.weight_map.missing
    families = list(dict.fromkeys(family(row.published) for row in rows))
    # A key bias adds the same to all scores of a query, which the softmax ignores.
    width = model.size.width
    if {row.part for row in rows if "c_attn.bias" in row.published} == {(width, 2 * width)}:
        families.remove("attn.c_attn.bias")
    if not families:
        return []
    evidence = f"no parameter maps to {', '.join(families[:5])}{' ...' * (len(families) > 5)}"
    biases = all(name.endswith("bias") for name in families)
    if biases and len(families) >= 5:
        return [Finding("structure", "bias-free", "the model has no biases", evidence)]
    if families == ["attn.c_attn.bias"]:
        return [Finding("attn.qkv", "qkv-bias-missing", "queries, keys and values have no bias", evidence)]
    where = families[0].rpartition(".")[0].replace("attn.c_attn", "attn.qkv")
    cause = f"missing: {', '.join(families)}"
    return [Finding(where, "bias-missing" if biases else "", cause, evidence)]


def _added(model: Model, sites: ModuleCreationSites) -> list[Finding]:
    """Return the finding for a parameter that GPT-2 does not have."""
    if model.weight_map is None:
        return []
    size, found = SIZES[SIZE], []
    parameters = dict(model.module.named_parameters())
    for listed in model.weight_map.unmapped_parameters:
        name = listed.split(" ")[0]
        if name not in parameters:
            continue
        shape = tuple(parameters[name].shape)
        at = location(sites.lines.get(model.module.get_submodule(name.rpartition(".")[0])))
        if shape == (size.vocab_size,):
            return [Finding("head", "head-has-bias", "the head has a bias", f"{name} has shape {shape}", *at)]
        if shape[-2:] == (size.context, size.context):
            cause = f"{name} is a mask, and a parameter: an optimiser decays it"
            return [Finding("structure", "mask-is-a-parameter", cause, "use register_buffer", *at)]
        cause = f"{name} {shape} is a parameter that GPT-2 does not have"
        found.append(Finding("structure", "parameter-unused", cause, "", *at))
    return found[:1]


def _padded_vocabulary(model: Model) -> list[Finding]:
    """Return the finding for a vocabulary that is padded to a multiple of 8."""
    size = SIZES[SIZE]
    rows = [p.shape[0] for _, p in model.module.named_parameters() if p.ndim == 2 and p.shape[1] == size.width]
    others = {k * size.width for k in (1, 2, 3, 4)}  # rows of matrices that are no table of tokens
    padded = [
        n for n in rows if size.vocab_size < n <= size.vocab_size + MOST_PADDING and n % 8 == 0 and n not in others
    ]
    if not padded:
        return []
    cause = f"the vocabulary is padded from {size.vocab_size} to {padded[0]} rows, and the extra tokens can be drawn"
    evidence = f"the first loss is ln {padded[0]} then, not ln {size.vocab_size}"
    return [Finding("head", "vocab-padding-unmasked", cause, evidence)]
