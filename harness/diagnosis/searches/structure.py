"""The search for parameters that are missing, added, shared or unregistered, and for other widths than GPT-2's."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.sizes import SIZES
from harness.core.source_lines import location
from harness.diagnosis.finding import Finding
from harness.diagnosis.recorders import ModuleCreationSites
from harness.oracle.declared import is_declared_absent
from harness.oracle.tokens import batch
from harness.subjects.model import Model
from harness.subjects.protocols import Subject
from harness.subjects.weight_map import MappedWeight, family

SIZE = "debug"
HEAD_BIAS = "lm_head.bias"
NO_PARAMETER = "no parameter maps to"  # begins the evidence of what is missing


def search(subject: Subject) -> list[Finding]:
    """Return findings about the modules and parameters of the built model."""
    with ModuleCreationSites() as sites:
        model = subject.build(SIZES[SIZE])
    return [
        *_shared(model),
        *_unregistered(model, sites),
        *_missing(model),
        *_added(model, sites),
        *_other_widths(model),
        *_padded_vocabulary(model),
    ]


def _shared(model: Model) -> list[Finding]:
    """Return the finding for parameters that a forward pass uses at several places, and GPT-2 at one.

    Other names of a parameter, or of a module that is registered twice and called once, share nothing.
    """
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, parameter in model.module.named_parameters(remove_duplicate=False):
        owner = model.module.get_submodule(name.rpartition(".")[0])
        # A head is tied to the token embedding, whose rows may be padded: the one table with so many.
        if max(parameter.shape, default=0) < SIZES[SIZE].vocab_size:
            owners.setdefault(id(parameter), []).append((name, owner))
    several = [places for places in owners.values() if len(places) > 1]
    if not several:
        return []
    calls = _calls(model)
    shared = [[name for name, _ in places] for places in several if _is_used_again(places, calls)]
    if not shared:
        return []
    evidence = f"{', '.join(shared[0][:3])} are one parameter, and a forward pass uses it more than once"
    if len(shared) >= 8 and len(shared[0]) == SIZES[SIZE].layers:  # about as many as a block has
        cause = "every layer is the same module ([Block()] * n): all layers share their weights"
        return [Finding("structure", "blocks-share-one-module", cause, evidence)]
    return [Finding("structure", "parameters-shared", "parameters are shared that GPT-2 does not share", evidence)]


def _is_used_again(places: list[tuple[str, nn.Module]], calls: dict[int, int]) -> bool:
    """Return True if a parameter at these places is used more than once; by its names if no module of it is called."""
    called = [calls.get(owner, 0) for owner in {id(owner) for _, owner in places}]
    if any(called):
        return sum(called) > 1
    return len({re.sub(r"\d+", "#", name) for name, _ in places}) < len(places)


def _calls(model: Model) -> dict[int, int]:
    """Return how often one forward pass calls each module, by the module's id."""
    calls: dict[int, int] = {}

    def count(module: nn.Module, *_: Any) -> None:
        calls[id(module)] = calls.get(id(module), 0) + 1

    hooks = [module.register_forward_pre_hook(count) for module in model.module.modules()]
    ids, _ = batch(SIZES[SIZE], "random", rows=1, length=4)
    try:
        with torch.no_grad():
            model.logits_alone(ids)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


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
            set_at = sites.square.get(owner, {}).get(name.rpartition(".")[2])
            at = location(set_at) if set_at else at
            found = [Finding("structure", "mask-in-an-attribute", cause, "use register_buffer", *at)]
    return found


def _missing(model: Model) -> Iterator[Finding]:
    """Yield the findings for parameters of GPT-2 that the subject does not have: biases, positions, components."""
    if model.weight_map is None:
        return
    if biases := missing_biases(model):
        yield bias_finding(biases)
    for component, words in _without_weight(model).items():
        evidence = f"{NO_PARAMETER} {', '.join(words)}"
        if component == "wpe" and (rows := _position_rows(model)):
            cause = f"the table of positions has {rows} rows, fewer than the context"
            yield Finding("embedding.position", "", cause, evidence)
            continue
        if component == "wpe":
            yield Finding("embedding", "pos-missing", "there are no learned position embeddings", evidence)
            continue
        if is_declared_absent(f"{component}.weight"):
            continue
        what = "neither gain nor bias" if component.startswith("ln_") and len(words) > 1 else "no weight of its own"
        where = component.replace("attn.c_attn", "attn.qkv")
        yield Finding(where, "", f"{component} has {what} among the parameters", evidence)


def _position_rows(model: Model) -> int:
    """Return the rows of wpe that a parameter of the subject has; 0 if none has any."""
    parts = [row.part for row in model.weights.rows if row.published == "transformer.wpe.weight" and row.part]
    return max((end for _, end in parts), default=0)


def _without_weight(model: Model) -> dict[str, list[str]]:
    """Return the missing families of each component whose weight, or a part of it, is missing."""
    missing = model.weights.missing
    families = list(dict.fromkeys(family(row.published) for row in missing))
    components = [name.removesuffix(".weight") for name in families if name.endswith(".weight")]
    return {component: [name for name in families if name.startswith(f"{component}.")] for component in components}


def missing_biases(model: Model) -> list[str]:
    """Return the families of biases that the subject has no parameter for, of components whose weight it has.

    A part of the fused projection's is `attn.c_attn.bias of q, v`.
    """
    if model.weight_map is None:
        return []
    edges = model.size.third_edges
    without_weight = _without_weight(model)
    found: dict[str, str] = {}
    for row in _noticed(model.weight_map.missing, model.size.width):
        name = family(row.published)
        if not name.endswith(".bias") or name.removesuffix(".bias") in without_weight:
            continue
        start, stop = row.part or (edges[0], edges[-1])
        covered = "".join(k for k, a, b in zip("qkv", edges, edges[1:], strict=False) if start < b and a < stop)
        found[name] = found.get(name, "") + (covered if "c_attn" in name else "")
    parts = {name: "".join(k for k in "qkv" if k in covered) for name, covered in found.items()}
    return [
        f"{name} of {', '.join(covered)}" if covered not in ("", "qkv") else name for name, covered in parts.items()
    ]


def _noticed(missing: Sequence[MappedWeight], width: int) -> Sequence[MappedWeight]:
    """Return the rows without that of the keys' bias alone: it adds the same to all scores of a query, to no effect."""
    of_qkv = {row.part for row in missing if "c_attn.bias" in row.published}
    if of_qkv == {(width, 2 * width)}:
        return [row for row in missing if "c_attn.bias" not in row.published]
    return missing


def bias_finding(missing: Sequence[str], *, without: Sequence[str] = ()) -> Finding:
    """Return the finding for biases that are missing. `without`: the norms that have none by their nature."""
    evidence = f"{NO_PARAMETER} {', '.join(missing)}"
    norms = [name for name in ("ln_1", "ln_2", "ln_f") if name not in without]
    linear = ["attn.c_attn.bias", "attn.c_proj.bias", "mlp.c_fc.bias", "mlp.c_proj.bias"]
    if set(missing) == {*linear, *(f"{name}.bias" for name in norms)}:
        return Finding("structure", "bias-free", "the model has no biases", evidence)
    if list(missing) == ["attn.c_attn.bias"]:
        return Finding("attn.qkv", "qkv-bias-missing", "queries, keys and values have no bias", evidence)
    where = missing[0].split(".bias")[0].replace("attn.c_attn", "attn.qkv")
    words = [name.replace(".bias", "") for name in missing]
    cause = f"there is no bias in {', '.join(words)}; GPT-2 has one there"
    listed = ", ".join(f'"{word}"' for word in words if " " not in word)
    return Finding(where, "bias-missing", cause, evidence, settings=(f"biases = [{listed}]",))


def _added(model: Model, sites: ModuleCreationSites) -> list[Finding]:
    """Return the findings for parameters that GPT-2 does not have: a head's bias, and the first other one."""
    if model.weight_map is None:
        return []
    size = SIZES[SIZE]
    parameters = dict(model.module.named_parameters())
    names = [listed.split(" ")[0] for listed in model.weight_map.unmapped_parameters]
    names += [row.own for row in model.weight_map.rows if row.published == HEAD_BIAS]
    names = [name for name in dict.fromkeys(names) if name in parameters]
    used = _used(model) if names else set()
    found: list[Finding] = []
    for name in names:
        parameter, shape = parameters[name], tuple(parameters[name].shape)
        at = location(sites.lines.get(model.module.get_submodule(name.rpartition(".")[0])))
        if shape == (size.vocab_size,) and name in used:
            found.insert(0, Finding("head", "head-has-bias", "the head has a bias", f"{name} has shape {shape}", *at))
        elif shape[-2:] == (size.context, size.context) and parameter.unique().numel() == 2:
            cause = f"{name} is a mask, and a parameter: an optimiser decays it"
            found.append(Finding("structure", "mask-is-a-parameter", cause, "use register_buffer", *at))
        elif name in used:
            cause = f"{name} {shape} is a parameter that GPT-2 does not have"
            found.append(Finding("structure", "parameter-added", cause, "a gradient of the loss reaches it", *at))
        else:
            cause = f"{name} {shape} is a parameter that GPT-2 does not have, and is not used"
            found.append(Finding("structure", "parameter-unused", cause, "no gradient of the loss reaches it", *at))
    distinct = {finding.fault: finding for finding in reversed(found)}
    return [finding for finding in found if finding is distinct[finding.fault]]


def _used(model: Model) -> set[str]:
    """Return the names of the parameters that a gradient of the loss reaches."""
    ids, targets = batch(SIZES[SIZE], "random", rows=1, length=8)
    model.module.zero_grad(set_to_none=True)
    with torch.enable_grad():
        model.loss(ids, targets).backward()
    return {name for name, parameter in model.module.named_parameters() if parameter.grad is not None}


def _other_widths(model: Model) -> Iterator[Finding]:
    """Yield the findings for fewer heads of keys and values, and for another width of the MLP."""
    size, gpt2 = model.size, SIZES[SIZE]
    if size.key_value_width != gpt2.key_value_width:
        few = size.key_value_width // size.head_width
        cause = f"{size.heads} heads of queries share {few} head{'s' * (few > 1)} of keys and values (grouped queries)"
        evidence = f"keys and values have {size.key_value_width} channels, queries {size.width}"
        yield Finding("attn.qkv", "grouped-queries", cause, evidence)
    if size.hidden_width != gpt2.hidden_width:
        cause = (
            f"the MLP has {size.hidden_width} hidden channels at a width of {size.width}; GPT-2 has 4 times the width"
        )
        yield Finding("mlp.c_fc", "hidden-width", cause, "")


def _padded_vocabulary(model: Model) -> list[Finding]:
    """Return the finding for a token embedding with more rows than the vocabulary has tokens."""
    if not model.vocabulary_is_padded:
        return []
    size = SIZES[SIZE]
    own = next(row.own for row in model.weights.rows if row.published == "transformer.wte.weight")
    rows = max(dict(model.module.named_parameters())[own].shape)
    ids, _ = batch(size, "random", rows=1, length=4)
    with torch.no_grad():
        logits, _loss = model.calling(model.module, ids, None)
    cause = f"the vocabulary is padded from {size.vocab_size} to {rows} rows"
    evidence = f"{own} has {rows} rows; logits have {logits.shape[-1]}"
    if not bool(logits[..., size.vocab_size :].isfinite().any()):
        return [Finding("head", "padded-vocabulary", f"{cause}, of which no logit comes", evidence)]
    return [Finding("head", "vocab-padding-unmasked", f"{cause}, and the extra tokens can be drawn", evidence)]
