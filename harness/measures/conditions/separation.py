"""What separates the conditions that fail from those that pass: the simplest statement that fits both."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from harness.measures.conditions.condition import FACTORS, LONG, SHAPES, Condition, Value

TILES = (2, 4, 8, 16, 32, 64, 128, 256)
LISTED = 6  # values that a statement lists


@dataclass(frozen=True)
class Statement:
    """Words for a set of conditions, and the test of it. `factor`: whose values are listed behind the words."""

    words: str
    is_true_of: Callable[[Condition], bool]
    factor: str = ""


def separate(conditions: Sequence[Condition], failed: Sequence[Condition]) -> list[str]:
    """Return what the failed conditions have in common and no other has, in words; [] if no statement fits.

    One statement is tried first, then two together, then up to three of which each is about some of the failures.
    """
    passed = [each for each in conditions if each not in failed]
    if not passed:
        return [f"wrong under each of the {len(failed)} conditions that were tried"]
    true = [each for each in statements() if all(map(each.is_true_of, failed))]
    for one, other in itertools.chain(zip(true, true, strict=True), itertools.combinations(true, 2)):
        if not any(one.is_true_of(each) and other.is_true_of(each) for each in passed):
            words = one.words if one is other else f"{one.words} and {other.words}"
            return [f"wrong only for {words}{_values(one.factor or other.factor, passed, failed)}"]
    return _several(passed, failed)


def _several(passed: Sequence[Condition], failed: Sequence[Condition]) -> list[str]:
    """Return up to three statements that are true of no right condition, of those true of most wrong ones first."""
    exact = [each for each in statements() if not any(map(each.is_true_of, passed))]
    found, left = list[str](), list(failed)
    while left and exact and len(found) < 3:
        best = max(exact, key=lambda statement: sum(map(statement.is_true_of, left)))
        covered = [each for each in left if best.is_true_of(each)]
        if len(covered) < 2:  # one condition fits too many statements
            break
        found.append(f"wrong for {best.words}{_values(best.factor, passed, covered)}")
        left = [each for each in left if each not in covered]
    return found


def statements() -> Iterator[Statement]:
    """Yield the statements about one condition, from the simplest to the most particular."""
    yield Statement("training mode", lambda c: c.mode == "train")
    yield Statement("eval mode", lambda c: c.mode == "eval")
    yield Statement("calls without gradients (no_grad or inference_mode)", lambda c: c.gradients != "recorded")
    yield Statement("calls with gradients recorded", lambda c: c.gradients == "recorded")
    yield Statement("torch.no_grad()", lambda c: c.gradients == "no_grad")
    yield Statement("torch.inference_mode()", lambda c: c.gradients == "inference_mode")
    yield Statement("calls with targets", lambda c: c.call == "targets")
    yield Statement("calls without targets", lambda c: c.call == "logits")
    for kind in FACTORS["ids"]:
        yield Statement(f"{kind} ids", lambda c, kind=kind: c.ids == kind)  # type: ignore[misc]
    yield Statement("ids that are not contiguous in memory", _is_strided)
    yield Statement("batches whose rows differ", lambda c: c.ids != "expanded" and c.rows > 1)
    for event in FACTORS["after"]:
        yield Statement(f"calls after {event}", lambda c, event=event: c.after == event)  # type: ignore[misc]
    yield from _numbers("rows", "batches of", "rows", [int(n) for n in FACTORS["rows"]])
    for tile in TILES:
        yield _tiles(f"lengths that are not a multiple of {tile}", tile, multiple=False, longer=False)
        yield _tiles(f"lengths beyond {tile} that are not a multiple of {tile}", tile, multiple=False, longer=True)
        yield _tiles(f"lengths that are a multiple of {tile}", tile, multiple=True, longer=False)
    yield from _numbers("length", "sequences of", "tokens", sorted({*(int(n) for n in FACTORS["length"]), *LONG}))
    layers = _numbers("layers", "models of", "layers", sorted(layers for _, layers in SHAPES))
    heads = _numbers("heads", "models of", "heads", sorted(heads for heads, _ in SHAPES))
    # With one failure several fit: a limit is more likely than one number.
    yield from sorted((*layers, *heads), key=lambda statement: "exactly" in statement.words)


def _is_strided(condition: Condition) -> bool:
    """Return True if the rows of the ids do not follow each other in memory."""
    return condition.rows > 1 and (
        condition.ids == "expanded" or (condition.ids == "non-contiguous" and condition.length > 1)
    )


def _numbers(factor: str, begin: str, unit: str, values: Sequence[int]) -> Iterator[Statement]:
    """Yield more than n, at most n, and exactly n."""
    for value in values[:-1]:
        yield Statement(f"{begin} more than {value} {unit}", lambda c, v=value: getattr(c, factor) > v, factor)  # type: ignore[misc]
    for value in values[:-1]:
        yield Statement(f"{begin} at most {value} {unit}", lambda c, v=value: getattr(c, factor) <= v, factor)  # type: ignore[misc]
    for value in values:
        yield Statement(f"{begin} exactly {value} {unit}", lambda c, v=value: getattr(c, factor) == v, factor)  # type: ignore[misc]


def _tiles(words: str, tile: int, *, multiple: bool, longer: bool) -> Statement:
    return Statement(
        words, lambda c: (c.length % tile == 0) is multiple and (not longer or c.length > tile), factor="length"
    )


def _values(factor: str, passed: Sequence[Condition], failed: Sequence[Condition]) -> str:
    """Return the values of a factor that were seen on both sides, in brackets; "" without a factor."""
    if not factor:
        return ""
    wrong, right = (sorted({getattr(each, factor) for each in those}) for those in (failed, passed))
    return f" (wrong: {_some(wrong)}; right: {_some(right)})"


def _some(values: Sequence[Value]) -> str:
    return ", ".join(map(str, values[:LISTED])) + (" ..." if len(values) > LISTED else "")
