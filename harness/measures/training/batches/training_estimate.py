"""The estimate of the training loss that some programs make with each validation, on as many batches (nanoGPT's do)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from harness.measures.training.batches.token_streams import Batches, Place, Row
from harness.training.events import Forward

Token = tuple[bool, int]  # False for the stream that is trained on, which then comes first; and the position in it


@dataclass(frozen=True)
class _Span:
    """The tokens of a pass, inputs and targets: the first one of each row, and the last one of all."""

    forward: Forward
    starts: list[Token]
    last: Token


class TrainingEstimates:
    """Tells the passes of an evaluation that are on the validation part from those on the training part."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        placed = [place for row in batches.training if (place := batches.place(row)) is not None]
        self._stream = Counter(place.stream for place in placed).most_common(1)[0][0] if placed else -1
        self._trained: Token = max(
            (
                (place.stream != self._stream, place.position + len(row.ids))
                for row, place in self._placed(batches.training)
            ),
            default=(False, -1),
        )
        self._rows: dict[int, list[Row]] = defaultdict(list)
        for row in batches.validation:
            self._rows[row.forward.order].append(row)

    def without(self, passes: Sequence[Forward]) -> list[Forward]:
        """Return the passes of one evaluation without an estimate of the training loss.

        It is the half of the passes whose tokens come first, or as many of them as the program was asked for, if most
        of its rows begin before the last token that is trained on, and if all tokens of the other passes are behind it
        and behind the first ones. Passes that read one part from its beginning to its end are no such pair: the one
        ends where the other begins. Passes whose rows are in no stream that was seen are the validation, if all others
        are on the training part.
        """
        spans = [self._span(forward) for forward in passes]
        known = sorted((span for span in spans if span is not None), key=lambda span: min(span.starts))
        n = len(known)
        if n < len(passes):
            other = [each for each, span in zip(passes, spans, strict=True) if span is None]
            return other if known and all(start <= self._trained for s in known for start in s.starts) else list(passes)
        asked = int(self.batches.recording.settings.get("eval_batches") or 0)
        for size in (n // 2 if n % 2 == 0 else 0, asked):
            if 0 < size < n and self._is_estimate(known[:size], known[size:]):
                return sorted((span.forward for span in known[size:]), key=lambda forward: forward.order)
        return list(passes)

    def _is_estimate(self, lower: Sequence[_Span], upper: Sequence[_Span]) -> bool:
        """Return True if `lower` is on the training part, and `upper` behind it."""
        first = min(start for span in upper for start in span.starts)
        inside = [start <= self._trained for span in lower for start in span.starts]
        last = max(*(span.last for span in lower), self._trained)
        return 2 * sum(inside) > len(inside) and last < first

    def known(self, passes: Sequence[Forward]) -> bool:
        """Return True if it is known where the rows of all these passes are."""
        return all(self._span(forward) is not None for forward in passes)

    def _span(self, forward: Forward) -> _Span | None:
        placed = self._placed(self._rows[forward.order])
        if not placed:
            return None
        ends = [(place.stream != self._stream, place.position + len(row.ids)) for row, place in placed]
        return _Span(forward, [(place.stream != self._stream, place.position) for _, place in placed], max(ends))

    def _placed(self, rows: list[Row]) -> list[tuple[Row, Place]]:
        return [(row, place) for row in rows if (place := self.batches.place(row)) is not None]
