"""The pairs of target and draft that speculative decoding is judged with: from equal to as wrong as a draft can be."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from harness.core.errors import MissingAbility
from harness.core.seeds import seeded
from harness.core.sizes import SIZES, Size
from harness.oracle.probe_weights import State, state, state_of
from harness.subjects.build import build_with_weights
from harness.subjects.model import Model
from harness.subjects.protocols import Speculates

# same: the target's own weights. near, far: the same with some noise, with much. first-layer: a model of one layer, the
# target's first. rejected: all of its probability is on a token that the target never draws. blind: it never proposes
# a token that the target often draws. The last two need no second model.
Draft = Literal["same", "near", "far", "first-layer", "rejected", "blind", "prompt-lookup", "early-exit"]
NOISE = {"near": 0.15, "far": 1.0}  # of a parameter's standard deviation
ENUMERATED_VOCABULARY = 3  # so that every outcome of a few tokens can be followed
NEVER = 12.0  # in logits: e^-12 = 6e-6
ALONE = 60.0  # in logits: 1 - e^-60 is 1 in float64


def enumerated_size(size: Size) -> Size:
    """Return a model so small that every random outcome can be followed: 3 tokens, one layer."""
    return replace(
        size, name=f"{size.name}, {ENUMERATED_VOCABULARY} tokens", vocab_size=ENUMERATED_VOCABULARY, context=20,
        layers=1, heads=2, width=6,
    )  # fmt: skip


def enumerated_pair(subject: Speculates, size: str, draft: Draft) -> tuple[Model, Model | str]:
    """Return a target and a draft of `enumerated_size` in float64; for prompt lookup its name, if the subject has it.

    Token 0 is the one that the target never draws ("rejected", with a top-k of 2), or the draft never proposes
    ("blind").
    """
    small = enumerated_size(SIZES[size])
    target = state_of(small, "probe")
    unlikely = torch.tensor([-NEVER, 0.0, 0.0], dtype=torch.float64)
    if draft == "rejected":
        target, drafting = shifted(target, unlikely), shifted(target, torch.tensor([ALONE, 0.0, 0.0]), alone=True)
    elif draft == "blind":
        drafting = shifted(target, torch.tensor([-ALONE, 0.0, 0.5]), alone=True)
    elif draft in NOISE or draft == "same":
        drafting = noisy(target, NOISE.get(draft, 0.0))
    elif draft == "prompt-lookup":
        model = build_with_weights(subject, small, target, "float64")
        if draft not in subject.drafts(model):
            raise MissingAbility(f"{subject.name} has no speculative decoding with the draft '{draft}'")
        return model, draft
    else:
        raise MissingAbility(f"the draft '{draft}' is judged with a larger vocabulary")
    first, second = (build_with_weights(subject, small, weights, "float64") for weights in (target, drafting))
    return first, second


def pair(subject: Speculates, size: str, draft: Draft, dtype: str = "float32") -> tuple[Model, Model | str]:
    """Return a target with probe weights, and its draft: a model, or the kind of a draft that needs none."""
    published = state(size, "probe")
    target = build_with_weights(subject, SIZES[size], published, dtype)
    if draft == "prompt-lookup" or draft == "early-exit":
        if draft not in subject.drafts(target):
            raise MissingAbility(f"{subject.name} has no speculative decoding with the draft '{draft}'")
        return target, draft
    small = SIZES[size]
    if draft == "first-layer":
        small = replace(small, name=f"{size}, one layer", layers=1)
        published = {name: tensor for name, tensor in published.items() if ".h." not in name or ".h.0." in name}
    elif draft in NOISE:
        published = noisy(published, NOISE[draft])
    elif draft != "same":
        raise MissingAbility(f"the draft '{draft}' is judged with a vocabulary of {ENUMERATED_VOCABULARY}")
    return target, build_with_weights(subject, small, published, dtype)


def noisy(published: State, amount: float) -> State:
    """Return the weights with seeded normal noise added, `amount` times each tensor's standard deviation."""
    if not amount:
        return published
    made = {}
    for name, tensor in published.items():
        rng = torch.Generator().manual_seed(zlib.crc32(f"draft {name}".encode(), seeded(0)))
        noise = torch.randn(tensor.shape, generator=rng, dtype=torch.float32)
        made[name] = tensor + amount * tensor.std() * noise
    return made


def shifted(published: State, logits: Tensor, *, alone: bool = False) -> State:
    """Return the weights with `logits` (V) added at every position; with `alone`, these are all of the logits.

    They come from the bias of the final norm, which the head maps to the logits: this needs a width of at least V.
    """
    head = published.get("lm_head.weight", published["transformer.wte.weight"]).double()  # (V, C)
    if "transformer.ln_f.bias" not in published:
        raise MissingAbility("a model without a bias in its final norm has no logits that are the same everywhere")
    bias = torch.linalg.pinv(head) @ logits.double()  # (V) -> (C)
    gain = published["transformer.ln_f.weight"]
    own = torch.zeros_like(gain) if alone else gain
    before = 0.0 if alone else published["transformer.ln_f.bias"]
    return {**published, "transformer.ln_f.weight": own, "transformer.ln_f.bias": (before + bias).float()}
