"""The known learning-rate schedules as closed forms, every convention of each, and the known ways to get one wrong."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

EXACT = 1e-6  # of the peak: a schedule that fits so well at a step has that form there

# A curve maps a step k, the warm-up w and the horizon h (steps) to the share of the peak.
Curve = Callable[[float, int, int], float]


@dataclass(frozen=True)
class Declared:
    """The schedule's settings that a program was given; None where it was given none.

    Attributes:
        peak, floor: Learning rates.
        warmup, horizon: Steps.
        ends: The horizon was given as such, and not taken to be the number of steps.
        cooldown: Steps of a final decay.
        kind: "cosine", "linear", "constant" or another word of the program's own.
        accumulation: Micro-batches of a step.
        epochs: Epochs of the run, if it counts them.
        ranks: Processes.
    """

    peak: float | None = None
    floor: float | None = None
    warmup: int | None = None
    horizon: int | None = None
    ends: bool = False
    cooldown: int | None = None
    kind: str | None = None
    accumulation: int = 1
    epochs: int = 1
    ranks: int = 1


@dataclass(frozen=True)
class Form:
    """A schedule: at step k the rate is peak * up(k) in the warm-up, then floor + (peak - floor) * down(k).

    `both`: it is the product of the two in the warm-up.
    """

    name: str
    warmup: int
    horizon: int
    up: Curve
    down: Curve
    to_floor: bool = True  # False: a constant, which has no floor
    both: bool = False

    def weights(self, step: float) -> tuple[float, float]:
        """Return the weights of the peak and of the floor in the learning rate of a step."""
        up = self.up(step, self.warmup, self.horizon) if step < self.warmup else 1.0
        if step < self.warmup and not self.both:
            return up, 0.0
        share = self.down(step, self.warmup, self.horizon)
        return up * share, (up * (1.0 - share) if self.to_floor else 0.0)

    def fitted(self, rates: list[float], declared: Declared) -> list[float]:
        """Return the schedule's rate at each step, with the peak and the floor as declared, or else as they fit."""
        return fitted([self.weights(step) for step in range(len(rates))], rates, declared)


UPS: tuple[tuple[str, Curve], ...] = (
    ("(k+1)/(w+1)", lambda k, w, h: (k + 1) / (w + 1)),
    ("(k+1)/w", lambda k, w, h: (k + 1) / w),
    ("k/w", lambda k, w, h: k / w),
)
# How far the decay is, from 0 to 1. The schedulers of PyTorch that count the steps of a run give the last two.
PROGRESS: tuple[tuple[str, Curve], ...] = (
    ("(k-w)/(h-w)", lambda k, w, h: (k - w) / max(h - w, 1)),
    ("(k+1-w)/(h-w)", lambda k, w, h: (k + 1 - w) / max(h - w, 1)),
    ("(k-w)/(h-w-1)", lambda k, w, h: (k - w) / max(h - w - 1, 1)),
    ("(k+1-w)/(h-w+1)", lambda k, w, h: (k + 1 - w) / max(h - w + 1, 1)),
    ("k/h", lambda k, w, h: k / max(h, 1)),
    ("(k+1)/h", lambda k, w, h: (k + 1) / max(h, 1)),
)
SHAPES: tuple[tuple[str, Callable[[float], float]], ...] = (
    ("cosine", lambda r: (1 + math.cos(math.pi * r)) / 2),
    ("linear", lambda r: 1 - r),
)
WSD_SHAPES: tuple[tuple[str, Callable[[float], float]], ...] = (
    ("linear", lambda r: 1 - r),
    ("1 - sqrt", lambda r: 1 - math.sqrt(r)),
    ("cosine", SHAPES[0][1]),
)


def known_forms(declared: Declared, steps: int) -> Iterator[Form]:
    """Yield every right schedule with the declared warm-up and horizon, or with any where they are not declared."""
    warmups = range(steps) if declared.warmup is None else [declared.warmup]
    horizons = range(1, 2 * steps + 1) if declared.horizon is None else [declared.horizon]
    constant = declared.kind == "constant" or (declared.floor is None and not declared.ends)
    for w, (up_name, up) in itertools.product(warmups, UPS):
        warm = f"warm-up {up_name} of {w} steps" if w else "no warm-up"
        if constant:
            yield Form(f"{warm}, then constant", w, 0, up, _constant, to_floor=False)
        for h in horizons if declared.kind != "constant" else ():
            yield from _decaying(warm, w, h, up)
            # Without a horizon every rate would fit one; a tail that begins after the last step changes nothing.
            tails = range(max(1, h - steps), h - w) if declared.horizon is not None else range(0)
            if declared.cooldown is not None:
                tails = range(max(1, declared.cooldown - 1), declared.cooldown + 2)
            for (shape_name, shape), tail in itertools.product(WSD_SHAPES, tails):
                name = f"{warm}, constant, then {shape_name} over the last {tail} of {h} steps"
                yield Form(name, w, h, up, _stable_then(shape, tail))


def _decaying(warm: str, w: int, h: int, up: Curve) -> Iterator[Form]:
    for (shape_name, shape), (progress_name, progress) in itertools.product(SHAPES, PROGRESS):
        name = f"{warm}, then {shape_name} by {progress_name} to step {h}"
        yield Form(name, w, h, up, _clamped(shape, progress))
        if w and "w" not in progress_name:
            yield Form(
                f"{warm}, times {shape_name} by {progress_name} to step {h}",
                w,
                h,
                up,
                _clamped(shape, progress),
                both=True,
            )


def decaying_forms(warmup: int, horizon: int) -> Iterator[Form]:
    """Yield the cosine and linear schedules with this warm-up and horizon, in every convention of counting."""
    for _, up in UPS:
        yield from _decaying(f"warm-up of {warmup} steps", warmup, horizon, up)


def wrong_forms(declared: Declared, steps: int) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """Yield known mistakes: a sentence, and the weights of peak and floor at each step.

    They are mistakes in the cosine, linear and constant forms with the declared warm-up and horizon.
    """
    w, h, K = declared.warmup or 0, declared.horizon or steps, declared.accumulation
    for (_, up), (_, progress), (name, shape) in itertools.product(UPS, PROGRESS, SHAPES):
        right = Form("", w, h, up, _clamped(shape, progress))
        free = Form("", w, h, up, lambda k, w, h, s=shape, p=progress: s(p(k, w, h)))  # type: ignore[misc]
        ks = range(steps)
        if declared.ranks > 1:
            R = declared.ranks
            yield f"{name}, one step of the run is {R} of the schedule", [right.weights(k * R) for k in ks]
        if K > 1:
            for first in (0, K):  # of the first step: its scheduler has made none of the steps, or those of its batch
                yield f"{name}, with steps counted in micro-batches", [right.weights(k * K + first) for k in ks]
            yield (
                f"{name}, with a warm-up counted in micro-batches",
                [Form("", w // K, h, up, right.down).weights(k) for k in ks],
            )
        if w:
            yield f"{name} without a warm-up", [Form("", 0, h, up, right.down).weights(k) for k in ks]
            late = [right.down(k, w, h) if k >= w else 1.0 for k in ks]
            yield f"{name} with the peak in place of the warm-up", [(share, 1.0 - share) for share in late]
            yield (
                f"{name} with a warm-up that goes down",
                [right.weights(k) if k >= w else (right.weights(w - 1 - k)[0], 0.0) for k in ks],
            )
            yield "the warm-up never ends", [(up(k, w, h), 0.0) for k in ks]
            yield "the warm-up ends, and no decay follows", [(min(1.0, up(k, w, h)), 0.0) for k in ks]
        yield "the learning rate is the peak at every step", [(1.0, 0.0) for _ in ks]
        yield f"{name} to 0: the minimum is ignored", [(right.weights(k)[0], 0.0) for k in ks]
        if declared.peak and declared.floor:
            shares = [right.weights(k) for k in ks]
            yield (
                f"{name} to the minimum times the peak: the factor of a scheduler is relative to the peak",
                [(share, rest * declared.peak) for share, rest in shares],
            )
            yield (
                f"{name} times the peak: the factor of a scheduler is relative to the peak",
                [(share * declared.peak, rest * declared.peak) for share, rest in shares],
            )
        if declared.cooldown and declared.horizon:
            begin = h - declared.cooldown
            for shape_name, tail in WSD_SHAPES:
                part = [tail(max(0.0, (k - begin) / h)) if k >= w else 0.0 for k in ks]
                yield (
                    f"constant, then {shape_name} over the last {declared.cooldown} steps as a part of all {h}",
                    [right.weights(k) if k < w else (share, 1.0 - share) for k, share in zip(ks, part, strict=True)],
                )
        yield f"{name}, which goes on past the horizon", [free.weights(k) for k in ks]
        yield f"{name} that restarts at the horizon", [right.weights(k if k < h else w + (k - h) % (h - w)) for k in ks]
        yield f"{name} with half its period", [_half_period(right, k, progress) for k in ks]
        yield f"{name} without the 1 + of (1 + cos)/2", [_whole_cosine(right, k, progress) for k in ks]
        E = declared.epochs
        for factor in {2, 4, 8, 1 / 2, 1 / 4, K, 1 / K, E, 1 / E} - {1}:
            other = Form("", w, max(w + 1, round(h * factor)), up, right.down)
            yield f"{name} with a horizon of {other.horizon} steps", [other.weights(k) for k in ks]
        for by in (-1, 1):
            yield (
                f"{name}, one step {'late' if by < 0 else 'early'}",
                [right.weights(max(0, k + by)) for k in ks],
            )


def fitted(weights: list[tuple[float, float]], rates: list[float], declared: Declared) -> list[float]:
    """Return peak * weight + floor * weight at each step, with the values that are not declared by least squares.

    A minimum that fits only as the peak itself, or above it, is none: it would make a constant of every form. Such a
    form is taken to go down to 0.
    """
    peak, floor = declared.peak, declared.floor
    a = [pair[0] for pair in weights]
    b = [pair[1] for pair in weights]
    if peak is None and floor is None:
        peak, floor = _two_by_two(a, b, rates)
    elif floor is None:
        assert peak is not None
        floor = _slope(b, [rate - peak * x for rate, x in zip(rates, a, strict=True)])
    elif peak is None:
        peak = _slope(a, [rate - floor * y for rate, y in zip(rates, b, strict=True)])
    if declared.floor is None and floor >= peak * (1 - EXACT):
        floor = 0.0
        peak = _slope(a, rates) if declared.peak is None else declared.peak
    return [peak * x + floor * y for x, y in weights]


def _two_by_two(a: list[float], b: list[float], rates: list[float]) -> tuple[float, float]:
    aa, bb, ab = _dot(a, a), _dot(b, b), _dot(a, b)
    ar, br = _dot(a, rates), _dot(b, rates)
    det = aa * bb - ab * ab
    if abs(det) < 1e-12:
        return (ar / aa if aa else 0.0), 0.0
    return (ar * bb - br * ab) / det, (br * aa - ar * ab) / det


def _slope(x: list[float], y: list[float]) -> float:
    return _dot(x, y) / xx if (xx := _dot(x, x)) else 0.0


def _dot(x: list[float], y: list[float]) -> float:
    return math.fsum(a * b for a, b in zip(x, y, strict=True))


def _constant(k: float, w: int, h: int) -> float:
    return 1.0


def _clamped(shape: Callable[[float], float], progress: Curve) -> Curve:
    return lambda k, w, h: shape(min(1.0, max(0.0, progress(k, w, h)))) if k < h else shape(1.0)


def _stable_then(shape: Callable[[float], float], tail: int) -> Curve:
    return lambda k, w, h: shape(min(1.0, max(0.0, (k - (h - tail)) / tail)))


def _half_period(form: Form, k: int, progress: Curve) -> tuple[float, float]:
    if k < form.warmup:
        return form.weights(k)
    r = min(1.0, max(0.0, progress(k, form.warmup, form.horizon)))
    share = (1 + math.cos(math.pi * r / 2)) / 2
    return (share, 1.0 - share) if k < form.horizon else (0.0, 1.0)


def _whole_cosine(form: Form, k: int, progress: Curve) -> tuple[float, float]:
    if k < form.warmup:
        return form.weights(k)
    r = min(1.0, max(0.0, progress(k, form.warmup, form.horizon)))
    return (math.cos(math.pi * r), 1.0 - math.cos(math.pi * r)) if k < form.horizon else (0.0, 1.0)
