"""What a run is: the configuration, the text, the vocabulary and the ranks that its checkpoints belong to."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpt.data import Vocabulary
from gpt.errors import CheckpointMismatch, ConfigError
from gpt.training.config import CHANGEABLE, TrainConfig, differences


def identity(config: TrainConfig, *, text: str, vocabulary: Vocabulary, ranks: int) -> dict[str, Any]:
    """Return what a checkpoint says about its run, as JSON."""
    return {
        "config": asdict(config),
        "text_sha256": hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest(),
        "vocabulary": {"name": vocabulary.name, "size": vocabulary.size, "sha256": vocabulary.digest},
        "ranks": ranks,
    }


def check_identity(folder: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise `CheckpointMismatch`, with what differs, if the checkpoint in `folder` is of another run."""
    different = list(_differences(folder, found, expected))
    if different:
        raise CheckpointMismatch(
            f"{folder}: is the checkpoint of another run: {'; '.join(different)}. "
            "Resume it with what it was made with, or start a run with another --out"
        )


def _differences(folder: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> Iterator[str]:
    try:
        theirs = TrainConfig(**found["config"])
    except (ConfigError, TypeError) as error:
        raise CheckpointMismatch(
            f"{folder}: its configuration is not one of this program ({error}); use the program that wrote it"
        ) from error
    for name, (value, ours) in differences(theirs, TrainConfig(**expected["config"])).items():
        if name not in CHANGEABLE:
            yield f"{name} is {value!r} there and {ours!r} here"
    for name, what in (("text_sha256", "the text"), ("vocabulary", "the vocabulary")):
        if found[name] != expected[name]:
            yield f"{what} has changed since"
    if found["ranks"] != expected["ranks"]:
        yield f"it has {found['ranks']} ranks, and this run {expected['ranks']}"
