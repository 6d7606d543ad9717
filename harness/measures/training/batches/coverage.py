"""Measures of which part of a text a loader gives: each target once an epoch, or starts that are uniform."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch

from harness.core.errors import MissingAbility
from harness.measures.chi_squared import chi_squared_tail
from harness.measures.training.batches.provenance import token_counts, training_part
from harness.measures.training.batches.token_streams import BETWEEN, Batches, Row
from harness.suites.measure_registry import Reading, measure
from harness.training.protocols import Trains

# A loader draws at random if its coverage is that of random draws within so many standard deviations.
SIGMAS, SIGMAS_ON_A_GRID = 4.0, 3.0
DROPS = "shuffles, and leaves out the last, incomplete batch of each epoch (drop_last): other windows each time"
ALONE = "epoch"  # the rehearsal in which one process reads the text
LEAST_WINDOWS = 16  # 16! / 16^16 is one in a million
NEARLY_ALL = 0.9  # of the targets: what is cut off at both ends of a text is less
LEAST_IN_BIN = 5  # expected starts in a bin of the chi-squared test (Cochran's rule)


@dataclass(frozen=True)
class Pass:
    """A part of a run in which a loader that gives each target once gives all of them: an epoch.

    Attributes:
        stream: The number of the token stream.
        rows: The training rows, in order.
        counts: How often each target is given, (targets of the training part,).
    """

    stream: int
    rows: list[Row]
    counts: torch.Tensor


@measure
def coverage_faults(program: Trains, *, rehearsal: str = ALONE) -> Reading:
    """Count the targets that an epoch leaves out or repeats, and the epochs in the shuffled order of another one.

    An epoch has all windows, or as many targets as the training part has. A loader that draws windows at random is
    skipped: its starts are to be uniform. The order of the text, in every epoch, is a convention,
    and so is a text that ends with less than a window, which is left out, or begins so at another place in each epoch.
    """
    batches = Batches(program.record(rehearsal))
    epochs = _epochs(batches)
    # Whether windows are drawn at random does not depend on who reads them; two workers may seem to do so.
    alone = batches if rehearsal == ALONE else Batches(program.record(ALONE))
    if _draws_at_random(alone, epochs[0] if rehearsal == ALONE else _epochs(alone)[0]):
        raise MissingAbility(
            f"{program.name} draws windows at random: a token comes again before all have come; "
            "starts-are-uniform judges it"
        )
    if _drops_last_batches(batches):
        raise MissingAbility(f"{program.name} {DROPS}")
    found: dict[str, int] = {}
    hints = []
    allowed = _Allowed.of(batches, epochs)
    for number, epoch in enumerate(epochs):
        missing, repeated = allowed.left_out(epoch), (epoch.counts > 1).nonzero()[:, 0]
        if allowed.workers > 1 and max(len(missing), len(repeated)) <= allowed.last_batches:
            missing, repeated = missing[:0], repeated[:0]  # one of them has begun its next pass before the others
        if allowed.shifted and 0 < len(missing) <= allowed.last_batches:
            raise MissingAbility(f"{program.name} {DROPS}")
        found[f"epoch {number}: targets left out"] = len(missing)
        found[f"epoch {number}: targets given again"] = len(repeated)
        if len(missing):
            token = _one_token(missing + 1, batches.streams.roots[epoch.stream])
            never = f"epoch {number}: token {token} is never a target"
            hints.append(_left_out(number, missing, len(epoch.counts)) if token is None else never)
    orders = [[_start(batches, row) for row in epoch.rows] for epoch in epochs]
    shuffled = orders[0] != sorted(orders[0])
    same = [n for n, order in enumerate(orders[1:], 1) if shuffled and order == orders[0]]
    if len(orders) > 1:
        found["epochs in the order of the first"] = len(same)
        hints += [f"epoch {same[0]} has the shuffled order of epoch 0"] if same else []
    by = f"read by {allowed.workers} workers, " if allowed.workers > 1 else ""
    return Reading(found, "", {"hint": by + "; ".join(hints)} if hints else {})


@dataclass(frozen=True)
class _Allowed:
    """What an epoch may leave out.

    Attributes:
        elsewhere: The targets that are validated on, since windows and documents may be parted at random, and those
            that are no targets of a document, (targets,).
        longest: The ids of the longest row: less than that may be left at the end.
        shifted: Each epoch begins at another place, so that less than a row may be left at its start too.
        workers: The processes that read.
        last_batches: The targets of a batch of each worker, which it may leave out at the end.
    """

    elsewhere: torch.Tensor
    longest: int
    shifted: bool
    workers: int
    last_batches: int

    @classmethod
    def of(cls, batches: Batches, epochs: list[Pass]) -> _Allowed:
        """Return what the loader of these batches may leave out."""
        first = epochs[0]
        validated = token_counts(batches, batches.validation, first.stream, len(first.counts) + 1)[1:] > 0
        longest = max(len(row.ids) for row in batches.training)
        heads = [_left_out_at_the_start(epoch.counts) for epoch in epochs]
        workers = int(batches.recording.settings.get("workers") or 1)
        rows = workers * max(Counter(row.batch for row in batches.training).values())
        shifted = len(set(heads)) > 1 and max(heads) < longest
        return cls(validated | _of_documents(batches, first), longest, shifted, workers, rows * longest)

    def left_out(self, epoch: Pass) -> torch.Tensor:
        """Return the targets that an epoch leaves out, and may not."""
        missing = ((epoch.counts == 0) & ~self.elsewhere).nonzero()[:, 0]
        if self.shifted:
            missing = missing[missing >= _left_out_at_the_start(epoch.counts)]
        tail = missing[missing >= len(epoch.counts) - _left_out_at_the_start(epoch.counts.flip(0))]
        whole = len(tail) == len(missing)
        return missing[: len(missing) - len(tail)] if len(tail) < self.longest and (self.shifted or whole) else missing


def _one_token(positions: torch.Tensor, stream: torch.Tensor) -> int | None:
    """Return the token that is at nearly all of these positions of a stream, and at no other up to the last."""
    tokens, counts = stream[positions].unique(return_counts=True)
    token, count = int(tokens[counts.argmax()]), int(counts.max())
    if count < max(2, NEARLY_ALL * len(positions)):
        return None
    return token if int((stream[1 : int(positions[-1]) + 1] == token).sum()) == count else None


def _drops_last_batches(batches: Batches) -> bool:
    """Return True if an epoch leaves out fewer windows than a batch has, and other ones each time.

    An epoch ends here where a window comes again.
    """
    starts = [_start(batches, row) for row in batches.training]
    windows, largest = set(starts), max(Counter(row.batch for row in batches.training).values())
    epochs: list[set[int]] = [set()]
    for start in starts:
        if start in epochs[-1]:
            epochs.append(set())
        epochs[-1].add(start)
    left_out = [frozenset(windows - epoch) for epoch in epochs[:-1]]
    if not left_out or starts == sorted(starts) or any(len(each) >= largest for each in left_out):
        return False
    return any(left_out) and (len(left_out) == 1 or len(set(left_out)) > 1)


def _of_documents(batches: Batches, epoch: Pass) -> torch.Tensor:
    """Return which targets are no targets of a document: the first of one, or what is between two, (targets,)."""
    stream = batches.streams.roots[epoch.stream][: len(epoch.counts) + 1]
    before, own = stream[:-1], stream[1:]
    ends = BETWEEN if batches.separator is None else batches.separator
    return (before == ends) | (own == BETWEEN)


def _left_out_at_the_start(counts: torch.Tensor) -> int:
    given = counts.nonzero()
    return int(given[0]) if len(given) else len(counts)


def _is_the_tail(missing: torch.Tensor, targets: int) -> bool:
    return len(missing) > 0 and int(missing[-1]) == targets - 1 and int(missing[0]) == targets - len(missing)


def _left_out(epoch: int, missing: torch.Tensor, targets: int) -> str:
    """Return which targets are left out: the tail, or one at each of several places."""
    first, last = int(missing[0]), int(missing[-1])
    if _is_the_tail(missing, targets):
        return f"epoch {epoch} leaves out the tail of the training part: targets {first} to {last}"
    return f"epoch {epoch} leaves out target {first}, the first of {len(missing)}"


def _epochs(batches: Batches) -> list[Pass]:
    """Return the complete epochs of a run: all windows where each comes once, and else as many targets as there are.

    Raises MissingAbility if it has none, or if its rows are not in a stream.
    """
    placed = [(place, row) for row in batches.training if (place := batches.place(row)) is not None]
    if not placed or len(placed) < len(batches.training):
        raise MissingAbility(
            f"{len(placed)} of {len(batches.training)} training rows occur exactly once in the token streams; "
            "expected all"
        )
    stream = Counter(place.stream for place, _ in placed).most_common(1)[0][0]
    targets = training_part(batches, stream) - 1
    starts = [place.position for place, _ in placed]
    shifted = _shifted_epochs([row for _, row in placed], starts, targets)
    if len(shifted) > 1:
        return [Pass(stream, rows, token_counts(batches, rows, stream, targets + 1)[1:]) for rows in shifted]
    windows = len(set(starts)) if _gives_each_window_once(starts) else 0
    workers = int(batches.recording.settings.get("workers") or 0)
    if workers > 1 and windows and not side_by_side((place.position, len(row.ids)) for place, row in placed):
        raise MissingAbility(f"the {workers} workers cut the text at other places in each epoch, and begin one apart")
    epochs: list[Pass] = []
    rows: list[Row] = []
    given = 0
    for _, row in placed:
        rows.append(row)
        given += len(row.targets)
        if len(rows) == windows or (not windows and given >= targets):
            epochs.append(Pass(stream, rows, token_counts(batches, rows, stream, targets + 1)[1:]))
            rows, given = [], 0
    if not epochs:
        raise MissingAbility(f"the run trained on {given} targets of the {targets} of the training part: no epoch")
    return epochs


def _shifted_epochs(rows: list[Row], starts: list[int], targets: int) -> list[list[Row]]:
    """Return the epochs of a loader that cuts the text at other places in each: one ends where a target comes again.

    Returns [] if that is before nearly all targets have come. A last epoch that is incomplete is left out.
    """
    epochs: list[list[Row]] = [[]]
    given = set[int]()
    for row, start in zip(rows, starts, strict=True):
        own = set(range(start, start + len(row.targets)))
        if given & own:
            if len(given) < NEARLY_ALL * targets:
                return []
            epochs.append([])
            given = set()
        epochs[-1].append(row)
        given |= own
    return epochs if len(given) >= NEARLY_ALL * targets else epochs[:-1]


def _draws_at_random(batches: Batches, epoch: Pass) -> bool:
    """Return True if the share of targets that an epoch leaves out is that of windows drawn with replacement.

    n windows leave out a target with probability (1 - 1/n)^n; the standard deviation is that of the share of empty
    bins among n, which windows that overlap have about. Windows that start anywhere overlap in part: others are side
    by side, and a loader that gives each of them twice is a mistake, so that less deviation is allowed.
    """
    n = len(epoch.rows)
    if _gives_each_window_once([_start(batches, row) for row in batches.training]):
        return False
    expected = (1 - 1 / n) ** n
    sigma = math.sqrt(max(expected - 2 * expected**2, 0.0) / n)
    left_out = float((epoch.counts == 0).double().mean())
    anywhere = not side_by_side((_start(batches, row), len(row.ids)) for row in epoch.rows)
    return abs(left_out - expected) <= (SIGMAS if anywhere else SIGMAS_ON_A_GRID) * sigma


def _gives_each_window_once(starts: list[int]) -> bool:
    """Return True if no window comes again before all that ever come have come, which random draws hardly do."""
    windows = len(set(starts))
    return LEAST_WINDOWS <= windows == len(set(starts[:windows])) < len(starts)


def _start(batches: Batches, row: Row) -> int:
    place = batches.place(row)
    return place.position if place else -1


@measure
def start_uniformity(program: Trains, *, rehearsal: str = "starts") -> Reading:
    """Return the p-value of a chi-squared test that training windows start anywhere in the training part.

    A loader that gives each window once an epoch is skipped: `coverage_faults` judges it.
    """
    batches = Batches(program.record(rehearsal))
    placed = [(place, len(row.ids)) for row in batches.training if (place := batches.place(row)) is not None]
    if not placed:
        raise MissingAbility(f"no training row of {program.name} was found once in a token stream")
    stream = Counter(place.stream for place, _ in placed).most_common(1)[0][0]
    own = [(place.position, length) for place, length in placed if place.stream == stream]
    starts = torch.tensor([start for start, _ in own])
    possible = training_part(batches, stream) - max(len(row.ids) for row in batches.training)
    if side_by_side(own):
        raise MissingAbility(f"{program.name} gives windows side by side, not at random: epoch-coverage judges it")
    bins = min(len(starts) // LEAST_IN_BIN, 50)
    if bins < 2:
        raise MissingAbility(f"{len(starts)} windows are too few to tell their distribution")
    counts = torch.histc(starts.double(), bins, 0, possible)
    expected = len(starts) / bins
    p = chi_squared_tail(float(((counts - expected) ** 2 / expected).sum()), bins - 1)
    last = int(starts.max())
    sentence = f"{len(starts)} starts from {int(starts.min())} to {last}, of {possible} possible ones"
    if 2 * last < possible and 10 * len(starts.unique()) > 9 * (last - int(starts.min()) + 1):
        sentence += ": they are one token apart"
    hint = {"hint": sentence}
    return Reading(p, "probability", hint if p < 1e-3 else {})


def side_by_side(windows: Iterable[tuple[int, int]]) -> bool:
    """Return True if windows, each a start and a length, overlap nowhere: those at random do. Some may be short."""
    ordered = sorted(set(windows))
    return len(ordered) < 3 or all(start + length <= after for (start, length), (after, _) in pairwise(ordered))
