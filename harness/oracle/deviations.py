"""Declared deviations: the differences of a subject from GPT-2 that are intended, each with its reason."""

from __future__ import annotations

import fnmatch
import functools
import importlib.util
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.core.errors import HarnessError, did_you_mean
from harness.core.toml_text import read_toml
from harness.oracle.named_deviations import ALIASES, BIASES, LACKS, NAMED, NamedDeviation, excused_by

SETTINGS = ("epsilon", "base", "biases")  # which deviation has which: see `NamedDeviation.settings`
KEYS = {"what", "checks", "reason", *SETTINGS}
SUFFIX = ".deviations.toml"
CATALOGUE = Path(__file__).parents[1] / "faults" / "catalogue.toml"  # read as data: the room of faults is below


class DeviationError(HarnessError):
    """A declaration that is not valid, or no longer applies. The message begins with `file:line:`."""


@dataclass(frozen=True)
class Deviation:
    """One declaration: the id of a deviation (`what`) or patterns of `suite::check`, the reason, and its location.

    Attributes:
        epsilon: The epsilon of the norms; None to read it off the subject.
        base: The base of the rotary positions' angles; None for 10,000.
        biases: The components that have no bias, such as `attn.c_proj`.
    """

    what: str
    checks: tuple[str, ...]
    reason: str
    file: str
    line: int
    epsilon: float | None = None
    base: float | None = None
    biases: tuple[str, ...] = ()

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Deviation:
        """Return the deviation of its fields as JSON has them: the inverse of `dataclasses.asdict`."""
        lists = {key: tuple(fields[key]) for key in ("checks", "biases")}
        return cls(**{**fields, **lists})

    @property
    def id(self) -> str:
        """The id under which the deviation is listed, for any of its ids."""
        return ALIASES.get(self.what, self.what)

    @property
    def kind(self) -> NamedDeviation | None:
        """The named deviation with the id `what`; None if the declaration lists checks."""
        return kind(self.what) if self.what else None

    @property
    def computed(self) -> bool:
        """True if the subject is compared with a GPT-2 that has the deviation."""
        return self.kind is not None and self.kind.computed

    @property
    def says(self) -> str:
        """The description of the deviation in the verdict."""
        details = [
            f"{word} {value:g}" for word, value in (("epsilon", self.epsilon), ("base", self.base)) if value is not None
        ]
        details += [", ".join(self.biases)] * bool(self.biases)
        said = self.kind.says if self.kind else ", ".join(self.checks)
        return f"{said} ({'; '.join(details)})" if details else said

    @property
    def lacks(self) -> tuple[str, ...]:
        """The families of GPT-2's parameters that the subject may not have."""
        return (*(self.kind.lacks if self.kind else ()), *(f"{component}.bias" for component in self.biases))

    @property
    def patterns(self) -> tuple[str, ...]:
        """Patterns of the checks that fail as long as the declaration applies."""
        if self.kind is None:
            return self.checks
        return self.kind.decided_by if self.kind.computed else self.kind.excuses

    @property
    def place(self) -> str:
        """The location, `file:line`, with which error messages begin."""
        return f"{self.file}:{self.line}"

    def excuses(self, check: str) -> bool:
        """Return True if the deviation excuses `suite::check`, regardless of its value."""
        return any(fnmatch.fnmatchcase(check, p) for p in (self.kind.excuses if self.kind else self.checks))


@functools.cache
def kind(what: str) -> NamedDeviation | None:
    """Return the named deviation with this id: one of NAMED, or a fault of the catalogue. None if there is none."""
    what = ALIASES.get(what, what)
    if what in NAMED:
        return NAMED[what]
    from harness.oracle.variants import variants  # imports torch, which a run without deviations need not wait for here

    found = [variant for variant in variants() if variant.fault == what]
    if found:
        return NamedDeviation(found[0].says, (what,), LACKS.get(what, ()))
    checks = excused_by(what) if what in _catalogue() else ()
    return NamedDeviation(what, (what,), decided_by=(), excuses=checks, computed=False) if checks else None


@functools.cache
def _catalogue() -> set[str]:
    """Return the ids of the catalogue of faults, those included that no suite covers yet."""
    tables = tomllib.loads(CATALOGUE.read_text(encoding="utf-8"))
    rows = [row for kind in ("fault", "named", "later") for row in tables[kind]]
    return {name for row in rows for name in (row["ids"] if "ids" in row else [row["id"]])}


def known() -> set[str]:
    """Return every id that `what` may be."""
    from harness.oracle.variants import variants  # imports torch

    named = {*NAMED, *ALIASES, *(variant.fault for variant in variants())}
    return named | {fault for fault in _catalogue() if excused_by(fault)}


def beside(spec: str) -> Path | None:
    """Return the file that declares the deviations of a subject, my_gpt.deviations.toml beside my_gpt.py.

    Args:
        spec: The subject as on the command line, `my_gpt.py:GPT` or `package.module:GPT`.

    Returns:
        The path, or None if there is no such file.
    """
    where = spec.rpartition(":")[0]
    source: str | None = where
    if not where.endswith(".py"):
        try:
            found = importlib.util.find_spec(where)
        except (ImportError, ValueError):
            return None
        source = found.origin if found else None
    path = Path(source).with_suffix(SUFFIX) if source else None
    return path if path is not None and path.is_file() else None


def read(path: Path) -> tuple[Deviation, ...]:
    """Return every declaration of the file. Raise DeviationError, with file and line, if one is not valid."""
    text, data = read_toml(path, DeviationError)
    tables = data.get("deviation", [])
    for key in data:
        if key != "deviation":
            raise DeviationError(
                f"{path}:{_line(text, key)}: unknown table '{key}'; {did_you_mean(key, ['deviation'])}"
            )
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise DeviationError(f"{path}:1: expected [[deviation]], in double brackets, once for each deviation")
    starts = [n for n, line in enumerate(text.splitlines(), 1) if re.match(r"\s*\[\[\s*deviation\s*\]\]", line)]
    starts += [1] * (len(tables) - len(starts))
    return tuple(_deviation(table, path, line) for table, line in zip(tables, starts, strict=False))


def _line(text: str, word: str) -> int:
    """Return the number of the first line with this word; 1 if there is none."""
    return next((n for n, line in enumerate(text.splitlines(), 1) if re.search(rf"\b{re.escape(word)}\b", line)), 1)


def _deviation(table: Mapping[str, Any], path: Path, line: int) -> Deviation:
    """Return the declaration in one [[deviation]] table that begins in `line`."""
    for key in table:
        if key not in KEYS:
            raise DeviationError(f"{path}:{line}: unknown key '{key}'; {did_you_mean(key, KEYS)}")
    reason = table.get("reason")
    if not isinstance(reason, str) or not reason.strip():
        raise DeviationError(f"{path}:{line}: a deviation needs a reason, as a string")
    if ("what" in table) == ("checks" in table):
        raise DeviationError(f"{path}:{line}: expected either what = '...' or checks = ['suite::check', ...]")
    what, checks = table.get("what", ""), table.get("checks", [])
    if not isinstance(what, str) or ("what" in table and kind(what) is None):
        raise DeviationError(f"{path}:{line}: unknown deviation '{what}'; {did_you_mean(str(what), known())}")
    if not isinstance(checks, list) or not all(isinstance(each, str) for each in checks) or not (what or checks):
        raise DeviationError(f"{path}:{line}: checks: expected a list of 'suite::check', found {checks!r}")
    deviation = Deviation(what, tuple(checks), " ".join(reason.split()), str(path), line)
    return replace(deviation, **_settings(deviation, table))


def _settings(deviation: Deviation, table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the further keys of a declaration. Raise DeviationError for one that it does not have."""
    allowed = deviation.kind.settings if deviation.kind else ()
    found = {key: table[key] for key in SETTINGS if key in table}
    for key, value in found.items():
        if key not in allowed:
            raise DeviationError(f"{deviation.place}: '{deviation.what or 'checks'}' has no key '{key}'")
        if key != "biases" and (isinstance(value, bool) or not isinstance(value, int | float) or value < 0):
            raise DeviationError(f"{deviation.place}: {key}: expected a number, found {value!r}")
    if "biases" in allowed:
        components = [name.removesuffix(".bias") for name in BIASES]
        listed = found.get("biases")
        if not isinstance(listed, list) or not listed or not all(each in components for each in listed):
            raise DeviationError(f"{deviation.place}: biases: expected some of {components}, found {listed!r}")
        found["biases"] = tuple(listed)
    return found


def except_for(deviations: Sequence[Deviation], of: str = "GPT-2") -> str:
    """Return the verdict, such as `GPT-2 except: exact GELU (trained with it), untied head (...)`."""
    return f"{of} except: " + ", ".join(f"{each.says} ({each.reason})" for each in deviations)


def declared_faults(deviations: Iterable[Deviation]) -> set[str]:
    """Return the ids of the catalogue that are declared."""
    return {fault for each in deviations if each.kind for fault in each.kind.faults}


def problems(
    deviations: Sequence[Deviation],
    applied: set[str],
    judged: Mapping[str, str],
    known: Mapping[str, str],
    unfounded: Mapping[str, str],
) -> list[str]:
    """Return one line, beginning with `file:line:`, for each declaration that names no check or no longer applies.

    A list of checks no longer applies if every check that it names passes. That is decided only if every debug-size
    check that it names has run, or every check if it names none of debug size: a check that was skipped, hung or was
    not selected decides nothing. A computed deviation no longer applies if the subject is found not to have it, and is
    reported if one of its checks has run.

    Args:
        deviations: The declarations of the subject.
        applied: The locations of what excused a check in this run: `file:line`, and `file:line pattern`.
        judged: The verdicts of this run by `suite::check`.
        known: Every check that exists, with its size.
        unfounded: What is wrong with the computed deviations that the subject does not have, by location.
    """
    found: list[str] = []
    for each in deviations:
        if not each.computed:
            found += _problems_of_patterns(each, applied, judged, known)
        elif each.place in unfounded and _has_run(each, judged):
            found.append(f"{each.place}: {unfounded[each.place]}")
    return found


def _has_run(deviation: Deviation, judged: Mapping[str, str]) -> bool:
    """Return True if a check that decides on the deviation has run to its end."""
    ended = [check for check, verdict in judged.items() if verdict in ("pass", "fail", "declared")]
    return any(fnmatch.fnmatchcase(check, pattern) for check in ended for pattern in deviation.patterns)


def _problems_of_patterns(
    deviation: Deviation, applied: set[str], judged: Mapping[str, str], known: Mapping[str, str]
) -> Iterator[str]:
    """Yield the patterns that match no check, and the declaration if it excused no check in this run."""
    stale = []
    for pattern in deviation.patterns:
        matching = [check for check in known if fnmatch.fnmatchcase(check, pattern)]
        if not matching and not deviation.what:
            hint = did_you_mean(pattern.rstrip("*"), {check.split(",")[0] for check in known})
            yield f"{deviation.place}: '{pattern}' names no check; {hint}"
        decisive = [check for check in matching if known[check] == "debug"] or matching
        all_pass = matching and all(judged.get(check) == "pass" for check in decisive)
        if all_pass and f"{deviation.place} {pattern}" not in applied:
            stale.append(pattern)
    if len(stale) < len(deviation.patterns):
        return
    if deviation.what:
        yield f"{deviation.place}: the subject has no '{deviation.what}': every check of it passes; remove it"
    else:
        named = ", ".join(f"'{pattern}'" for pattern in stale)
        yield f"{deviation.place}: nothing that {named} names fails any more; remove it"
