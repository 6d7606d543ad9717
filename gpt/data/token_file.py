"""The token file: the token ids of a text, stored once, checked, and read where they are needed (memory-mapped).

The layout, all numbers little-endian:

    8 bytes   b"GPTTOKEN"
    8 bytes   the length of the header
    header    JSON, filled with spaces: version, dtype, count, vocabulary {name, size, digest}, sha256 of the ids
    ids       count ids of dtype, from a multiple of 64 bytes on
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt.data.vocabulary import Vocabulary
from gpt.data.whole_file import whole_file
from gpt.errors import TokenError, TokenFileCorrupt, TokenFileError

MAGIC = b"GPTTOKEN"
VERSION = 1
ALIGNMENT = 64
LONGEST_HEADER = 1 << 16
HEADER = {"version": int, "dtype": str, "count": int, "vocabulary": dict, "sha256": str}
PIECE = 1 << 20
"""The ids that are converted or checked at a time."""

Ids = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class TokenFile:
    """An intact token file. `tokens` are its ids, (N) of uint16 or uint32, memory-mapped: a write stays in memory."""

    path: Path
    header: dict[str, Any]
    tokens: Tensor

    @classmethod
    def write(cls, path: Path, ids: Tensor, vocabulary: Vocabulary) -> None:
        """Write the ids of a text, 1-D, whole or not at all: another process sees the old file or the new one.

        Raises `TokenError` for ids that are not 1-D integers of the vocabulary, `TokenFileError` if it cannot be
        written.
        """
        array = _checked_ids(ids, vocabulary)
        dtype = dtype_of(vocabulary.size)
        checksum = hashlib.sha256()
        for piece in _pieces(array):
            checksum.update(piece.astype(dtype).tobytes())
        contents = {
            "version": VERSION,
            "dtype": dtype.name,
            "count": len(array),
            "vocabulary": describe(vocabulary),
            "sha256": checksum.hexdigest(),
        }
        try:
            with whole_file(path) as file:
                file.write(_header_bytes(contents))
                for piece in _pieces(array):
                    file.write(piece.astype(dtype).tobytes())
        except OSError as error:
            raise TokenFileError(f"{path}: cannot be written ({error.strerror}); give another folder") from error

    @classmethod
    def open(cls, path: Path, vocabulary: Vocabulary) -> "TokenFile":
        """Return the token file at `path`, checked: its ids are read once, and from then on only where needed.

        Raises `TokenFileError` if it cannot be read, is no token file, or is of a newer version or another
        vocabulary; `TokenFileCorrupt` if it was cut off or changed.
        """
        try:
            with path.open("rb") as file:
                header, offset = _read_header(path, file.read(len(MAGIC) + 8 + LONGEST_HEADER))
                size = os.fstat(file.fileno()).st_size
        except OSError as error:
            raise TokenFileError(f"{path}: cannot be read ({error.strerror}); expected a token file") from error
        _check_vocabulary(path, header, vocabulary)
        dtype = dtype_of(vocabulary.size)
        expected = offset + header["count"] * dtype.itemsize
        if size != expected:
            what = "was cut off" if size < expected else "has something behind its ids"
            raise TokenFileCorrupt(
                f"{path}: {what}: has {size:,} bytes, expected {expected:,} for {header['count']:,} ids; "
                "delete it and encode the text again"
            )
        # "c": writes change this process's copy only; torch warns about memory that cannot be written at all.
        array: Ids = (
            np.memmap(path, dtype, mode="c", offset=offset, shape=(header["count"],))
            if header["count"]
            else np.zeros(0, dtype)
        )
        _check_ids(path, header, array, vocabulary)
        return cls(path, header, torch.from_numpy(array))


def dtype_of(size: int) -> np.dtype[Any]:
    """Return the smallest type that has every id of a vocabulary of `size`: uint16 up to 65,536, else uint32."""
    return np.dtype("<u2") if size <= 1 << 16 else np.dtype("<u4")


def describe(vocabulary: Vocabulary) -> dict[str, Any]:
    """Return what a header says about the vocabulary."""
    return {"name": vocabulary.name, "size": vocabulary.size, "digest": vocabulary.digest}


# ---------------------------------------------------------------------------- writing


def _checked_ids(ids: Tensor, vocabulary: Vocabulary) -> Ids:
    if ids.dim() != 1 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise TokenError(f"token ids are of shape {tuple(ids.shape)} and {ids.dtype}; expected 1-D integers")
    array: Ids = ids.detach().cpu().numpy()
    for piece in _pieces(array):
        if len(outside := piece[(piece < 0) | (piece >= vocabulary.size)]):
            raise TokenError(
                f"token id {int(outside[0])} is outside the vocabulary '{vocabulary.name}' of {vocabulary.size}; "
                f"expected 0 to {vocabulary.size - 1}: was the text encoded for another vocabulary?"
            )
    return array


def _header_bytes(contents: dict[str, Any]) -> bytes:
    text = json.dumps(contents).encode()
    text += b" " * (-(len(MAGIC) + 8 + len(text)) % ALIGNMENT)
    return MAGIC + len(text).to_bytes(8, "little") + text


def _pieces(array: Ids) -> Iterator[Ids]:
    return (array[start : start + PIECE] for start in range(0, len(array), PIECE))


# ---------------------------------------------------------------------------- reading


def _read_header(path: Path, start: bytes) -> tuple[dict[str, Any], int]:
    """Return the header and the position of the first id."""
    if start[: len(MAGIC)] != MAGIC:
        raise TokenFileError(
            f"{path}: is no token file: begins with {start[: len(MAGIC)]!r}, expected {MAGIC!r}; "
            "gpt.data.corpus writes one from a text"
        )
    offset = len(MAGIC) + 8 + int.from_bytes(start[len(MAGIC) : len(MAGIC) + 8], "little")
    try:
        header = json.loads(start[len(MAGIC) + 8 : offset])
        if header["version"] > VERSION:
            raise TokenFileError(
                f"{path}: is of version {header['version']}, newer than this program's {VERSION}; update the program, "
                "or delete the file and encode the text again"
            )
        intact = all(isinstance(header[key], kind) for key, kind in HEADER.items())
        intact = intact and header["vocabulary"].keys() == {"name", "size", "digest"}
        intact = intact and header["version"] == VERSION and header["count"] >= 0 and offset % ALIGNMENT == 0
    except (ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        raise TokenFileCorrupt(f"{path}: its header was cut off or changed; delete it and encode the text again")
    return header, offset


def _check_vocabulary(path: Path, header: dict[str, Any], vocabulary: Vocabulary) -> None:
    found, expected = header["vocabulary"], describe(vocabulary)
    if found != expected:
        raise TokenFileError(
            f"{path}: was encoded with the vocabulary {_name(found)}, expected {_name(expected)}; "
            "encode the text again, or give the vocabulary that it was encoded with"
        )
    if header["dtype"] != dtype_of(vocabulary.size).name:
        raise TokenFileCorrupt(
            f"{path}: its header says {header['dtype']}, expected {dtype_of(vocabulary.size).name}; "
            "delete it and encode the text again"
        )


def _name(described: dict[str, Any]) -> str:
    return f"'{described['name']}' of {described['size']} ({str(described['digest'])[:12]})"


def _check_ids(path: Path, header: dict[str, Any], array: Ids, vocabulary: Vocabulary) -> None:
    checksum, highest = hashlib.sha256(), -1
    for piece in _pieces(array):
        checksum.update(piece.tobytes())
        highest = max(highest, int(piece.max()))
    if checksum.hexdigest() != header["sha256"]:
        raise TokenFileCorrupt(
            f"{path}: its ids have the sha256 {checksum.hexdigest()}, expected {header['sha256']}; they were changed "
            "or damaged: delete it and encode the text again"
        )
    if highest >= vocabulary.size:
        raise TokenError(
            f"{path}: token id {highest} is outside the vocabulary '{vocabulary.name}' of {vocabulary.size}; "
            f"expected 0 to {vocabulary.size - 1}: delete it and encode the text again"
        )
