"""Safetensors files, checked before use: each must be whole and unchanged, and no pickle is ever opened."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt.errors import WeightsError


class Checkpoint(Mapping[str, Tensor]):
    """The tensors of one or more safetensors files, each read on access.

    A file is memory-mapped again for each tensor, so that earlier tensors do not stay in memory.

    Raises `WeightsError` for a file that is not whole, or a tensor that is in two files.
    """

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.digests: dict[Path, str] = {}
        for path in paths:
            with _open(path) as file:
                names = list(file.keys())
                self.shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in names}
                if "sha256" in (file.metadata() or {}):
                    self.digests[path] = file.metadata()["sha256"]
            for name in names:
                if name in self.files:
                    raise WeightsError(f"{path}: {name} is in {self.files[name].name} too; expected it once")
                self.files[name] = path

    def __getitem__(self, name: str) -> Tensor:
        with _open(self.files[name]) as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)

    def verify(self) -> None:
        """Raise `WeightsError` for contents that do not match their checksum, where there is one.

        There is one in files of `save_pretrained`, and for large files in the hub's cache, which are named by theirs.
        """
        for path in self.paths:
            verify_blob(path)
        for path, expected in self.digests.items():
            found = digest(self, [name for name, file in self.files.items() if file == path])
            if found != expected:
                raise WeightsError(
                    f"{path}: the weights have the sha256 {found}, expected {expected}; the file was changed "
                    "or damaged after it was written: save or fetch it again"
                )


def digest(tensors: Mapping[str, Tensor], names: list[str]) -> str:
    """Return the sha256 over the named tensors: their names, dtypes, shapes and bytes."""
    total = hashlib.sha256()
    for name in sorted(names):
        tensor = tensors[name]
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        data: Any = (
            tensor.contiguous().view(torch.uint8).numpy()
        )  # no copy; Any, since numpy's stubs do not declare a buffer
        total.update(data)
    return total.hexdigest()


def verify_blob(path: Path) -> None:
    """Raise `WeightsError` unless a file named by its sha256, as large files in the hub's cache are, matches it."""
    expected = path.resolve().name
    if not re.fullmatch(r"[0-9a-f]{64}", expected):
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise WeightsError(
            f"{path}: has the sha256 {found}, expected {expected}; the file was changed or damaged: "
            f"delete {path.resolve()} and load it again"
        )


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; `WeightsError` when the file is not JSON or not an object."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # RecursionError: nested too deep
        raise WeightsError(f"{path}: not a JSON file ({error}); fetch it again") from error
    if not isinstance(raw, dict):
        raise WeightsError(f"{path}: contains a {type(raw).__name__}; expected a JSON object")
    return raw


def _open(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open  # here to save start-up time

    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path}: not a whole safetensors file ({error}); it is truncated or damaged: fetch it again"
        ) from error
