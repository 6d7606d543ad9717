"""The search for how each family of weights was drawn, where that is not GPT-2's initialisation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from harness.core.sizes import SIZES
from harness.diagnosis.finding import Finding
from harness.diagnosis.variants.residual_scale import RESIDUAL_SCALES
from harness.oracle.closed_forms import recipe_stds
from harness.subjects.protocols import Subject
from harness.subjects.weight_map import family

SIZE = "debug"
RESIDUAL = ("attn.c_proj.weight", "mlp.c_proj.weight")
EMBEDDINGS = ("wte.weight", "wpe.weight", "lm_head.weight")
UNIFORM_BELOW = -0.8  # excess kurtosis: -1.2 for uniform numbers, 0 for normal ones
Families = dict[str, list[Tensor]]  # family of weights -> its tensor in each layer, float64


def search(subject: Subject) -> list[Finding]:
    """Return findings about the subject's initial weights.

    GPT-2's are N(0, 0.02²), residual projections N(0, (0.02/sqrt(2L))²), biases 0 and gains 1.
    """
    model = subject.build(SIZES[SIZE], seed=0)
    drawn: Families = {}
    for name, tensor in model.published_state().items():
        drawn.setdefault(family(name), []).append(tensor.double())
    matrices = {name: tensors for name, tensors in drawn.items() if tensors[0].ndim == 2}
    vectors = {name: tensors for name, tensors in drawn.items() if tensors[0].ndim == 1}
    deviations = _standard_deviations(matrices)
    if any(finding.fault == "init-framework-default" and finding.where == "init" for finding in deviations):
        return deviations  # PyTorch's defaults include uniform numbers and biases
    return [*_copies(matrices), *deviations, *_distributions(matrices), *_vectors(vectors)]


def _standard_deviations(matrices: Families) -> list[Finding]:
    """Return findings about standard deviations that are not GPT-2's."""
    layers = SIZES[SIZE].layers
    wrong = {name: tensors for name, tensors in matrices.items() if not _near(_std(tensors), _gpt2_std(name, layers))}
    residual = {name: wrong[name] for name in RESIDUAL if name in wrong}
    rest = {name: tensors for name, tensors in wrong.items() if name not in RESIDUAL}
    found = []
    if rest:
        found.append(_matrices(rest, matrices, layers))
        if found[0].fault in ("init-zero", "init-framework-default", "init-std-too-large", "init-std-too-small"):
            return found  # it is likely the cause of the wrong residual projections, too
    if residual:
        found.insert(0, _residual_projections(residual, layers))
    return found


def _residual_projections(wrong: Families, layers: int) -> Finding:
    """Return the finding for residual projections of which none has GPT-2's standard deviation."""
    where = next(iter(wrong))
    std = _std(wrong[where])
    evidence = _evidence(where, std, _gpt2_std(where, layers))
    for scale in RESIDUAL_SCALES:
        alike = [name for name, tensors in wrong.items() if _near(_std(tensors), scale.std(layers))]
        if where not in alike:
            continue
        fault, others = scale.fault, scale.alike
        if len(wrong) == 1 and fault == "init-residual-scale-missing" and where.startswith("mlp"):
            fault = "init-residual-scale-mlp-missing"
            others = ()
        rest = [f"{name} {_spread(wrong[name], layers, name)}" for name in wrong if name not in alike]
        cause = "; ".join([f"{' and '.join(alike)} {scale.says}", *rest])
        return Finding(f"init.{where}", fault, cause, evidence, alike=others)
    cause = "; ".join(f"{name} {_spread(tensors, layers, name)}" for name, tensors in wrong.items())
    return Finding(f"init.{where}", "", cause, evidence)


def _spread(tensors: list[Tensor], layers: int, name: str) -> str:
    """Return the end of a sentence that begins with a family's name: its standard deviation, and GPT-2's."""
    stds = [_std([tensor]) for tensor in tensors]
    found = f"{max(stds):.3g}" if _near(min(stds), max(stds)) else f"{min(stds):.3g} to {max(stds):.3g}"
    return f"starts with a standard deviation of {found}, not {_gpt2_std(name, layers):.3g}"


def _matrices(wrong: Families, matrices: Families, layers: int) -> Finding:
    """Return the finding for matrices, other than residual projections, with wrong standard deviations."""
    where, tensors = next(iter(wrong.items()))
    std, right = _std(tensors), _gpt2_std(where, layers)
    evidence = _evidence(where, std, right)
    if all(_std(t) == 0 for t in matrices.values()):
        return Finding("init", "init-zero", "all matrices start at zero", evidence)
    if all(_is_pytorch_default(name, t) for name, t in matrices.items()):
        return Finding("init", "init-framework-default", "every matrix starts as PyTorch's layers start", evidence)
    linear = {name: t for name, t in wrong.items() if name not in EMBEDDINGS}
    if linear and all(_is_pytorch_default(name, t) for name, t in linear.items()):
        cause = f"{', '.join(linear)}: initialised as PyTorch's layers are"
        return Finding(f"init.{next(iter(linear))}", "init-framework-default", cause, evidence)
    fault = "init-std-too-large" if std > right else "init-std-too-small"
    if len(wrong) == 1 and where in EMBEDDINGS:
        fault = "init-wpe-too-large" if where == "wpe.weight" and std > right else fault
        start = (
            "as nn.Embedding does, N(0, 1)" if _is_normal(tensors, 1.0) else f"with a standard deviation of {std:.3g}"
        )
        return Finding(f"init.{where}", fault, f"{where} starts {start}", evidence)
    place = "init" if len(wrong) > 3 else f"init.{where}"
    if all(_near(_std(t), std) for t in wrong.values()):
        every = len(wrong) > 3 and all(_near(_std(t), std) for t in matrices.values())
        names = "all matrices start" if every else f"{' and '.join(wrong)} start{'s' * (len(wrong) == 1)}"
        return Finding(place, fault, f"{names} with a standard deviation of {std:.3g}, not {right:.3g}", evidence)
    same_side = len({_std(t) > _gpt2_std(name, layers) for name, t in wrong.items()}) == 1
    each = ", ".join(f"{name} {_std(t):.3g}" for name, t in wrong.items())
    cause = f"matrices start with other standard deviations than {right:.3g}: {each}"
    return Finding(place, fault if same_side else "", cause, evidence)


def _distributions(matrices: Families) -> list[Finding]:
    """Return findings about means that are not 0, and about numbers that are not normal.

    A matrix of one number has no distribution: its standard deviation says that it is one.
    """
    drawn = {name: tensors for name, tensors in matrices.items() if all(float(t.std()) > 0 for t in tensors)}
    means = {name: float(torch.cat([t.flatten() for t in ts]).mean()) for name, ts in drawn.items()}
    # Six standard errors of the mean.
    shifted = [
        name for name, ts in drawn.items() if abs(means[name]) > 6 * _std(ts) / math.sqrt(sum(t.numel() for t in ts))
    ]
    if shifted:
        name = shifted[0]
        cause = f"{_listed(shifted, 3)}: the mean is not 0"
        return [Finding(f"init.{name}", "init-shifted", cause, f"the mean of {name} is {means[name]:.3g}")]
    flat = {name: kurtosis for name, ts in drawn.items() if (kurtosis := _kurtosis(ts)) < UNIFORM_BELOW}
    if flat:
        name, kurtosis = next(iter(flat.items()))
        uniform = all(_is_uniform(drawn[name]) for name in flat)
        cause = f"{_listed(list(flat), 3)}: {'uniform numbers, not normal ones' if uniform else 'no normal numbers'}"
        evidence = f"the excess kurtosis of {name} is {kurtosis:.2f}; uniform numbers have -1.2, normal ones 0"
        return [Finding(f"init.{name}", "init-uniform" if uniform else "", cause, evidence)]
    return []


def _vectors(vectors: Families) -> list[Finding]:
    """Return findings about biases that do not start at 0 and gains that do not start at 1."""
    found = []
    biases = [n for n, ts in vectors.items() if n.endswith("bias") and any(float(t.abs().max()) > 0 for t in ts)]
    if biases:
        largest = max(float(t.abs().max()) for t in vectors[biases[0]])
        cause = f"biases do not start at 0: {_listed(biases, 4)}"
        found.append(Finding(f"init.{biases[0]}", "init-bias-nonzero", cause, f"{biases[0]} reaches {largest:.3g}"))
    gains = [n for n, ts in vectors.items() if n.endswith("weight") and any(float((t - 1).abs().max()) > 0 for t in ts)]
    if gains:
        value = float(vectors[gains[0]][0].flatten()[0])
        cause = f"gains do not start at 1: {', '.join(gains)}"
        found.append(Finding(f"init.{gains[0]}", "init-gain-not-one", cause, f"{gains[0]} starts at {value:.3g}"))
    return found


def _copies(matrices: Families) -> list[Finding]:
    """Return the finding for layers, or heads of a layer, that start with the same numbers."""
    for name, tensors in matrices.items():
        if len(tensors) > 1 and _std(tensors[:1]) > 0 and _correlation(tensors[0], tensors[1]) > 0.99:
            cause = "layers start as copies of one another"
            return [Finding("init", "blocks-identical-init", cause, f"{name} of layers 0 and 1 are the same numbers")]
    fused = matrices.get("attn.c_attn.weight")
    if fused is not None and _std(fused[:1]) > 0:
        heads = fused[0].T.unflatten(0, (-1, SIZES[SIZE].head_width)).flatten(1)
        if _correlation(heads[0], heads[1]) > 0.99:
            where, cause = "init.attn.c_attn.weight", "the heads of a layer start as copies of one another"
            return [Finding(where, "heads-identical-init", cause, "the queries of heads 0 and 1 are the same numbers")]
    return []


def _listed(names: list[str], most: int) -> str:
    return f"{', '.join(names[:most])}{' ...' * (len(names) > most)}"


def _correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1])


def _gpt2_std(name: str, layers: int) -> float:
    embedding, linear, residual, _ = recipe_stds("gpt2", fan_in=SIZES[SIZE].width, layers=layers)
    return embedding if name in EMBEDDINGS else residual if name in RESIDUAL else linear


def _is_pytorch_default(name: str, tensors: list[Tensor]) -> bool:
    """Return True for the numbers that PyTorch's layers draw.

    nn.Embedding draws N(0, 1), nn.Linear U(±1/sqrt(fan in)), nn.MultiheadAttention the fused projection by Xavier's
    rule, U(±sqrt(6 / (fan in + fan out))). A tied head may have either of the first two.
    """
    rows, columns = tensors[0].shape  # published orientation: (in, out)
    if name in EMBEDDINGS:
        return _is_normal(tensors, 1.0) or _is_uniform(tensors, 1 / math.sqrt(3 * SIZES[SIZE].width))
    xavier = [math.sqrt(2 / (rows + columns))] if name == "attn.c_attn.weight" else []
    return any(_is_uniform(tensors, std) for std in (1 / math.sqrt(3 * rows), *xavier))


def _is_normal(tensors: list[Tensor], std: float) -> bool:
    """Return True if the numbers may be normal ones of this standard deviation."""
    return _near(_std(tensors), std) and abs(_kurtosis(tensors)) < 0.5


def _is_uniform(tensors: list[Tensor], std: float | None = None) -> bool:
    """Return True if the numbers may be uniform around 0: half of them lie within half of the largest."""
    if std is not None and not all(_near(_std([tensor]), std) for tensor in tensors):
        return False
    if not all(float(t.std()) > 0 for t in tensors):
        return False
    inner = torch.cat([(t.abs() < t.abs().max() / 2).flatten() for t in tensors]).double()
    return abs(float(inner.mean()) - 0.5) < 3 / math.sqrt(inner.numel())  # six standard errors


def _std(tensors: list[Tensor]) -> float:
    return max(float(t.std(correction=0)) for t in tensors)


def _kurtosis(tensors: list[Tensor]) -> float:
    numbers = torch.cat([(t.flatten() - t.mean()) / t.std().clamp(min=1e-300) for t in tensors])
    return float(numbers.pow(4).mean()) - 3


def _near(found: float, expected: float) -> bool:
    return abs(found - expected) <= 0.1 * expected + 1e-12


def _evidence(name: str, std: float, right: float) -> str:
    return f"the standard deviation of {name} is {std:.4g}; GPT-2's at this size is {right:.4g}"
