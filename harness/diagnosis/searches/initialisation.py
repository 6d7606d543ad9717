"""The start explained: how each family of weights was drawn, where it is not GPT-2's way."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from harness.core.sizes import SIZES
from harness.diagnosis.finding import Finding
from harness.oracle.closed_forms import recipe_stds
from harness.subjects.model import Subject
from harness.subjects.weight_map import family

SIZE = "debug"
RESIDUAL = ("attn.c_proj.weight", "mlp.c_proj.weight")
EMBEDDINGS = ("wte.weight", "wpe.weight", "lm_head.weight")


def explain(subject: Subject) -> list[Finding]:
    """Findings about the subject's own start; GPT-2's: N(0, 0.02²), residual projections 0.02/sqrt(2L), biases 0."""
    model = subject.build(SIZES[SIZE], seed=0)
    drawn: dict[str, list[Tensor]] = {}
    for name, tensor in model.weights.read(dict(model.module.named_parameters())).items():
        drawn.setdefault(family(name), []).append(tensor.double())
    matrices = {name: tensors for name, tensors in drawn.items() if tensors[0].ndim == 2}
    vectors = {name: tensors for name, tensors in drawn.items() if tensors[0].ndim == 1}
    spreads = _spreads(matrices)
    if any(finding.fault == "init-framework-default" and finding.where == "init" for finding in spreads):
        return spreads  # its uniform numbers and its biases come with it
    return [*_alike(matrices), *spreads, *_shapes(matrices), *_vectors(vectors)]


def _spreads(matrices: dict[str, list[Tensor]]) -> list[Finding]:
    """Standard deviations against the rules that people use by mistake."""
    layers = SIZES[SIZE].layers
    wrong = {name: tensors for name, tensors in matrices.items() if not _near(_std(tensors), _right(name, layers))}
    if not wrong:
        return []
    found = []
    residual = {name: wrong.pop(name) for name in RESIDUAL if name in wrong}
    rest = {name: wrong[name] for name in wrong}
    if rest:
        found.append(_of_matrices(rest, matrices, layers))
        if found[0].fault in ("init-zero", "init-framework-default", "init-std-too-large", "init-std-too-small"):
            return found
    if residual:
        found.insert(0, _of_residual(residual, layers))
    return found


def _of_residual(wrong: dict[str, list[Tensor]], layers: int) -> Finding:
    std = _std(next(iter(wrong.values())))
    where = next(iter(wrong))
    rules: list[tuple[str, str, float]] = [
        ("init-residual-scale-missing", "are not scaled by 1/sqrt(2L)", 0.02),
        ("init-residual-scale-by-layers", "are scaled by 1/sqrt(L), not by 1/sqrt(2L)", 0.02 / math.sqrt(layers)),
        ("init-residual-scale-by-layers", "are scaled by 1/(2L), not by its root", 0.02 / (2 * layers)),
        ("init-residual-scale-twice", "are scaled twice", 0.02 / (2 * layers)),
        ("init-residual-zero", "start at zero", 0.0),
    ]
    for fault, says, expected in rules:
        if _near(std, expected):
            names = " and ".join(wrong)
            if len(wrong) == 1 and fault == "init-residual-scale-missing" and where.startswith("mlp"):
                fault = "init-residual-scale-mlp-missing"
            alike = ("init-residual-scale-name-mismatch", "init-repeated") if fault.endswith("scale-missing") else ()
            return Finding(
                f"init.{where}", fault, f"{names} {says}", _measured(where, std, _right(where, layers)), alike=alike
            )
    return Finding(
        f"init.{where}", "", f"{where} starts with another spread", _measured(where, std, _right(where, layers))
    )


def _of_matrices(wrong: dict[str, list[Tensor]], all_: dict[str, list[Tensor]], layers: int) -> Finding:
    where, tensors = next(iter(wrong.items()))
    std, right = _std(tensors), _right(where, layers)
    evidence = _measured(where, std, right)
    if all(_std(t) == 0 for t in all_.values()):
        return Finding("init", "init-zero", "all matrices start at zero", evidence)
    if all(_framework(name, t) for name, t in all_.items() if name not in RESIDUAL):
        return Finding("init", "init-framework-default", "every matrix starts as PyTorch's layers start", evidence)
    linear = {name: t for name, t in wrong.items() if name not in EMBEDDINGS}
    if linear and all(_framework(name, t) for name, t in linear.items()):
        names = ", ".join(linear)
        return Finding(
            f"init.{next(iter(linear))}", "init-framework-default", f"{names}: as nn.Linear starts them", evidence
        )
    if len(wrong) == 1 and where in EMBEDDINGS:
        fault = {"wpe.weight": "init-wpe-too-large"}.get(
            where, "init-std-too-large" if std > right else "init-std-too-small"
        )
        told = (
            "starts as nn.Embedding does, N(0, 1)"
            if _near(std, 1.0)
            else f"starts with a standard deviation of {std:.3g}"
        )
        return Finding(f"init.{where}", fault, f"{where} {told}", evidence)
    fault = "init-std-too-large" if std > right else "init-std-too-small"
    names = "all matrices start" if len(wrong) > 3 else f"{' and '.join(wrong)} start{'s' * (len(wrong) == 1)}"
    place = "init" if len(wrong) > 3 else f"init.{where}"
    return Finding(place, fault, f"{names} with a standard deviation of {std:.3g}, not {right:.3g}", evidence)


def _shapes(matrices: dict[str, list[Tensor]]) -> list[Finding]:
    """A mean that is not zero, and numbers that are not normal."""
    found = []
    shifted = {n: float(torch.cat([t.flatten() for t in ts]).mean()) for n, ts in matrices.items()}
    off = [n for n, ts in matrices.items() if abs(shifted[n]) > 6 * _std(ts) / math.sqrt(sum(t.numel() for t in ts))]
    if off:
        cause = f"{', '.join(off[:3])}{' ...' * (len(off) > 3)}: the mean is not 0"
        found.append(Finding(f"init.{off[0]}", "init-shifted", cause, f"the mean of {off[0]} is {shifted[off[0]]:.3g}"))
    flat = {name: kurtosis for name, ts in matrices.items() if (kurtosis := _kurtosis(ts)) < -0.8}
    if flat and not off:
        name, kurtosis = next(iter(flat.items()))
        cause = f"{', '.join(list(flat)[:3])}{' ...' * (len(flat) > 3)}: uniform numbers, not normal ones"
        evidence = f"the excess kurtosis of {name} is {kurtosis:.2f}; uniform numbers have -1.2, normal ones 0"
        found.append(Finding(f"init.{name}", "init-uniform", cause, evidence))
    return found


def _vectors(vectors: dict[str, list[Tensor]]) -> list[Finding]:
    found = []
    biases = [n for n, ts in vectors.items() if n.endswith("bias") and any(float(t.abs().max()) > 0 for t in ts)]
    if biases:
        largest = max(float(t.abs().max()) for t in vectors[biases[0]])
        cause = f"biases do not start at 0: {', '.join(biases[:4])}{' ...' * (len(biases) > 4)}"
        found.append(Finding(f"init.{biases[0]}", "init-bias-nonzero", cause, f"{biases[0]} reaches {largest:.3g}"))
    gains = [n for n, ts in vectors.items() if n.endswith("weight") and any(float((t - 1).abs().max()) > 0 for t in ts)]
    if gains:
        value = float(vectors[gains[0]][0].flatten()[0])
        cause = f"gains do not start at 1: {', '.join(gains)}"
        found.append(Finding(f"init.{gains[0]}", "init-gain-not-one", cause, f"{gains[0]} starts at {value:.3g}"))
    return found


def _alike(matrices: dict[str, list[Tensor]]) -> list[Finding]:
    """Layers or heads that start with the same numbers."""
    for name, tensors in matrices.items():
        if len(tensors) > 1 and _std(tensors[:1]) > 0 and _correlation(tensors[0], tensors[1]) > 0.99:
            cause = "layers start as copies of one another"
            return [Finding("init", "blocks-identical-init", cause, f"{name} of layers 0 and 1 are the same numbers")]
    size = SIZES[SIZE]
    fused = matrices.get("attn.c_attn.weight")
    if fused is not None and _std(fused[:1]) > 0:
        heads = fused[0].T.reshape(3 * size.heads, -1)
        if _correlation(heads[0], heads[1]) > 0.99:
            where, cause = "init.attn.c_attn.weight", "the heads of a layer start alike"
            return [Finding(where, "heads-identical-init", cause, "the queries of heads 0 and 1 are the same numbers")]
    return []


def _correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1])


def _right(name: str, layers: int) -> float:
    embedding, linear, residual, _ = recipe_stds("gpt2", fan_in=SIZES[SIZE].width, layers=layers)
    return embedding if name in EMBEDDINGS else residual if name in RESIDUAL else linear


def _framework(name: str, tensors: list[Tensor]) -> bool:
    """As nn.Embedding, N(0, 1), or nn.Linear, U(±1/sqrt(fan in)), start; a tied head may have either's."""
    linear = 1 / math.sqrt(3 * tensors[0].shape[0])
    expected = [1.0, 1 / math.sqrt(3 * SIZES[SIZE].width)] if name in EMBEDDINGS else [linear]
    return any(_near(_std(tensors), std) for std in expected)


def _std(tensors: list[Tensor]) -> float:
    return max((float(t.std(correction=0)) for t in tensors), key=lambda std: std)


def _kurtosis(tensors: list[Tensor]) -> float:
    numbers = torch.cat([(t.flatten() - t.mean()) / t.std().clamp(min=1e-300) for t in tensors])
    return float(numbers.pow(4).mean()) - 3


def _near(found: float, expected: float) -> bool:
    return abs(found - expected) <= 0.1 * expected + 1e-12


def _measured(name: str, std: float, right: float) -> str:
    return f"the standard deviation of {name} is {std:.4g}; GPT-2's, at this size, {right:.4g}"
