"""Comparisons as data: `benchmarks/*.toml`, read and validated line by line."""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.bench.arms.model_pool import ModelPool
from harness.bench.arms.registry import ArmSpec, WorkKind, arm_specs, work_kinds
from harness.bench.comparison import AGAIN, Arm, Comparison, Work
from harness.core.errors import SuiteError, did_you_mean
from harness.core.sizes import Size

HEAD_KEYS = {"title", "about"}
KEYS = {"name", "work", "arms", "axis", "points", "quick", "parameters", "weight", "twin", "holds", "why"}
QUANTITIES = ("time", "memory")
HOLD_KEYS = {"arm", "exponent", "ratio_at_most", "memory_within"}


@dataclass(frozen=True)
class DeclaredComparison:
    """One comparison over its points: arms that do the same work, the first of them the control.

    `axis` is the parameter of the work that the points are values of; None for a single point. `weight` is its share
    of the run's time. `twin` says whether the control is measured against itself at the first point. `holds` are the
    statements that the figures are held to (`harness.bench.arms.derived_metrics`).
    """

    suite: str
    title: str
    name: str
    work: str
    arms: tuple[str, ...]
    axis: str | None
    points: tuple[int | None, ...]
    quick: tuple[int | None, ...]
    parameters: Mapping[str, int]
    weight: float
    twin: bool
    why: str
    holds: tuple[Mapping[str, Any], ...] = ()
    place: str = field(default="", compare=False)

    @property
    def label(self) -> str:
        """`attention forward`."""
        return f"{self.suite} {self.name}"

    @property
    def control(self) -> str:
        """The arm that the others are held against."""
        return self.arms[0]

    def fitting(self, size: Size, *, quick: bool) -> tuple[int | None, ...]:
        """The points at which a model of that size can do the work: none needs more positions than it has."""
        points = self.quick if quick else self.points
        if self.work.startswith("attention") or self.axis not in ("tokens", "context", "new_tokens", "prompt"):
            return points
        taken = sum(self.parameters.get(key, 0) for key in ("prompt", "new_tokens")) + self._beyond
        room = size.context - taken
        return tuple(point for point in points if point is not None and point <= room) or (room,)[: len(points)]

    @property
    def _beyond(self) -> int:
        from harness.bench.arms.models import VERIFIED_STEPS

        return VERIFIED_STEPS if self.work == "decode" else 0

    def asked(self, size: Size, point: int | None) -> dict[str, int]:
        """The parameters of the work at a point, none beyond what the size has room for."""
        asked = dict(self.parameters) if self.axis is None else {**self.parameters, self.axis: int(point or 0)}
        if not self.work.startswith("attention"):
            for key in ("tokens", "context"):
                if key in asked:
                    asked[key] = min(asked[key], size.context - self._beyond)
            if "new_tokens" in asked:
                asked["new_tokens"] = min(asked["new_tokens"], size.context // 2)
            if "prompt" in asked:
                asked["prompt"] = min(asked["prompt"], size.context - asked.get("new_tokens", 1))
        return asked

    def at(self, pool: ModelPool, point: int | None, *, twin: bool = True) -> Comparison:
        """The comparison at one point, ready to be measured; nothing is built yet."""
        kind, chosen = work_kinds()[self.work], {name: arm_specs()[name] for name in self.arms}
        asked = self.asked(pool.size, point)
        arms = [_arm(kind, pool, way, asked) for way in chosen.values()]
        if twin:
            control = chosen[self.control]
            arms.append(_arm(kind, pool, control, asked, twin_of=control.name))
        named = {**chosen, self.control + AGAIN: chosen[self.control]}
        return Comparison(
            name=self.suite,
            title=self.title,
            metric=self.name,
            axis=self.axis and self.axis.replace("_", " "),
            point=point,
            control=self.control,
            arms=tuple(arms),
            verify=_Lazily(lambda: kind.judge(pool, self.control, named, **asked)),
        )


def _arm(kind: WorkKind, pool: ModelPool, way: ArmSpec, asked: Mapping[str, int], twin_of: str | None = None) -> Arm:
    build = functools.partial(kind.build, pool, way, 1 if twin_of else 0, **asked)
    name = way.name + (AGAIN if twin_of else "")
    return Arm(name, _here(pool, way, build), twin_of, way.claims, peer=way.peer is not None)


def _here(pool: ModelPool, way: ArmSpec, build: Callable[[], Work]) -> Callable[[], Work]:
    def built() -> Work:
        pool.who(way)  # first: where the arm is not for this device, that is the reason to give
        return build()

    return built


class _Lazily:
    """A judge that is made when it is first asked: collecting must not build a model."""

    def __init__(self, make: Callable[[], Callable[[str, Work], Any]]) -> None:
        self.make = make

    @functools.cached_property
    def judge(self) -> Callable[[str, Work], Any]:
        """The judge."""
        return self.make()

    def __call__(self, name: str, work: Work) -> Any:
        """Its finding."""
        return self.judge(name, work)


def read_comparisons(folder: Path) -> list[DeclaredComparison]:
    """Every comparison of the `*.toml` in `folder`; SuiteError with file and line for what is not understood."""
    return [declared for path in sorted(folder.glob("*.toml")) for declared in read_file(path)]


def read_file(path: Path) -> list[DeclaredComparison]:
    """The comparisons of one file, `[suite]` and a `[[comparison]]` each."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SuiteError(f"{path}: not TOML: {error}") from error
    head = data.get("suite")
    if not isinstance(head, dict) or not set(head) >= HEAD_KEYS or set(data) - {"suite", "comparison"}:
        raise SuiteError(f"{path}:1: expected a [suite] with title and about, and [[comparison]] tables, nothing else")
    tables = data.get("comparison", [])
    starts = [number for number, line in enumerate(lines, 1) if re.match(r"\s*\[\[\s*comparison\s*\]\]", line)]
    if not isinstance(tables, list) or len(tables) != len(starts):
        raise SuiteError(f"{path}:1: expected every comparison under a line [[comparison]] of its own")
    found = [
        _Reader(path.stem, head["title"], table, f"{path}:{start}").declared()
        for table, start in zip(tables, starts, strict=True)
    ]
    if not found:
        raise SuiteError(f"{path}:1: a suite of no comparisons; expected at least one [[comparison]]")
    if len({declared.name for declared in found}) < len(found):
        raise SuiteError(f"{path}:1: two comparisons have one name")
    return found


@dataclass(frozen=True)
class _Reader:
    """One [[comparison]] table, and where it stands."""

    suite: str
    title: str
    table: Mapping[str, Any]
    place: str

    def declared(self) -> DeclaredComparison:
        table = self.table
        for key in table:
            self.known(key, KEYS, "key")
        name, work, why = (self.string(key) for key in ("name", "work", "why"))
        self.known(work, work_kinds(), "work")
        arms = self.of_type("arms", list, None)
        for arm in arms:
            self.known(arm, arm_specs(), "arm")
        axis, parameters = table.get("axis"), self.of_type("parameters", dict, {})
        for key in (*parameters, *([axis] if axis else [])):
            self.known(key, work_kinds()[work].parameters, f"parameter of {work}")
        points = self.points("points", axis)
        return DeclaredComparison(
            suite=self.suite,
            title=self.title,
            name=name,
            work=work,
            arms=tuple(arms),
            axis=axis,
            points=points,
            quick=self.points("quick", axis) if "quick" in table else points,
            parameters=parameters,
            weight=self.weight(),
            twin=self.of_type("twin", bool, True),
            why=why,
            holds=tuple(self.hold(hold, arms) for hold in table.get("holds", [])),
            place=self.place,
        )

    def error(self, message: str) -> SuiteError:
        return SuiteError(f"{self.place}: {message}")

    def known(self, word: Any, words: Any, what: str) -> None:
        if word not in words:
            raise self.error(f"unknown {what} '{word}'; {did_you_mean(str(word), words)}")

    def string(self, key: str) -> str:
        if not isinstance(self.table.get(key), str) or not self.table[key].strip():
            raise self.error(f"a comparison needs a {key}, as a string")
        return " ".join(self.table[key].split())

    def of_type(self, key: str, kind: type, default: Any) -> Any:
        value = self.table.get(key, default)
        if not isinstance(value, kind) or (kind is list and not value):
            raise self.error(f"{key}: expected a {kind.__name__}, found {value!r}")
        return value

    def weight(self) -> float:
        weight = self.table.get("weight", 1)
        if not isinstance(weight, int | float) or not weight > 0:
            raise self.error(f"weight: expected a positive number, found {weight!r}")
        return float(weight)

    def points(self, key: str, axis: str | None) -> tuple[int | None, ...]:
        points: Sequence[Any] = self.table.get(key, [])
        if axis is None:
            if points and key == "points":
                raise self.error(f"points without an axis: {points}")
            return () if key == "quick" and "quick" in self.table else (None,)
        whole = all(isinstance(point, int) and point > 0 for point in points)
        if not whole or (key == "points" and not points):
            raise self.error(f"{key}: expected counts along {axis}, found {points!r}")
        return tuple(points)

    def hold(self, hold: Mapping[str, Any], arms: Sequence[str]) -> Mapping[str, Any]:
        for key in hold:
            self.known(key, HOLD_KEYS, "key of what holds")
        self.known(hold.get("arm"), arms, "arm of this comparison")
        if "exponent" in hold:
            self.known(hold["exponent"], QUANTITIES, "quantity")
        for key in ("ratio_at_most", "memory_within"):
            if key in hold and not (isinstance(hold[key], int | float) and hold[key] > 0):
                raise self.error(f"{key}: expected a positive number, found {hold[key]!r}")
        if len(hold) != 2:
            raise self.error(
                f"what holds: expected an arm and one of {sorted(HOLD_KEYS - {'arm'})}, found {dict(hold)}"
            )
        return hold
