"""The finding for a loss without a gradient: a forward pass that is not recorded, a detached loss, frozen weights."""

from __future__ import annotations

import inspect
import re

from torch import Tensor, nn

from harness.core.error_text import is_user_file
from harness.core.source_lines import SourceLine, location
from harness.diagnosis.finding import Finding
from harness.subjects.compiled import class_of
from harness.subjects.model import Model

UNRECORDED = r"no_grad|inference_mode|set_grad_enabled"
DETACHED = rf"{UNRECORDED}|\bdetach|\.item\(|\.data\b|\bfloat\("
FROZEN = r"requires_grad"
NOTHING_LEARNED = ("gradient-unrecorded", "loss-detached", "gradient-frozen")
RAISED = "does not require grad"  # in the error of each other search that takes a gradient, as that of dropout


def finding(model: Model, logits: Tensor) -> Finding:
    """Return why the loss that came with these logits has no gradient. The line is the first that says a word of it."""
    parameters = list(model.module.parameters())
    if not any(parameter.requires_grad for parameter in parameters):
        cause = "requires_grad is off for every parameter"
        return Finding("blocks", "gradient-frozen", cause, f"all {len(parameters)}", *_line(model, FROZEN))
    if logits.requires_grad:
        cause = "the loss is detached from the logits: no gradient reaches a parameter"
        evidence = "the logits have a gradient, and the loss that is returned with them has none"
        return Finding("loss", "loss-detached", cause, evidence, *_line(model, DETACHED))
    cause = "the forward pass runs without recording gradients: no gradient reaches a parameter"
    evidence = "the logits have no gradient, although gradients are enabled when it is called"
    return Finding("blocks", "gradient-unrecorded", cause, evidence, *_line(model, f"{UNRECORDED}|{DETACHED}"))


def _line(model: Model, pattern: str) -> tuple[str, str]:
    """Return the location of the first line with the pattern, in `forward` or else elsewhere in the model's classes."""
    kinds = [kind for kind in class_of(model.module).__mro__ if kind.__module__ != nn.Module.__module__]
    for part in [*(inspect.unwrap(vars(kind)["forward"]) for kind in kinds if "forward" in vars(kind)), *kinds]:
        try:
            file, (lines, first) = inspect.getsourcefile(part), inspect.getsourcelines(part)
        except (OSError, TypeError):
            continue
        number = next((number for number, line in enumerate(lines, first) if re.search(pattern, line)), None)
        if number is not None and file is not None and is_user_file(file):
            return location(SourceLine(file, number))
    return "", ""
