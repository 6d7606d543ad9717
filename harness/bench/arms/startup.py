"""Work before the first token: building a model, reading a checkpoint, turning text into tokens."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.bench.arms.model_pool import ModelPool
from harness.bench.arms.models import near_truth
from harness.bench.arms.registry import ArmSpec, Verifier, work_kind
from harness.bench.arms.truth import float32_bound
from harness.bench.comparison import Verification, Work
from harness.core.errors import MissingAbility, MissingResource
from harness.core.resources import text_tokens
from harness.core.sizes import SIZES
from harness.oracle.closed_forms import parameter_count
from harness.subjects.model import Checkpoints, Model

CHECKED_TOKENS = 16


def _judge_build(pool: ModelPool, control: str, arm_specs: Mapping[str, ArmSpec]) -> Verifier:
    expected = parameter_count(pool.size)
    if pool.deviating_gpt2:
        expected += pool.deviating_gpt2.excess(pool.size, pool.subject)

    def judge(name: str, work: Work) -> Verification:
        counted = work.answer()
        told = f"{counted:,} parameters, {expected:,} by the closed form"
        return Verification("pass" if counted == expected else "fail", told)

    return judge


@work_kind("build", judge=_judge_build)
def build(pool: ModelPool, way: ArmSpec, copy: int) -> Work:
    """A model from nothing, with its own start: what every script waits for."""
    who = pool.who(way)

    start: Any = getattr(who, "start", None)  # a peer's own, where `build` puts the run's weights in its place

    def call() -> nn.Module:
        if start is not None:
            fresh: nn.Module = start(pool.size)
            return fresh
        return who.build(pool.size, seed=0, dtype=way.dtype, device=pool.device).module

    def answer() -> int:
        return sum(parameter.numel() for parameter in call().parameters())

    return Work(call=call, answer=answer, tokens=0, weigh=False)


def _judge_load(pool: ModelPool, control: str, arm_specs: Mapping[str, ArmSpec]) -> Verifier:
    ids, _ = pool.ids(rows=1, length=CHECKED_TOKENS)

    @torch.no_grad()
    def answer(model: Model) -> Tensor:
        return model.logits(ids)

    return near_truth(pool, control, arm_specs, answer, bound=float32_bound(pool.size))


@work_kind("load", judge=_judge_load)
def load(pool: ModelPool, way: ArmSpec, copy: int) -> Work:
    """A Hugging Face directory (model.safetensors) from the disk's cache to the first logits.

    To the logits, because a model whose weights are the mapped file has read none of them when it is there.
    """
    from harness.bench.peers import HuggingFace

    who = pool.who(way)
    if not isinstance(who, Checkpoints):
        raise MissingAbility(f"{who.name} has no ability 'Checkpoints': it does not read a Hugging Face directory")
    if pool.size not in SIZES.values():
        raise MissingResource(f"no checkpoint of {pool.size.name}")
    folder = tempfile.TemporaryDirectory(prefix="gpt-harness-")
    writer = HuggingFace("eager")
    source = writer.build(pool.size)
    writer.save_checkpoint(source, Path(folder.name))
    del source
    ids, _ = pool.ids(rows=1, length=CHECKED_TOKENS)

    @torch.no_grad()
    def call() -> Tensor:
        return who.load_checkpoint(Path(folder.name)).logits(ids)

    # The folder lives as long as the work does.
    return Work(call=call, answer=call, tokens=0, weigh=False, extras=lambda: {"read_bytes": _bytes(Path(folder.name))})


def _bytes(folder: Path) -> float:
    return float(sum(path.stat().st_size for path in folder.glob("*.safetensors")))


def _judge_tokens(pool: ModelPool, control: str, arm_specs: Mapping[str, ArmSpec]) -> Verifier:
    expected = text_tokens().tolist()

    def judge(name: str, work: Work) -> Verification:
        found = work.answer()
        told = f"{len(found):,} tokens, {len(expected):,} in the run's text"
        return Verification("pass" if found == expected else "fail", told)

    return judge


@work_kind("tokenize", judge=_judge_tokens)
def tokenize(pool: ModelPool, way: ArmSpec, copy: int) -> Work:
    """The run's text into GPT-2's tokens by tiktoken: in one piece, or paragraph by paragraph on several threads."""
    import tiktoken

    pool.who(way)
    try:
        encoding = tiktoken.get_encoding("gpt2")
    except OSError as error:  # it fetches its tables where it has none, and there is no network
        raise MissingResource(f"tiktoken's tables of gpt2: {type(error).__name__}; set TIKTOKEN_CACHE_DIR") from None
    whole, parallel = encoding.decode(text_tokens().tolist()), way.options.get("paragraphs", False)
    # Between two line ends that are by themselves: GPT-2's pattern takes more, or both at the end of a piece, for one.
    pieces = re.split(r"(?<=[^\n]\n)(?=\n[^\n])", whole)

    def call() -> list[int]:
        if not parallel:
            return encoding.encode_ordinary(whole)
        found = encoding.encode_ordinary_batch(pieces, num_threads=torch.get_num_threads())
        return [token for piece in found for token in piece]

    return Work(call=call, answer=call, tokens=len(text_tokens()), weigh=False)
