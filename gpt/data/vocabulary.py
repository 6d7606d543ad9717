"""Vocabularies: the tokens that a model knows, and how text becomes their ids and ids become text."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from gpt.data import published
from gpt.data.text import tokenizer
from gpt.errors import ConfigError, TextError, TokenError, UnknownCharacter

GPT2_SIZE = 50_257
"""256 bytes, 50,000 merges and "<|endoftext|>" (Radford et al. 2019, section 2.2)."""


class Vocabulary(ABC):
    """The tokens of a model, as ids from 0 to `size` - 1. Equal vocabularies give every text the same ids."""

    name: ClassVar[str]
    """"gpt2", "bytes" or "characters"."""

    @property
    @abstractmethod
    def size(self) -> int:
        """The number of tokens."""

    @abstractmethod
    def encode(self, text: str) -> Tensor:
        """Return the token ids of a text, (N) of int64. Raises `UnknownCharacter` for what no token stands for."""

    def decode(self, ids: Iterable[int] | Tensor) -> str:
        """Return the text of token ids, 1-D. Raises `TokenError` for an id that is not in the vocabulary."""
        listed: list[int] = ids.tolist() if isinstance(ids, Tensor) else [int(number) for number in ids]
        for position, number in enumerate(listed):
            if not isinstance(number, int):
                raise TokenError(f"decode takes token ids of one row, 1-D; found {type(number).__name__}")
            if not 0 <= number < self.size:
                raise TokenError(
                    f"token id {number} at position {position} is outside the vocabulary '{self.name}' of {self.size}; "
                    f"expected 0 to {self.size - 1}: decode with the vocabulary that the text was encoded with"
                )
        return self._decode(listed)

    @abstractmethod
    def _decode(self, ids: list[int]) -> str:
        """Return the text of ids that are all in the vocabulary."""

    def to_json(self) -> str:
        """Return the vocabulary as one line of JSON, for a checkpoint or a file's header."""
        return json.dumps(self._json())

    def _json(self) -> dict[str, str | int]:
        return {"name": self.name, "size": self.size}

    @staticmethod
    def from_json(text: str) -> "Vocabulary":
        """Return the vocabulary that `to_json` wrote. Raises `ConfigError` if the text is not such a line."""
        try:
            contents = json.loads(text)
            name = contents["name"]
            made = CharacterVocabulary(contents["characters"]) if name == "characters" else _FIXED[name]()
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{text[:60]!r} is not a vocabulary ({error!r}); expected what to_json wrote") from error
        if made._json() != contents:
            raise ConfigError(f"{text[:60]!r} is not the vocabulary of this program; expected {made.to_json()[:60]!r}")
        return made

    @property
    def digest(self) -> str:
        """The sha256 of `to_json`: two vocabularies with the same digest are the same."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


@dataclass(frozen=True)
class GPT2Vocabulary(Vocabulary):
    """GPT-2's byte-pair encoding. A special token inside a text is ordinary text."""

    name = "gpt2"
    size = GPT2_SIZE

    def encode(self, text: str) -> Tensor:
        """Return the token ids of a text, (N) of int64. Raises `DataUnavailable` if the encoding is not at hand."""
        return torch.tensor(tokenizer().encode_ordinary(text), dtype=torch.int64)

    def _decode(self, ids: list[int]) -> str:
        return tokenizer().decode(ids)  # bytes that are not UTF-8 become U+FFFD: half a character is not an error

    def _json(self) -> dict[str, str | int]:
        return super()._json() | {source.name: source.sha256 for source in published.VOCABULARY}


@dataclass(frozen=True)
class ByteVocabulary(Vocabulary):
    """The 256 bytes of UTF-8: any text, with no file."""

    name = "bytes"
    size = 256

    def encode(self, text: str) -> Tensor:
        """Return the bytes of a text in UTF-8, (N) of int64."""
        return torch.from_numpy(np.frombuffer(_encoded(text, "utf-8"), np.uint8).astype(np.int64))

    def _decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


@dataclass(frozen=True)
class CharacterVocabulary(Vocabulary):
    """The characters of one text, sorted by code point, as nanoGPT's data/shakespeare_char sorts them.

    Raises `ConfigError` if there are none, or if they are not sorted or repeated.
    """

    characters: str
    name = "characters"

    def __post_init__(self) -> None:
        if not self.characters or self.characters != "".join(sorted(set(self.characters))):
            raise ConfigError(
                f"the characters {self.characters[:20]!r} are no vocabulary; expected at least one, sorted, each once"
            )

    @classmethod
    def of(cls, text: str) -> "CharacterVocabulary":
        """Return the vocabulary of all characters of a text."""
        return cls("".join(sorted(set(text))))

    @property
    def size(self) -> int:
        """The number of characters."""
        return len(self.characters)

    def encode(self, text: str) -> Tensor:
        """Return the place of each character in the vocabulary, (N) of int64. Raises `UnknownCharacter`."""
        known, found = _code_points(self.characters), _code_points(text)
        ids = np.searchsorted(known, found).clip(max=self.size - 1)
        unknown = np.flatnonzero(known[ids] != found)
        if len(unknown):
            position = int(unknown[0])
            raise UnknownCharacter(
                f"the character {text[position]!r} at position {position} is not among the {self.size} of the "
                "vocabulary; expected characters of the training text: give another text, or the vocabulary 'bytes'"
            )
        return torch.from_numpy(ids.astype(np.int64))

    def _decode(self, ids: list[int]) -> str:
        return "".join(self.characters[number] for number in ids)

    def _json(self) -> dict[str, str | int]:
        return super()._json() | {"characters": self.characters}


_FIXED: dict[str, type[GPT2Vocabulary] | type[ByteVocabulary]] = {"gpt2": GPT2Vocabulary, "bytes": ByteVocabulary}

NAMES = (*_FIXED, "characters")
"""The names that `vocabulary` knows."""


def vocabulary(name: str, text: str) -> Vocabulary:
    """Return the vocabulary of a name: "gpt2", "bytes", or "characters", which are those of `text`.

    Raises `ConfigError` for another name, `TextError` for the characters of an empty text.
    """
    if name in _FIXED:
        return _FIXED[name]()
    if name != "characters":
        raise ConfigError(f"there is no vocabulary {name!r}; expected one of {', '.join(NAMES)}")
    if not text:
        raise TextError("the text is empty, so it has no characters; expected a text")
    return CharacterVocabulary.of(text)


def _code_points(text: str) -> "np.ndarray[tuple[int], np.dtype[np.uint32]]":
    return np.frombuffer(_encoded(text, "utf-32-le"), "<u4")


def _encoded(text: str, encoding: str) -> bytes:
    try:
        return text.encode(encoding)
    except UnicodeEncodeError as error:
        raise TextError(
            f"the text has half a surrogate pair, {text[error.start]!r}, at position {error.start}, which no UTF-8 "
            "file can have; expected characters"
        ) from error
