"""The diagnosis: all searches in turn, each guarded, so that one that fails costs only itself."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable, Mapping, Sequence

from harness.core.error_text import is_user_file
from harness.core.errors import HarnessError, Missing
from harness.core.sizes import SIZES
from harness.core.source_lines import SourceLine, location
from harness.diagnosis import failed_checks, reproduction, teacher_forcing
from harness.diagnosis.consequences import without_consequences
from harness.diagnosis.finding import NO_VARIANT, Diagnosis, Finding
from harness.diagnosis.searches import (
    compiled,
    computation,
    conditions,
    dropout,
    generation,
    initialisation,
    kv_cache,
    loading,
    structure,
    tying,
    unrecorded,
)
from harness.oracle.probe_weights import state
from harness.oracle.tokens import batch
from harness.subjects.compiled import eagerly
from harness.subjects.protocols import Subject
from harness.suites.record import Record

UNDER_A_CONDITION = "wrong-under-a-condition"
DIFFERS = 1e-9  # relative, in float64: rounding is some 1e-15
_COMPUTES = frozenset(
    (
        "structure",
        "behaviour",
        "attention",
        "loss",
        "parity",
        "precision",
        "generation",
        "loading",
        "interface",
        "dropout",
    )
)
# Each search, and the suites whose failures it explains.
Searches = tuple[tuple[Callable[[Subject], list[Finding]], frozenset[str]], ...]
COMPILED: Searches = ((compiled.search, _COMPUTES),)
# Those that run the subject eagerly, in the order in which findings are reported: what a model is made of, what it
# computes, how it starts, what is done with it.
SEARCHES: Searches = (
    (structure.search, frozenset(("structure", "behaviour", "loading", "interface"))),
    (computation.search, _COMPUTES),
    (tying.search, frozenset(("structure",))),
    (dropout.search, frozenset(("dropout",))),
    (initialisation.search, frozenset(("initialisation",))),
    (loading.search, frozenset(("loading",))),
    (kv_cache.search, frozenset(("generation",))),
    (generation.search, frozenset(("generation",))),
)


def diagnose(subject: Subject, records: Sequence[Record] = ()) -> Diagnosis:
    """Return what is wrong with the subject, at the debug size.

    `records`: the results of its checks; only the searches that concern failed ones are run. Without records all are.
    Nothing that the subject raises is raised, but for KeyboardInterrupt: `trouble` says which searches failed.
    """
    failed = [record for record in records if record.verdict in ("fail", "error")]
    suites = None if not records else {record.check.suite for record in failed}
    by_compiling, of_compiling = _searched(subject, suites, COMPILED)
    with eagerly():
        return _diagnosis(subject, failed, suites, by_compiling, of_compiling)


def _diagnosis(
    subject: Subject, failed: Sequence[Record], suites: set[str] | None, found: list[Finding], trouble: list[str]
) -> Diagnosis:
    """Return the diagnosis: what is already `found`, and what the searches find that run the subject eagerly."""
    eager, failing = _searched(subject, suites, SEARCHES)
    found, trouble = [*found, *eager], [*trouble, *failing]
    if not found:  # a failed check's own cause counts only where no search found one: one mistake fails many checks
        found = failed_checks.findings_from(failed)
    elif all(finding.cause == NO_VARIANT for finding in found):
        # The condition under which it is wrong says more than the place at which no variant matches.
        found = [each for each in failed_checks.findings_from(failed) if each.fault == UNDER_A_CONDITION] + found
    found = _at_the_condition(found, subject, failed, trouble)
    if failed and not found:
        found = [Finding(failed[0].check.suite, "", NO_VARIANT, failed[0].message)]
    try:
        found = without_consequences(found, subject)
    except Exception as error:
        trouble.append(f"findings are not put together: {type(error).__name__}: {error}")
    script, data = "", ""
    try:
        shown = next((finding for finding in found if _shows_in_logits(finding)), None)
        if shown is not None:
            script, data = reproduction.reproduction(subject, shown)
    except Exception as error:
        trouble.append(f"no script to reproduce it: {type(error).__name__}: {error}")
    divergence = _divergence(subject) if found else {}
    findings = tuple(_with_divergence(finding, divergence) for finding in found)
    return Diagnosis(findings, divergence, script, data, trouble="; ".join(dict.fromkeys(trouble)))


def _at_the_condition(
    found: list[Finding], subject: Subject, failed: Sequence[Record], trouble: list[str]
) -> list[Finding]:
    """Return the findings with those of the replayed condition in the place of one that only names the condition."""
    if not any(each.fault in conditions.REPLAYED for each in found):
        return found
    try:
        replayed = conditions.search(subject, failed)
    except Exception as error:
        trouble.append(f"the condition is not replayed: {type(error).__name__}: {error}")
        return found
    if not replayed:
        return found
    return replayed + [each for each in found if each.fault not in {one.fault for one in replayed} and each.fault]


def _searched(subject: Subject, suites: set[str] | None, searches: Searches) -> tuple[list[Finding], list[str]]:
    """Return the findings of the searches that concern these suites (None: of all), and why searches failed."""
    found: list[Finding] = []
    trouble: list[str] = []
    for search, concerns in searches:
        if suites is not None and not suites & concerns:
            continue
        if concerns == {"generation"} and _is_noisy(found):
            continue
        try:
            found += search(subject)
        except KeyboardInterrupt:
            raise
        except (Missing, HarnessError) as error:
            trouble.append(str(error))
        except BaseException as error:  # SystemExit, too
            trouble.append(f"{type(error).__name__}: {error}")
            if search is computation.search and (broken := _broken(subject, error)) is not None:
                found.append(broken)
                break  # the other searches would fail in the same line
    if any(each.fault in unrecorded.NOTHING_LEARNED for each in found):
        trouble = [each for each in trouble if unrecorded.RAISED not in each]
    return found, trouble


def _is_noisy(found: Sequence[Finding]) -> bool:
    """Return True if rounding or chance in the forward pass changes every token that is decoded or drawn."""
    return any("low-precision" in finding.fault or finding.where == "dropout" for finding in found)


def _broken(subject: Subject, error: BaseException) -> Finding | None:
    """Return the finding for an error that the subject's own code raised, with its line."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if is_user_file(frame.filename)]
    if not frames:
        return None
    line = SourceLine(frames[-1].filename, frames[-1].lineno or 0)
    what = "in float64, as the diagnosis runs it, it fails" if _answers(subject) else "building or calling it fails"
    cause = f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:160]}"
    return Finding(
        "forward", "", cause, "at the debug size, where all dimensions are different numbers", *location(line)
    )


def _answers(subject: Subject) -> bool:
    """Return True if the subject can be built and called as it is."""
    try:
        ids, _ = batch(SIZES[computation.SIZE], "random", rows=2, length=24)
        subject.build(SIZES[computation.SIZE]).logits(ids)
    except Exception:
        return False
    return True


def _shows_in_logits(finding: Finding) -> bool:
    computed = ("h.", "embedding", "ln_f", "head", "blocks")
    return finding.where.startswith(computed) and "gradient" not in finding.cause and "in training" not in finding.cause


def _divergence(subject: Subject) -> dict[str, dict[str, float]]:
    """Return the divergence of each component (see `teacher_forcing`); {} if the subject cannot be observed."""
    try:
        model, _ = computation.built(subject, "probe", training=False)
        ids, _ = batch(SIZES[computation.SIZE], "random", rows=2, length=24)
        return teacher_forcing.divergence(
            model, ids, computation.published_weights(model, state(computation.SIZE, "probe"))
        )
    except Exception:
        return {}


def _with_divergence(finding: Finding, divergence: Mapping[str, Mapping[str, float]]) -> Finding:
    """Return the finding with the error of its component alone, given GPT-2's own input, in the evidence."""
    words = finding.where.replace("h.*", "h.0").split(".")
    place = ".".join(words[:3]) if words[0] == "h" else words[0]
    alone = divergence.get(place, {}).get("alone")
    if alone is None or not alone > DIFFERS:
        return finding
    evidence = f"{finding.evidence}; given GPT-2's own input, {place} alone differs by {alone:.1e} of its size"
    return dataclasses.replace(finding, evidence=evidence)
