"""What is computed in fewer bits than the model has: found by undoing it, which is the proof as well."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from harness.diagnosis import forward
from harness.diagnosis.finding import Finding
from harness.diagnosis.observe import Births, Line, Observation, Recorder, users_line
from harness.size import Size
from harness.subject import Model

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


class InFull(TorchFunctionMode):
    """While open, whoever asks PyTorch for a 16-bit or shorter dtype gets float64; notes where that was asked."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.asked: list[tuple[int, Line | None, str]] = []  # (steps before, line, dtype)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        asked = next((v for v in (*args, *given.values()) if isinstance(v, torch.dtype) and v in SHORT), None)
        if function in (torch.Tensor.bfloat16, torch.Tensor.half):
            asked = torch.bfloat16 if function is torch.Tensor.bfloat16 else torch.float16
            function = torch.Tensor.double
        if asked is None:
            return function(*args, **given)
        self.asked.append((len(self.recorder.steps), users_line(), str(asked).removeprefix("torch.")))
        full = tuple(torch.float64 if isinstance(v, torch.dtype) and v in SHORT else v for v in args)
        given = {k: torch.float64 if isinstance(v, torch.dtype) and v in SHORT else v for k, v in given.items()}
        return function(*full, **given)


def undone(
    model: Model, ids: Tensor, births: Births, observed: Observation, weights: dict[str, Tensor], size: Size
) -> tuple[Observation, list[Finding]]:
    """The forward pass with every reduction of precision undone, and a finding for each place that had one.

    `observed` comes back as it was, and no finding, where there is none.
    """
    if not any(step.dtype in SHORT for step in observed.steps):
        return observed, []
    with torch.no_grad(), Recorder(births) as recorder, InFull(recorder) as full:
        logits = model.logits(ids)
    again = Observation(recorder.steps, logits.detach().double())
    gap = float((observed.logits - again.logits).abs().max())
    found: dict[str, Finding] = {}
    for step, line, dtype in full.asked:
        where = forward.place_of(step, again, ids, weights, size)
        operation = where.split(".", 2)[2] if where.count(".") > 1 else where
        fault = next((id for word, id in FAULTS.items() if word in operation), "low-precision")
        key = operation
        if key in found:
            found[key] = _everywhere(found[key], where)
            continue
        evidence = f"a float64 run asks for {dtype} there; with that undone the logits move by {gap:.1e}"
        cause = f"{operation} is computed or kept in {dtype}, in a model that is not"
        told = ("", "") if line is None else (str(line), line.text)
        found[key] = Finding(where, fault, cause, evidence, *told)
    return again, list(found.values())


def _everywhere(finding: Finding, other: str) -> Finding:
    import dataclasses

    if finding.where == other or not finding.where.startswith("h."):
        return finding
    return dataclasses.replace(finding, where="h.*." + finding.where.split(".", 2)[2])
