"""Words for where values differ: rows, heads, positions, channels and tokens, read off the differences."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from harness.oracle.formula import visible

LISTED = 4  # runs of numbers that are listed
MOST_TOKENS = 3
# The axes of a value by their number: of the stream, and of what has heads.
AXES: dict[int, tuple[str, ...]] = {
    3: ("row", "position", "channel"),
    4: ("row", "head", "position", "channel"),
}


def in_words(differs: Tensor, ids: Tensor, *, head_width: int = 0, scores: bool = False) -> str:
    """Return at which rows, heads, positions and channels a pattern is true, "" if everywhere or without order.

    `differs`: (B, T, C), or (B, H, T, D), or with `scores` (B, H, T, S). `ids`: (B, T). `head_width`: of (B, T, C)
    whose channels are heads side by side, so that whole heads are named.
    """
    axes = ("row", "head", "query", "key") if scores else AXES.get(differs.ndim, ())
    if not axes or not bool(differs.any()) or bool(differs.all()):
        return ""
    sets = [_any_along(differs, axis) for axis in range(differs.ndim)]
    by_token = _token_words(differs, ids, axes, sets)
    at_places = [each for name, each in zip(axes, sets, strict=True) if name in ("row", "position", "query")]
    if by_token and not any(bool(each.all()) for each in at_places):
        return by_token
    if bool((differs == _product(sets)).all()):
        words = [
            _axis_words(name, each, head_width if name == "channel" else 0)
            for name, each in zip(axes, sets, strict=True)
            if not bool(each.all())
        ]
        return ", ".join(words)
    return by_token


def _token_words(differs: Tensor, ids: Tensor, axes: Sequence[str], sets: Sequence[Tensor]) -> str:
    """Return the words for a pattern that follows the tokens at its positions; "" if it does not."""
    at = next(axis for axis, name in enumerate(axes) if name in ("position", "query"))
    others = tuple(axis for axis in range(differs.ndim) if axis not in (0, at))
    by_place = differs.any(dim=others)  # (B, T)
    tokens = ids[by_place].unique()
    if len(tokens) > MOST_TOKENS or not bool((torch.isin(ids, tokens) == by_place).all()):
        return ""
    shape = [1] * differs.ndim
    shape[0], shape[at] = by_place.shape
    sets = [torch.ones_like(each) if axis in (0, at) else each for axis, each in enumerate(sets)]
    whole = _product(sets)
    if not bool((differs == (whole & by_place.reshape(shape))).all()):
        return ""
    words = [_axis_words(name, each, 0) for name, each in zip(axes, sets, strict=True) if not bool(each.all())]
    return ", ".join((*words, f"{'positions' if axes[at] == 'position' else 'queries'} at token{_plural(tokens)}"))


def mask_in_words(seen: Tensor, ids: Tensor) -> str:
    """Return how a mask, (B, H, T, S) true where a query sees a key, differs from the causal one; "" if it does not."""
    causal = visible(*seen.shape[-2:]).expand_as(seen)
    said = [
        f"{verb} {_pairs_in_words(pairs, base, ids)}"
        for verb, pairs, base in (("hides", causal & ~seen, causal), ("shows", seen & ~causal, ~causal))
        if bool(pairs.any())
    ]
    return " and ".join(said)


def _pairs_in_words(pairs: Tensor, base: Tensor, ids: Tensor) -> str:
    """Return words for pairs of queries and keys, (B, H, T, S), that are a part of those in `base`."""
    rows, heads = _any_along(pairs, 0), _any_along(pairs, 1)
    own = torch.eye(*pairs.shape[-2:], dtype=torch.bool)
    which = "past" if bool(base[0, 0, -1, 0]) else "later"
    suffix = ""
    for some_rows in (torch.ones_like(rows), rows):
        part = _product([some_rows, heads]).reshape(*pairs.shape[:2], 1, 1)
        parts = [_axis_words(n, each, 0) for n, each in (("row", some_rows), ("head", heads)) if not bool(each.all())]
        suffix = f", in {', '.join(parts)} only" * bool(parts)
        for others, within in (("", base & part), (" from other positions", base & part & ~own)):
            if bool((pairs == within).all()):
                return f"every {which} key{others}{suffix}"
            for says, value in _features(ids, *pairs.shape[-2:]):
                values = value.expand_as(pairs)[pairs].unique()
                if bool((pairs == (within & torch.isin(value, values))).all()):
                    return f"{says(values, value.expand_as(pairs)[within].unique())}{others}{suffix}"
    return f"{float(pairs.double().mean() / base.double().mean()):.0%} of the {which} keys{suffix}"


def _features(ids: Tensor, T: int, S: int) -> Iterator[tuple[Callable[[Tensor, Tensor], str], Tensor]]:
    """Yield properties of a pair of a query and a key, (B or 1, 1, T or 1, S or 1), and words for a set of values."""
    queries, keys = torch.arange(S - T, S)[:, None], torch.arange(S)[None]
    yield lambda some, every: f"the keys at position{_plural(some, every)}", keys[None, None]
    yield _distances, (queries - keys)[None, None]
    yield lambda some, every: f"all keys from the queries at position{_plural(some, every)}", queries[None, None]
    if ids.shape[1] == S:
        yield lambda some, every: f"the keys whose token is{_plural(some).removeprefix('s')}", ids[:, None, None, :]
        yield (
            lambda some, every: f"all keys from the queries whose token is{_plural(some).removeprefix('s')}",
            (ids[:, None, -T:, None]),
        )


def _distances(some: Tensor, every: Tensor) -> str:
    ahead = bool((some < 0).all())
    some, every = (-some.flip(0), -every.flip(0)) if ahead else (some, every)
    return f"the keys that are {_plural(some, every).strip('s ')} {'ahead' if ahead else 'back'}"


def _axis_words(name: str, wrong: Tensor, head_width: int) -> str:
    numbers = wrong.nonzero().flatten()
    if head_width and len(wrong) % head_width == 0:
        by_head = wrong.view(-1, head_width)
        if bool((by_head.all(1) == by_head.any(1)).all()):
            return f"the channels of head{_plural(by_head.any(1).nonzero().flatten())}"
    if name == "query":
        return f"quer{'ies' if len(numbers) > 1 else 'y'}{_plural(numbers, torch.arange(len(wrong))).removeprefix('s')}"
    return f"{name}{_plural(numbers, torch.arange(len(wrong)))}"


def _plural(numbers: Tensor, every: Tensor | None = None) -> str:
    """Return the numbers as words after a noun: "s 0 to 2, 5", " 3", "s from 8 on", "s 2, 5, 8 ... (2 modulo 3)"."""
    values = numbers.tolist()
    if every is not None and len(values) > 1 and values == every.tolist()[-len(values) :] and len(values) < len(every):
        return f"s from {values[0]} on"
    steps = {b - a for a, b in itertools.pairwise(values)}
    if len(values) > 2 and len(steps) == 1 and (step := steps.pop()) > 1:
        return f"s {values[0]}, {values[1]}, {values[2]} ... ({values[0] % step} modulo {step})"
    return f"{'s' * (len(values) > 1)} {ranges(values)}"


def ranges(numbers: Sequence[int]) -> str:
    """Return the numbers as ranges: [0, 1, 2, 5] -> "0 to 2, 5"; after four ranges "..."."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    words = [f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs[:LISTED]]
    return ", ".join(words) + (" ..." if len(runs) > LISTED else "")


def _any_along(pattern: Tensor, axis: int) -> Tensor:
    return pattern.any(dim=tuple(other for other in range(pattern.ndim) if other != axis))


def _product(sets: Sequence[Tensor]) -> Tensor:
    """Return the pattern that is true where each axis's own set is."""
    found = torch.ones([len(each) for each in sets], dtype=torch.bool)
    for axis, each in enumerate(sets):
        shape = [1] * len(sets)
        shape[axis] = len(each)
        found &= each.reshape(shape)
    return found
