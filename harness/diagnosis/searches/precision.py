"""The search for what is computed in fewer bits than the model has, and for what overflows in float32."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from harness.core.sizes import SIZES, Size
from harness.core.source_lines import SourceLine, location, user_line
from harness.diagnosis.finding import Finding
from harness.diagnosis.observation import SAME, Observation, Sums, observe, sums, sums_agree
from harness.diagnosis.recorders import ModuleCreationSites, OperationRecorder
from harness.diagnosis.searches import forward
from harness.oracle.probe_weights import state
from harness.oracle.tokens import batch
from harness.subjects.build import build_with_weights
from harness.subjects.model import Model
from harness.subjects.protocols import Subject

SHORT = tuple(
    getattr(torch, name)
    for name in ("bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
    if hasattr(torch, name)
)
# A part of the operation's name -> the fault's id; the first that applies.
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
EXPONENTIALS = ("exp", "exp_", "pow", "expm1", "exp2")
# PyTorch's operations that only copy or rearrange values.
MOVING = ("_to_copy", "clone", "copy_", "detach", "expand", "permute",
          "slice", "t", "transpose", "view", "_unsafe_view")  # fmt: skip


@dataclass(frozen=True)
class Downcast:
    """One conversion to fewer bits: after how many steps, on which line, to which dtype, of which values."""

    steps: int
    line: SourceLine | None
    dtype: str
    of_integers: bool
    sums: Sums  # of the tensor that is converted


class FullPrecision(TorchFunctionMode):
    """Convert to float64 where the subject converts to a short dtype, inside the block, and record where that is."""

    def __init__(self, recorder: OperationRecorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.downcasts: list[Downcast] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        dtype = next((v for v in (*args, *given.values()) if isinstance(v, torch.dtype) and v in SHORT), None)
        if function in (torch.Tensor.bfloat16, torch.Tensor.half):
            dtype = torch.bfloat16 if function is torch.Tensor.bfloat16 else torch.float16
            function = torch.Tensor.double
        if dtype is None:
            return function(*args, **given)
        floating = bool(args) and isinstance(args[0], Tensor) and args[0].is_floating_point()
        own = sums(args[0].detach()) if floating else (0.0, 0.0, 0.0)
        name = str(dtype).removeprefix("torch.")
        self.downcasts.append(Downcast(len(self.recorder.steps), user_line(), name, not floating, own))
        full = tuple(torch.float64 if isinstance(v, torch.dtype) and v in SHORT else v for v in args)
        given = {k: torch.float64 if isinstance(v, torch.dtype) and v in SHORT else v for k, v in given.items()}
        return function(*full, **given)


def without_downcasts(
    model: Model,
    ids: Tensor,
    sites: ModuleCreationSites,
    observed: Observation,
    weights: dict[str, Tensor],
    size: Size,
) -> tuple[Observation, list[Finding]]:
    """Observe the forward pass with every downcast undone, and return a finding for each operation that had one.

    Return `observed` and [] if there is none.
    """
    if not any(step.dtype in SHORT for step in observed.steps):
        return observed, []
    with torch.no_grad(), OperationRecorder(sites) as recorder, FullPrecision(recorder) as full:
        logits = model.logits(ids)
    again = Observation(recorder.steps, logits.detach().double())
    change = float((observed.logits - again.logits).abs().max())
    found: dict[str, Finding] = {}  # by operation
    for downcast in full.downcasts:
        where = _place(downcast, observed, again, ids, weights, size)
        operation = where.split(".", 2)[2] if where.count(".") > 1 else where
        operation = "residual.mlp" if where.count(".") == 1 and where.startswith("h.") else operation
        if operation in found:
            found[operation] = _in_every_layer(found[operation], where)
            continue
        fault = next((id for word, id in FAULTS.items() if word in operation), "low-precision")
        cause = f"{operation} is computed or stored in {downcast.dtype}, in a model that is not"
        evidence = f"a float64 model converts to {downcast.dtype} there; without that the logits change by {change:.1e}"
        found[operation] = Finding(where, fault, cause, evidence, *location(downcast.line))
    return again, list(found.values())


def _place(
    downcast: Downcast, observed: Observation, again: Observation, ids: Tensor, weights: dict[str, Tensor], size: Size
) -> str:
    if downcast.of_integers:
        return "embedding.position"
    last, following, value = forward.place_of(downcast.steps, again, ids, weights, size)
    # A value that is only rounded is the one at its place; anything else is within the computation of the next.
    rounded = value is not None and sums_agree(downcast.sums, sums(value), SAME)
    return last if rounded and not _computes(observed, downcast.line) else following


def _computes(observed: Observation, line: SourceLine | None) -> bool:
    """Return True if the subject computes in the short dtype that a line converts to, False if it only rounds."""
    started = False
    for step in observed.steps:
        started = started or (step.dtype in SHORT and step.line == line)
        if started and step.dtype not in SHORT:
            return False
        if started and step.operation not in MOVING:
            return True
    return False


def _in_every_layer(finding: Finding, other: str) -> Finding:
    """Return the finding with `h.*` as its layer, if the operation has a downcast at another place too."""
    if finding.where == other or not finding.where.startswith("h."):
        return finding
    return dataclasses.replace(finding, where=".".join(["h.*", *finding.where.split(".", 2)[2:]]))


def overflow(subject: Subject) -> list[Finding]:
    """Return where a float32 model with large weights computes NaN or infinity, and a float64 model does not."""
    size = SIZES["debug"]
    ids, _ = batch(size, "random", rows=2, length=24)
    runs = {}
    for dtype in ("float64", "float32"):
        with ModuleCreationSites() as sites:
            model = build_with_weights(subject, size, state("debug", "extreme"), dtype)
        runs[dtype] = observe(model, ids, sites)
    if bool(runs["float32"].logits.isfinite().all()) or not bool(runs["float64"].logits.isfinite().all()):
        return []
    steps = runs["float32"].steps
    # Minus infinity is no overflow: masks are made of it.
    first = next(
        (n for n, step in enumerate(steps) if bool((step.tensor.isnan() | (step.tensor == torch.inf)).any())), None
    )
    if first is None:
        return []
    weights = {name: tensor.double() for name, tensor in state("debug", "extreme").items()}
    _, where, _ = forward.place_of(min(first, len(runs["float64"].steps) - 1), runs["float64"], ids, weights, size)
    operation = where.split(".", 2)[2] if where.count(".") > 1 else where
    fault, cause = "", "float32 overflows here"
    if operation in ("attn.softmax", "attn.mask", "attn.mix") and steps[first].operation in EXPONENTIALS:
        where = where.replace(operation, "attn.softmax")
        fault, cause = "softmax-unstable", "the softmax overflows: it does not subtract the largest score"
    evidence = "with large weights float32 gives NaN or infinity, float64 does not"
    return [Finding(where, fault, cause, evidence, *location(steps[first].line))]
