"""Measures of the masks of dropout: where they are, at which rate and scale, what they share, and in which mode."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from harness.core.errors import MissingAbility
from harness.core.sizes import SIZES
from harness.core.source_lines import SourceLine, user_line
from harness.measures.dropout.recorded_pass import Recorded, candidate, isolated_random_numbers, record
from harness.oracle.replayed_dropout import GPT2_SITES, Mask
from harness.oracle.tokens import batch
from harness.subjects.dropout_calls import has_dropout_setting
from harness.subjects.model import Model
from harness.subjects.protocols import Generates, Subject
from harness.subjects.random_draws import RandomDraws
from harness.suites.measure_registry import Reading, measure

AS_GPT2 = "as in GPT-2"
WITH_TARGETS = "in eval mode with targets"
DEVIATIONS = 6  # standard deviations that chance may reach: once in 10^9
ENOUGH = 60  # elements: at a rate of 0.3 two independent masks agree on so many once in 10^14
# The axes of a mask of attention weights, and of one of a value (B, T, C).
AXES = {4: ("rows", "heads", "queries", "keys"), 3: ("rows", "positions", "channels")}


@measure
def dropout_sites(subject: Subject, *, size: str, rate: float = 0.3) -> Reading:
    """Return for each place how it drops in training mode: as in GPT-2, not at all, in some layers, twice.

    GPT-2 drops the sum of the embeddings, the attention weights, and the output of both projections of a block.
    """
    recorded = _asked_for(subject, size, rate)
    recorded.raise_if_unclear()
    found = {site: _how(recorded, site) for site in (*GPT2_SITES, *recorded.other_sites)}
    hint = "deviation: " + "; ".join(f"{how} at {site}" for site, how in found.items() if how != AS_GPT2)
    return Reading(found, details={"hint": hint + _lines(recorded)})


@measure
def dropout_masks(subject: Subject, *, size: str, of: Literal["rate", "scale"], rate: float = 0.3) -> Reading:
    """Return the rate of each place's dropout, or the factor of what it keeps times the share that it keeps.

    A factor of 1 / (1 - rate) leaves the mean as it is: times the share that is kept it is 1.
    """
    recorded = _asked_for(subject, size, rate)
    if not recorded.masks:
        raise MissingAbility(f"{subject.name} drops nothing that GPT-2 computes")
    found = {site: _rate_and_scale(recorded.masks_of(site), rate)[of == "scale"] for site in recorded.sites}
    return Reading(found, details={"hint": f"a rate of {rate:g} was asked for{_lines(recorded)}"})


@measure
def dropout_dependence(subject: Subject, *, size: str, rate: float = 0.3) -> Reading:
    """Return what shares a mask that should have one of its own: rows, heads, positions, layers, passes, ..."""
    recorded = record(subject, size, rate)
    if not recorded.masks:
        raise MissingAbility(f"{subject.name} drops nothing that GPT-2 computes")
    shared = list(_shared(recorded))
    kinds = dict.fromkeys(("layers", "places", "passes", *AXES[3], *AXES[4]), False)
    found = {kind: any(kind == each for each, _ in shared) for kind in kinds}
    return Reading(found, details={"hint": "; ".join(text for _, text in shared) + _lines(recorded)})


@measure
def dropout_by_mode(subject: Subject, *, size: str, rate: float = 0.3) -> Reading:
    """Count the dropouts in eval mode and in `generate`, those that training lacks afterwards, and passes that seed.

    A pass seeds if the state of torch's random numbers after it does not depend on the state before.
    """
    with isolated_random_numbers():
        with _not_evaluated():
            model = candidate(subject, size, rate, "float64", seeded=False)
        ids, targets = batch(SIZES[size], "random", rows=2, length=8)
        draws = RandomDraws()  # of all passes: a mask that an earlier one drew is followed
        lines: dict[str, SourceLine | None] = {}

        def drops(kind: str, run: Callable[[], Any], *, training: bool) -> int:
            model.module.train(training)
            before = len(draws.drops)
            with draws.following():
                run()
            new = [drop for drop in draws.drops[before:] if drop.before is not None and drop.used]
            lines[kind] = new[0].line if new else None
            return len(new)

        def train(kind: str = "") -> int:
            return drops(kind, lambda: model.loss(ids, targets), training=True)

        first = train()
        if not first:
            raise MissingAbility(f"{subject.name} drops nothing in training mode")
        found = {
            "in eval mode": drops("in eval mode", lambda: model.logits(ids), training=False),
            WITH_TARGETS: drops(WITH_TARGETS, lambda: model.loss(ids, targets), training=False),
            "missing after an evaluation": first - train(),
        }
        if isinstance(subject, Generates):
            modes: list[bool] = []
            hook = model.module.register_forward_pre_hook(lambda module, given: modes.append(module.training))
            generate: Callable[[], Any] = lambda: subject.generate(model, ids, 3, temperature=0.0)  # noqa: E731
            kind = "in generate"
            found[kind] = drops(kind, generate, training=False)
            hook.remove()
            if found[kind] and not any(modes):
                kind = "in generate, in eval mode"
                found[kind], lines[kind] = found.pop("in generate"), lines["in generate"]
            found["missing after generate"] = first - train()
        with _seeding_lines() as seeding:
            found["passes that seed"] = _passes_that_seed(model, ids, targets)
        lines["passes that seed"] = next(iter(seeding), None)
    said = {kind: [line.file, line.number] for kind, line in lines.items() if line is not None and found.get(kind)}
    return Reading(found, details={"lines": said})


@contextlib.contextmanager
def _not_evaluated() -> Iterator[None]:
    """Leave models that are built inside the block in training mode: a first `eval()` may be what turns dropout off."""
    own = nn.Module.eval
    nn.Module.eval = lambda module: module  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.eval = own  # type: ignore[method-assign]


def _asked_for(subject: Subject, size: str, rate: float) -> Recorded:
    """Return the recorded pass. Raises MissingAbility if no rate can be asked for, or there is no dropout at all."""
    if not has_dropout_setting(subject):
        raise MissingAbility(f"{subject.name} has no setting for the rate of a dropout")
    recorded = record(subject, size, rate)
    if not recorded.draws and not recorded.has_layers:
        raise MissingAbility(f"{subject.name} drops nothing, although a rate of {rate:g} is asked for")
    return recorded


def _lines(recorded: Recorded) -> str:
    lines = dict.fromkeys(str(draw.line) for draw in recorded.draws if draw.line is not None)
    return f" (drawn at {', '.join(lines)})" if lines else ""


def _how(recorded: Recorded, site: str) -> str:
    """Return how a place drops, in words."""
    by_layer = [len(masks) for (operation, _), masks in recorded.masks.items() if operation == site]
    layers = recorded.size.layers if site != "embedding" else 1
    if site not in GPT2_SITES:
        return "a dropout that GPT-2 does not have"
    if len(by_layer) == layers and set(by_layer) == {1}:
        return AS_GPT2
    if len(by_layer) < layers and _may_be_unexplained(recorded, site, layers - len(by_layer)):
        return AS_GPT2  # another check reports that what is computed there is another value
    if any(count > 1 for count in by_layer):
        return "two dropouts"
    unused = [drop for drop in recorded.drops if not drop.used]
    if not by_layer and unused:
        return f"no dropout (the result of one is not used: {unused[0].line})"
    return f"dropout in {len(by_layer)} of {layers} layers" if by_layer else "no dropout"


def _may_be_unexplained(recorded: Recorded, site: str, missing: int) -> bool:
    """Return True if there are dropouts of values that the formula does not compute, enough for the missing ones."""
    B, T, H, C = *recorded.logits.shape[:2], recorded.size.heads, recorded.size.width
    of_attention = site == "attn.softmax"
    whole = B * T * T * H if of_attention else B * T * C
    counts = [drop.after.numel() for drop in recorded.unexplained if _is_attention(drop, T) == of_attention]
    return bool(counts) and sum(counts) >= whole * missing


def _is_attention(drop: object, length: int) -> bool:
    shape = drop.after.shape  # type: ignore[attr-defined]
    return len(shape) > 1 and shape[-1] == shape[-2] == length


def _rate_and_scale(masks: Sequence[Mask], asked: float) -> tuple[float, float]:
    """Return the rate of some masks, and the factor of what they keep times the share that they keep.

    A factor of 1 / (1 - rate), with a share that chance explains, says the rate exactly; otherwise it is the rate that
    was asked for, if the share is explained by that, or else the share.
    """
    known = sum(int(mask.known.sum()) for mask in masks)
    dropped = sum(int((mask.dropped & mask.known).sum()) for mask in masks) / known
    factor = masks[0].scale

    def explains(rate: float) -> bool:
        return abs(dropped - rate) <= DEVIATIONS * math.sqrt(max(rate * (1 - rate), 1 / known) / known)

    own = 1 - 1 / factor if factor else 1.0
    if factor > 1 and explains(own):
        return own, 1.0
    own = asked if explains(asked) else dropped
    return own, 1.0 if masks[0].fill else factor * (1 - own)


def _shared(recorded: Recorded) -> Iterator[tuple[str, str]]:
    """Yield what shares a mask, and a sentence about it."""
    flat = [(site, layer, mask) for (site, layer), masks in recorded.masks.items() for mask in masks]
    for site in recorded.sites:
        for axis in _axes_shared(recorded.masks_of(site)[0]):
            yield axis, f"at {site} all {axis} have one mask"
    for (site, layer, mask), (other, another, second) in itertools.combinations(flat, 2):
        if _same(mask.dropped, second.dropped, mask.known & second.known if _fit(mask, second) else None):
            kind = "layers" if site == other else "places"
            said = f"layers {layer} and {another}" if site == other else f"{site} and {other}"
            yield kind, f"{said} have one mask{f' at {site}' * (kind == 'layers')}"
    for key, masks in recorded.masks.items():
        for mask, second in zip(masks, recorded.second.get(key, ()), strict=False):
            if _same(mask.dropped, second.dropped, mask.known & second.known if _fit(mask, second) else None):
                yield "passes", f"two passes have one mask at {key[0]}"


def _axes_shared(mask: Mask) -> Iterator[str]:
    """Yield the axes along which neighbours have one mask."""
    for axis, name in enumerate(AXES.get(mask.factor.ndim, ())):
        dropped, known = mask.dropped.unbind(axis), mask.known.unbind(axis)
        pairs = [(n, n + 1) for n in range(len(dropped) - 1)]
        compared = [_same(dropped[a], dropped[b], known[a] & known[b]) for a, b in pairs]
        if any(compared):
            yield name


def _fit(a: Mask, b: Mask) -> bool:
    return a.factor.shape == b.factor.shape


def _same(a: Tensor, b: Tensor, known: Tensor | None) -> bool:
    """Return True if two masks drop the same of what is known of both, which is enough to tell."""
    if known is None or int(known.sum()) < ENOUGH or not bool((a & known).any()):
        return False
    return torch.equal(a[known], b[known])


@contextlib.contextmanager
def _seeding_lines() -> Iterator[list[SourceLine | None]]:
    """Collect the user's lines that call `torch.manual_seed` inside the block."""
    found: list[SourceLine | None] = []
    own = torch.manual_seed

    def manual_seed(seed: int) -> torch.Generator:
        found.append(user_line())
        return own(seed)

    torch.manual_seed = manual_seed
    try:
        yield found
    finally:
        torch.manual_seed = own


def _passes_that_seed(model: Model, ids: Tensor, targets: Tensor) -> int:
    model.module.train()
    states = []
    for seed in (1, 2):
        torch.default_generator.manual_seed(seed)
        model.loss(ids, targets)
        states.append(torch.get_rng_state())
    return int(torch.equal(*states))
