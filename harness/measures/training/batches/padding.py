"""The measure of padding: what comes after the end of a row is no target."""

from __future__ import annotations

from collections import Counter

from torch import Tensor

from harness.core.errors import MissingAbility
from harness.suites.measure_registry import Reading, measure
from harness.training.events import IGNORED, Forward
from harness.training.protocols import Trains
from harness.training.recording import Recording

LEAST_ROWS = 4  # that end in padding: fewer may be chance


@measure
def padding_targets(program: Trains, *, rehearsal: str = "plain") -> Reading:
    """Count the targets that the loss counts after a row has ended, by batch.

    Rows end in padding if their last ids are one token that follows itself nowhere else, and rows have different
    lengths without it. The target of the last token before the padding may be that token: it ends a text.
    """
    recording = program.record(rehearsal)
    token = padding_token(recording)
    if token is None:
        raise MissingAbility(f"no rows of {program.name} end in padding")
    found: dict[str, int] = {}
    hint = ""
    for forward in _batches(recording):
        place = f"step {forward.step}, pass {forward.order}"
        counted = forward.targets != IGNORED
        padding = sum(
            int(own[len(own) - _tail(ids, token) :].sum()) for ids, own in zip(forward.ids, counted, strict=True)
        )
        found[place] = padding
        if padding and not hint:
            hint = f"the loss counts {padding} of {int(counted.sum())} targets that are padding, token {token}"
    return Reading(found, "targets", {"hint": hint} if hint else {})


def padding_token(recording: Recording) -> int | None:
    """Return the token that rows are padded with; None if they are not."""
    rows = [ids for forward in _batches(recording) for ids in forward.ids]
    last = Counter(int(ids[-1]) for ids in rows if _tail(ids, int(ids[-1])) > 1)
    if not last:
        return None
    token, _ = last.most_common(1)[0]
    tails = [_tail(ids, token) for ids in rows]
    padded = [tail for tail in tails if tail > 1]
    twice = any(_follows_itself(ids[: len(ids) - tail], token) for ids, tail in zip(rows, tails, strict=True))
    return token if len(padded) >= LEAST_ROWS and len(set(padded)) > 1 and not twice else None


def _batches(recording: Recording) -> list[Forward]:
    return [each for each in recording.trained if each.ids.numel() and each.ids.shape == each.targets.shape]


def _tail(ids: Tensor, token: int) -> int:
    """Return how many of the last ids are this token."""
    other = (ids != token).nonzero()
    return len(ids) - 1 - int(other[-1]) if len(other) else len(ids)


def _follows_itself(ids: Tensor, token: int) -> bool:
    return bool(((ids[1:] == token) & (ids[:-1] == token)).any())
