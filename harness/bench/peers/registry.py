"""The peers by name: how each is made, what it needs, and the note that its figures need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.bench.peers.ctranslate2 import CTranslate2
from harness.bench.peers.hugging_face import HuggingFace
from harness.bench.peers.nanogpt import NanoGPT
from harness.core.errors import HarnessError, did_you_mean
from harness.subjects.protocols import Subject


@dataclass(frozen=True)
class Peer:
    """One peer.

    `make` takes the path to nanoGPT that the user gave, or None. It raises MissingResource if the peer is missing.
    """

    make: Callable[[str | Path | None], Subject]
    needs: str
    note: str = ""


PEERS: dict[str, Peer] = {
    "hf-sdpa": Peer(lambda path: HuggingFace("sdpa"), "transformers, which the harness requires anyway"),
    "hf-eager": Peer(lambda path: HuggingFace("eager"), "transformers, which the harness requires anyway"),
    "ctranslate2": Peer(
        lambda path: CTranslate2("float32"),
        "the package ctranslate2",
        "an engine in C++ with its own matrix products: the witness sees no operation of torch",
    ),
    "ctranslate2-int8": Peer(
        lambda path: CTranslate2("int8"),
        "the package ctranslate2",
        "weights and their inputs are rounded to eight bits: less work, and other answers",
    ),
    "ctranslate2-bfloat16": Peer(
        lambda path: CTranslate2("bfloat16"),
        "the package ctranslate2, and a device on which it has bfloat16",
    ),
    "nanogpt": Peer(
        NanoGPT,
        "a copy of nanoGPT, by its path",
        "with GPT-2's tanh GELU instead of its own, so that all do the same work; it has no cache",
    ),
}


def peer(name: str, *, nanogpt: str | Path | None = None) -> Subject:
    """Return the peer of that name.

    nanogpt: the folder of nanoGPT, or its model.py; by default the environment variable GPT_HARNESS_NANOGPT.

    Raises MissingResource, with what is missing and how to get it, and HarnessError for an unknown name.
    """
    if name not in PEERS:
        raise HarnessError(f"no peer is called '{name}'; {did_you_mean(name, PEERS)}")
    return PEERS[name].make(nanogpt)
