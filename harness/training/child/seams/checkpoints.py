"""The seam of checkpoints: what a program saves and loads, by torch or safetensors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import safetensors.torch
import torch

from harness.training.child.recorder import Recorder
from harness.training.child.seams.patches import Patches

MOST_KEYS, DEEPEST = 5000, 5


class CheckpointSeam:
    """Replaced functions that save and load."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def install(self, patches: Patches) -> None:
        """Replace them."""
        patches.replace(torch, "save", lambda original: self._saves(original, "f"))
        patches.replace(torch, "load", lambda original: self._loads(original, "f"))
        patches.replace(safetensors.torch, "save_file", lambda original: self._saves(original, "filename"))
        patches.replace(safetensors.torch, "load_file", lambda original: self._loads(original, "filename"))

    def _saves(self, original: Callable[..., Any], place: str) -> Callable[..., Any]:
        def save(saved: Any, *args: Any, **options: Any) -> Any:
            if self.recorder.active:
                self.recorder.goes_on(surely=True)
            result = original(saved, *args, **options)
            if self.recorder.active:
                with self.recorder.observing():
                    self._event("Save", args[0] if args else options.get(place), saved)
            return result

        return save

    def _loads(self, original: Callable[..., Any], place: str) -> Callable[..., Any]:
        def load(*args: Any, **options: Any) -> Any:
            result = original(*args, **options)
            if self.recorder.active:
                with self.recorder.observing():
                    self._event("Load", args[0] if args else options.get(place), result)
            return result

        return load

    def _event(self, kind: str, place: Any, contents: Any) -> None:
        path = os.fspath(place) if isinstance(place, str | os.PathLike) else str(getattr(place, "name", "(a buffer)"))
        keys = [key for key, _ in zip(_keys(contents), range(MOST_KEYS), strict=False)]
        self.recorder.event(kind, step=self.recorder.step, path=path, keys=keys, line=self.recorder.line())


def _keys(contents: Any, prefix: str = "", depth: int = DEEPEST) -> Iterator[str]:
    """Yield the keys of nested mappings, joined by dots; those of what is no mapping are its end."""
    if isinstance(contents, dict) and contents and depth:
        for key, value in contents.items():
            yield from _keys(value, f"{prefix}.{key}" if prefix else str(key), depth - 1)
    elif prefix:
        yield prefix
