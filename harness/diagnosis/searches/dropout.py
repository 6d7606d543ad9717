"""The search for what is wrong with the dropouts of a training pass: where, how much, of what and when they drop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from harness.core.errors import MissingAbility
from harness.core.source_lines import SourceLine, location
from harness.diagnosis.finding import Finding
from harness.measures.dropout.masks import AS_GPT2, dropout_by_mode, dropout_dependence, dropout_masks, dropout_sites
from harness.measures.dropout.parity import dropout_parity
from harness.measures.dropout.recorded_pass import EVENTS, Recorded, record
from harness.oracle.replayed_dropout import GPT2_SITES
from harness.subjects.protocols import Subject
from harness.suites.measure_registry import Reading

SIZE = "debug"
RATE = 0.3
LENGTH = 24
WORDS = {
    "embedding": "the embeddings' sum",
    "attn.softmax": "the attention weights",
    "attn.c_proj": "the output of the attention's projection",
    "mlp.c_proj": "the output of the MLP's projection",
    "attn.mix": "the attention's output before its projection",
    "attn.merge": "the attention's output before its projection",
    "mlp.activation": "the MLP's activations",
    "residual.attn": "the residual stream",
    "residual.mlp": "the residual stream",
}
MISSING = {"embedding": "embed-dropout-missing", "attn.softmax": "attn-dropout-missing"}
ELSEWHERE = {
    **dict.fromkeys(("attn.scores", "attn.scale", "attn.mask"), "dropout-on-scores"),
    **dict.fromkeys(("attn.mix", "attn.merge", "mlp.activation"), "dropout-before-projection"),
    **dict.fromkeys(("residual.attn", "residual.mlp"), "dropout-on-residual-stream"),
}
# What shares a mask, by what is the likeliest cause of the others.
SHARED = {
    "passes": ("dropout-same-at-each-step", "each training pass drops the same: the mask is drawn once"),
    "layers": ("dropout-same-in-each-layer", "layers have one dropout mask between them"),
    "places": ("dropout-same-in-each-layer", "several dropouts of a pass have one mask between them"),
    "rows": ("dropout-shared-over-rows", "the rows of a batch have one dropout mask between them"),
    "heads": ("dropout-shared-over-heads", "the heads have one dropout mask between them"),
    "positions": ("dropout-shared-over-positions", "all positions have one dropout mask: whole channels are dropped"),
    "channels": ("dropout-shared-over-positions", "all channels have one dropout mask: whole positions are dropped"),
    "queries": ("dropout-shared-over-positions", "all queries have one dropout mask: whole keys are dropped"),
    "keys": ("dropout-shared-over-positions", "all keys have one dropout mask: whole queries are dropped"),
}
BY_MODE = {
    "in eval mode with targets": ("dropout-active-in-eval", "dropout is active in eval mode where there are targets"),
    "missing after an evaluation": (
        "dropout-off-after-evaluation",
        "dropout stays off after an evaluation",
    ),
    "in generate": ("dropout-active-in-generate", "dropout is active in generate, which runs in training mode"),
    "in generate, in eval mode": ("kv-dropout-in-decoding", "dropout is active in generate, although in eval mode"),
    "missing after generate": ("dropout-off-after-evaluation", "dropout stays off after generate"),
    "passes that seed": (
        "forward-seeds-random-numbers",
        "a training pass seeds the random numbers of the whole program: each step draws what the last one drew",
    ),
}


def search(subject: Subject) -> list[Finding]:
    """Return what is wrong with the dropouts of the subject, and what a training pass remembers of those before."""
    found = list(_by_mode(subject))
    try:
        recorded = record(subject, SIZE, RATE)
        recorded.raise_if_unclear()
    except MissingAbility:
        return found
    if recorded.draws:
        places = [*_sites(subject, recorded), *_rate_and_scale(subject, recorded)]
        seeds = any(finding.fault == "forward-seeds-random-numbers" for finding in found)
        found += [*places, *([] if seeds else _shared(subject, recorded))]
    return found or list(_remembered(subject, recorded))


def _sites(subject: Subject, recorded: Recorded) -> Iterator[Finding]:
    """Yield the dropouts of GPT-2 that are missing, and those at other places; one that is moved is one finding."""
    how = _reading(lambda: dropout_sites(subject, size=SIZE, rate=RATE))
    wrong = {site: said for site, said in how.items() if said != AS_GPT2}
    evidence = "deviation from GPT-2, which drops the embeddings' sum, the attention weights and both projections"
    missing = [site for site in wrong if site in GPT2_SITES]
    for site in [each for each in wrong if each not in GPT2_SITES]:
        instead = next((each for each in missing if each.split(".")[0] == site.split(".")[0]), None)
        instead = instead or ("mlp.c_proj" if site.startswith("residual") and "mlp.c_proj" in missing else None)
        missing = [each for each in missing if each != instead]
        words = WORDS.get(site, "the scores" if site in ELSEWHERE else site)
        cause = f"dropout is on {words}" + (f", not on {WORDS[instead]}" if instead else ", where GPT-2 has none")
        yield _finding(ELSEWHERE.get(site, "dropout-elsewhere"), cause, evidence, recorded, site)
    unused = next((drop.line for drop in recorded.drops if not drop.used), None)
    for site in missing:
        said = f"{wrong[site]} on {WORDS[site]}"
        if unused is not None and "not used" in str(wrong[site]):
            cause = f"no dropout on {WORDS[site]}: the result of the one in this line is not used"
            yield Finding("dropout", "dropout-result-unused", cause, evidence, *location(unused))
        elif wrong[site] == "two dropouts":
            yield _finding("dropout-twice", said, evidence, recorded, site)
        else:
            yield Finding("dropout", MISSING.get(site, "resid-dropout-missing"), said, evidence)


def _rate_and_scale(subject: Subject, recorded: Recorded) -> Iterator[Finding]:
    """Yield the dropouts of another rate than RATE and those that do not scale what they keep."""
    for site, rate in _reading(lambda: dropout_masks(subject, size=SIZE, of="rate", rate=RATE)).items():
        if abs(float(rate) - RATE) > 1e-6:
            other = _reading(lambda: dropout_masks(subject, size=SIZE, of="rate", rate=2 * RATE)).get(site)
            fixed = other is not None and abs(float(other) - float(rate)) < 1e-6
            fault = "dropout-rate-tripled" if abs(float(rate) - 3 * RATE) < 1e-6 else "dropout-rate"
            cause = f"the dropout of {WORDS.get(site, site)} has a rate of {float(rate):.4g} "
            cause += "whatever is asked for" if fixed else f"where {RATE:g} is asked for"
            yield _finding(fault, cause, "from the share that is dropped, and the scale of the rest", recorded, site)
    for site, scale in _reading(lambda: dropout_masks(subject, size=SIZE, of="scale", rate=RATE)).items():
        if abs(float(scale) - 1) > 1e-6:
            factor = recorded.masks_of(site)[0].scale
            cause = (
                f"what the dropout of {WORDS.get(site, site)} keeps is multiplied by {factor:.4g}, not by 1 / (1 - p)"
            )
            evidence = f"its mean is {float(scale):.4g} times what it is in eval mode"
            yield _finding("dropout-not-rescaled", cause, evidence, recorded, site)


def _shared(subject: Subject, recorded: Recorded) -> Iterator[Finding]:
    """Yield the first thing that shares a mask, of those that explain each other."""
    reading = dropout_dependence(subject, size=SIZE, rate=RATE) if recorded.masks else Reading({})
    assert isinstance(reading.value, dict)
    shared = [kind for kind in SHARED if reading.value.get(kind)]
    if shared:
        fault, cause = SHARED[shared[0]]
        hint = str(reading.details["hint"])
        site = next((each for each in recorded.sites if f"at {each} " in hint or f"at {each};" in hint), "")
        yield _finding(fault, cause, hint.split(" (drawn")[0], recorded, site)


def _by_mode(subject: Subject) -> Iterator[Finding]:
    """Yield the first of the modes in which dropout is on or off and should not be.

    That it is on in eval mode is found by the search for what is computed.
    """
    try:
        reading = dropout_by_mode(subject, size=SIZE, rate=RATE)
    except MissingAbility:
        return
    assert isinstance(reading.value, dict)
    for kind, count in reading.value.items():
        if count and kind == "in eval mode":
            return
        if count:
            fault, cause = BY_MODE[kind]
            where = "cache" if fault == "kv-dropout-in-decoding" else "dropout"
            line = reading.details["lines"].get(kind)
            yield Finding(where, fault, cause, f"{kind}: {count}", *location(SourceLine(*line) if line else None))
            return


def _remembered(subject: Subject, recorded: Recorded) -> Iterator[Finding]:
    """Yield that a later pass differs from GPT-2 where the first one does not."""
    wrong = []
    for when in EVENTS:
        try:
            found = [dropout_parity(subject, size=SIZE, compare=each, when=when) for each in ("logits", "gradients")]
        except MissingAbility:
            continue
        if any(
            verdict == "different" for each in found if isinstance(each.value, dict) for verdict in each.value.values()
        ):
            wrong.append(when)
    if wrong and "first" not in wrong:
        cause = f"a pass depends on those before it: the first is right, and one {', and one '.join(wrong)} is not"
        yield Finding("behaviour", "training-remembers", cause, "the same batch, weights and masks in GPT-2")


def _reading(measure: Callable[[], Reading]) -> dict[str, Any]:
    """Return the values of a measure by place; none if it cannot be measured."""
    try:
        value = measure().value
    except MissingAbility:
        return {}
    return dict(value) if isinstance(value, dict) else {}


def _finding(fault: str, cause: str, evidence: str, recorded: Recorded, site: str) -> Finding:
    """Return the finding with the line at which the random numbers of a place are drawn."""
    masks = recorded.masks_of(site)
    drop = masks[0].drops[0] if masks else None
    line = recorded.draws[min(drop.draws)].line if drop is not None and drop.draws else None
    return Finding("dropout", fault, cause, evidence, *location(line))


def is_attention(shape: tuple[int, ...]) -> bool:
    """Return True for the shape of attention weights, (..., LENGTH, LENGTH)."""
    return shape.count(LENGTH) > 1
