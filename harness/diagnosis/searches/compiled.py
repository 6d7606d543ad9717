"""The search for what torch.compile changes: the compiled subject against the same one run eagerly."""

from __future__ import annotations

import ast
import linecache
import sys

from torch import Tensor

from harness.core.sizes import SIZES
from harness.core.source_lines import SourceLine, location
from harness.diagnosis.finding import Finding
from harness.diagnosis.searches import computation
from harness.measures.device.errors_in_floors import outputs_and_gradients
from harness.oracle.noise_verdict import relative_distance
from harness.subjects.compiled import eagerly
from harness.subjects.protocols import Subject

FAULT = "compiled-differs"
SAME = 1e-9  # relative, in float64: operations that are fused round differently, by some 1e-15


def search(subject: Subject) -> list[Finding]:
    """Return that the compiled subject's logits, loss or gradients differ from the eager one's; [] if none does.

    Raises what the compiled call raises, if the eager one does not.
    """
    model, _ = computation.built(subject, "probe", training=False)
    if "torch._dynamo" not in sys.modules:
        return []
    with eagerly():
        expected = outputs_and_gradients(model, SIZES[computation.SIZE])
    model, _ = computation.built(subject, "probe", training=False)
    where = location(_compiling_line(getattr(getattr(subject, "module", None), "__file__", None)))
    try:
        found = outputs_and_gradients(model, SIZES[computation.SIZE])
    except Exception as error:
        said = " ".join(str(error).split())[:160]
        cause = f"as it is compiled by torch.compile it fails: {type(error).__name__}: {said}"
        return [Finding("forward", FAULT, cause, "run eagerly, the same GPT does not fail", *where)]
    differing = {name: change for name in expected if not (change := _change(found.get(name), expected[name])) <= SAME}
    if not differing:
        return []
    place = next(iter(differing))
    of = place if place in ("logits", "loss") else f"the gradient of {place}"
    evidence = f"{of} of the compiled GPT differs by {differing[place]:.1e} from what it computes eagerly"
    return [Finding("forward", FAULT, "torch.compile changes what it computes", evidence, *where)]


def _change(found: Tensor | None, expected: Tensor) -> float:
    """Return the relative distance; infinity for what is missing."""
    return float("inf") if found is None else relative_distance(found, expected)


def _compiling_line(file: str | None) -> SourceLine | None:
    """Return the first line of a file that calls or names a `compile` of something: torch.compile, model.compile()."""
    try:
        tree = ast.parse("".join(linecache.getlines(file or "")))
    except SyntaxError:
        return None
    lines = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr == "compile"]
    return SourceLine(str(file), min(lines)) if lines else None
