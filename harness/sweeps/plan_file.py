"""A sweep as data: sweeps.toml, or a file of the user's, read and validated."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.core.errors import HarnessError, did_you_mean
from harness.core.toml_text import read_toml

PLANS = Path(__file__).with_name("sweeps.toml")

NUMBER = (int, float)
_KEYS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "file": {"plan": list},
    "plan": {
        "name": str, "about": str, "seeds": list, "rate_times_width": NUMBER, "layers": int, "heads": int,
        "tokens_per_step": int, "validation_tokens": int, "settings": dict, "source": list,
    },
    "source": {
        "name": str, "text": str, "symbols": int, "spectrum": NUMBER, "spread": NUMBER, "characters": int,
        "context": int, "budget": list,
    },
    "budget": {"flops": NUMBER, "widths": list, "seconds": NUMBER},
}  # fmt: skip
_REQUIRED = {
    "file": {"plan"},
    "plan": {"name", "about", "seeds", "rate_times_width", "layers", "heads", "source"},
    "source": {"name", "context", "budget"},
    "budget": {"flops", "widths"},
}


@dataclass(frozen=True)
class Budget:
    """The FLOPs of each run, the widths that are trained with them, and the seconds that one of them takes."""

    flops: float
    widths: tuple[int, ...]
    seconds: float = 30.0


@dataclass(frozen=True)
class Source:
    """What the models are trained on: a text by its name, or a Markov source of so many `symbols`.

    `spectrum` and `spread` are those of its matrix, `characters` the length of the text that is drawn.
    """

    name: str
    context: int
    budgets: tuple[Budget, ...]
    text: str = ""
    symbols: int = 0
    spectrum: float = 1.0
    spread: float = 2.0
    characters: int = 0


@dataclass(frozen=True)
class SweepPlan:
    """Sources × budgets × widths × seeds, and the settings that all runs share.

    A model of width C has `layers` blocks of `heads` heads, and the learning rate `rate_times_width` / C. Its number of
    steps is what its budget buys, and its schedule ends with them.
    """

    name: str
    about: str
    seeds: tuple[int, ...]
    rate_times_width: float
    layers: int
    heads: int
    sources: tuple[Source, ...]
    settings: Mapping[str, Any]
    tokens_per_step: int = 512
    validation_tokens: int = 65536


def read_plan(name_or_file: str) -> SweepPlan:
    """Return a plan of sweeps.toml by its name, or the only plan of a file.

    Raises HarnessError, with file and line, for what is no such file, unknown or missing keys and wrong values.
    """
    path = Path(name_or_file)
    is_file = path.suffix == ".toml"
    plans = {plan.name: plan for plan in _read(path if is_file else PLANS)}
    if is_file and len(plans) == 1:
        return next(iter(plans.values()))
    if is_file:
        raise HarnessError(f"{path}:1: expected one [[plan]], found {len(plans)}")
    if name_or_file not in plans:
        raise HarnessError(
            f"no sweep is called '{name_or_file}', nor is it a .toml file; {did_you_mean(name_or_file, plans)}"
        )
    return plans[name_or_file]


def _read(path: Path) -> list[SweepPlan]:
    text, data = read_toml(path)
    _check(path, text, data, "file")
    return [_plan(path, text, table) for table in data["plan"]]


def _plan(path: Path, text: str, table: Mapping[str, Any]) -> SweepPlan:
    _check(path, text, table, "plan")
    sources = tuple(_source(path, text, source) for source in table["source"])
    if twice := _twice([source.name for source in sources]):
        raise HarnessError(f"{path}:{_line_of(text, twice)}: two sources are called '{twice}'; give each name once")
    known = {key: value for key, value in table.items() if key not in ("seeds", "source", "settings")}
    return SweepPlan(
        **known, seeds=_whole_numbers(path, text, table, "seeds"), sources=sources, settings=table.get("settings", {})
    )


def _source(path: Path, text: str, table: Mapping[str, Any]) -> Source:
    _check(path, text, table, "source")
    line = _line_of(text, str(table["name"]))
    if bool(table.get("text")) == bool(table.get("symbols")):
        raise HarnessError(f"{path}:{line}: the source '{table['name']}' needs a text, or symbols of a Markov source")
    if table.get("symbols") and not table.get("characters"):
        raise HarnessError(f"{path}:{line}: the source '{table['name']}' needs characters: how much is drawn from it")
    budgets = []
    for budget in table["budget"]:
        _check(path, text, budget, "budget")
        widths = _whole_numbers(path, text, budget, "widths")
        budgets.append(Budget(float(budget["flops"]), widths, float(budget.get("seconds", 30.0))))
    return Source(**{key: value for key, value in table.items() if key != "budget"}, budgets=tuple(budgets))


def _check(path: Path, text: str, table: Mapping[str, Any], kind: str) -> None:
    known = _KEYS[kind]
    for key, value in table.items():
        if key not in known:
            raise HarnessError(
                f"{path}:{_line_of(text, key)}: unknown key '{key}' of a {kind}; {did_you_mean(key, known)}"
            )
        if not isinstance(value, known[key]) or isinstance(value, bool):
            found = type(value).__name__
            raise HarnessError(f"{path}:{_line_of(text, key)}: '{key}' of a {kind} has a value of type {found}")
        if isinstance(value, int | float) and value <= 0:
            raise HarnessError(f"{path}:{_line_of(text, key)}: '{key}' is {value}; expected more than 0")
    if missing := sorted(_REQUIRED[kind] - set(table)):
        line = _line_of(text, str(table.get("name", kind)))
        raise HarnessError(f"{path}:{line}: the {kind} lacks the key '{missing[0]}'")


def _whole_numbers(path: Path, text: str, table: Mapping[str, Any], key: str) -> tuple[int, ...]:
    values = table[key]
    least = 0 if key == "seeds" else 1
    if not values or not all(isinstance(value, int) and value >= least for value in values) or _twice(values):
        raise HarnessError(f"{path}:{_line_of(text, key)}: '{key}' is {values}; expected whole numbers, each once")
    return tuple(values)


def _twice(values: Sequence[Any]) -> Any:
    return next((value for value in values if list(values).count(value) > 1), None)


def _line_of(text: str, word: str) -> int:
    """Return the number of the first line with a word; 1 if there is none."""
    found = re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text)
    return 1 + text.count("\n", 0, found.start()) if found else 1
