"""Measures of generation: the cache against the full forward pass, tokens against their definitions."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from harness import noise
from harness.measure import Reading, measure
from harness.size import SIZES
from harness.states import Weights, state
from harness.subject import Caches, Generates, Model, holding
from harness.tokens import Tokens, batch

# The fewest draws that a bin of the chi-squared test may expect (Cochran, 1954).
FEWEST_EXPECTED = 5.0


@measure
def cached_logits(
    subject: Caches,
    *,
    size: str,
    chunks: list[int],
    weights: Weights = "probe",
    tokens: Tokens = "random",
    rows: int = 2,
) -> Reading:
    """The noise verdict on the logits of each position decoded with the cache, against one uncached forward pass.

    `chunks`: how many tokens each call appends; the first is the prefill.
    """
    length = sum(chunks)
    ids, _ = batch(SIZES[size], tokens, rows=rows, length=length)
    full, stepped = {}, {}
    for dtype in ("float64", "float32"):
        model = holding(subject, SIZES[size], state(size, weights), dtype)
        with torch.no_grad():
            full[dtype] = model.logits(ids)
            stepped[dtype] = _stepped(subject, model, ids, chunks)
    truth = full["float64"]
    # One floor for all positions: that of a single one is a matter of luck.
    floor = noise.distance(full["float32"], truth)
    return noise.reading(
        [
            noise.Difference(
                f"position {t}",
                scale=noise.largest(truth[:, t]),
                float32=noise.distance(stepped["float32"][:, t], truth[:, t]),
                float64=noise.distance(stepped["float64"][:, t], truth[:, t]),
                floor32=floor,
            )
            for t in range(length)
        ]
    )


@measure
def cached_tokens_differing(
    subject: Generates,
    *,
    size: str,
    prompt_length: int,
    new_tokens: int,
    weights: Weights = "probe",
    rows: int = 2,
) -> Reading:
    """Greedy tokens that differ with the cache and without it; past the context where there are enough."""
    prompt, _ = batch(SIZES[size], "random", rows=rows, length=prompt_length)
    model = holding(subject, SIZES[size], state(size, weights))
    cached, uncached = (
        subject.generate(model, prompt, new_tokens, temperature=0.0, use_cache=use_cache) for use_cache in (True, False)
    )
    return _tokens_differing(cached, uncached)


@measure
def greedy_by_definition(
    subject: Generates, *, size: str, prompt_length: int, new_tokens: int, weights: Weights = "probe"
) -> Reading:
    """Greedy tokens that are not the argmax of a full forward pass over the last `context` tokens, step by step.

    Each token is judged after the tokens that the subject itself chose, so that one slip counts once. A choice within
    rounding of the best logit is no slip.
    """
    prompt, _ = batch(SIZES[size], "random", rows=2, length=prompt_length)
    model = holding(subject, SIZES[size], state(size, weights))
    answer = subject.generate(model, prompt, new_tokens, temperature=0.0)
    wrong = []
    for step in range(prompt_length, prompt_length + new_tokens):
        window = answer[:, max(0, step - SIZES[size].context) : step]
        with torch.no_grad():
            last = model.logits(window)[:, -1]
        chosen = last.gather(1, answer[:, step : step + 1])[:, 0]
        if bool((chosen < last.max(dim=1).values - 1e-4 * last.abs().max()).any()):
            wrong.append(step)
    kept = bool(torch.equal(answer[:, :prompt_length], prompt))
    return Reading(
        {"tokens that are not the argmax": len(wrong), "prompts not returned as they were": int(not kept)},
        "",
        {"hint": f"first at position {wrong[0]}" if wrong else ""},
    )


@measure
def seed_reproducible(subject: Generates, *, size: str, weights: Weights = "probe", new_tokens: int = 12) -> Reading:
    """Whether a seed decides what is sampled: twice the same alike, another one different."""
    prompt, other = batch(SIZES[size], "random", rows=2, length=6)
    model = holding(subject, SIZES[size], state(size, weights))
    first = subject.generate(model, prompt, new_tokens, seed=1)
    torch.manual_seed(99)
    subject.generate(model, other, new_tokens, seed=3)
    again = subject.generate(model, prompt, new_tokens, seed=1)
    another = subject.generate(model, prompt, new_tokens, seed=2)
    return Reading(
        {
            "same seed, same tokens": torch.equal(first, again),
            "another seed, other tokens": not torch.equal(first, another),
        }
    )


@measure
def generation_changes(subject: Generates, *, size: str, weights: Weights = "probe") -> Reading:
    """What generating changes that it must not: the prompt, the weights, the training flag, the next greedy answer."""
    prompt, other = batch(SIZES[size], "random", rows=2, length=6)
    model = holding(subject, SIZES[size], state(size, weights))
    given, before = prompt.clone(), {name: t.clone() for name, t in model.module.state_dict().items()}
    first = subject.generate(model, prompt, 8, temperature=0.0)
    subject.generate(model, other, 8, temperature=0.0)
    again = subject.generate(model, prompt, 8, temperature=0.0)
    model.module.train()
    subject.generate(model, prompt, 2, temperature=0.0)
    training = model.module.training
    after = model.module.state_dict()
    return Reading(
        {
            "the prompt": not torch.equal(prompt, given),
            "the state dict": any(not torch.equal(t, after[name]) for name, t in before.items()),
            "the training flag": not training,
            "the next answer": not torch.equal(first, again),
            "the answer needs a gradient": first.requires_grad,
        }
    )


@measure
def sampling_outside(
    subject: Generates,
    *,
    size: str,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    draws: int = 20_000,
    weights: Weights = "probe",
) -> Reading:
    """Sampled next tokens to which the definition gives no probability at all."""
    counts, expected = _sampled(subject, size, temperature, top_k, top_p, draws, weights)
    return Reading(int(counts[expected == 0].sum()), "draws", {"support": int((expected > 0).sum()), "draws": draws})


@measure
def sampling_p_value(
    subject: Generates,
    *,
    size: str,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    draws: int = 20_000,
    weights: Weights = "probe",
) -> Reading:
    """How likely the right distribution gives draws as far from it as these, by Pearson's chi-squared test.

    The definition: temperature, then the k likeliest, then the smallest set of mass p. For the right one the value is
    anywhere between 0 and 1; for a wrong one it falls to nothing as `draws` grow.
    """
    counts, expected = _sampled(subject, size, temperature, top_k, top_p, draws, weights)
    statistic, freedom = _chi_squared(counts, expected)
    p = float(torch.special.gammaincc(torch.tensor(freedom / 2.0).double(), torch.tensor(statistic / 2.0).double()))
    return Reading(p, "", {"chi-squared": statistic, "degrees of freedom": freedom, "draws": draws})


def next_token_distribution(logits: Tensor, *, temperature: float, top_k: int, top_p: float) -> Tensor:
    """The definition: logits (V) -> probabilities (V). `top_k` 0 and `top_p` 1 filter nothing.

    Top-p keeps the smallest set of likeliest tokens whose mass, after top-k, reaches p (Holtzman et al., 2020).
    """
    probabilities = (logits / temperature).softmax(0)
    order = probabilities.argsort(descending=True)
    if top_k:
        probabilities[order[top_k:]] = 0.0
        probabilities = probabilities / probabilities.sum()
    if top_p < 1.0:
        before = probabilities[order].cumsum(0) - probabilities[order]
        probabilities[order[before >= top_p]] = 0.0
        probabilities = probabilities / probabilities.sum()
    return probabilities


@functools.lru_cache(maxsize=8)
def _sampled(
    subject: Generates, size: str, temperature: float, top_k: int, top_p: float, draws: int, weights: Weights
) -> tuple[Tensor, Tensor]:
    """How often each token was drawn after one prompt, and its probability by the definition: two (V) tensors."""
    prompt, _ = batch(SIZES[size], "random", rows=1, length=4)
    model = holding(subject, SIZES[size], state(size, weights))
    with torch.no_grad():
        logits = model.logits(prompt)[0, -1].double()
    prompts = prompt.expand(draws, -1).contiguous()
    filters = {"top_k": top_k or None, "top_p": top_p if top_p < 1.0 else None}
    answer = subject.generate(model, prompts, 1, temperature=temperature, seed=0, **filters)  # type: ignore[arg-type]
    expected = next_token_distribution(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    return torch.bincount(answer[:, -1], minlength=len(expected)).double(), expected


def _stepped(subject: Caches, model: Model, ids: Tensor, chunks: list[int]) -> Tensor:
    cache = subject.new_cache(model, ids.shape[0])
    return torch.cat([subject.step(model, chunk, cache) for chunk in ids.split(chunks, dim=1)], dim=1)


def _tokens_differing(found: Tensor, expected: Tensor) -> Reading:
    differing = (found != expected).nonzero()
    first = differing[0].tolist() if len(differing) else None
    hint = f"first at row {first[0]}, position {first[1]}" if first else ""
    return Reading(len(differing), "tokens", {"hint": hint})


def _chi_squared(counts: Tensor, expected: Tensor) -> tuple[float, int]:
    """Chi-squared and its degrees of freedom, tokens too rare for a bin of their own pooled into one."""
    wanted = expected * counts.sum()
    rare = wanted < FEWEST_EXPECTED
    wanted = torch.cat([wanted[~rare], wanted[rare].sum().view(1)])
    found = torch.cat([counts[~rare], counts[rare].sum().view(1)])
    found, wanted = found[wanted > 0], wanted[wanted > 0]
    freedom = max(len(wanted) - 1, 1)
    return float(((found - wanted) ** 2 / wanted).sum()), freedom
