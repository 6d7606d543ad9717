"""Findings that only repeat another one, or follow from it: one cause is one finding."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from harness.core.sizes import SIZES
from harness.diagnosis.finding import Finding
from harness.diagnosis.searches import structure
from harness.subjects.protocols import Subject

NORMS = ("ln_1", "ln_2", "ln_f")
BIASES = ("bias-free", "bias-missing", "qkv-bias-missing")
# A part that GPT-2 has and the subject computes nothing with, by the fault that says so: its parameters are missing.
LEFT_OUT = {
    "attn-branch-missing": "attn",
    "mlp-branch-missing": "mlp",
    "pos-missing": "embedding",
    "pos-sinusoidal": "embedding",
    "rotary-positions": "embedding",
}
# Suites whose checks run the whole of one program: a mistake anywhere in it fails several of them.
WHOLE_PROGRAMS = ("batching",)


def without_consequences(found: Sequence[Finding], subject: Subject) -> list[Finding]:
    """Return the findings without those that repeat another one, or follow from it."""
    findings = _first_of_whole_programs(_without_biases_of_rms_norms(list(found), subject))
    findings = [finding for finding in findings if not any(_explains(other, finding) for other in findings)]
    kept: list[Finding] = []
    for finding in findings:
        same = next((n for n, other in enumerate(kept) if _is_same(other, finding)), None)
        if same is None:
            kept.append(finding)
        elif kept[same].where != finding.where:
            cause = f"{kept[same].cause}; the same in {finding.where}"
            kept[same] = dataclasses.replace(kept[same], cause=cause)
    return kept


def _first_of_whole_programs(found: list[Finding]) -> list[Finding]:
    """Return the findings with the first one alone of each suite in WHOLE_PROGRAMS."""
    suites = [finding.where.split(".")[0] for finding in found]
    return [
        finding
        for number, (finding, suite) in enumerate(zip(found, suites, strict=True))
        if suite not in WHOLE_PROGRAMS or suites.index(suite) == number
    ]


def _without_biases_of_rms_norms(found: list[Finding], subject: Subject) -> list[Finding]:
    """Return the findings with the biases that RMSNorms do not have left out of those that are missing."""
    norms = {_component(finding) for finding in found if finding.fault == "rms-norm"}
    if not norms or not any(finding.fault in BIASES for finding in found):
        return found
    missing = structure.missing_biases(subject.build(SIZES[structure.SIZE]))
    rest = [name for name in missing if name.removesuffix(".bias") not in norms]
    without = [structure.bias_finding(rest, without=sorted(norms))] if rest else []
    first = next(n for n, finding in enumerate(found) if finding.fault in BIASES)
    return [*found[:first], *without, *(finding for finding in found[first:] if finding.fault not in BIASES)]


def _explains(cause: Finding, finding: Finding) -> bool:
    """Return True if a finding about parameters that are not there follows from what is computed."""
    if cause is finding or finding.source or not finding.evidence.startswith(structure.NO_PARAMETER):
        return False
    if not cause.fault or cause.evidence.startswith(structure.NO_PARAMETER):
        return False
    of_part = LEFT_OUT.get(cause.fault, _component(cause))
    return _component(finding) == of_part or _component(finding).startswith(f"{of_part}.")


def _is_same(first: Finding, other: Finding) -> bool:
    """Return True for one fault on one line, at one place, or in several norms with the same words."""
    if not first.fault or first.fault != other.fault:
        return False
    if (first.source and first.source == other.source) or first.where == other.where:
        return True
    own, others = _component(first), _component(other)
    words = first.cause.split("; the same in ")[0].replace(own, others, 1)
    return own in NORMS and others in NORMS and words == other.cause


def _component(finding: Finding) -> str:
    """Return the component of a finding without its layer: `h.*.attn.mask` -> `attn.mask`."""
    words = finding.where.split(".")
    return ".".join(words[2:]) if words[0] == "h" else finding.where
