"""The search for what torch.compile changes: the compiled subject against the same one run eagerly."""

from __future__ import annotations

import ast
import linecache
import math
from collections.abc import Mapping

from torch import Tensor

from harness.core.sizes import SIZES
from harness.core.source_lines import SourceLine, location
from harness.diagnosis.finding import Finding
from harness.diagnosis.searches import computation
from harness.measures.device.errors_in_floors import outputs_and_gradients
from harness.oracle.noise_verdict import relative_distance
from harness.subjects.compiled import eagerly, may_be_compiled
from harness.subjects.protocols import Subject

FAULT = "compiled-differs"
SAME = 1e-9  # relative, in float64: operations that are fused round differently, by some 1e-15


def search(subject: Subject) -> list[Finding]:
    """Return that the compiled subject's logits, loss or gradients differ from the eager one's; [] if none does."""
    computation.built(subject, "probe", training=False)  # it may compile itself only now
    if not may_be_compiled():
        return []
    try:
        expected = _eager(subject)
    except Exception:
        return []  # it fails without being compiled, which another search reports
    where = location(_compiling_line(getattr(getattr(subject, "module", None), "__file__", None)))
    try:
        found = _computed(subject)
    except Exception as error:
        said = " ".join(str(error).split())[:160]
        cause = f"as it is compiled by torch.compile it fails: {type(error).__name__}: {said}"
        return [Finding("forward", FAULT, cause, "run eagerly, the same GPT does not fail", *where)]
    differing = _differing(found, expected)
    if not differing or _differing(_eager(subject), expected):  # the second: it draws, or computes each time anew
        return []
    place = next(iter(differing))
    of = place if place in ("logits", "loss") else f"the gradient of {place}"
    evidence = f"{of} of the compiled GPT differs by {differing[place]:.1e} from what it computes eagerly"
    return [Finding("forward", FAULT, "torch.compile changes what it computes", evidence, *where)]


def _eager(subject: Subject) -> dict[str, Tensor]:
    with eagerly():
        return _computed(subject)


def _computed(subject: Subject) -> dict[str, Tensor]:
    """Return the logits, the loss and the gradients of a new model."""
    model, _ = computation.built(subject, "probe", training=False)
    return outputs_and_gradients(model, SIZES[computation.SIZE])


def _differing(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the relative distance of each tensor that differs; infinity for one that is missing."""
    distances = {
        name: relative_distance(found[name], right) if name in found else math.inf for name, right in expected.items()
    }
    return {name: distance for name, distance in distances.items() if not distance <= SAME}


def _compiling_line(file: str | None) -> SourceLine | None:
    """Return the first line of a file that calls or names a `compile` of something: torch.compile, model.compile()."""
    try:
        tree = ast.parse("".join(linecache.getlines(file or "")))
    except SyntaxError:
        return None
    lines = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr == "compile"]
    return SourceLine(str(file), min(lines)) if lines else None
