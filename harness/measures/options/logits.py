"""Measures of the options that change which logits `forward` returns, or at which positions: exact in float64."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from harness.core.error_text import describe_error
from harness.core.errors import MissingAbility
from harness.core.sizes import SIZES
from harness.measures.cached_model import cached_model
from harness.measures.options.forward_call import logits_with, option_of
from harness.oracle import noise_verdict
from harness.oracle.probe_weights import state
from harness.oracle.tokens import batch
from harness.subjects.build import build_with_weights
from harness.subjects.forward_style import forward_parameters
from harness.subjects.model import Model
from harness.subjects.protocols import Subject
from harness.suites.measure_registry import Reading, measure

POSITION_EMBEDDING = "transformer.wpe.weight"
SHIFTS = (3, 7)  # positions that are left out before each row, as by padding on the left


@measure
def positions_followed(subject: Subject, *, size: str, case: Literal["explicit", "shifted"]) -> Reading:
    """Return the relative distance of the logits with given positions from those that the definition gives, by row.

    "explicit": positions 0, 1, 2 ... must give the logits without positions. "shifted": each row begins at another
    position, and must give the logits of the subject whose position embeddings are moved there. Raises MissingAbility
    if `forward` takes no positions, or if the subject has no position embeddings.
    """
    model = cached_model(subject, size, "probe", "float64")
    name = option_of(subject, model, "positions")
    default = forward_parameters(model.module)[name].default
    if isinstance(default, int):
        raise MissingAbility(f"'{name}' of forward of {subject.name} is a number, not the positions of the tokens")
    if all(row.published != POSITION_EMBEDDING for row in model.weights.rows):
        raise MissingAbility(f"{subject.name} has no position embeddings that positions could choose")
    ids, _ = batch(SIZES[size], "random", rows=len(SHIFTS), length=SIZES[size].context - max(SHIFTS))
    shifts = (0, 0) if case == "explicit" else SHIFTS
    found, expected = _at_positions(subject, model, ids, name, shifts), []
    for row, shift in zip(ids, found.shifts, strict=True):
        moved = {**state(size, "probe")}
        moved[POSITION_EMBEDDING] = moved[POSITION_EMBEDDING].roll(-shift, 0)
        with torch.no_grad():
            expected.append(build_with_weights(subject, SIZES[size], moved, "float64").logits(row[None])[0])
    distances = {
        f"row {n} from position {found.shifts[n]}": noise_verdict.relative_distance(found.logits[n], expected[n])
        for n in range(len(ids))
    }
    return Reading(distances, "relative", {"shape": found.shape})


class _AtPositions:
    """The logits of rows that begin at other positions, and the shape in which the positions were accepted."""

    def __init__(self, logits: Tensor, shifts: tuple[int, ...], shape: tuple[int, ...]) -> None:
        self.logits, self.shifts, self.shape = logits, shifts, shape


def _at_positions(subject: Subject, model: Model, ids: Tensor, name: str, shifts: tuple[int, ...]) -> _AtPositions:
    """Call with positions (B, T); where that is an error, with (1, T) or (T,), the same for all rows."""
    count = torch.arange(ids.shape[1])
    each = torch.stack([count + shift for shift in shifts])
    same = (shifts[0],) * len(shifts)
    error = ""
    for positions, used in ((each, shifts), (each[:1], same), (each[0], same)):
        try:
            logits = logits_with(model, ids, **{name: positions})
        except Exception as raised:
            error = error or describe_error(raised)
            continue
        return _AtPositions(logits[..., : model.size.vocab_size], used, tuple(positions.shape))
    raise MissingAbility(f"'{name}' of forward of {subject.name} takes no positions (B, T), (1, T) or (T,): {error}")


@measure
def last_logits(subject: Subject, *, size: str, length: int = 24) -> Reading:
    """Return the relative distance of the last logits, asked for alone, from those of the whole sequence.

    Raises MissingAbility if `forward` has no option for the last position or the last few.
    """
    model = cached_model(subject, size, "probe", "float64")
    ids, _ = batch(SIZES[size], "random", rows=3, length=length)
    asked: dict[str, tuple[dict[str, object], int]] = {}
    try:
        name = option_of(subject, model, "last n")
        asked = {f"{name}={n}": ({name: n}, n) for n in (1, 3, length)}
    except MissingAbility:
        name = option_of(subject, model, "last only")
        asked = {f"{name}={flag}": ({name: flag}, 1 if flag else length) for flag in (True, False)}
    full = logits_with(model, ids) if f"{name}=False" not in asked else logits_with(model, ids, **{name: False})
    if full.shape[1] != length:
        full = model.logits(ids)
    found = {
        place: noise_verdict.relative_distance(logits_with(model, ids, **given), full[:, -n:])
        for place, (given, n) in asked.items()
    }
    return Reading(found, "relative")


@measure
def cache_flag(subject: Subject, *, size: str, length: int = 24) -> Reading:
    """Return the relative distance of the logits with `use_cache` on or off from those of a plain call.

    Each call is the first of a new model. Raises MissingAbility if `forward` has no such flag, or needs more with it.
    """
    ids, _ = batch(SIZES[size], "random", rows=2, length=length)

    def new() -> Model:
        return build_with_weights(subject, SIZES[size], state(size, "probe"), "float64")

    name = option_of(subject, cached_model(subject, size, "probe", "float64"), "use_cache")
    plain = logits_with(new(), ids)
    found = {}
    for flag in (False, True):
        try:
            logits = logits_with(new(), ids, **{name: flag})
        except Exception as error:
            raise MissingAbility(
                f"{name}={flag} alone is refused by forward of {subject.name}: {describe_error(error)}"
            ) from error
        # Decoding needs the last position alone: a model may return no other with a cache.
        found[f"{name}={flag}"] = noise_verdict.relative_distance(logits, plain[:, -logits.shape[1] :])
    return Reading(found, "relative")
