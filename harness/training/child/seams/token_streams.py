"""The streams of tokens that a program reads or makes: long integer arrays of one dimension."""

from __future__ import annotations

import contextlib
import functools
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.training.child.recorder import Recorder
from harness.training.child.seams.patches import Patches
from harness.training.recording_files import digest

SHORTEST = 100  # tokens: a batch's row is shorter at the debug size
LONGEST = 4_000_000  # tokens: more are left out at the end
MOST_OF_A_LINE = 8  # streams that one line makes; a line that makes more makes batches


class TokenStreams:
    """Records each stream once, whichever way the program comes to it."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._seen: set[Any] = set()
        self._of_line: Counter[str] = Counter()

    def install(self, patches: Patches) -> None:
        """Replace the functions that read arrays by ones that are watched."""
        patches.replace(np.memmap, "__new__", self._memmap)
        for owner, name in ((np, "fromfile"), (np, "load"), (np, "frombuffer"), (torch, "from_numpy")):
            patches.replace(owner, name, functools.partial(self._reader, f"{owner.__name__}.{name}"))
        with contextlib.suppress(ImportError):
            from tiktoken import Encoding  # programs without it do not pay for it

            for name in ("encode", "encode_ordinary"):
                patches.replace(Encoding, name, functools.partial(self._encoder, f"tiktoken.{name}"))

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
            kind = str(value.dtype).removeprefix("torch.")
            self.recorder.event("Stream", name=name, dtype=kind, ids=ids.detach().cpu(), length=len(value))

    def _encoder(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def encode(*args: Any, **options: Any) -> Any:
            result = original(*args, **options)
            if self.recorder.active and len(result) >= SHORTEST:
                with self.recorder.observing():
                    self.saw(np.asarray(result), name)
            return result

        return encode

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
