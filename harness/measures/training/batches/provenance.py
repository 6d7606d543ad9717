"""Measures of where batches come from: training and validation parts, rows of a batch, and the batch after."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable

import torch

from harness.core.errors import MissingAbility
from harness.measures.training.batches.token_streams import WRAPPED_BITS, Batches, Place, Row
from harness.measures.training.batches.training_estimate import TrainingEstimates
from harness.suites.measure_registry import Reading, measure
from harness.training.events import Forward
from harness.training.protocols import Trains

LEAST_LENGTH = 12  # tokens: shorter rows may occur again by chance
Tokens = set[tuple[int, int]]  # (stream, position)
WRAPPED = "the ids are those of the stream modulo"


@measure
def rows_outside_streams(program: Trains, *, rehearsal: str = "plain") -> Reading:
    """Count the rows whose ids occur in no token stream that the program read, in training and in validation.

    A row may be in the rest of a stream that is recorded in part: it is then not known. What is evaluated by a line of
    its own, and has no row in a stream while another validation has, is another task (HellaSwag), and no validation.
    """
    batches = Batches(program.record(rehearsal))
    parts = {"training": batches.training, "validation": _of_the_text(batches)}
    lost = {name: [row for row in rows if not batches.places(row)] for name, rows in parts.items() if rows}
    if not batches.streams.roots or not lost:
        raise MissingAbility(f"no token stream of {program.name} was seen: it read and made none that was recognised")
    first = next((row for rows in lost.values() for row in rows), None)
    cut = next((stream for stream in batches.recording.streams if not stream.complete), None)
    cause = _lost_because(batches, first) if first else ""
    if first and cut and WRAPPED not in cause:
        raise MissingAbility(
            f"{first.batch}, row {first.number} may be in what is not known of {cut.name}: "
            f"of the {cut.length:,} tokens of it the first {len(cut.ids):,} are recorded"
        )
    hint = {"hint": cause} if first else {}
    return Reading({name: len(rows) for name, rows in lost.items()}, "rows", hint)


def _of_the_text(batches: Batches) -> list[Row]:
    """Return the validation rows, without those of a line that has no row in a stream if another line has some."""
    by_line: dict[str, list[Row]] = {}
    for row in batches.validation:
        by_line.setdefault(row.forward.line, []).append(row)
    known = {line for line, rows in by_line.items() if any(batches.places(row) for row in rows)}
    return [row for line, rows in by_line.items() if line in known or not known for row in rows]


def _lost_because(batches: Batches, row: Row) -> str:
    """Return why a row is in no stream: a type too small for its ids, or another reason."""
    for bits in WRAPPED_BITS:
        if batches.streams.wrapped(bits).find(row.ids):
            return f"{WRAPPED} {2**bits}: they do not fit in the type that stores them"
    return f"{row.batch}, row {row.number} begins {row.ids[:8].tolist()}"


@measure
def shared_tokens(program: Trains, *, rehearsal: str = "epoch") -> Reading:
    """Count the tokens that are trained on and validated on too, by their position in the token stream.

    The rehearsal trains on a whole text, so that a token in both parts is seen in both. Rows that occur more than
    once in the streams are left out. An estimate of the training loss, in as many forward passes as the validation,
    is allowed.
    """
    batches = Batches(program.record(rehearsal))
    trained = _tokens(batches, batches.training)
    validation = _without_training_estimate(batches)
    validated = _tokens(batches, validation)
    if not trained or not validated:
        what = "trains" if not trained else "validates"
        raise MissingAbility(f"no row that {program.name} {what} on was found once in a token stream")
    if (whole := _whole_text(batches, validation, {stream for stream, _ in trained})) is not None:
        raise MissingAbility(
            f"the text of the rehearsal is too short for {program.name}: its validation part is all of the "
            f"{whole} tokens"
        )
    shared = trained & validated
    share = len(shared) / len(validated)
    hint = {}
    if shared:
        stream, position = min(shared)
        hint["hint"] = (
            "the validation rows are in the training part"
            if share > 0.9
            else f"the training part reaches into the validation part: token {position} of stream {stream} is in both"
        )
    return Reading({"tokens in both parts": len(shared)}, "tokens", hint)


def _whole_text(batches: Batches, validation: list[Row], trained: set[int]) -> int | None:
    """Return the tokens of a stream whose first and last ones are validated on, if nearly all others are; else None.

    `trained`: the streams that are trained on. Another one is a validation part by itself.

    The size of a validation part may be a number of characters in the program, beyond a short text.
    """
    places = [(place, row) for row in validation if (place := batches.place(row)) is not None]
    for stream, tokens in enumerate(batches.streams.roots):
        own = {place.position + i for place, row in places if place.stream == stream for i in range(len(row.ids) + 1)}
        if stream in trained and own and 0 in own and len(own) > 0.95 * len(tokens):
            return len(tokens)
    return None


def _without_training_estimate(batches: Batches) -> list[Row]:
    """Return the validation rows, less those of an estimate of the training loss."""
    evaluations: dict[int, dict[int, Forward]] = defaultdict(dict)
    for row in batches.validation:
        evaluations[row.forward.step][row.forward.order] = row.forward
    estimates = TrainingEstimates(batches)
    chosen = {each.order for passes in evaluations.values() for each in estimates.without(list(passes.values()))}
    return [row for row in batches.validation if row.forward.order in chosen]


def _tokens(batches: Batches, rows: Iterable[Row]) -> Tokens:
    """Return the tokens of these rows, inputs and targets, as far as each row occurs once in a stream.

    A row of some length may be in two streams, if documents are in both.
    """
    tokens: Tokens = set()
    for row in rows:
        places = batches.places(row)
        once = len(places) == 1 or (len(row.ids) >= LEAST_LENGTH and len({p.stream for p in places}) == len(places))
        for place in places if once else ():
            tokens.update((place.stream, place.position + i) for i in range(len(row.ids) + 1))
    return tokens


@measure
def chance_of_equal_rows(program: Trains, *, rehearsal: str = "plain") -> Reading:
    """Return the probability of so many equal rows in one batch, if windows start anywhere with equal probability.

    The batch of several ranks is judged as one. Sampling with replacement gives an equal pair now and then; the
    probability says whether that is what happened.
    """
    recordings = _recordings(program, rehearsal)
    pairs, expected, where = 0, 0.0, ""
    starts = max(_starts_to_choose_from(recordings[0]), 1)
    for step, rows in _steps(recordings):
        expected += math.comb(len(rows), 2) / starts
        for key, count in Counter(rows).items():
            if count > 1:
                pairs += math.comb(count, 2)
                where = where or f"step {step}: the row that begins {list(key[:6])} is in its batch {count} times"
    same = " in the micro-batches of a step" if pairs and _are_the_same(recordings) else ""
    hint = {"hint": f"{pairs} equal pairs{same}, {expected:.2g} expected by chance; {where}"} if pairs else {}
    return Reading({"equal rows in a batch": _poisson_tail(pairs, expected)}, "probability", hint)


def _are_the_same(recordings: list[Batches]) -> bool:
    """Return True if the micro-batches of each step of one process have the same rows."""
    if len(recordings) > 1:
        return False
    steps = [recordings[0].recording.forwards_of(step.number) for step in recordings[0].recording.steps]
    rows = [[sorted(map(tuple, each.ids.tolist())) for each in passes] for passes in steps]
    return any(len(own) > 1 for own in rows) and all(each == own[0] for own in rows for each in own)


@measure
def repeated_batches(program: Trains, *, rehearsal: str = "plain") -> Reading:
    """Count the steps whose batch is that of an earlier step, if the text has more windows than the batches before."""
    recordings = _recordings(program, rehearsal)
    steps = list(_steps(recordings))
    seen: dict[tuple[tuple[int, ...], ...], int] = {}
    repeated: dict[str, int] = {}
    hint = ""
    length = max((len(row) for _, rows in steps for row in rows), default=1)
    capacity = _starts_to_choose_from(recordings[0]) // length  # windows side by side: a pass may begin again after it
    used = 0
    for step, rows in steps:
        if used + len(rows) > capacity:
            break
        used += len(rows)
        key = tuple(sorted(rows))
        repeated[f"step {step}"] = int(key in seen)
        if key in seen:
            hint = hint or f"step {step} has the batch of step {seen[key]}"
        seen.setdefault(key, step)
    if len(repeated) < 2:
        raise MissingAbility(f"the text has fewer than two batches of {program.name}")
    return Reading(repeated, "batches", {"hint": hint} if hint else {})


def _recordings(program: Trains, rehearsal: str) -> list[Batches]:
    """Return the batches of every rank."""
    return [Batches(recording) for recording in program.record_ranks(rehearsal)]


def _steps(recordings: list[Batches]) -> Iterable[tuple[int, list[tuple[int, ...]]]]:
    """Yield each step's number and the rows of its batch, of all micro-batches and ranks, as tuples of ids."""
    rows = sorted(
        ((row.forward.step, tuple(row.ids.tolist())) for batches in recordings for row in batches.training),
        key=lambda item: item[0],
    )
    for step, group in itertools.groupby(rows, key=lambda item: item[0]):
        yield step, [ids for _, ids in group]


def _starts_to_choose_from(batches: Batches) -> int:
    """Return the number of positions at which a training window can start, at most: up to the validation part."""
    places = [place for row in batches.training if (place := batches.place(row)) is not None]
    if not places:
        raise MissingAbility("no training row was found once in a token stream")
    stream = Counter(place.stream for place in places).most_common(1)[0][0]
    length = max(len(row.ids) for row in batches.training)
    return training_part(batches, stream) - length


def training_part(batches: Batches, stream: int) -> int:
    """Return the number of tokens of a stream before its validation part: all, if none is validated on.

    The validation part begins at the first token of a validation row after the last token that is trained on.
    """

    def placed(rows: list[Row]) -> list[tuple[Place, Row]]:
        found = [(batches.place(row), row) for row in rows]
        return [(place, row) for place, row in found if place is not None and place.stream == stream]

    last = max((place.position + len(row.ids) for place, row in placed(batches.training)), default=0)
    after = [place.position for place, _ in placed(batches.validation) if place.position >= last]
    return min(after, default=len(batches.streams.roots[stream]))


def _poisson_tail(count: int, mean: float) -> float:
    """Return P(X >= count) of a Poisson distribution: the number of equal pairs of independent draws, nearly."""
    below = sum(math.exp(-mean + k * math.log(mean) - math.lgamma(k + 1)) for k in range(count)) if mean > 0 else 0.0
    return max(0.0, 1.0 - below) if count else 1.0


def token_counts(batches: Batches, rows: Iterable[Row], stream: int, size: int) -> torch.Tensor:
    """Return how often each token of a stream is a target of these rows, (size,)."""
    counts = torch.zeros(size, dtype=torch.long)
    for row in rows:
        place = batches.place(row)
        if place is not None and place.stream == stream:
            counts[place.position + 1 : place.position + 1 + len(row.targets)] += 1
    return counts
