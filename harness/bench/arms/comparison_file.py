"""Comparison files, `benchmarks/*.toml`: read and validated; an error names the file and the line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.bench.arms.all_arms import arm_specs, work_kinds
from harness.bench.arms.declared_comparison import DeclaredComparison
from harness.core.errors import SuiteError, did_you_mean

HEAD_KEYS = {"title", "about"}
KEYS = {"name", "work", "arms", "axis", "points", "quick", "parameters", "weight", "twin", "expect", "why"}
QUANTITIES = ("time", "memory")
EXPECT_KEYS = {"arm", "exponent", "ratio_at_most", "memory_within"}


def read_comparisons(folder: Path) -> list[DeclaredComparison]:
    """Return every comparison of the `*.toml` in `folder`. Raises SuiteError with file and line for a mistake."""
    return [declared for path in sorted(folder.glob("*.toml")) for declared in read_file(path)]


def read_file(path: Path) -> list[DeclaredComparison]:
    """Return the comparisons of one file: a `[suite]` table, and a `[[comparison]]` table each. Raises SuiteError."""
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
        raise SuiteError(f"{path}:1: expected a line [[comparison]] above every comparison")
    found = [
        _TableReader(path.stem, head["title"], table, f"{path}:{start}").declared()
        for table, start in zip(tables, starts, strict=True)
    ]
    if not found:
        raise SuiteError(f"{path}:1: a suite without comparisons; expected at least one [[comparison]]")
    if len({declared.name for declared in found}) < len(found):
        raise SuiteError(f"{path}:1: two comparisons have the same name")
    return found


@dataclass(frozen=True)
class _TableReader:
    """Reader of one [[comparison]] table; `place` is its file and line."""

    suite: str
    title: str
    table: Mapping[str, Any]
    place: str

    def declared(self) -> DeclaredComparison:
        table = self.table
        for key in table:
            self.check_known(key, KEYS, "key")
        name, work, why = (self.string(key) for key in ("name", "work", "why"))
        self.check_known(work, work_kinds(), "work")
        arms = self.of_type("arms", list, None)
        for arm in arms:
            self.check_known(arm, arm_specs(), "arm")
        axis, parameters = table.get("axis"), self.of_type("parameters", dict, {})
        for key in (*parameters, *([axis] if axis else [])):
            self.check_known(key, work_kinds()[work].parameters, f"parameter of {work}")
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
            expect=tuple(self.expectation(entry, arms) for entry in table.get("expect", [])),
            place=self.place,
        )

    def error(self, message: str) -> SuiteError:
        return SuiteError(f"{self.place}: {message}")

    def check_known(self, word: Any, known: Collection[str], what: str) -> None:
        if word not in known:
            raise self.error(f"unknown {what} '{word}'; {did_you_mean(str(word), known)}")

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

    def expectation(self, entry: Mapping[str, Any], arms: Sequence[str]) -> Mapping[str, Any]:
        for key in entry:
            self.check_known(key, EXPECT_KEYS, "key of expect")
        self.check_known(entry.get("arm"), arms, "arm of this comparison")
        if "exponent" in entry:
            self.check_known(entry["exponent"], QUANTITIES, "quantity")
        for key in ("ratio_at_most", "memory_within"):
            if key in entry and not (isinstance(entry[key], int | float) and entry[key] > 0):
                raise self.error(f"{key}: expected a positive number, found {entry[key]!r}")
        if len(entry) != 2:
            raise self.error(f"expect: expected an arm and one of {sorted(EXPECT_KEYS - {'arm'})}, found {dict(entry)}")
        return entry
