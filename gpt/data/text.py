"""Texts as they are, and as GPT-2's tokens."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gpt.data import published
from gpt.errors import DataUnavailable, TextError

if TYPE_CHECKING:
    import tiktoken


def tokens(name_or_path: str | os.PathLike[str] = "tinyshakespeare") -> Tensor:
    """Return the GPT-2 tokens of a text, (N) of int64.

    Raises the errors of `load_text` and `tokenizer`.
    """
    text = load_text(name_or_path)
    # Ordinary: "<|endoftext|>" inside a text is text, not the special token.
    return torch.tensor(tokenizer().encode_ordinary(text), dtype=torch.int64)


def load_text(name_or_path: str | os.PathLike[str] = "tinyshakespeare") -> str:
    """Return a text: a published one by its name, or any file in UTF-8.

    Raises `DataUnavailable` when there is no such file, `DataCorrupt` when a published text does not match its
    checksum, `TextError` when the text is empty or not UTF-8.
    """
    source = published.TEXTS.get(str(name_or_path))
    path = published.locate((source,)) / source.file if source else Path(name_or_path).expanduser()
    try:
        raw = path.read_bytes()  # not read_text, which would change the line ends
    except OSError as error:
        raise DataUnavailable(
            f"{path}: cannot be read ({error.strerror}); expected a file, or one of {', '.join(published.TEXTS)}"
        ) from error
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TextError(
            f"{path}: the byte {raw[error.start]:#04x} at offset {error.start} is not UTF-8 ({error.reason}); "
            "convert the file, for instance with iconv -f latin1 -t utf-8"
        ) from error
    if not text:
        raise TextError(f"{path}: is empty; expected a text")
    return text


@lru_cache(maxsize=1)
def tokenizer() -> "tiktoken.Encoding":
    """Return GPT-2's byte-pair encoding, by tiktoken.

    Raises `DataUnavailable` or `DataCorrupt` when its two files cannot be found or do not match their checksums.
    """
    import tiktoken  # here to save start-up time: the model needs no tokenizer

    with _environment("TIKTOKEN_CACHE_DIR", str(published.locate(published.VOCABULARY))):
        return tiktoken.get_encoding("gpt2")


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
