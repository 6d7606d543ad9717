"""Declared deviations: where a subject differs from GPT-2 on purpose, each with its reason, read strictly."""

from __future__ import annotations

import contextlib
import contextvars
import fnmatch
import importlib.util
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.core.errors import HarnessError, did_you_mean

KEYS = {"what", "checks", "reason"}
SUFFIX = ".deviations.toml"


class DeviationError(HarnessError):
    """A declaration does not say what its author meant, or no longer holds; the message begins with `file:line:`."""


@dataclass(frozen=True)
class NamedDeviation:
    """A deviation with a name: what it is called in the verdict, and the faults of the catalogue that it is.

    `decided_by`: patterns of the checks that fail when the deviation is there, by which a stale declaration is known.
    `excuses`: those that ask for the very thing, and so pass whatever they find.
    """

    says: str
    faults: tuple[str, ...]
    decided_by: tuple[str, ...]
    excuses: tuple[str, ...] = ()


COUNTED = "structure::parameter-count,size=debug,tied=true"
NAMED: dict[str, NamedDeviation] = {
    "exact-gelu": NamedDeviation("exact GELU", ("gelu-erf-for-tanh",), ("parity::debug*",)),
    "untied-head": NamedDeviation("untied head", ("head-untied",), (COUNTED,), ("structure::head-is-tied*",)),
    "bias-free": NamedDeviation(
        "no bias",
        ("qkv-bias-missing", "ln-bias-ignored", "load-biases-dropped"),
        (COUNTED,),
        # The rows' sum is read off through the value's bias.
        ("structure::published-names*", "attention::attention-rows-sum-to-one*"),
    ),
    "padded-vocabulary": NamedDeviation(
        "padded vocabulary", ("vocab-padding-unmasked",), (COUNTED,), ("structure::head-is-tied*",)
    ),
}


@dataclass(frozen=True)
class Deviation:
    """One declaration: a kind (`what`) or patterns of `suite::check`, and the reason; where it stands in its file."""

    what: str
    checks: tuple[str, ...]
    reason: str
    file: str
    line: int

    @property
    def kind(self) -> NamedDeviation | None:
        """The kind that `what` names; a fault of the catalogue is a kind of its own."""
        return kind(self.what) if self.what else None

    @property
    def says(self) -> str:
        """What deviates, in the words of the verdict."""
        return self.kind.says if self.kind else ", ".join(self.checks)

    @property
    def patterns(self) -> tuple[str, ...]:
        """The checks that a declaration which holds makes fail."""
        return self.kind.decided_by if self.kind else self.checks

    @property
    def place(self) -> str:
        """`file:line`, as errors begin."""
        return f"{self.file}:{self.line}"

    def excuses(self, check: str) -> bool:
        """Whether `suite::check` may find what it likes."""
        return any(fnmatch.fnmatchcase(check, p) for p in (self.kind.excuses if self.kind else self.checks))


def kind(what: str) -> NamedDeviation | None:
    """The kind of that name: one of NAMED, or a fault that the diagnosis can put in the place of GPT-2's operation."""
    if what in NAMED:
        return NAMED[what]
    from harness.oracle.variants import variants

    found = [each for each in variants() if each.fault == what]
    return NamedDeviation(found[0].says, (what,), ("parity::debug*",)) if found else None


def _known() -> set[str]:
    from harness.oracle.variants import variants

    return {*NAMED, *(each.fault for each in variants() if each.fault)}


def beside(spec: str) -> Path | None:
    """The file that declares a subject's deviations: my_gpt.deviations.toml beside my_gpt.py; None where none is."""
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
    """Every declaration of the file. Whatever is not understood is a DeviationError with file and line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        data = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise DeviationError(f"{path}:1: cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"line (\d+)", str(error))
        raise DeviationError(f"{path}:{line.group(1) if line else 1}: not TOML: {error}") from error
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
    return next((n for n, line in enumerate(text.splitlines(), 1) if re.search(rf"\b{re.escape(word)}\b", line)), 1)


def _deviation(table: Mapping[str, Any], path: Path, line: int) -> Deviation:
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
        raise DeviationError(f"{path}:{line}: unknown deviation '{what}'; {did_you_mean(str(what), _known())}")
    if not isinstance(checks, list) or not all(isinstance(each, str) for each in checks) or not (what or checks):
        raise DeviationError(f"{path}:{line}: checks: expected a list of 'suite::check', found {checks!r}")
    return Deviation(what, tuple(checks), " ".join(reason.split()), str(path), line)


def except_for(deviations: Sequence[Deviation]) -> str:
    """`GPT-2 except: exact GELU (trained with it), untied head (...)`."""
    return "GPT-2 except: " + ", ".join(f"{each.says} ({each.reason})" for each in deviations)


def declared_faults(deviations: Iterable[Deviation]) -> set[str]:
    """The ids of the catalogue that are declared."""
    return {fault for each in deviations if each.kind for fault in each.kind.faults}


def problems(
    deviations: Sequence[Deviation], applied: set[str], judged: Mapping[str, str], known: Mapping[str, str]
) -> list[str]:
    """What is wrong with the declarations after a run, a line each, beginning with `file:line:`.

    `applied`: the places (`file:line`, and `file:line pattern`) of what excused a check. `judged`: verdicts by
    `suite::check`. `known`: every check there is, with its size. One that names nothing is wrong; so is one that names
    only what passes. Whether it does is decided once every debug-size check that it names was run, or, where it names
    none of those, every check.
    """
    found = []
    for each in deviations:
        for pattern in each.patterns:
            named = [check for check in known if fnmatch.fnmatchcase(check, pattern)]
            if not named and not each.what:
                hint = did_you_mean(pattern.rstrip("*"), {check.split(",")[0] for check in known})
                found.append(f"{each.place}: '{pattern}' names no check; {hint}")
            decisive = [check for check in named if known[check] == "debug"] or named
            stale = named and all(check in judged for check in decisive)
            if not each.what and stale and f"{each.place} {pattern}" not in applied:
                found.append(f"{each.place}: nothing that '{pattern}' names fails any more; remove it")
        if each.what:
            decisive = [check for check in known if any(fnmatch.fnmatchcase(check, p) for p in each.patterns)]
            # While one of them fails for another reason, nobody can tell; when all of them pass, everybody can.
            verdicts = {judged.get(check, "") for check in decisive}
            if each.place not in applied and "pass" in verdicts and verdicts <= {"pass", "skip"}:
                found.append(f"{each.place}: the subject has no '{each.what}' any more ({each.says}); remove it")
    return found


# GPT-2 with the deviations that the truth is to have just now, as `oracle(size, state, dtype)` gives it without any.
_truth: contextvars.ContextVar[Callable[..., Any] | None] = contextvars.ContextVar("truth", default=None)


def truth_in_force() -> Callable[..., Any] | None:
    """What stands in the oracle's place just now, if anything does."""
    return _truth.get()


@contextlib.contextmanager
def in_force(truth: Callable[..., Any]) -> Iterator[None]:
    """While open, `truth(size, state, dtype)` stands in the oracle's place."""
    token = _truth.set(truth)
    try:
        yield
    finally:
        _truth.reset(token)
