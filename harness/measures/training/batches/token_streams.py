"""The token streams of a recording, and where in them the rows of its batches are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy
import torch
from torch import Tensor

from harness.training.events import IGNORED, MOST_OF_A_LINE, Forward
from harness.training.recording import Recording
from harness.training.rehearsals import BLANK_LINE

WRAPPED_BITS = range(5, 17)  # types and masks that may be too small for an id: 2^5 (a text of letters) to uint16


BETWEEN = 2**31 - 1  # in a stream of documents, each of which has rows of its own: no token


@dataclass(frozen=True)
class Place:
    """A position in a token stream: the number of the stream, and of the token in it."""

    stream: int
    position: int


@dataclass(frozen=True, eq=False)
class Row:
    """One row of a batch, without the padding at its end.

    Attributes:
        batch: Where it is, as a failure names it: `step 3, batch 0` or `validation before step 5, batch 2`.
        number: The row of the batch.
        ids: Token ids (n,), up to the last target that counts.
        targets: Target ids (n,), with -100 where the loss ignores one.
    """

    forward: Forward
    batch: str
    number: int
    ids: Tensor
    targets: Tensor


class TokenStreams:
    """The streams that a program read or made, without those that are a part of a longer one."""

    def __init__(self, streams: Sequence[Tensor]) -> None:
        self.roots: list[Tensor] = []
        self._bytes: list[bytes] = []
        for ids in sorted(streams, key=len, reverse=True):
            if len(ids) > 1 and not self.find(ids):
                self.roots.append(ids.long())
                self._bytes.append(_as_bytes(ids))

    @classmethod
    def of(cls, recording: Recording) -> TokenStreams:
        """Return the streams of a recording, without those of lines that make as many as are recorded: documents."""
        made = Counter((stream.name, stream.line) for stream in recording.streams)
        return cls([each.ids for each in recording.streams if made[each.name, each.line] < MOST_OF_A_LINE])

    def find(self, ids: Tensor) -> list[Place]:
        """Return every place where these ids (n,) occur, in order."""
        wanted = _as_bytes(ids)
        return [Place(number, at) for number, text in enumerate(self._bytes) for at in _occurrences(text, wanted)]

    def next_tokens(self, place: Place, count: int) -> Tensor:
        """Return the `count` tokens after the one at `place`; fewer at the end of the stream."""
        return self.roots[place.stream][place.position + 1 : place.position + 1 + count]

    def wrapped(self, bits: int) -> TokenStreams:
        """Return the streams as a type of so many bits would store them."""
        return TokenStreams([root % 2**bits for root in self.roots])


@dataclass(frozen=True)
class Batches:
    """The rows of a recording's batches, with the places where each was found."""

    recording: Recording
    _places: dict[Row, list[Place]] = field(default_factory=dict)

    @cached_property
    def streams(self) -> TokenStreams:
        """The token streams; where no batch is from one that was seen, the text as characters, in their order.

        A dataset may look up the characters of each window, and make no stream. In place of the blank lines between
        documents it may have a token of its own, the one before or after all characters.
        """
        seen = TokenStreams.of(self.recording)
        text = self.recording.text
        if not text or not self.training or any(seen.find(row.ids) for row in self.training[:8]):
            return seen
        order = {character: number for number, character in enumerate(sorted(set(text)))}
        whole = [order[character] for character in text]
        documents = [[order[character] for character in document] for document in text.split(BLANK_LINE)]
        last, first = len(order), 0
        ended = [token for document in documents for token in (*document, last, BETWEEN)]
        inside = [[first, *(token + 1 for token in document), first, BETWEEN] for document in documents]
        between = [token for document in inside for token in document]
        rows = [torch.cat([row.ids, row.targets[-1:]]) for row in (*self.training, *self.validation)]
        own = any(int(row.forward.ids.max()) >= len(order) for row in self.training)  # a token that is no character
        chosen = (ended, between) if own else (whole, ended, between)
        texts = [TokenStreams([torch.tensor(ids)]) for ids in (chosen if len(documents) > 1 else (whole,))]
        counts = [sum(bool(characters.find(row)) for row in rows) for characters in texts]
        return texts[counts.index(max(counts))] if any(counts) else seen

    @cached_property
    def separator(self) -> int | None:
        """The token between documents, if the loss leaves out the targets after it, and no other; None if not."""
        left_out, counted = set[int](), set[int]()
        for row in self.training:
            ignored = row.targets == IGNORED
            left_out |= set(row.ids[ignored].tolist())
            counted |= set(row.ids[~ignored].tolist())
        return left_out.pop() if len(left_out) == 1 and not left_out & counted else None

    @cached_property
    def training(self) -> list[Row]:
        """The rows that the program trained on, in order."""
        return list(_rows(self.recording.trained, "step"))

    @cached_property
    def validation(self) -> list[Row]:
        """The rows of validation passes, in order."""
        validation = [forward for forward in self.recording.forwards() if forward.validates]
        return list(_rows(validation, "validation before step"))

    def places(self, row: Row) -> list[Place]:
        """Return where a row may be: where its ids and its last target occur, or else where its ids occur."""
        if row not in self._places:
            whole = torch.cat([row.ids, row.targets[-1:]])
            self._places[row] = self.streams.find(whole) or self.streams.find(row.ids)
        return self._places[row]

    def place(self, row: Row) -> Place | None:
        """Return the place of a row, or None if it occurs nowhere or more than once."""
        places = self.places(row)
        return places[0] if len(places) == 1 else None


def _rows(forwards: Iterable[Forward], before: str) -> Iterator[Row]:
    counts: dict[int, int] = {}
    for forward in forwards:
        if not forward.has_loss:
            continue
        batch = counts.get(forward.step, 0)
        counts[forward.step] = batch + 1
        for number, (ids, targets) in enumerate(zip(forward.ids, forward.targets, strict=True)):
            counted = (targets != IGNORED).nonzero()
            if len(counted):
                n = int(counted[-1]) + 1
                yield Row(forward, f"{before} {forward.step}, batch {batch}", number, ids[:n], targets[:n])


def _as_bytes(ids: Tensor) -> bytes:
    """Return ids as bytes, four for each, so that `bytes.find` searches them at the speed of memmem."""
    return ids.numpy().astype(numpy.uint32).tobytes()


def _occurrences(text: bytes, wanted: bytes) -> Iterator[int]:
    at = text.find(wanted)
    while at >= 0:
        if at % 4 == 0:
            yield at // 4
        at = text.find(wanted, at + 1)
