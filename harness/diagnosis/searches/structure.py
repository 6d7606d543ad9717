"""Structure explained: parameters that are missing, too many, shared or hidden, ties that break, dropout left out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from harness.core.sizes import SIZES
from harness.diagnosis.finding import Finding
from harness.diagnosis.observation import ModuleCreationSites
from harness.oracle.tokens import batch
from harness.subjects.model import Model, Subject
from harness.subjects.weight_map import family

SIZE = "debug"


def explain(subject: Subject) -> list[Finding]:
    """Findings about what the built model is made of."""
    with ModuleCreationSites() as births:
        model = subject.build(SIZES[SIZE])
    return [*_shared(model), *_hidden(model, births), *_missing(model), *_strangers(model, births), *_padded(model)]


def dropout(subject: Subject) -> list[Finding]:
    """Which of GPT-2's dropouts is missing, or has another rate: the embeddings' sum, and three a block."""
    rate, size = 0.1, SIZES[SIZE]
    model = subject.build(size, dropout=rate)
    ids, _ = batch(size, "random", rows=2, length=24)
    model.module.train()
    with _Dropouts() as drops, torch.no_grad():
        model.logits(ids)
    if not drops.calls:
        return []  # it has no dropout, or none of torch's: an ability that it lacks
    wrong = [p for _, p in drops.calls if abs(p - rate) > 1e-9]
    if wrong:
        cause = f"a dropout has a rate of {wrong[0]:g} where {rate:g} was asked for"
        return [Finding("dropout", "dropout-rate-tripled" if abs(wrong[0] - 0.3) < 1e-9 else "dropout-rate", cause, "")]
    kinds = ["attn" if shape.count(24) > 1 else "stream" for shape, _ in drops.calls]
    if kinds.count("attn") == size.layers * size.heads:  # head by head
        kinds = [kind for n, kind in enumerate(kinds) if kind == "stream" or kinds[:n].count("attn") % size.heads == 0]
    told = f"in training mode {len(kinds)} dropouts are applied, where GPT-2 has {1 + 3 * size.layers}"
    found = []
    if kinds.count("attn") < size.layers:
        found.append(Finding("dropout", "attn-dropout-missing", "the attention weights are not dropped out", told))
    if kinds.count("stream") < 1 + 2 * size.layers:
        before = kinds.index("attn") if "attn" in kinds else None
        if before == 0 and kinds.count("stream") == 2 * size.layers:
            found.append(Finding("dropout", "embed-dropout-missing", "the embeddings' sum is not dropped out", told))
        else:
            found.append(Finding("dropout", "resid-dropout-missing", "a residual branch is not dropped out", told))
    return found


class _Dropouts(TorchFunctionMode):
    """While open, keeps shape and rate of what is dropped out, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[tuple[int, ...], float]] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if function in (torch.nn.functional.dropout, torch.dropout, torch.dropout_):
            rate = given.get("p", args[1] if len(args) > 1 else 0.5)
            training = given.get("training", given.get("train", args[2] if len(args) > 2 else True))
            if rate and training:
                self.calls.append((tuple(args[0].shape), rate))
        elif function is torch.nn.functional.scaled_dot_product_attention:
            rate = given.get("dropout_p", args[4] if len(args) > 4 else 0.0)
            if rate:
                self.calls.append(((24, 24), rate))
        elif function is torch.nn.functional.multi_head_attention_forward and given.get("training", True):
            rate = given.get("dropout_p", args[10] if len(args) > 10 else 0.0)
            if rate:
                self.calls.append(((24, 24), rate))
        return function(*args, **given)


def _shared(model: Model) -> list[Finding]:
    """Blocks that are one module under several names."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    own = dict(model.module.named_parameters(remove_duplicate=False))
    # A head is tied to the token embedding, whose rows may be padded: the one table with so many.
    twice = [ns for ns in names.values() if len(ns) > 1 and max(own[ns[0]].shape) < SIZES[SIZE].vocab_size]
    if not twice:
        return []
    told = f"{', '.join(twice[0][:3])} are one parameter"
    if len(twice) >= 8:
        cause = "every layer is the same module ([Block()] * n): all layers share their weights"
        return [Finding("structure", "blocks-share-one-module", cause, told)]
    return [Finding("structure", "parameters-shared", "parameters are shared that GPT-2 has apart", told)]


def _hidden(model: Model, births: ModuleCreationSites) -> list[Finding]:
    """Modules and tensors that are kept in a list or a plain attribute, where PyTorch does not see them."""
    registered = {id(t) for t in (*model.module.parameters(), *model.module.buffers())}
    found: list[Finding] = []
    for path, module in model.module.named_modules():
        for name, value in vars(module).items():
            items = value if isinstance(value, list | tuple) else value.values() if isinstance(value, dict) else [value]
            if name.startswith("_"):
                continue
            where = f"{path}.{name}" if path else name
            line = births.lines.get(module)
            told = (str(line), line.text) if line is not None else ("", "")
            lost = [
                m for m in items if isinstance(m, nn.Module) and any(id(p) not in registered for p in m.parameters())
            ]
            if lost:
                cause = (
                    f"{where} holds {len(lost)} modules in a plain {type(value).__name__}: neither trained nor saved"
                )
                fault = "blocks-in-python-list"
                return [Finding("structure", fault, cause, "use nn.ModuleList, nn.Sequential or nn.ModuleDict", *told)]
            masks = [t for t in items if isinstance(t, Tensor) and t.ndim > 1 and id(t) not in registered]
            if masks and not found:
                cause = f"{where} is a plain tensor: .to(device) and state_dict pass it by"
                found = [Finding("structure", "mask-in-an-attribute", cause, "use register_buffer", *told)]
    return found


def _missing(model: Model) -> list[Finding]:
    """Parameters of GPT-2's that the subject does not have."""
    if model.weight_map is None:
        return []
    rows = model.weight_map.missing
    kinds = list(dict.fromkeys(family(row.published) for row in rows))
    # A key bias adds the same to all scores of a row, and cannot show.
    keys_alone = {row.part for row in rows if "c_attn.bias" in row.published} == {
        (model.size.width, 2 * model.size.width)
    }
    if keys_alone:
        kinds.remove("attn.c_attn.bias")
    if not kinds:
        return []
    told = f"no parameter stands for {', '.join(kinds[:5])}{' ...' * (len(kinds) > 5)}"
    biases = all(kind.endswith("bias") for kind in kinds)
    if biases and len(kinds) >= 5:
        return [Finding("structure", "bias-free", "the model has no biases", told)]
    if kinds == ["attn.c_attn.bias"]:
        return [Finding("attn.qkv", "qkv-bias-missing", "queries, keys and values have no bias", told)]
    where = kinds[0].rpartition(".")[0].replace("attn.c_attn", "attn.qkv")
    return [Finding(where, "bias-missing" if biases else "", f"{', '.join(kinds)}: not there", told)]


def _strangers(model: Model, births: ModuleCreationSites) -> list[Finding]:
    """Parameters that GPT-2 does not have."""
    if model.weight_map is None:
        return []
    size, found = SIZES[SIZE], []
    parameters = dict(model.module.named_parameters())
    for listed in model.weight_map.unmapped_parameters:
        name = listed.split(" ")[0]
        if name not in parameters:
            continue
        shape = tuple(parameters[name].shape)
        holder = model.module.get_submodule(name.rpartition(".")[0])
        line = births.lines.get(holder)
        told = (str(line), line.text) if line is not None else ("", "")
        if shape == (size.vocab_size,):
            return [Finding("head", "head-has-bias", "the head has a bias", f"{name} has shape {shape}", *told)]
        if shape[-2:] == (size.context, size.context):
            cause = f"{name} is a mask, and a parameter: an optimiser decays it"
            return [Finding("structure", "mask-is-a-parameter", cause, "use register_buffer", *told)]
        cause = f"{name} {shape} is a parameter that GPT-2 does not have"
        found.append(Finding("structure", "parameter-unused", cause, "", *told))
    return found[:1]


def _padded(model: Model) -> list[Finding]:
    """A vocabulary that is padded, and its padding live."""
    size = SIZES[SIZE]
    tables = [p for _, p in model.module.named_parameters() if p.ndim == 2 and p.shape[1] == size.width]
    padded = [
        p.shape[0] for p in tables if size.vocab_size < p.shape[0] <= size.vocab_size + 128 and p.shape[0] % 8 == 0
    ]
    # Widths of other matrices may lie in this range; a table of tokens is read by rows that exist for each token.
    others = {k * size.width for k in (1, 2, 3, 4)}
    padded = [rows for rows in padded if rows not in others]
    if not padded:
        return []
    cause = f"the vocabulary is padded from {size.vocab_size} to {padded[0]} rows, and the extra tokens can be drawn"
    return [
        Finding(
            "head", "vocab-padding-unmasked", cause, f"ln {padded[0]} is the first loss then, not ln {size.vocab_size}"
        )
    ]


def ties(subject: Subject) -> list[Finding]:
    """Head and embedding that are two tensors, from the start or after something that breaks a tie."""
    for fault, says, after in _ways():
        model = subject.build(SIZES[SIZE])
        try:
            module = after(model)
        except Exception:
            continue  # what cannot be done to it breaks no tie; that it cannot is told elsewhere
        names = _vocabularies(module)
        if len(names) > 1:
            told = f"{' and '.join(names[:2])} are {len(names)} tensors"
            fault, says = _from_the_start(model, fault, says)
            return [Finding("tying", fault, says, told)]
    return []


def _from_the_start(model: Model, fault: str, says: str) -> tuple[str, str]:
    if fault != "head-untied":
        return fault, says
    tables = list({p.data_ptr(): p for p in _tables(model.module)}.values())
    if torch.equal(*tables[:2]):
        return "head-tied-by-copy", "the head starts as a copy of the embedding, and drifts from it in training"
    return fault, says


def _ways() -> Iterator[tuple[str, str, Callable[[Model], nn.Module]]]:
    yield "head-untied", "the head has a matrix of its own; GPT-2's is the token embedding", lambda model: model.module

    def reloaded(model: Model) -> nn.Module:
        model.module.load_state_dict(model.module.state_dict())
        return model.module

    yield "tie-broken-by-state-dict", "load_state_dict breaks the tie of head and embedding", reloaded
    yield "tie-broken-by-deepcopy", "a deep copy has a head of its own", lambda model: copy.deepcopy(model.module)
    yield (
        "tie-broken-by-device-move",
        "a move to another dtype or device breaks the tie of head and embedding",
        lambda model: model.module.to(torch.float64),
    )

    def trained(model: Model) -> nn.Module:
        ids, targets = batch(model.size, "random", rows=2, length=12)
        model.module.train()
        model.loss(ids, targets).backward()
        torch.optim.SGD(model.module.parameters(), lr=0.1).step()
        return model.module

    yield "tie-broken-in-training", "training breaks the tie of head and embedding", trained


def _tables(module: nn.Module) -> list[Tensor]:
    shape = (SIZES[SIZE].vocab_size, SIZES[SIZE].width)
    found = module.named_parameters(remove_duplicate=False)
    return [p for _, p in found if tuple(p.shape) in (shape, shape[::-1])]


def _vocabularies(module: nn.Module) -> list[str]:
    """Names of the distinct matrices of (vocabulary, width)."""
    shape = (SIZES[SIZE].vocab_size, SIZES[SIZE].width)
    found: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if tuple(parameter.shape) in (shape, shape[::-1]):
            found.setdefault(parameter.data_ptr(), name)
    return list(found.values())
