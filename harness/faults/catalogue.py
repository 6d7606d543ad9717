"""The catalogue: faults as data, read and validated line by line, and the source that each makes of the specimen."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.core.errors import HarnessError, did_you_mean

CATALOGUE = Path(__file__).with_name("catalogue.toml")
SPECIMEN = Path(__file__).with_name("specimen.py")
SUBJECT_MATTERS = ("structure", "behaviour", "generation", "loading")
COMMON = {"id", "what", "source", "change"}
KEYS = {"fault": COMMON | {"kind", "where", "layer", "alike"}, "control": COMMON, "later": {"suite", "why", "ids"}}


@dataclass(frozen=True)
class Fault:
    """One known way to be wrong, or a control: an equivalent program, which is no fault at all.

    `where`: the components that may be named, `layer` the only one that is hit (-1 is the last). `alike`: ids of
    faults that cannot be told from this one by what the program does. `change`: (what stands in the specimen exactly
    once, what is put in its place).
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

    @property
    def is_control(self) -> bool:
        """Whether nothing may be said against it."""
        return self.kind == "control"

    def source_text(self, specimen: str) -> str:
        """The specimen's text with the fault in it. HarnessError where a text to replace is not there exactly once."""
        text = specimen
        for find, put in self.change:
            if (found := text.count(find)) != 1:
                raise HarnessError(
                    f"{CATALOGUE}:{self.line}: {self.id}: {find!r} stands {found} times in {SPECIMEN.name}, "
                    "expected exactly once"
                )
            text = text.replace(find, put)
        return text

    def lines(self, specimen: str) -> frozenset[int]:
        """The lines of the specimen that are changed; none where something is added that other lines can reach.

        A method that is put in may stand for an inherited one, which every check may call.
        """
        if any("def " in put and "def " not in find for find, put in self.change) or any(
            "    def " in put for _, put in self.change
        ):
            return frozenset()
        spans = []
        for find, _ in self.change:
            start = specimen.count("\n", 0, specimen.index(find)) + 1
            first = start + len(find) - len(find.lstrip("\n"))
            spans.append(range(first, start + find.rstrip().count("\n") + 1))
        return frozenset(line for span in spans for line in span)

    def localised_by(self, where: str, fault: str, layers: int) -> bool:
        """Whether `where`, a component as a diagnosis names it, is one of the wrong ones and of the right layer.

        The name of a suite alone, without the name of a fault, says no more than that something failed.
        """
        number, component = _parted(where)
        if component in SUBJECT_MATTERS and not fault:
            return False
        if self.layer is not None and number not in ("", str(self.layer % layers)):
            return False
        component = component or ("block" if number else "")  # "h.2": a whole block
        return any(component == place or component.startswith(f"{place}.") for place in self.where)

    def named_by(self, fault: str) -> bool:
        """Whether `fault`, an id as a diagnosis gives it, is this one or cannot be told from it."""
        return fault == self.id or fault in self.alike


@dataclass(frozen=True)
class Catalogue:
    """Faults, controls, and the ids that wait for suites to come, with the reason."""

    faults: tuple[Fault, ...]
    controls: tuple[Fault, ...]
    later: Mapping[str, str]

    def chosen(self, ids: list[str]) -> list[Fault]:
        """Those of these ids, or all, controls last."""
        known = {fault.id: fault for fault in (*self.faults, *self.controls)}
        for name in ids:
            if name in self.later:
                raise HarnessError(f"{name} is not injected: {self.later[name]}")
            if name not in known:
                raise HarnessError(f"no fault '{name}'; {did_you_mean(name, known)}")
        return [fault for name, fault in known.items() if not ids or name in ids]


def read_catalogue(path: Path = CATALOGUE) -> Catalogue:
    """The catalogue in `path`. Whatever is not understood is a HarnessError that begins with file and line."""
    text = path.read_text(encoding="utf-8")
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"line (\d+)", str(error))
        raise HarnessError(f"{path}:{line.group(1) if line else 1}: not TOML: {error}") from error
    if unknown := set(data) - set(KEYS):
        raise HarnessError(f"{path}:1: unknown table '{min(unknown)}'; {did_you_mean(min(unknown), KEYS)}")
    faults = tuple(_fault(path, line, table, "fault") for line, table in _tables(path, text, data, "fault"))
    controls = tuple(_fault(path, line, table, "control") for line, table in _tables(path, text, data, "control"))
    later = {id: table["why"] for _, table in _tables(path, text, data, "later") for id in table["ids"]}
    known: dict[str, int] = {}
    for fault in (*faults, *controls):
        if fault.id in known or fault.id in later:
            raise HarnessError(f"{path}:{fault.line}: '{fault.id}' is there already, in line {known.get(fault.id)}")
        known[fault.id] = fault.line
    for fault in faults:
        if unmapped_parameters := [name for name in fault.alike if name not in known]:
            raise HarnessError(
                f"{path}:{fault.line}: alike '{unmapped_parameters[0]}'; {did_you_mean(unmapped_parameters[0], known)}"
            )
    return Catalogue(faults, controls, later)


def _tables(path: Path, text: str, data: dict[str, Any], kind: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, table) of each table of a kind, its keys checked."""
    starts = [n for n, line in enumerate(text.splitlines(), 1) if re.match(rf"\s*\[\[\s*{kind}\s*\]\]", line)]
    for line, table in zip(starts, data.get(kind, []), strict=True):
        for key in table:
            if key not in KEYS[kind]:
                raise HarnessError(f"{path}:{line}: unknown key '{key}' of a {kind}; {did_you_mean(key, KEYS[kind])}")
        for key in KEYS[kind] - {"layer", "alike"}:
            if key not in table or (not table[key] and not (kind == "control" and key == "change")):
                raise HarnessError(f"{path}:{line}: a {kind} needs a {key}")
        yield line, table


def _fault(path: Path, line: int, table: dict[str, Any], kind: str) -> Fault:
    change = table["change"]
    if not isinstance(change, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in change
    ):
        raise HarnessError(f"{path}:{line}: change: expected a list of [what stands there, what is put there]")
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
    )


def _parted(where: str) -> tuple[str, str]:
    """The layer and the component: `h.2.attn.mask` -> ('2', 'attn.mask'); `h.*` is all layers, and '' is none."""
    match = re.fullmatch(r"h\.(\d+|\*)(?:\.(.+))?", where.removeprefix("transformer."))
    return (match[1], match[2] or "") if match else ("", where.removeprefix("transformer."))
