"""What a check needs besides the subject and may be missing: text, pretrained weights, records, a device."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from harness.core.errors import HarnessError, MissingResource
from harness.core.shipped_packages import shipped_package

if TYPE_CHECKING:
    from torch import Tensor

# A name, not an import: the harness does not depend on gpt, and another package can provide the text and tokenizer.
TEXT_SOURCE = "gpt.data:tokens"
TOKENIZER_SOURCE = "gpt.data:tokenizer"
WINDOWS_SOURCE = "gpt.data:Windows"
NO_TARGET = -100  # of a position that has none


@dataclass(frozen=True)
class Resources:
    """The names of this run's text, pretrained weights and device, and the folder of the records of other runs."""

    text: str = "tinyshakespeare"
    pretrained: str = "gpt2"
    records: str = "reports/records"
    device: str = "cpu"
    current: ClassVar[Resources]

    @classmethod
    def configure(cls, **names: str | None) -> None:
        """Set names, by field, for this process; those that are None or not given have their defaults."""
        cls.current = cls(**{name: value for name, value in names.items() if value is not None})


Resources.current = Resources()


def text_tokens() -> Tensor:
    """Return the run's text as GPT-2 tokens, 1-D int64.

    Raises `MissingResource`, with how to get it, when the default text is missing; `HarnessError` for one that the
    user named and that cannot be read.
    """
    return _text_tokens(Resources.current.text)


@functools.cache
def gpt2_tokens(text: str) -> tuple[int, ...]:
    """Return the GPT-2 tokens of a short text. Raises `MissingResource` without the vocabulary."""
    module, function = TOKENIZER_SOURCE.split(":")
    try:
        with shipped_package(module.split(".")[0]):
            found: list[int] = getattr(importlib.import_module(module), function)().encode_ordinary(text)
    except Exception as error:
        raise MissingResource(f"GPT-2's vocabulary: {error}") from error
    return tuple(found)


def next_token_examples(tokens: Sequence[int]) -> list[tuple[tuple[int, ...], int]]:
    """Return the examples that a training data set makes of a text: the tokens of a window, and the one after them.

    The windows are side by side and half as long as the text, so that the last one is shorter. Raises
    `MissingResource` without the data set.
    """
    import torch  # slow to import

    module, name = WINDOWS_SOURCE.split(":")
    try:
        with shipped_package(module.split(".")[0]):
            data_set = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise MissingResource(f"a data set of windows: {error}") from error
    windows = data_set(torch.tensor(tokens), max(1, len(tokens) // 2), every="stride")
    found = [windows[index] for index in range(len(windows))]
    return [
        (tuple(ids[: position + 1].tolist()), int(target))
        for ids, targets in found
        for position, target in enumerate(targets)
        if target != NO_TARGET
    ]


def pretrained_directory() -> Path:
    """Return the folder of the pretrained weights.

    Raises `MissingResource`, with how to get them, when the default weights are missing; `HarnessError` for ones that
    the user named.
    """
    return _pretrained_directory(Resources.current.pretrained)


@functools.cache
def _text_tokens(name: str) -> Tensor:
    module, function = TEXT_SOURCE.split(":")
    try:
        with shipped_package(module.split(".")[0]):  # a user's own package may have the same name
            tokens: Tensor = getattr(importlib.import_module(module), function)(name)
    except FileNotFoundError as error:
        if name != Resources.text:  # the user named it: a typing error must not skip checks
            raise HarnessError(f"--text {name}: {error}") from error
        raise MissingResource(f"text '{name}': {error}") from error
    except Exception as error:
        raise HarnessError(f"--text {name}: {error}") from error
    return tokens


def _pretrained_directory(name: str) -> Path:
    found = _locate_pretrained(name)
    if isinstance(found, str):
        message = (
            f"pretrained weights '{name}': not a directory, not in the local cache, and not available from the hub "
            f"({found}); fetch them with `hf download gpt2`, or name a directory with --pretrained DIR"
        )
        raise MissingResource(message) if name == Resources.pretrained else HarnessError(message)
    return found


@functools.cache
def _locate_pretrained(name: str) -> Path | str:
    """Return the folder, or why there is none. Cached, so that an unreachable hub is waited for only once."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download  # here to save start-up time

    files = ["config.json", "model.safetensors"]
    reason = ""
    for local in (True, False):
        try:
            return Path(snapshot_download(name, allow_patterns=files, local_files_only=local, etag_timeout=5))
        except Exception as error:  # the hub's errors, the HTTP library's, and ones for an invalid repository name
            reason = type(error).__name__
    return reason
