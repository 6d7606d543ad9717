"""What is computed in fewer bits than the model has: found by undoing it, which is the proof as well."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from harness.core.sizes import SIZES, Size
from harness.diagnosis.finding import Finding
from harness.diagnosis.observation import (
    SAME,
    ModuleCreationSites,
    Observation,
    OperationRecorder,
    SourceLine,
    alike,
    sums,
    users_line,
)
from harness.diagnosis.searches import forward
from harness.oracle.probe_weights import state
from harness.oracle.tokens import batch
from harness.subjects.model import Model, Subject, build_with_weights

SHORT = tuple(
    getattr(torch, name)
    for name in ("bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
    if hasattr(torch, name)
)
FAULTS = {
    "softmax": "softmax-low-precision",
    "ln_": "ln-low-precision",
    "head": "logits-low-precision",
    "embedding.position": "pos-ids-low-precision",
    "embedding": "embedding-low-precision",
    "residual": "stream-low-precision",
    "attn.mask": "softmax-low-precision",
    "attn.mix": "softmax-low-precision",
    "attn.scale": "softmax-low-precision",
}


@dataclass(frozen=True)
class Asked:
    """One request for fewer bits: after how many steps, on which line, for which dtype, of numbers that count."""

    steps: int
    line: SourceLine | None
    dtype: str
    of_integers: bool
    asked_of: tuple[float, float, float]  # the sums of what is to be shortened


class InFull(TorchFunctionMode):
    """While open, whoever asks PyTorch for a 16-bit or shorter dtype gets float64; notes where that was asked."""

    def __init__(self, recorder: OperationRecorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.asked: list[Asked] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        asked = next((v for v in (*args, *given.values()) if isinstance(v, torch.dtype) and v in SHORT), None)
        if function in (torch.Tensor.bfloat16, torch.Tensor.half):
            asked = torch.bfloat16 if function is torch.Tensor.bfloat16 else torch.float16
            function = torch.Tensor.double
        if asked is None:
            return function(*args, **given)
        floating = bool(args) and isinstance(args[0], Tensor) and args[0].is_floating_point()
        own = sums(args[0].detach()) if floating else (0.0, 0.0, 0.0)
        dtype = str(asked).removeprefix("torch.")
        self.asked.append(Asked(len(self.recorder.steps), users_line(), dtype, not floating, own))
        full = tuple(torch.float64 if isinstance(v, torch.dtype) and v in SHORT else v for v in args)
        given = {k: torch.float64 if isinstance(v, torch.dtype) and v in SHORT else v for k, v in given.items()}
        return function(*full, **given)


def without_downcasts(
    model: Model,
    ids: Tensor,
    births: ModuleCreationSites,
    observed: Observation,
    weights: dict[str, Tensor],
    size: Size,
) -> tuple[Observation, list[Finding]]:
    """The forward pass with every reduction of precision without_downcasts, and a finding for each place that had one.

    `observed` comes back as it was, and no finding, where there is none.
    """
    if not any(step.dtype in SHORT for step in observed.steps):
        return observed, []
    with torch.no_grad(), OperationRecorder(births) as recorder, InFull(recorder) as full:
        logits = model.logits(ids)
    again = Observation(recorder.steps, logits.detach().double())
    gap = float((observed.logits - again.logits).abs().max())
    found: dict[str, Finding] = {}
    for asked in full.asked:
        value, after, tensor = forward.place_of(asked.steps, again, ids, weights, size)
        # A value that passes through fewer bits is the one at its place; anything else lies within what comes next.
        passes = tensor is not None and alike(asked.asked_of, sums(tensor), SAME)
        where = value if passes and not _computes(observed, asked.line) else after
        where = "embedding.position" if asked.of_integers else where
        operation = where.split(".", 2)[2] if where.count(".") > 1 else where
        operation = "residual.mlp" if where.count(".") == 1 and where.startswith("h.") else operation
        fault = next((id for word, id in FAULTS.items() if word in operation), "low-precision")
        if operation in found:
            found[operation] = _everywhere(found[operation], where)
            continue
        evidence = (
            f"a float64 run asks for {asked.dtype} there; with that without_downcasts the logits move by {gap:.1e}"
        )
        cause = f"{operation} is computed or kept in {asked.dtype}, in a model that is not"
        told = ("", "") if asked.line is None else (str(asked.line), asked.line.text)
        found[operation] = Finding(where, fault, cause, evidence, *told)
    return again, list(found.values())


MOVING = (
    "_to_copy",
    "view",
    "_unsafe_view",
    "clone",
    "transpose",
    "t",
    "permute",
    "expand",
    "detach",
    "copy_",
    "slice",
)


def _computes(observed: Observation, line: SourceLine | None) -> bool:
    """Whether something is computed in the short dtype, or a value only passes through it."""
    started = False
    for step in observed.steps:
        started = started or (step.dtype in SHORT and step.line == line)
        if started and step.dtype not in SHORT:
            return False
        if started and step.operation not in MOVING:
            return True
    return False


def _everywhere(finding: Finding, other: str) -> Finding:
    if finding.where == other or not finding.where.startswith("h."):
        return finding
    return dataclasses.replace(finding, where=".".join(["h.*", *finding.where.split(".", 2)[2:]]))


def overflow(subject: Subject) -> list[Finding]:
    """Where a float32 run with large numbers gives NaN or infinity, and a float64 run does not."""
    from harness.diagnosis.observation import observe

    size = SIZES["debug"]
    ids, _ = batch(size, "random", rows=2, length=24)
    runs = {}
    for dtype in ("float64", "float32"):
        with ModuleCreationSites() as births:
            model = build_with_weights(subject, size, state("debug", "extreme"), dtype)
        runs[dtype] = observe(model, ids, births)
    if bool(runs["float32"].logits.isfinite().all()) or not bool(runs["float64"].logits.isfinite().all()):
        return []
    steps = runs["float32"].steps
    first = next(n for n, step in enumerate(steps) if bool((step.tensor.isnan() | (step.tensor == torch.inf)).any()))
    weights = {name: tensor.double() for name, tensor in state("debug", "extreme").items()}
    _, where, _ = forward.place_of(min(first, len(runs["float64"].steps) - 1), runs["float64"], ids, weights, size)
    operation = where.split(".", 2)[2] if where.count(".") > 1 else where
    softmax = operation in ("attn.softmax", "attn.mask", "attn.mix")
    line = steps[first].line
    return [
        Finding(
            where if not softmax else where.replace(operation, "attn.softmax"),
            "softmax-unstable" if softmax else "",
            "the softmax overflows: it does not subtract the largest score" if softmax else "float32 overflows here",
            "with large weights float32 gives NaN or infinity, float64 does not",
            *(("", "") if line is None else (str(line), line.text)),
        )
    ]
