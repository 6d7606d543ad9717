"""The streams of tokens that a program reads or makes: long integer arrays of one dimension."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.training.child.recorder import Recorder
from harness.training.child.seams.patches import Patches
from harness.training.child.user_lines import values_in_frames
from harness.training.events import MOST_OF_A_LINE
from harness.training.recording_files import digest

SHORTEST = 100  # tokens: a batch's row is shorter at the debug size
LONGEST = 4_000_000  # tokens: more are left out at the end
# Where the classes of tokenizers are, and their methods that return the ids of a text.
TOKENIZERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "tiktoken.core": ("Encoding", ("encode", "encode_ordinary")),
    "transformers.tokenization_utils_base": ("PreTrainedTokenizerBase", ("encode", "__call__")),
}


class TokenStreams:
    """Records each stream once, whichever way the program comes to it."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._seen: set[Any] = set()
        self._of_line: Counter[str] = Counter()
        self._looked = False
        self._arrays: list[np.ndarray[Any, Any]] = []

    def install(self, patches: Patches) -> None:
        """Replace the functions that read arrays by ones that are watched."""
        patches.replace(np.memmap, "__new__", self._memmap)
        for owner, name in ((np, "fromfile"), (np, "load"), (np, "frombuffer"), (torch, "from_numpy")):
            patches.replace(owner, name, functools.partial(self._reader, f"{owner.__name__}.{name}"))
        for module, (kind, names) in TOKENIZERS.items():
            patches.when_imported(module, functools.partial(self._watch, patches, kind, names))
        patches.when_imported(
            "torch.utils.data.dataloader",
            lambda module: patches.replace(module.DataLoader, "__init__", self._loader),
        )

    def _watch(self, patches: Patches, kind: str, names: Sequence[str], module: ModuleType) -> None:
        """Replace the methods of a class of tokenizers."""
        for name in names:
            encoder = functools.partial(self._encoder, f"{module.__name__.partition('.')[0]}.{name}")
            patches.replace(getattr(module, kind), name, encoder)

    def saw(self, value: Any, name: str) -> None:
        """Record an array or a tensor, if it is a stream that is not known yet. `name` says where it comes from."""
        if not _is_long(value):
            return
        line = self.recorder.line()
        key = (name, line)
        if self._of_line[f"{key}"] >= MOST_OF_A_LINE:
            return
        head = value[:LONGEST]
        ids = torch.from_numpy(np.asarray(head).astype(np.int64)) if isinstance(head, np.ndarray) else head.long()
        found = digest(ids)
        if found not in self._seen:
            self._seen.add(found)
            self._of_line[f"{key}"] += 1
            self._arrays.append(ids.detach().cpu().numpy())
            kind = str(value.dtype).removeprefix("torch.")
            self.recorder.event("Stream", name=name, dtype=kind, ids=ids.detach().cpu(), length=len(value), line=line)

    def look_around(self, ids: Tensor) -> None:
        """Record the arrays in the functions being executed that are streams, once, if no row is of one that was seen.

        They are streams if one of them has a row of the first batch (B, T): those of its type then, and no orders of
        windows or lengths of documents.
        """
        rows = ids.detach().cpu().numpy()
        if self._looked or any(_has_row(array, row) for array in self._arrays for row in rows):
            return
        self._looked = True
        found = [(name, _as_array(value)) for name, value in values_in_frames() if _is_stream_like(value)]
        kinds = {array.dtype for _, array in found if any(_has_row(array, row) for row in rows)}
        for name, array in found:
            if array.dtype in kinds:
                self.saw(array, name)

    def _encoder(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def encode(*args: Any, **options: Any) -> Any:
            result = original(*args, **options)
            ids = result.get("input_ids", ()) if isinstance(result, Mapping) else result
            if self.recorder.active and isinstance(ids, list) and len(ids) >= SHORTEST and isinstance(ids[0], int):
                with self.recorder.observing():
                    self.saw(np.asarray(ids), name)
            return result

        return encode

    def _loader(self, original: Callable[..., None]) -> Callable[..., None]:
        def init(loader: Any, dataset: Any, *args: Any, **options: Any) -> None:
            original(loader, dataset, *args, **options)
            if self.recorder.active and not self._seen:
                with self.recorder.observing():
                    self._saw_in(dataset)

        return init

    def _saw_in(self, dataset: Any) -> None:
        """Record the longest list of ids that a dataset keeps: the program's own tokenizer may have made it."""
        while hasattr(dataset, "dataset"):  # a part of another one
            dataset = dataset.dataset
        lists = {name: value for name, value in getattr(dataset, "__dict__", {}).items() if _is_list_of_ids(value)}
        if lists:
            name, ids = max(lists.items(), key=lambda each: len(each[1]))
            self.saw(np.asarray(ids[:LONGEST]), f"{type(dataset).__name__}.{name}")

    def _reader(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def read(*args: Any, **options: Any) -> Any:
            result = original(*args, **options)
            if self.recorder.active and _is_long(result):
                file = args[0] if args and isinstance(args[0], str | os.PathLike) else None
                with self.recorder.observing():
                    self.saw(result, name if file is None else os.fspath(file))
            return result

        return read

    def _memmap(self, original: Callable[..., Any]) -> Any:
        def new(cls: type, filename: Any, *args: Any, **options: Any) -> Any:
            result = original(cls, filename, *args, **options)
            key = (str(filename), str(result.dtype), getattr(result, "offset", 0), result.shape)
            # A program may map the same file again for each batch.
            if self.recorder.active and key not in self._seen and _is_long(result):
                self._seen.add(key)
                with self.recorder.observing():
                    self.saw(result, str(filename))
            return result

        return staticmethod(new)


def _is_long(value: Any) -> bool:
    if isinstance(value, Tensor):
        whole = not value.is_floating_point() and value.dtype != torch.bool and not value.is_complex()
        return whole and value.dim() == 1 and len(value) >= SHORTEST
    return isinstance(value, np.ndarray) and value.dtype.kind in "iu" and value.ndim == 1 and len(value) >= SHORTEST


def _is_stream_like(value: Any) -> bool:
    is_bytes = isinstance(value, bytes | bytearray) and len(value) >= SHORTEST
    return is_bytes or _is_long(value) or _is_list_of_ids(value)


def _as_array(value: Any) -> np.ndarray[Any, Any]:
    if isinstance(value, bytes | bytearray):
        return np.frombuffer(value, dtype=np.uint8)
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def _has_row(array: np.ndarray[Any, Any], row: np.ndarray[Any, Any]) -> bool:
    """Return True if these ids follow one another somewhere in an array."""
    places = np.flatnonzero(array[: max(0, len(array) - len(row) + 1)] == row[0])
    for offset, token in enumerate(row):
        places = places[array[places + offset] == token]
    return len(places) > 0


def _is_list_of_ids(value: Any) -> bool:
    return isinstance(value, list) and len(value) >= SHORTEST and all(type(each) is int for each in value)
