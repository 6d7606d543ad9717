"""The measure of targets: each is the token after its input."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from harness.core.errors import MissingAbility
from harness.measures.training.batches.token_streams import Batches, Row, TokenStreams
from harness.suites.measure_registry import Reading, measure
from harness.training.events import IGNORED
from harness.training.protocols import Trains


@measure
def target_errors(program: Trains, *, rehearsal: str = "plain") -> Reading:
    """Count the targets that are not the token after their input, by batch, in training and in validation.

    A row's tokens are looked up in the token streams that the program read; where they are in none, the next token is
    the row's own, and its last target is not judged. A target in the middle of a row that the loss ignores counts;
    not the first token of each document, if it follows a token that ends the one before, and no other is left out.
    """
    batches = Batches(program.record(rehearsal))
    found: dict[str, int] = {}
    first: Row | None = None
    for row in (*batches.training, *batches.validation):
        expected = next_tokens(batches, row)
        judged = row.targets[: len(expected)]
        between = (judged == IGNORED) & (row.ids[: len(expected)] == batches.separator)
        wrong = int(((judged != expected) & ~between).sum())
        found[row.batch] = found.get(row.batch, 0) + wrong
        first = first or (row if wrong else None)
    if not found:
        raise MissingAbility(f"no batch of {program.name} was seen: no loss of ids (B, T) and targets (B, T)")
    rows = [row for row in batches.training if first and row.batch == first.batch] or [first] if first else []
    hint = {"hint": _alignment(batches, [row for row in rows if row])} if first else {}
    return Reading(found, "targets", hint)


def next_tokens(batches: Batches, row: Row) -> Tensor:
    """Return the token after each of a row's ids; one fewer where only the row itself is known."""
    places = batches.places(row)
    return batches.streams.next_tokens(places[0], len(row.ids)) if places else row.ids[1:]


# What the targets of a row may be instead: a sentence, and the targets (n,) from the streams, the row and the batch.
Guess = Callable[[TokenStreams, Row, list[Row]], Tensor]


def _shifted(by: int) -> Guess:
    def targets(streams: TokenStreams, row: Row, _: list[Row]) -> Tensor:
        places = streams.find(row.ids)
        if not places or places[0].position + by < 0:
            return row.ids[by:] if by >= 0 else row.ids[:0]
        at = places[0].position + by
        return streams.roots[places[0].stream][at : at + len(row.ids)]

    return targets


ALIGNMENTS: tuple[tuple[str, Guess], ...] = (
    ("the targets are the inputs themselves (offset 0)", _shifted(0)),
    ("the targets are two tokens on: shifted twice (offset 2)", _shifted(2)),
    ("the targets are the tokens before their inputs (offset -1)", _shifted(-1)),
    ("the last target of a row is its first token: torch.roll wraps around", lambda _, row, __: row.ids.roll(-1)),
    ("the targets are three tokens on (offset 3)", _shifted(3)),
)


def _alignment(batches: Batches, rows: list[Row]) -> str:
    """Return what the targets of these rows of one batch are, as a sentence."""
    for sentence, guess in ALIGNMENTS:
        if all(_agree(row.targets, guess(batches.streams, row, rows)) for row in rows):
            return sentence
    nexts = [next_tokens(batches, row) for row in rows]
    of = [next((i for i, expected in enumerate(nexts) if _agree(row.targets, expected)), None) for row in rows]
    if None not in of and of != list(range(len(rows))):
        return f"the targets of row 0 are those of row {of[0]} of the batch"
    ignored = [e[r.targets[: len(e)] == IGNORED] for r, e in zip(rows, nexts, strict=True)]
    tokens = torch.cat(ignored).unique().tolist()
    if len(tokens) == 1:
        return f"the loss ignores the targets that are token {tokens[0]}"
    if places := _ignored_everywhere(rows, nexts):
        return f"the loss ignores the target at position {places[0]} of every row"
    row, expected = next((r, e) for r, e in zip(rows, nexts, strict=True) if not _agree(r.targets, e))
    at = int((row.targets[: len(expected)] != expected).nonzero()[0])
    return f"row {row.number}, position {at}: target {int(row.targets[at])}, the next token is {int(expected[at])}"


def _ignored_everywhere(rows: list[Row], nexts: list[Tensor]) -> list[int]:
    """Return the positions that every row ignores, if nothing else is wrong with the targets; there are one or none."""
    ignored = [(row.targets[: len(e)] == IGNORED).nonzero()[:, 0].tolist() for row, e in zip(rows, nexts, strict=True)]
    wrong = [(row.targets[: len(e)] != e).nonzero()[:, 0].tolist() for row, e in zip(rows, nexts, strict=True)]
    return ignored[0] if ignored == wrong and len(ignored[0]) == 1 and all(own == ignored[0] for own in ignored) else []


def _agree(targets: Tensor, expected: Tensor) -> bool:
    """Return True if the targets are the expected ones, as far as these are known: at least half of them."""
    known = len(expected)
    return 2 * known >= len(targets) and torch.equal(targets[:known], expected[: len(targets)])
