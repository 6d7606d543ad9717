"""Declared deviations: the differences of a subject from GPT-2 that are intended, each with its reason."""

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
    """A declaration that is not valid, or no longer applies. The message begins with `file:line:`."""


@dataclass(frozen=True)
class NamedDeviation:
    """A deviation that has a name.

    Attributes:
        says: How the verdict describes it.
        faults: The ids of the catalogue that it is the same as.
        decided_by: Patterns of the checks that fail if the subject has the deviation. If all of them pass, the
            declaration is stale.
        excuses: Patterns of the checks that test for this deviation alone, and so may fail in any way.
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
        # The sum of the attention rows is measured through the bias of the values.
        ("structure::published-names*", "attention::attention-rows-sum-to-one*"),
    ),
    "padded-vocabulary": NamedDeviation(
        "padded vocabulary", ("vocab-padding-unmasked",), (COUNTED,), ("structure::head-is-tied*",)
    ),
}


@dataclass(frozen=True)
class Deviation:
    """One declaration: the id of a deviation (`what`) or patterns of `suite::check`, the reason, and its location."""

    what: str
    checks: tuple[str, ...]
    reason: str
    file: str
    line: int

    @property
    def kind(self) -> NamedDeviation | None:
        """The named deviation with the id `what`; None if the declaration lists checks."""
        return kind(self.what) if self.what else None

    @property
    def says(self) -> str:
        """The description of the deviation in the verdict."""
        return self.kind.says if self.kind else ", ".join(self.checks)

    @property
    def patterns(self) -> tuple[str, ...]:
        """Patterns of the checks that fail as long as the declaration applies."""
        return self.kind.decided_by if self.kind else self.checks

    @property
    def place(self) -> str:
        """The location, `file:line`, with which error messages begin."""
        return f"{self.file}:{self.line}"

    def excuses(self, check: str) -> bool:
        """Return True if the deviation excuses `suite::check`, regardless of its value."""
        return any(fnmatch.fnmatchcase(check, p) for p in (self.kind.excuses if self.kind else self.checks))


def kind(what: str) -> NamedDeviation | None:
    """Return the named deviation with this id: one of NAMED, or a fault that has a variant. None if there is none."""
    if what in NAMED:
        return NAMED[what]
    from harness.oracle.variants import variants  # imports torch, which a run without deviations need not wait for here

    found = [variant for variant in variants() if variant.fault == what]
    return NamedDeviation(found[0].says, (what,), ("parity::debug*",)) if found else None


def _known() -> set[str]:
    """Return every id that `what` may be."""
    from harness.oracle.variants import variants  # imports torch

    return {*NAMED, *(variant.fault for variant in variants())}


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
        raise DeviationError(f"{path}:{line}: unknown deviation '{what}'; {did_you_mean(str(what), _known())}")
    if not isinstance(checks, list) or not all(isinstance(each, str) for each in checks) or not (what or checks):
        raise DeviationError(f"{path}:{line}: checks: expected a list of 'suite::check', found {checks!r}")
    return Deviation(what, tuple(checks), " ".join(reason.split()), str(path), line)


def except_for(deviations: Sequence[Deviation]) -> str:
    """Return the verdict, such as `GPT-2 except: exact GELU (trained with it), untied head (...)`."""
    return "GPT-2 except: " + ", ".join(f"{each.says} ({each.reason})" for each in deviations)


def declared_faults(deviations: Iterable[Deviation]) -> set[str]:
    """Return the ids of the catalogue that are declared."""
    return {fault for each in deviations if each.kind for fault in each.kind.faults}


def problems(
    deviations: Sequence[Deviation], applied: set[str], judged: Mapping[str, str], known: Mapping[str, str]
) -> list[str]:
    """Return one line, beginning with `file:line:`, for each declaration that names no check or no longer applies.

    A declaration no longer applies if every check that it names passes. That is decided only if every debug-size check
    that it names was run, or every check if it names none of debug size.

    Args:
        deviations: The declarations of the subject.
        applied: The locations of what excused a check in this run: `file:line`, and `file:line pattern`.
        judged: The verdicts of this run by `suite::check`.
        known: Every check that exists, with its size.
    """
    return [
        problem
        for each in deviations
        for problem in (
            _problems_of_named(each, applied, judged, known)
            if each.what
            else _problems_of_patterns(each, applied, judged, known)
        )
    ]


def _problems_of_patterns(
    deviation: Deviation, applied: set[str], judged: Mapping[str, str], known: Mapping[str, str]
) -> Iterator[str]:
    """Yield the patterns that match no check, and those that excused no check in this run."""
    for pattern in deviation.patterns:
        matching = [check for check in known if fnmatch.fnmatchcase(check, pattern)]
        if not matching:
            hint = did_you_mean(pattern.rstrip("*"), {check.split(",")[0] for check in known})
            yield f"{deviation.place}: '{pattern}' names no check; {hint}"
        decisive = [check for check in matching if known[check] == "debug"] or matching
        all_run = matching and all(check in judged for check in decisive)
        if all_run and f"{deviation.place} {pattern}" not in applied:
            yield f"{deviation.place}: nothing that '{pattern}' names fails any more; remove it"


def _problems_of_named(
    deviation: Deviation, applied: set[str], judged: Mapping[str, str], known: Mapping[str, str]
) -> Iterator[str]:
    """Yield a line if all checks that decide on the deviation pass."""
    decisive = [check for check in known if any(fnmatch.fnmatchcase(check, p) for p in deviation.patterns)]
    # A check that fails for another reason leaves it open whether the deviation exists. If all pass, it does not.
    verdicts = {judged.get(check, "") for check in decisive}
    if deviation.place not in applied and "pass" in verdicts and verdicts <= {"pass", "skip"}:
        yield f"{deviation.place}: the subject has no '{deviation.what}' any more ({deviation.says}); remove it"


# What `hugging_face.oracle(size, state, dtype)` returns instead of GPT-2: GPT-2 with the declared deviations. It is a
# context variable, because the measures call the oracle themselves and know nothing of deviations.
_override: contextvars.ContextVar[Callable[..., Any] | None] = contextvars.ContextVar("oracle override", default=None)


def oracle_override() -> Callable[..., Any] | None:
    """Return the function that replaces the oracle at present; None if nothing does."""
    return _override.get()


@contextlib.contextmanager
def override_oracle(build: Callable[..., Any]) -> Iterator[None]:
    """Use `build(size, state, dtype)` as the oracle inside the block."""
    token = _override.set(build)
    try:
        yield
    finally:
        _override.reset(token)
