"""What a check needs besides the subject and may not find: real text, released weights."""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from harness.core.errors import HarnessError, MissingResource
from harness.core.shipped_packages import shipped

if TYPE_CHECKING:
    from torch import Tensor

# A name, not an import: whoever ships a text and a tokenizer can take its place.
TEXT_SOURCE = "gpt.data:tokens"


@dataclass(frozen=True)
class Resources:
    """The names under which this run looks for text and weights."""

    text: str = "tinyshakespeare"
    pretrained: str = "gpt2"
    current: ClassVar[Resources]

    @classmethod
    def configure(cls, *, text: str | None = None, pretrained: str | None = None) -> None:
        """Set the names for this process; None leaves the default."""
        cls.current = cls(cls.text if text is None else text, cls.pretrained if pretrained is None else pretrained)


Resources.current = Resources()


def text_tokens() -> Tensor:
    """The run's text as GPT-2 tokens, 1-D int64. MissingResource where there is none, with the way to get it."""
    return _text_tokens(Resources.current.text)


def pretrained_directory() -> Path:
    """The folder of the released weights. MissingResource where they cannot be had."""
    return _pretrained_directory(Resources.current.pretrained)


@functools.cache
def _text_tokens(name: str) -> Tensor:
    module, function = TEXT_SOURCE.split(":")
    try:
        with shipped(module.split(".")[0]):  # a user's own package may have the same name
            tokens: Tensor = getattr(importlib.import_module(module), function)(name)
    except FileNotFoundError as error:
        if name != Resources.text:  # the user named it: a slip of the pen must not turn checks off
            raise HarnessError(f"--text {name}: {error}") from error
        raise MissingResource(f"text '{name}': {error}") from error
    except Exception as error:
        raise HarnessError(f"--text {name}: {error}") from error
    return tokens


def _pretrained_directory(name: str) -> Path:
    found = _looked_for(name)
    if isinstance(found, str):
        told = (
            f"pretrained weights '{name}': not a directory, not in the local cache, and not to be had from the hub "
            f"({found}); fetch them with `hf download gpt2`, or name a directory with --pretrained DIR"
        )
        raise MissingResource(told) if name == Resources.pretrained else HarnessError(told)
    return found


@functools.cache
def _looked_for(name: str) -> Path | str:
    """The folder, or why there is none; kept, so that an unreachable hub is waited for once."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    wanted = ["config.json", "model.safetensors"]
    reason = ""
    for local in (True, False):
        try:
            return Path(snapshot_download(name, allow_patterns=wanted, local_files_only=local, etag_timeout=5))
        except Exception as error:  # the hub's errors, the network library's, a name that is no repository's
            reason = type(error).__name__
    return reason
