"""The files of a recording: events as JSON lines, and tensors in one file that only grows.

A process may be killed at any moment: what it had written until then is readable. Equal tensors are stored once; the
parameters after a step are those before the next. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.training.events import (
    Backward,
    Clip,
    Event,
    Forward,
    Load,
    LookAhead,
    MadeNaN,
    Printed,
    Save,
    Seeded,
    Stream,
    Zeroed,
)
from harness.training.optimizer_steps import Group, Step
from harness.training.recording import Parameter

EVENTS, TENSORS = "events.jsonl", "tensors.bin"
ALIGNMENT = 64  # bytes; a multiple of every element's size, so that a stored tensor can be viewed in its own type
KINDS: dict[str, type[Event]] = {
    kind.__name__: kind
    for kind in (Forward, Backward, MadeNaN, Zeroed, Clip, Step, Save, Load, Stream, Printed, LookAhead, Seeded)
}

Row = dict[str, Any]
MOST_HASHED = 1 << 22  # numbers


def digest(tensor: Tensor) -> str:
    """Return a hash of a tensor's type, shape and bytes."""
    found = hashlib.blake2b(f"{tensor.dtype}{tuple(tensor.shape)}".encode(), digest_size=12)
    found.update(_raw(tensor))
    return found.hexdigest()


def digests(tensors: Sequence[Tensor]) -> tuple[str, ...]:
    """Return the hashes of tensors; () if they have too many numbers to hash them often."""
    return tuple(map(digest, tensors)) if sum(each.numel() for each in tensors) <= MOST_HASHED else ()


class RecordingWriter:
    """Writes a recording into a folder, from one process. Its writes reach the operating system at once."""

    def __init__(self, folder: Path) -> None:
        self._events = (folder / EVENTS).open("a", encoding="utf-8", buffering=1)
        self._tensors = (folder / TENSORS).open("ab", buffering=0)
        self._stored: dict[str, Row] = {}
        self.bytes = 0
        """The bytes of tensors so far."""

    def event(self, kind: str, row: Mapping[str, Any]) -> None:
        """Write one event. Its tensors are replaced by where they are stored."""
        self._events.write(json.dumps({"event": kind, **row}, default=self._encoded) + "\n")

    def store(self, tensor: Tensor) -> tuple[Row, str]:
        """Return where a tensor is stored, as JSON, and its hash."""
        tensor = tensor.detach()
        key = digest(tensor)
        if key not in self._stored:
            raw = _raw(tensor)
            raw += b"\0" * (-len(raw) % ALIGNMENT)
            self._tensors.write(raw)
            kind = str(tensor.dtype).removeprefix("torch.")
            self._stored[key] = {"tensor": kind, "shape": list(tensor.shape), "at": self.bytes}
            self.bytes += len(raw)
        return self._stored[key], key

    def close(self) -> None:
        """Close the files."""
        self._events.close()
        self._tensors.close()

    def _encoded(self, value: object) -> Any:
        return self.store(value)[0] if isinstance(value, Tensor) else str(value)


class RecordingReader:
    """Reads what a RecordingWriter wrote, also if the writer was killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def rows(self) -> list[Row]:
        """Return the rows as they were written; a last one that is cut off is left out."""
        path = self.folder / EVENTS
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        rows: list[Row] = []
        for line in lines:
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
        return rows

    def one(self, kind: str) -> Row:
        """Return the last row of a kind that is no event, or {}."""
        return next((row for row in reversed(self.rows) if row["event"] == kind), {})

    def parameters(self) -> dict[str, Parameter]:
        """Return the model's parameters by name."""
        found = self.one("parameters").get("parameters", {})
        return {name: Parameter(**{**row, "shape": tuple(row["shape"])}) for name, row in found.items()}

    def events(self) -> tuple[Event, ...]:
        """Return the events in their order. The tensors of steps are read when they are asked for."""
        replayed = {row["number"]: row for row in self.rows if row["event"] == "replayed"}
        found = [self._event(row, replayed) for row in self.rows if row["event"] in KINDS]
        return tuple(sorted(found, key=lambda event: event.order))

    def _event(self, row: Row, replayed: Mapping[int, Row]) -> Event:
        kind = KINDS[row["event"]]
        values: Row = {field.name: row[field.name] for field in fields(kind) if field.name in row}
        if kind is Step:
            more = replayed.get(row["number"], {})
            parts = {**row["tensors"], **more.get("tensors", {})}
            values["tensors"] = _Parts(self._parsed, parts)
            values["unrecorded"] = row.get("unrecorded") or more.get("because", "")
            values["groups"] = tuple(map(_group, row["groups"]))
        elif kind in (Forward, Stream):
            values = {name: self._parsed(value) for name, value in values.items()}
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return kind(**values)

    def _parsed(self, value: Any) -> Any:
        """Return a value with the tensors that it refers to."""
        if not isinstance(value, dict):
            return value
        if "tensor" not in value:
            return {name: self._parsed(part) for name, part in value.items()}
        kind = getattr(torch, value["tensor"])
        count = torch.Size(value["shape"]).numel()
        raw = self._bytes[value["at"] : value["at"] + count * kind.itemsize]
        return raw.view(kind).view(value["shape"]) if count else torch.empty(value["shape"], dtype=kind)

    @cached_property
    def _bytes(self) -> Tensor:
        """Return the file of the tensors, mapped into memory; a change of it stays in this process."""
        path = self.folder / TENSORS
        size = path.stat().st_size
        return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8) if size else torch.empty(0)


class _Parts(Mapping[str, Any]):
    """The tensors of a step by part, read at the first access."""

    def __init__(self, parse: Callable[[Any], Any], rows: Mapping[str, Any]) -> None:
        self._parse, self._rows = parse, rows
        self._read: Row = {}

    def __getitem__(self, part: str) -> Any:
        if part not in self._read:
            self._read[part] = self._parse(self._rows[part])
        return self._read[part]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


def _group(row: Row) -> Group:
    betas = row["betas"]
    return Group(**{**row, "betas": tuple(betas) if betas is not None else None, "names": tuple(row["names"])})


def _raw(tensor: Tensor) -> bytes:
    """Return the bytes of a tensor, in row-major order."""
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
