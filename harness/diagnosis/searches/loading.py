"""The search for what became of each tensor between a checkpoint's directory and the subject, and back."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from harness.core.errors import MissingAbility
from harness.core.sizes import SIZES
from harness.core.source_lines import SourceLine, location
from harness.diagnosis.finding import Finding
from harness.diagnosis.variants.loading import CHANGES, SAVING_FAULTS
from harness.measures.loading.own_loader import instead, is_tied, load_by_own_function
from harness.oracle.hugging_face import oracle
from harness.oracle.probe_weights import State, state
from harness.subjects.build import build_with_weights
from harness.subjects.protocols import Checkpoints, LoadsTensors, Subject
from harness.subjects.weight_map import family

SIZE = "debug"


def search(subject: Subject) -> list[Finding]:
    """Return findings about the subject's own loading and saving; [] if it does neither."""
    found = _by_own_function(subject) if isinstance(subject, LoadsTensors) else []
    return [*found, *(_of_directories(subject) if isinstance(subject, Checkpoints) else [])]


def _by_own_function(subject: LoadsTensors) -> list[Finding]:
    """Return findings about the function that copies tensors of a checkpoint, with the line of its definition."""
    try:
        loaded = load_by_own_function(subject)
    except MissingAbility:
        return []
    wrong = loaded.differing
    changes = {
        name: "at its start"
        if name in loaded.read and torch.equal(loaded.read[name], loaded.before[name])
        else _change(name, loaded.given[name], loaded.read.get(name), loaded.given)
        for name in wrong
    }
    found = _findings(changes, loaded.given, where="loading")
    if not found and loaded.was_tied and not is_tied(loaded.model):
        found = [Finding("tying", "tie-broken-by-load-assign", "loading breaks the tie of head and embedding", "")]
    said = next(filter(None, (instead(name, loaded) for name in wrong)), "")
    line = location(SourceLine(*subject.tensor_loader_line))
    return [
        dataclasses.replace(each, evidence="; ".join(filter(None, (each.evidence, said))), source=line[0], text=line[1])
        for each in found
    ]


def _of_directories(subject: Checkpoints) -> list[Finding]:
    given = state(SIZE, "probe")
    with tempfile.TemporaryDirectory() as folder:
        model: Any = oracle(SIZES[SIZE], given, "float32").module
        model.save_pretrained(folder)
        try:
            loaded = subject.load_checkpoint(Path(folder))
        except Exception as error:
            cause = "loading fails on a directory that Hugging Face wrote"
            return [Finding("loading", "", cause, f"{type(error).__name__}: {error}"[:300])]
    read = loaded.published_state()
    # What the subject has no parameter for cannot be loaded: another search reports that it is missing.
    absent = {row.published for row in loaded.weights.missing if row.part is None}
    expected = {name: tensor for name, tensor in given.items() if name not in absent}
    found = _findings(_changes(expected, read), expected, where="loading")
    if not found and len({p.data_ptr() for p in _token_tables(loaded.module)}) > 1:
        cause = "loading breaks the tie of head and embedding"
        evidence = "after loading there are two tensors of (vocabulary, width)"
        found = [Finding("tying", "tie-broken-by-load-assign", cause, evidence)]
    return found or _saving(subject, given)


def _saving(subject: Checkpoints, given: State) -> list[Finding]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            subject.save_checkpoint(build_with_weights(subject, SIZES[SIZE], given), Path(folder))
            read = load_file(Path(folder, "model.safetensors"))
        except Exception as error:
            return [Finding("loading.save", "", "saving fails", f"{type(error).__name__}: {error}"[:300])]
    # GPT-2's released file has the names without this prefix.
    named = {name if name.startswith("transformer.") else f"transformer.{name}": t for name, t in read.items()}
    return _findings(_changes(given, named), given, where="loading.save")


def _token_tables(module: torch.nn.Module) -> list[Tensor]:
    shape = (SIZES[SIZE].vocab_size, SIZES[SIZE].width)
    return [p for _, p in module.named_parameters(remove_duplicate=False) if tuple(p.shape) in (shape, shape[::-1])]


def _changes(given: State, read: dict[str, Tensor]) -> dict[str, str]:
    """Return, by published name, what became of each tensor that is not the file's; see `_change`."""
    return {
        name: _change(name, tensor, read.get(name), given)
        for name, tensor in given.items()
        if name not in read or read[name].shape != tensor.shape or not torch.equal(read[name].float(), tensor)
    }


def _change(name: str, expected: Tensor, found: Tensor | None, given: State) -> str:
    """Return a key of CHANGES, "missing", "at its start", "random" or "is FAMILY"; "" for an unknown change."""
    if found is None:
        return "missing"
    found = found.float()
    if expected.ndim == 2 and found.shape == expected.mT.shape and torch.equal(found, expected.mT):
        return "transposed"
    if found.shape != expected.shape:
        return "reshaped"
    if any(torch.equal(found, expected.to(dtype).float()) for dtype in (torch.float16, torch.bfloat16)):
        return "rounded"
    if "attn.c_attn" in name and (order := _regrouping(expected, found)):
        return order
    for other, tensor in given.items():
        if tensor.shape == found.shape and other != name and torch.equal(found, tensor):
            return "another layer's" if family(other) == family(name) else f"is {family(other)}"
    if _is_rolled(expected, found):
        return "rolled"
    if bool((found == 0).all()) or bool((found == 1).all()):
        return "at its start"
    ratio = found / expected
    if bool((ratio - ratio.mean()).abs().max() < 1e-4):
        return "scaled"
    if expected.ndim == 2 and _is_folded(name, expected, found, given):
        return "folded"
    return "random" if abs(_correlation(found, expected)) < 0.2 else ""


def _regrouping(expected: Tensor, found: Tensor) -> str:
    """Return how the columns of the fused queries, keys and values (..., 3C) are permuted; "" if they are not."""
    size = SIZES[SIZE]
    thirds = expected.unflatten(-1, (3, size.width))
    for order in itertools.permutations(range(3)):
        if order != (0, 1, 2) and torch.equal(found, thirds[..., list(order), :].flatten(-2)):
            return "thirds permuted"
    by_head = expected.unflatten(-1, (3, size.heads, size.head_width)).transpose(-3, -2).flatten(-3)
    from_heads = expected.unflatten(-1, (size.heads, 3, size.head_width)).transpose(-3, -2).flatten(-3)
    return "interleaved" if torch.equal(found, by_head) or torch.equal(found, from_heads) else ""


def _is_rolled(expected: Tensor, found: Tensor) -> bool:
    """Return True if the rows are shifted by up to three, or by up to two with new rows at the end."""
    if any(torch.equal(found, expected.roll(shift, 0)) for shift in range(-3, 4) if shift):
        return True
    if expected.ndim != 2 or expected.shape[0] <= 4:
        return False
    pairs = [(found[shift:], expected[:-shift]) for shift in (1, 2)]
    pairs += [(found[:-shift], expected[shift:]) for shift in (1, 2)]
    return any(torch.equal(a, b) for a, b in pairs)


def _is_folded(name: str, expected: Tensor, found: Tensor, given: State) -> bool:
    """Return True if the rows of a matrix are multiplied by the gain of a norm in the same block."""
    block = name.rsplit(".", 3)[0] if ".h." in name else "transformer"
    norms = [n for n in given if n.endswith("weight") and n.startswith(block) and given[n].ndim == 1]
    return any(
        given[norm].shape[0] == expected.shape[0] and torch.allclose(found, given[norm][:, None] * expected, atol=1e-6)
        for norm in norms
    )


def _correlation(a: Tensor, b: Tensor) -> float:
    if a.numel() < 2 or float(a.std()) == 0:
        return 0.0
    return float(torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1])


def _findings(changes: dict[str, str], given: State, *, where: str) -> list[Finding]:
    """Return one finding for all changed tensors: what they have in common."""
    if not changes:
        return []
    families = list(dict.fromkeys(family(name) for name in changes))
    evidence = f"{len(changes)} of {len(given)} tensors differ from the file's: {_listed(families, 4)}"
    fault, cause = _cause(changes, families, given)
    if where == "loading.save":
        fault, cause = SAVING_FAULTS.get(fault, fault), cause.replace("is left", "is written")
    modules = {name.rpartition(".")[0] for name in families}
    if len(modules) == 1:
        place = f"{where}.{modules.pop() if len(families) > 1 else families[0]}"
    elif len(families) == 2 and modules <= {"ln_1", "ln_2"}:
        place = f"{where}.ln_1"
    else:
        place = where
    return [Finding(place, fault, cause, evidence)]


def _cause(changes: dict[str, str], families: list[str], given: State) -> tuple[str, str]:
    """Return the fault's id and the cause."""
    kinds = set(changes.values())
    swapped = {f"is {name.translate(str.maketrans('12', '21'))}" for name in families}  # ln_1 <-> ln_2
    if all(name.startswith(("ln_1", "ln_2")) for name in families) and kinds <= swapped:
        return "load-ln-swapped", "ln_1 and ln_2 are swapped"
    for kind, change in CHANGES.items():
        if kinds == {kind} or (kind in ("folded", "another layer's") and kind in kinds):
            return change.fault, f"{_listed(families, 3)} {change.says}"
    layers = {name.split(".")[2] for name in changes if ".h." in name}
    if len(layers) == 1 and len(changes) > 8 and all(".h." in name for name in changes):
        return "load-last-layer-missing", f"layer {layers.pop()} is not loaded"
    if kinds <= {"at its start", "random", "missing"}:
        return _not_loaded(changes, families, given)
    return "", "loaded tensors differ from the file's"


def _not_loaded(changes: dict[str, str], families: list[str], given: State) -> tuple[str, str]:
    """Return the fault's id and the cause for tensors that have nothing of the file's."""
    if all(name.endswith("bias") for name in families) and len(families) > 2:
        return "load-biases-dropped", "biases are not loaded"
    if all(name.startswith("ln_f") for name in families):
        return "load-final-ln-left-at-init", "ln_f is not loaded: it has its initial values"
    for name, fault in (("wpe.weight", "load-wpe-random"), ("wte.weight", "load-wte-random")):
        if families == [name]:
            return fault, f"{name} is not loaded: it is random"
    if len(changes) > 0.9 * len(given):
        return "init-after-loading", "nothing that was loaded is left: the weights are initialised after loading"
    if sum(given[name].ndim == 2 for name in changes) == sum(tensor.ndim == 2 for tensor in given.values()):
        return "init-after-loading", "the matrices are initialised after loading"
    return "", f"{_listed(families, 3)} {'are' if len(families) > 1 else 'is'} not loaded"


def _listed(names: list[str], most: int) -> str:
    return f"{', '.join(names[:most])}{' ...' * (len(names) > most)}"
