"""The catalogue: faults as data, read and validated, and the specimen's source with each of them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.core.errors import HarnessError, did_you_mean
from harness.core.toml_text import read_toml

CATALOGUE = Path(__file__).with_name("catalogue.toml")
SPECIMEN = Path(__file__).with_name("specimen.py")
# NAME.toml has the faults of NAME.py, a right program of one technique, which the suite NAME judges.
TECHNIQUES = Path(__file__).with_name("techniques")
SUBJECT_MATTERS = ("structure", "behaviour", "generation", "loading")
COMMON = {"id", "what", "source", "change"}
KEYS = {
    "fault": COMMON | {"kind", "where", "layer", "alike", "says"},
    "control": COMMON,
    "named": {"id", "what"},
    "later": {"suite", "why", "ids"},
}


def is_counted_only(id: str) -> bool:
    """Return the lot of a fault: True if nobody is shown whether it was missed.

    It is the parity of the id's SHA-256, so that it is drawn once and for all, for faults to come as well.
    """
    return hashlib.sha256(id.encode()).digest()[0] % 2 == 1


@dataclass(frozen=True)
class Fault:
    """One fault, or a control: a change after which the program is still correct.

    `where`: the components that a diagnosis may name. `layer`: the only layer that is wrong (-1 is the last).
    `alike`: ids of faults that cannot be distinguished from this one by what the program does. `change`: pairs of a
    text that the specimen has exactly once, and its replacement. `line`: of the catalogue. `says`: of a kind that no
    table of the diagnosis lists, regular expressions that a statement of what is computed instead matches.
    `specimen`: the file that is changed.
    """

    id: str
    what: str
    source: str
    change: tuple[tuple[str, str], ...]
    kind: str = "control"
    where: tuple[str, ...] = ()
    layer: int | None = None
    alike: tuple[str, ...] = ()
    line: int = 0
    says: tuple[str, ...] = ()
    specimen: Path = SPECIMEN

    @property
    def suite(self) -> str:
        """The only suite that judges it; empty if all do."""
        return "" if self.specimen == SPECIMEN else self.specimen.stem

    @property
    def group(self) -> str:
        """ "listed", "unlisted", "technique", or "counted": the half, by lot, whose misses nobody is shown."""
        if self.suite:
            return "technique"
        if is_counted_only(self.id):
            return "counted"
        return "unlisted" if self.says else "listed"

    @property
    def catalogue(self) -> Path:
        """The file that declares it."""
        return self.specimen.with_suffix(".toml") if self.suite else CATALOGUE

    @property
    def is_control(self) -> bool:
        """True for a control: a check that fails is a false alarm."""
        return self.kind == "control"

    def source_text(self) -> str:
        """Return the specimen's source with the fault. Raises HarnessError if a text to replace is not there once."""
        text = self.specimen.read_text(encoding="utf-8")
        for find, put in self.change:
            if (found := text.count(find)) != 1:
                raise HarnessError(
                    f"{self.catalogue}:{self.line}: {self.id}: {find!r} is {found} times in {self.specimen.name}, "
                    "expected exactly once"
                )
            text = text.replace(find, put)
        return text

    def lines(self) -> frozenset[int]:
        """Return the lines of the specimen that are changed; none if a function is added.

        An added method may override an inherited one, which every check may call.
        """
        if any("def " in put and "def " not in find for find, put in self.change) or any(
            "    def " in put for _, put in self.change
        ):
            return frozenset()
        spans = []
        specimen = self.specimen.read_text(encoding="utf-8")
        for find, _ in self.change:
            start = specimen.count("\n", 0, specimen.index(find)) + 1
            first = start + len(find) - len(find.lstrip("\n"))
            spans.append(range(first, start + find.rstrip().count("\n") + 1))
        return frozenset(line for span in spans for line in span)

    def localised_by(self, where: str, fault: str, layers: int) -> bool:
        """Return True if `where`, a place that a diagnosis names, is a wrong component in the right layer.

        The name of a suite without a fault's id does not count: it says no more than that something failed.
        """
        number, component = _split(where)
        if component in SUBJECT_MATTERS and not fault:
            return False
        if self.layer is not None and number not in ("", str(self.layer % layers)):
            return False
        component = component or ("block" if number else "")  # "h.2": a whole block
        return any(component == place or component.startswith(f"{place}.") for place in self.where)

    def named_by(self, fault: str, cause: str) -> bool:
        """Return True if a finding's `fault`, an id, is this one or cannot be distinguished from it.

        A fault of an unlisted kind has no id: the finding's `cause` must say what is computed instead.
        """
        if self.says:
            return all(re.search(pattern, cause, re.IGNORECASE) for pattern in self.says)
        return fault == self.id or fault in self.alike


@dataclass(frozen=True)
class Catalogue:
    """Faults and controls; `later`: ids of faults that no suite covers yet, with the reason."""

    faults: tuple[Fault, ...]
    controls: tuple[Fault, ...]
    later: Mapping[str, str]
    named: Mapping[str, str]  # mistakes that the diagnosis can name and no specimen has: id -> what

    @property
    def ids(self) -> frozenset[str]:
        """The ids of all tables: those that a diagnosis may name."""
        injected = (fault.id for fault in (*self.faults, *self.controls) if not fault.says)
        return frozenset((*injected, *self.named, *self.later))

    @property
    def meanings(self) -> dict[str, str]:
        """The ids that a diagnosis may name, each with one sentence."""
        return {**{fault.id: fault.what for fault in self.faults if not fault.says}, **self.named}

    def chosen(self, ids: list[str]) -> list[Fault]:
        """Return the faults and controls with these ids, or all; controls last.

        Raises HarnessError for an id that cannot be put into the specimen.
        """
        known = {fault.id: fault for fault in (*self.faults, *self.controls)}
        for name in ids:
            if name in self.later:
                raise HarnessError(f"{name} is not injected: {self.later[name]}")
            if name in self.named:
                raise HarnessError(f"{name} is not injected: the diagnosis can name it, and no specimen has it")
            if name not in known:
                raise HarnessError(f"no fault '{name}'; {did_you_mean(name, known)}")
        return [fault for name, fault in known.items() if not ids or name in ids]


def read_catalogue() -> Catalogue:
    """Return the catalogue, with the faults of the techniques. Raises HarnessError for a mistake in its files."""
    whole = read_catalogue_file(CATALOGUE)
    for path in sorted(TECHNIQUES.glob("*.toml")):
        part = read_catalogue_file(path, path.with_suffix(".py"))
        if twice := sorted(whole.ids & part.ids):
            raise HarnessError(f"{path}:1: the id '{twice[0]}' is used in {CATALOGUE.name} already; give each id once")
        whole = Catalogue(
            (*whole.faults, *part.faults),
            (*whole.controls, *part.controls),
            {**whole.later, **part.later},
            {**whole.named, **part.named},
        )
    return whole


def read_catalogue_file(path: Path, specimen: Path = SPECIMEN) -> Catalogue:
    """Return the catalogue in `path`. Raises HarnessError, beginning with file and line, for a mistake in it."""
    text, data = read_toml(path)
    if unknown := set(data) - set(KEYS):
        raise HarnessError(f"{path}:1: unknown table '{min(unknown)}'; {did_you_mean(min(unknown), KEYS)}")
    faults = tuple(_fault(path, line, table, "fault", specimen) for line, table in _tables(path, text, data, "fault"))
    controls = tuple(
        _fault(path, line, table, "control", specimen) for line, table in _tables(path, text, data, "control")
    )
    later = {id: table["why"] for _, table in _tables(path, text, data, "later") for id in table["ids"]}
    known: dict[str, int] = {}
    named: dict[str, str] = {}
    for line, table in _tables(path, text, data, "named"):
        if table["id"] in later or known.setdefault(table["id"], line) != line:
            raise HarnessError(f"{path}:{line}: the id '{table['id']}' is used twice; give each id once")
        named[table["id"]] = table["what"]
    for fault in (*faults, *controls):
        if fault.id in known or fault.id in later:
            raise HarnessError(
                f"{path}:{fault.line}: the id '{fault.id}' is used already, in line {known.get(fault.id)}"
            )
        known[fault.id] = fault.line
    for fault in faults:
        if unknown_ids := [name for name in fault.alike if name not in known]:
            raise HarnessError(f"{path}:{fault.line}: alike '{unknown_ids[0]}'; {did_you_mean(unknown_ids[0], known)}")
    return Catalogue(faults, controls, later, named)


def _tables(path: Path, text: str, data: dict[str, Any], kind: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line, table) for each table of a kind, its keys validated."""
    starts = [n for n, line in enumerate(text.splitlines(), 1) if re.match(rf"\s*\[\[\s*{kind}\s*\]\]", line)]
    for line, table in zip(starts, data.get(kind, []), strict=True):
        for key in table:
            if key not in KEYS[kind]:
                raise HarnessError(f"{path}:{line}: unknown key '{key}' of a {kind}; {did_you_mean(key, KEYS[kind])}")
        for key in KEYS[kind] - {"layer", "alike", "says"}:
            if key not in table or (not table[key] and not (kind == "control" and key == "change")):
                raise HarnessError(f"{path}:{line}: a {kind} needs a {key}")
        yield line, table


def _fault(path: Path, line: int, table: dict[str, Any], kind: str, specimen: Path) -> Fault:
    change = table["change"]
    if not isinstance(change, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in change
    ):
        raise HarnessError(f"{path}:{line}: change: expected a list of [text to replace, replacement]")
    where = table.get("where", ())
    return Fault(
        id=table["id"],
        what=table["what"],
        source=table["source"],
        change=tuple((find, put) for find, put in change),
        kind=table.get("kind", kind),
        where=(where,) if isinstance(where, str) else tuple(where),
        layer=table.get("layer"),
        alike=tuple(table.get("alike", ())),
        line=line,
        says=tuple(table.get("says", ())),
        specimen=specimen,
    )


def _split(where: str) -> tuple[str, str]:
    """Return the layer and the component: `h.2.attn.mask` -> ('2', 'attn.mask'); '*' is all layers, '' is none."""
    match = re.fullmatch(r"h\.(\d+|\*)(?:\.(.+))?", where.removeprefix("transformer."))
    return (match[1], match[2] or "") if match else ("", where.removeprefix("transformer."))
