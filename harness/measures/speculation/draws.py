"""Measures of real draws: their probability integral transform, the seed, and what speculation must leave alone."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from harness.core.seeds import seeded
from harness.core.sizes import SIZES
from harness.measures.generation.sampled_answer import OWN_SEED, p_value_of_uniform, steps_of
from harness.measures.generation.sampling import next_token_distribution
from harness.measures.speculation.distribution import new_part
from harness.measures.speculation.drafts import Draft, enumerated_size, pair, shifted
from harness.oracle.probe_weights import state_of
from harness.oracle.tokens import batch
from harness.subjects.build import build_with_weights
from harness.subjects.forward_answer import unpack
from harness.subjects.protocols import Speculates
from harness.suites.measure_registry import Reading, measure

ALWAYS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)  # a target's probabilities of 3 tokens, after any text


@measure
def speculative_draws_p_value(
    subject: Speculates,
    *,
    size: str,
    draft: Draft = "near",
    lookahead: int = 4,
    answers: int = 40,
    new_tokens: int = 12,
    prompt_length: int = 4,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    bins: int = 20,
) -> Reading:
    """Return the p-values of speculated tokens, each answer with a seed of its own: alone, and with the token before.

    A token becomes a number that is uniform on [0, 1] if it is drawn by the target's probabilities, given its own
    context, and independent of all others (the probability integral transform). Pearson's chi-squared test judges the
    numbers; the p-value of a right sampler is uniform between 0 and 1.

    At a debug size, by models whose probabilities are the same at every position: "rounds", the tokens of a round and
    of the next, which are the same if rounds share random numbers, whatever the weights are; "first rounds", the tokens
    of an answer's first round alone; and "rejections", the tokens if the draft is often rejected, which are others if
    the numbers that accept are no random ones, as those of a generator that is seeded for each round.
    """
    target, drafting = pair(subject, size, draft)
    prompt, _ = batch(SIZES[size], "random", rows=1, length=prompt_length)
    settings = {"top_k": top_k or None, "top_p": top_p if top_p < 1.0 else None}
    drawn = []
    for n in range(answers):
        ids = subject.speculate(
            target, drafting, prompt, new_tokens, lookahead=lookahead, temperature=temperature, seed=seeded(n),
            **settings,  # type: ignore[arg-type]
        )  # fmt: skip
        drawn.append([*prompt[0].tolist(), *new_part(ids, prompt_length, new_tokens)])
    steps = steps_of(
        target,
        torch.tensor(drawn),
        prompt_length,
        lambda logits, _: next_token_distribution(logits, temperature=temperature, top_k=top_k, top_p=top_p),
    )
    uniform = torch.stack([step.uniform for step in steps], dim=1)  # (answers, new)
    found = {"all tokens": p_value_of_uniform([uniform.flatten()], bins=bins)}
    if answers > 1:
        found["first tokens"] = p_value_of_uniform([uniform[:, 0]], bins=5)
    for first in (0, 1):  # pairs that share no token, so that the pairs are independent
        pairs = uniform[:, first : first + (new_tokens - first) // 2 * 2].unflatten(1, (-1, 2))
        places = [pairs[..., 0].flatten(), pairs[..., 1].flatten()]
        found[f"tokens {first + 1} and {first + 2}, and so on"] = p_value_of_uniform(places, bins=4)
    if size.startswith("debug"):
        found |= _p_values_of_rounds(subject, size)
    return Reading(found, "", {"draws": uniform.numel()})


def _p_values_of_rounds(subject: Speculates, size: str, *, lookahead: int = 2) -> dict[str, float]:
    """Return the p-values of tokens whose probabilities are the same at every position."""
    same, first = _uniform_of_rounds(subject, size, drafted=ALWAYS, lookahead=lookahead)
    rejected, _ = _uniform_of_rounds(subject, size, drafted=ALWAYS.flip(0), lookahead=lookahead, answers=20)
    pairs = same.unflatten(1, (3, 2, lookahead + 1))  # (answers, pairs of rounds, 2, tokens of a round)
    return {
        "rounds": p_value_of_uniform([pairs[:, :, 0].flatten(), pairs[:, :, 1].flatten()], bins=4),
        "first rounds": min(p_value_of_uniform([place], bins=4) for place in first.unbind(1)),
        "rejections": p_value_of_uniform([rejected.flatten()], bins=5),
    }


def _uniform_of_rounds(
    subject: Speculates, size: str, *, drafted: Tensor, lookahead: int, answers: int = 40
) -> tuple[Tensor, Tensor]:
    """Return the tokens of answers as numbers that are uniform for right draws, and those of each one's first round.

    The target draws by ALWAYS and the draft by `drafted`, (3) each.
    """
    small = replace(enumerated_size(SIZES[size]), context=32)
    target, draft = (
        build_with_weights(subject, small, shifted(state_of(small, "probe"), p.log(), alone=True))
        for p in (ALWAYS, drafted)
    )
    rng, length = torch.Generator().manual_seed(seeded(OWN_SEED)), 6 * (lookahead + 1)
    texts = []
    for n in range(answers):
        ids = subject.speculate(target, draft, torch.tensor([[0, 1, 2]]), length, lookahead=lookahead, seed=seeded(n))
        texts.append(new_part(ids, 3, length))
    tokens = torch.tensor(texts)
    within = torch.rand(tokens.shape, generator=rng, dtype=torch.float64)
    uniform = (ALWAYS.cumsum(0) - ALWAYS)[tokens] + within * ALWAYS[tokens]
    return uniform, uniform[:, : lookahead + 1]


@measure
def speculative_changes(subject: Speculates, *, size: str) -> Reading:
    """Return what speculation changes but must not, and what a seed must decide and does not.

    Recorded gradients count as a change: a graph that grows with every token costs memory.
    """
    target, draft = pair(subject, size, "near")
    assert not isinstance(draft, str)
    prompt, other = (batch(SIZES[size], "random", rows=1, length=7, seed=seed)[0] for seed in (0, 1))
    given = prompt.clone()
    before = {name: tensor.clone() for name, tensor in target.module.state_dict().items()}
    graphs: list[bool] = []

    def answer(ids: Tensor, seed: int) -> Tensor:
        return subject.speculate(target, draft, ids, 16, seed=seed)

    hook = target.module.register_forward_hook(lambda module, args, out: graphs.append(unpack(out)[0].requires_grad))
    first = answer(prompt, 0)
    hook.remove()
    torch.manual_seed(99)
    answer(other, 5)
    again, another = answer(prompt, 0), answer(prompt, 1)
    target.module.train()
    answer(prompt, 0)
    training = target.module.training
    after = target.module.state_dict()
    return Reading(
        {
            "the prompt": not torch.equal(prompt, given),
            "the state dict": any(not torch.equal(tensor, after[name]) for name, tensor in before.items()),
            "the training flag": not training,
            "the same seed gives other tokens": not torch.equal(first, again),
            "another seed gives the same tokens": torch.equal(first, another),
            "gradients are recorded": any(graphs),
        }
    )
