"""Loading and saving explained: what became of each tensor on the way from a directory into the subject."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.core.sizes import SIZES
from harness.diagnosis.finding import Finding
from harness.oracle.hugging_face import oracle
from harness.oracle.probe_weights import State, state
from harness.subjects.model import Checkpoints, Subject, build_with_weights
from harness.subjects.weight_map import family

SIZE = "debug"


def explain(subject: Subject) -> list[Finding]:
    """Findings about the subject's own loader and saver; none where it has neither."""
    if not isinstance(subject, Checkpoints):
        return []
    given = state(SIZE, "probe")
    with tempfile.TemporaryDirectory() as folder:
        model: Any = oracle(SIZES[SIZE], given, "float32").module
        model.save_pretrained(folder)
        try:
            loaded = subject.load_checkpoint(Path(folder))
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            return [Finding("loading", "", "the loader fails on a directory of Hugging Face's", told[:300])]
    found = _told(_changed(given, loaded.weights.read(dict(loaded.module.named_parameters()))), "loading", given)
    if not found and len({p.data_ptr() for p in _vocabularies(loaded.module)}) > 1:
        evidence = "after loading, two tensors of (vocabulary, width)"
        found.append(
            Finding("tying", "tie-broken-by-load-assign", "loading breaks the tie of head and embedding", evidence)
        )
    return found or _saving(subject, given)


def _saving(subject: Checkpoints, given: State) -> list[Finding]:
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as folder:
        try:
            subject.save_checkpoint(build_with_weights(subject, SIZES[SIZE], given), Path(folder))
            read = load_file(Path(folder, "model.safetensors"))
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            return [Finding("loading.save", "", "saving fails", told[:300])]
    named = {name if name.startswith("transformer.") else f"transformer.{name}": t for name, t in read.items()}
    return _told(_changed(given, named), "loading.save", given)


def _vocabularies(module: torch.nn.Module) -> list[Tensor]:
    shape = (SIZES[SIZE].vocab_size, SIZES[SIZE].width)
    return [p for _, p in module.named_parameters(remove_duplicate=False) if tuple(p.shape) in (shape, shape[::-1])]


def _changed(given: State, read: dict[str, Tensor]) -> dict[str, str]:
    """For each published tensor that is not what the file holds: what it is instead."""
    return {
        name: _became(name, tensor, read.get(name), given)
        for name, tensor in given.items()
        if name not in read or read[name].shape != tensor.shape or not torch.equal(read[name].float(), tensor)
    }


def _became(name: str, expected: Tensor, found: Tensor | None, given: State) -> str:
    """What a tensor became, in a word of FAULTS below; "" where it is nothing known."""
    if found is None:
        return "missing"
    found = found.float()
    if expected.ndim == 2 and found.shape == expected.mT.shape and torch.equal(found, expected.mT):
        return "transposed"
    if found.shape != expected.shape:
        return "reshaped"
    for dtype in (torch.float16, torch.bfloat16):
        if torch.equal(found, expected.to(dtype).float()):
            return "rounded"
    if "attn.c_attn" in name and (order := _regrouped(expected, found)):
        return order
    for other, tensor in given.items():
        if tensor.shape == found.shape and other != name and torch.equal(found, tensor):
            same = family(other) == family(name)
            return "another layer's" if same else f"is {family(other)}"
    if any(torch.equal(found, expected.roll(shift, 0)) for shift in range(-3, 4) if shift):
        return "rolled"
    if expected.ndim == 2 and expected.shape[0] > 4:
        for shift in (1, 2, -1, -2):
            a, b = (found[shift:], expected[:-shift]) if shift > 0 else (found[:shift], expected[-shift:])
            if torch.equal(a, b):
                return "rolled"
    if bool((found == 0).all()) or bool((found == 1).all()):
        return "at its start"
    ratio = found / expected
    if bool((ratio - ratio.mean()).abs().max() < 1e-4):
        return "scaled"
    if expected.ndim == 2 and _folded(name, expected, found, given):
        return "folded"
    return "random" if abs(_correlation(found, expected)) < 0.2 else ""


def _regrouped(expected: Tensor, found: Tensor) -> str:
    size = SIZES[SIZE]
    thirds = expected.unflatten(-1, (3, size.width))
    import itertools

    for order in itertools.permutations(range(3)):
        if order != (0, 1, 2) and torch.equal(found, thirds[..., list(order), :].flatten(-2)):
            return "thirds permuted"
    heads = expected.unflatten(-1, (3, size.heads, size.head_width)).transpose(-3, -2).flatten(-3)
    back = expected.unflatten(-1, (size.heads, 3, size.head_width)).transpose(-3, -2).flatten(-3)
    return "interleaved" if torch.equal(found, heads) or torch.equal(found, back) else ""


def _folded(name: str, expected: Tensor, found: Tensor, given: State) -> bool:
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


SAYS = {
    "transposed": ("load-conv1d-square-not-transposed", "left transposed: Conv1D keeps (in, out), nn.Linear (out, in)"),
    "thirds permuted": ("load-qkv-order", "has its thirds in another order than query, key, value"),
    "interleaved": ("load-qkv-interleaved", "regrouped head by head"),
    "rounded": ("load-half-precision-roundtrip", "passed through 16 bits"),
    "rolled": ("load-wpe-shifted", "shifted by some rows"),
    "another layer's": ("load-layers-off-by-one", "holds another layer's numbers"),
    "folded": ("ln-folding-wrong", "has a norm's gain folded in, which the norm applies again"),
    "scaled": ("", "scaled by a constant"),
    "reshaped": ("", "of another shape"),
}


def _told(changed: dict[str, str], where: str, given: State) -> list[Finding]:
    """One finding for all the tensors that are wrong: what they have in common."""
    if not changed:
        return []
    kinds = list(dict.fromkeys(family(name) for name in changed))
    words = set(changed.values())
    place = f"{where}.{kinds[0]}" if len(kinds) == 1 else where
    evidence = f"{len(changed)} of {len(given)} tensors are not what the file holds: {', '.join(kinds[:4])}"
    evidence += " ..." if len(kinds) > 4 else ""
    fault, cause = _cause(changed, kinds, words, given)
    if where == "loading.save":
        saved = {
            "load-conv1d-square-not-transposed": "save-not-transposed",
            "load-half-precision-roundtrip": "save-half-precision",
        }
        fault, cause = saved.get(fault, fault), cause.replace("is left", "is written")
    if len(kinds) == 2 and {kind.rpartition(".")[0] for kind in kinds} <= {"ln_1", "ln_2"}:
        place = f"{where}.ln_1"
    if len({kind.rpartition(".")[0] for kind in kinds}) == 1:
        place = f"{where}.{kinds[0].rpartition('.')[0] if len(kinds) > 1 else kinds[0]}"
    return [Finding(place, fault, cause, evidence)]


def _cause(changed: dict[str, str], kinds: list[str], words: set[str], given: State) -> tuple[str, str]:
    swapped = {
        f"is {kind.replace('ln_1', 'ln_2') if 'ln_1' in kind else kind.replace('ln_2', 'ln_1')}" for kind in kinds
    }
    if all(kind.startswith(("ln_1", "ln_2")) for kind in kinds) and words <= swapped:
        return "load-ln-swapped", "ln_1 and ln_2 are exchanged"
    for word, (fault, says) in SAYS.items():
        if words == {word} or (word in ("folded", "another layer's") and word in words):
            return fault, f"{', '.join(kinds[:3])}{' ...' * (len(kinds) > 3)} {says}"
    layers = {name.split(".")[2] for name in changed if ".h." in name}
    if len(layers) == 1 and len(changed) > 8 and all(".h." in name for name in changed):
        return "load-last-layer-missing", f"layer {layers.pop()} is not loaded"
    if words <= {"at its start", "random", "missing"}:
        if all(kind.endswith("bias") for kind in kinds) and len(kinds) > 2:
            return "load-biases-dropped", "biases are not loaded"
        if all(kind.startswith("ln_f") for kind in kinds):
            return "load-final-ln-left-at-init", "ln_f is not loaded: it is as it starts"
        for name, fault in (("wpe.weight", "load-wpe-random"), ("wte.weight", "load-wte-random")):
            if kinds == [name]:
                return fault, f"{name} is not loaded: it is random"
        if len(changed) > 0.9 * len(given):
            return "init-after-loading", "nothing that was loaded is left: the weights are drawn anew"
        if sum(given[name].ndim == 2 for name in changed) == sum(tensor.ndim == 2 for tensor in given.values()):
            return "init-after-loading", "the matrices are drawn anew after loading"
        return "", f"{', '.join(kinds[:3])}{' ...' * (len(kinds) > 3)} {'are' if len(kinds) > 1 else 'is'} not loaded"
    return "", "loaded tensors differ from the file"
