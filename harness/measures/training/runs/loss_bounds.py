"""Measures of the loss against what no right program can go below: a source's entropy, and a repeated batch's floor."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping

import torch

from harness.core.errors import MissingAbility
from harness.measures.training.batches.targets import next_tokens
from harness.measures.training.batches.token_streams import Batches, Place, Row
from harness.measures.training.largest_error import largest
from harness.suites.measure_registry import Reading, measure
from harness.training.events import IGNORED, Forward
from harness.training.markov import MarkovSource
from harness.training.protocols import Trains
from harness.training.recording import Recording

NEXT = "the next token"
LAST_PART = 4  # the plateau is the mean loss of the last quarter of the steps


@measure
def nats_saved(program: Trains, *, rehearsal: str = "markov") -> Reading:
    """Return the nats by which the loss on fresh text is below the source's own, in training and in each validation.

    The text is drawn from a Markov source. A program that sees no answer saves t nats or more in total with a
    probability of at most e^-t (Ville 1939). In training the batches count of whose targets none came before; of n such
    batches the largest saving from any to any other counts, less ln n for the choice of the first. An evaluation that
    has a target twice, or one that was trained on before, as an estimate of the training loss has, is left out.
    """
    recording = program.record(rehearsal)
    batches, source = Batches(recording), _source(recording)
    numbers = _symbol_numbers(batches, source)
    found: dict[str, float] = {}
    training = list(_fresh(batches, _by_forward(batches.training), set()))
    if training:
        savings = [_saved(source, numbers, batches, forward, rows) for forward, rows in training]
        found["training"] = _largest_run(savings) - math.log(len(savings))
    evaluations: dict[int, list[tuple[Forward, list[Row]]]] = defaultdict(list)
    before, trained = set[Place](), deque(batches.training)
    for forward, rows in _by_forward(batches.validation):
        evaluations[forward.step].append((forward, rows))
    for step, passes in evaluations.items():
        while trained and trained[0].forward.step < step:
            _use(batches, trained.popleft(), before)
        if len(fresh := list(_fresh(batches, passes, before))) == len(passes):
            saved = math.fsum(_saved(source, numbers, batches, forward, rows) for forward, rows in fresh)
            found[f"validation before step {step}"] = saved
    if not found:
        raise MissingAbility(f"no loss of {program.name} on fresh text was seen in the rehearsal '{rehearsal}'")
    return Reading(found, "nats", {"entropy": source.entropy, "hint": _plateau_hint(recording)})


def _symbol_numbers(batches: Batches, source: MarkovSource) -> dict[int, int]:
    """Return the source's symbol of each token id. Raises MissingAbility if the program's tokens are other pieces."""
    numbers = source.symbol_numbers(batches.recording.text, batches.streams.roots)
    seen = {token for row in batches.training for token in row.ids.tolist()}
    if batches.training and len(seen - set(numbers)) > len(seen) / 2:
        raise MissingAbility(
            f"the tokens of {batches.recording.program} are not single characters: {len(seen)} different ones occur, "
            f"the source has {len(source.symbols)} symbols"
        )
    return numbers


def _largest_run(savings: list[float]) -> float:
    """Return the largest sum of neighbouring savings."""
    sums: list[float] = []
    for saved in savings:
        sums.append(max(sums[-1] if sums else 0.0, 0.0) + saved)
    return largest(sums)


def _fresh(
    batches: Batches, passes: Iterable[tuple[Forward, list[Row]]], used: set[Place]
) -> Iterable[tuple[Forward, list[Row]]]:
    """Yield the passes none of whose targets came before: in the same pass, an earlier one, or in `used`."""
    used = set(used)
    for forward, rows in passes:
        old = sum(not _use(batches, row, used) for row in rows)
        if not old:
            yield forward, rows


def _use(batches: Batches, row: Row, used: set[Place]) -> bool:
    """Note the targets of a row in `used`; return True if none of them was there.

    A row that the text has several times is taken to be at the first of these places that is not used yet.
    """
    targets = [
        {Place(place.stream, place.position + i) for i in range(1, len(row.ids) + 1)} for place in batches.places(row)
    ]
    new = next((own for own in targets if not used & own), None)
    used |= new or set().union(*targets)
    return new is not None


def _saved(
    source: MarkovSource, numbers: Mapping[int, int], batches: Batches, forward: Forward, rows: list[Row]
) -> float:
    """Return the source's own loss on the next tokens of a pass, less the program's, in nats.

    `numbers` has the source's symbol of each token id.
    """
    ids, following = [], []
    for row in rows:
        tokens = next_tokens(batches, row)
        ids.append(row.ids[: len(tokens)])
        following.append(torch.where(row.targets[: len(tokens)] == IGNORED, IGNORED, tokens))
    return float(source.token_nll(torch.cat(ids), torch.cat(following), numbers).sum()) - forward.total_cross_entropy


@measure
def plateau(program: Trains, *, rehearsal: str = "markov") -> Reading:
    """Return what the targets must be for the loss to settle where it does: "the next token" for a right program.

    Each alignment of the targets has an entropy of its own under the source; the nearest one is returned. The loss is
    the mean of the last quarter of the steps. A program without a setting for the learning rate is skipped: at its own
    rate it may still be on its way.
    """
    recording = program.record(rehearsal)
    _require_rate(recording)
    _symbol_numbers(Batches(recording), _source(recording))
    loss = _settled(recording)
    levels = plateaus(_source(recording))
    nearest = _nearest(loss, levels)
    shown = ", ".join(f"{name} {level:.3f}" for name, level in levels.items())
    return Reading(nearest, "", {"hint": f"the loss settles at {loss:.3f} nats; {shown}"})


def plateaus(source: MarkovSource) -> dict[str, float]:
    """Return the loss at which a model settles, in nats, by what its targets are."""
    return {
        "a token that it sees": 0.0,
        NEXT: source.entropy,
        "the token two on": source.entropy_ahead(2),
        "the token three on": source.entropy_ahead(3),
        "a token of another place": source.unigram_entropy,
    }


def _settled(recording: Recording) -> float:
    losses = [forward for forward in recording.trained if forward.has_loss]
    if not losses:
        raise MissingAbility(f"no training loss of {recording.program} was seen")
    last = losses[-max(1, len(losses) // LAST_PART) :]
    return math.fsum(forward.total_cross_entropy for forward in last) / sum(forward.counted for forward in last)


def _plateau_hint(recording: Recording) -> str:
    loss, levels = _settled(recording), plateaus(_source(recording))
    nearest = _nearest(loss, levels)
    return f"the loss ends at {loss:.3f} nats, the source's entropy is {levels[NEXT]:.3f}: it predicts {nearest}"


def _nearest(loss: float, levels: Mapping[str, float]) -> str:
    return min(levels, key=lambda name: abs(levels[name] - loss)) if math.isfinite(loss) else "no token"


def _require_rate(recording: Recording) -> None:
    """Raise MissingAbility if the program has learned at a rate of its own, which may need more steps."""
    if "lr" not in recording.settings:
        raise MissingAbility(
            f"{recording.program} has no setting for the learning rate: the steps may be too few for it"
        )


def _source(recording: Recording) -> MarkovSource:
    if recording.source is None:
        raise MissingAbility(f"{recording.program} could not be given a text of known entropy")
    return recording.source


def _by_forward(rows: list[Row]) -> Iterable[tuple[Forward, list[Row]]]:
    for _, group in itertools.groupby(rows, key=lambda row: row.forward.order):
        together = list(group)
        yield together[0].forward, together


@measure
def overfit_gap(program: Trains, *, rehearsal: str = "overfit") -> Reading:
    """Return how far the loss on one repeated batch is above its floor, in nats a target: at the lowest step and last.

    The floor is the entropy of the targets given their row up to there: where two rows begin alike and go on
    differently, no model that sees only the past can know which one it is. A program without a setting for the
    learning rate is skipped: at its own it may need more steps.
    """
    recording = program.record(rehearsal)
    _require_rate(recording)
    losses: list[float] = []
    floor: float | None = None
    for step in recording.steps:
        passes = [forward for forward in recording.forwards_of(step.number) if forward.has_loss]
        if not passes:
            continue
        counted = sum(forward.counted for forward in passes)
        own = _floor(passes)
        if floor is not None and abs(own - floor) > 1e-9:
            raise MissingAbility(f"{program.name} does not train on one batch again and again")
        floor = own
        losses.append(math.fsum(forward.total_cross_entropy for forward in passes) / counted)
    if floor is None:
        raise MissingAbility(f"no training loss of {program.name} was seen in the rehearsal '{rehearsal}'")
    found = {"the lowest loss": min(losses) - floor, "the last loss": losses[-1] - floor}
    hint = f"floor {floor:.4f}, first {losses[0]:.4f}, lowest {min(losses):.4f}, last {losses[-1]:.4f} nats a target"
    return Reading(found, "nats", {"hint": f"{hint}, after {len(losses)} steps"})


def _floor(passes: list[Forward]) -> float:
    """Return the entropy of the targets of these passes given their row up to there, in nats a target."""
    following: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for forward in passes:
        for ids, targets in zip(forward.ids.tolist(), forward.targets.tolist(), strict=True):
            for t, target in enumerate(targets):
                if target != IGNORED:
                    following[tuple(ids[: t + 1])][target] += 1
    total = sum(sum(counts.values()) for counts in following.values())
    nats = math.fsum(
        -count * math.log(count / sum(counts.values())) for counts in following.values() for count in counts.values()
    )
    return nats / total
