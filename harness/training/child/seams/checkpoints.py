"""The seam of checkpoints: what a program saves and loads, by torch or safetensors."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from harness.training.child.recorder import Recorder
from harness.training.child.seams.patches import Patches
from harness.training.recording_files import digests

MOST_KEYS, DEEPEST = 5000, 5


class CheckpointSeam:
    """Replaced functions that save and load."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.state_line = ""

    def install(self, patches: Patches) -> None:
        """Replace them."""
        patches.replace(nn.Module, "state_dict", self._reads_state)
        patches.replace(torch, "save", lambda original: self._saves(original, "f"))
        patches.replace(torch, "load", lambda original: self._loads(original, "f"))
        patches.replace(safetensors.torch, "save_file", lambda original: self._saves(original, "filename"))
        patches.replace(safetensors.torch, "load_file", lambda original: self._loads(original, "filename"))

    def _reads_state(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def state_dict(module: nn.Module, *args: Any, **options: Any) -> Any:
            if self.recorder.active:
                with self.recorder.observing():
                    self.state_line = self.recorder.line()
            return original(module, *args, **options)

        return state_dict

    def _saves(self, original: Callable[..., Any], place: str) -> Callable[..., Any]:
        def save(saved: Any, *args: Any, **options: Any) -> Any:
            if self.recorder.active:
                self.recorder.goes_on(surely=True)
            result = original(saved, *args, **options)
            if self.recorder.active:
                with self.recorder.observing():
                    more = {"weights": digests(list(_tensors(saved))), "trained": digests(self._trained)}
                    self._event(
                        "Save", args[0] if args else options.get(place), saved, state_line=self.state_line, **more
                    )
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

    @property
    def _trained(self) -> list[Tensor]:
        model = self.recorder.names.model
        return [] if model is None else list(model.parameters())

    def _event(self, kind: str, place: Any, contents: Any, **more: Any) -> None:
        path = os.fspath(place) if isinstance(place, str | os.PathLike) else str(getattr(place, "name", "(a buffer)"))
        keys = [key for key, _ in zip(_keys(contents), range(MOST_KEYS), strict=False)]
        self.recorder.event(kind, step=self.recorder.step, path=path, keys=keys, line=self.recorder.line(), **more)


def _keys(contents: Any, prefix: str = "", depth: int = DEEPEST) -> Iterator[str]:
    """Yield the keys of nested mappings, joined by dots; those of what is no mapping are its end."""
    if isinstance(contents, dict) and contents and depth:
        for key, value in contents.items():
            yield from _keys(value, f"{prefix}.{key}" if prefix else str(key), depth - 1)
    elif prefix:
        yield prefix


def _tensors(contents: Any, depth: int = DEEPEST) -> Iterator[Tensor]:
    """Yield the tensors of floating-point numbers in nested mappings and lists, and of modules."""
    if isinstance(contents, Tensor):
        if contents.is_floating_point():
            yield contents
    elif isinstance(contents, nn.Module):
        yield from contents.parameters()
    elif depth and isinstance(contents, Mapping | list | tuple):
        for value in contents.values() if isinstance(contents, Mapping) else contents:
            yield from _tensors(value, depth - 1)
