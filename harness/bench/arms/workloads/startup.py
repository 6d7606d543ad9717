"""Work before the first token: build a model, load a checkpoint, tokenize a text."""

from __future__ import annotations

import re
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.bench.arms.error_bounds import float32_bound
from harness.bench.arms.model_pool import ModelPool
from harness.bench.arms.registry import ArmSpec, Verifier, work_kind
from harness.bench.arms.verifiers import oracle_verifier
from harness.bench.peers import HuggingFace
from harness.bench.work import Verification, Work
from harness.core.errors import MissingAbility, MissingResource
from harness.core.resources import text_tokens
from harness.core.sizes import SIZES
from harness.oracle.closed_forms import parameter_count
from harness.subjects.model import Model
from harness.subjects.protocols import Checkpoints

CHECKED_TOKENS = 16
# The checkpoint that all arms of a pool load.
_CHECKPOINTS: weakref.WeakKeyDictionary[ModelPool, tempfile.TemporaryDirectory[str]] = weakref.WeakKeyDictionary()


def _make_build_verifier(pool: ModelPool, control: str, arm_specs: Mapping[str, ArmSpec]) -> Verifier:
    expected = parameter_count(pool.size)
    if pool.deviating_gpt2:
        expected += sum(pool.deviating_gpt2.excess(pool.size, pool.subject).values())

    def verify(name: str, work: Work) -> Verification:
        counted = work.answer()
        message = f"{counted:,} parameters, {expected:,} by the closed form"
        return Verification("pass" if counted == expected else "fail", message)

    return verify


@work_kind("build", make_verifier=_make_build_verifier)
def build(pool: ModelPool, arm: ArmSpec, copy: int) -> Work:
    """Build a model with its own initialisation, which every script waits for."""
    subject = pool.subject_for(arm)
    start: Any = getattr(
        subject, "start", None
    )  # a peer's initialisation; its `build` loads the weights of the run instead

    def call() -> nn.Module:
        if start is not None:
            fresh: nn.Module = start(pool.size)
            return fresh
        return subject.build(pool.size, seed=0, dtype=arm.dtype, device=pool.device).module

    def answer() -> int:
        return sum(parameter.numel() for parameter in call().parameters())

    return Work(call=call, answer=answer, tokens=0, measures_memory=False)


def _make_load_verifier(pool: ModelPool, control: str, arm_specs: Mapping[str, ArmSpec]) -> Verifier:
    ids, _ = pool.ids(rows=1, length=CHECKED_TOKENS)

    @torch.no_grad()
    def answer(model: Model) -> Tensor:
        return model.logits(ids)

    return oracle_verifier(pool, control, arm_specs, answer, bound=float32_bound(pool.size))


@work_kind("load", make_verifier=_make_load_verifier)
def load(pool: ModelPool, arm: ArmSpec, copy: int) -> Work:
    """Load a Hugging Face directory (model.safetensors) from the disk cache, up to the first logits.

    The logits are part of it, because a model that maps the file has not read its weights yet when it is returned.
    """
    subject = pool.subject_for(arm)
    if not isinstance(subject, Checkpoints):
        raise MissingAbility(f"{subject.name} has no ability 'Checkpoints': it does not read a Hugging Face directory")
    if pool.size not in SIZES.values():
        raise MissingResource(f"no checkpoint of {pool.size.name}")
    folder = _checkpoint(pool)
    ids, _ = pool.ids(rows=1, length=CHECKED_TOKENS)

    @torch.no_grad()
    def call() -> Tensor:
        return subject.load_checkpoint(Path(folder.name)).logits(ids)

    # `extras` refers to the folder, so that it exists as long as the work does.
    return Work(
        call=call,
        answer=call,
        tokens=0,
        measures_memory=False,
        extras=lambda: {"read_bytes": _bytes(Path(folder.name))},
    )


def _checkpoint(pool: ModelPool) -> tempfile.TemporaryDirectory[str]:
    """Return a folder with the checkpoint of the pool's size, written once."""
    if pool not in _CHECKPOINTS:
        folder = tempfile.TemporaryDirectory(prefix="gpt-harness-")
        writer = HuggingFace("eager")
        writer.save_checkpoint(writer.build(pool.size), Path(folder.name))
        _CHECKPOINTS[pool] = folder
    return _CHECKPOINTS[pool]


def _bytes(folder: Path) -> float:
    return float(sum(path.stat().st_size for path in folder.glob("*.safetensors")))


def _make_tokens_verifier(pool: ModelPool, control: str, arm_specs: Mapping[str, ArmSpec]) -> Verifier:
    expected = text_tokens().tolist()

    def verify(name: str, work: Work) -> Verification:
        found = work.answer()
        message = f"{len(found):,} tokens, {len(expected):,} in the run's text"
        return Verification("pass" if found == expected else "fail", message)

    return verify


@work_kind("tokenize", make_verifier=_make_tokens_verifier)
def tokenize(pool: ModelPool, arm: ArmSpec, copy: int) -> Work:
    """Tokenize the run's text for GPT-2 with tiktoken: as one string, or paragraph by paragraph on several threads."""
    import tiktoken  # only here: it is not needed for other work

    pool.subject_for(arm)
    try:
        encoding = tiktoken.get_encoding("gpt2")
    except OSError as error:  # without its tables it fetches them, and there is no network
        raise MissingResource(f"tiktoken's tables of gpt2: {type(error).__name__}; set TIKTOKEN_CACHE_DIR") from None
    whole, parallel = encoding.decode(text_tokens().tolist()), arm.options.get("paragraphs", False)
    # Split between single line ends: GPT-2's pattern makes one token of more, and of two at the end of a piece.
    pieces = re.split(r"(?<=[^\n]\n)(?=\n[^\n])", whole)

    def call() -> list[int]:
        if not parallel:
            return encoding.encode_ordinary(whole)
        found = encoding.encode_ordinary_batch(pieces, num_threads=torch.get_num_threads())
        return [token for piece in found for token in piece]

    return Work(call=call, answer=call, tokens=len(text_tokens()), measures_memory=False)
