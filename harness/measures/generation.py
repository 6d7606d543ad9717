"""Measures of generation: the cache against the full forward pass, tokens against their definitions."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from harness import noise
from harness.adapters.calling import unpack
from harness.measure import Reading, measure
from harness.size import SIZES
from harness.states import Weights, state
from harness.subject import Caches, Generates, Model, holding
from harness.tokens import Tokens, batch

DRAWS = 4_000
SAMPLED_STEPS = 3


@measure
def cached_logits(
    subject: Caches,
    *,
    size: str,
    chunks: list[int],
    attention: str = "",
    weights: Weights = "probe",
    tokens: Tokens = "random",
    rows: int = 2,
) -> Reading:
    """The noise verdict on the logits of each position decoded with the cache, against one uncached forward pass.

    `chunks`: how many tokens each call appends; the first is the prefill. `attention`: one of the subject's, or its
    default.
    """
    options = {"attention": attention} if attention else {}
    length = sum(chunks)
    ids, _ = batch(SIZES[size], tokens, rows=rows, length=length)
    full, stepped = {}, {}
    for dtype in ("float64", "float32"):
        model = holding(subject, SIZES[size], state(size, weights), dtype, **options)
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
        if not bool((chosen >= last.max(dim=1).values - 1e-4 * last.abs().max()).all()):  # NaN is no argmax
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
    first = subject.generate(model, prompt, new_tokens, seed=0)
    torch.manual_seed(99)
    subject.generate(model, other, new_tokens, seed=3)
    again = subject.generate(model, prompt, new_tokens, seed=0)
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
    graphs: list[bool] = []
    hook = model.module.register_forward_hook(lambda m, args, out: graphs.append(unpack(out)[0].requires_grad))
    first = subject.generate(model, prompt, 8, temperature=0.0)
    hook.remove()
    subject.generate(model, other, 8, temperature=0.0)
    again = subject.generate(model, prompt, 8, temperature=0.0)
    model.module.train()
    in_training_mode = subject.generate(model, prompt, 8, temperature=0.0)
    training = model.module.training
    after = model.module.state_dict()
    return Reading(
        {
            "the prompt": not torch.equal(prompt, given),
            "the state dict": any(not torch.equal(t, after[name]) for name, t in before.items()),
            "the training flag": not training,
            "the next answer": not torch.equal(first, again),
            "the answer in training mode": not torch.equal(first, in_training_mode),
            "gradients are recorded": any(graphs),
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
    prompt_length: int = 4,
    weights: Weights = "probe",
) -> Reading:
    """Sampled tokens to which the definition gives no probability at all, step by step."""
    steps = _sampled(subject, size, temperature, top_k, top_p, prompt_length, weights)
    return Reading({f"step {n}": int((step.probability == 0).sum()) for n, step in enumerate(steps)}, "draws")


@measure
def sampling_p_value(
    subject: Generates,
    *,
    size: str,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    prompt_length: int = 4,
    weights: Weights = "probe",
) -> Reading:
    """How likely the right distribution gives draws as far from it as these, step by step and for two steps together.

    The definition: temperature, then the k likeliest, then the smallest set of mass p. Each draw is turned into a
    number that is uniform on [0, 1] if it came from that distribution, whatever its context was; Pearson's chi-squared
    test judges the numbers. For the right sampler the value is anywhere between 0 and 1, for a wrong one it falls to
    nothing as draws are added.
    """
    steps = _sampled(subject, size, temperature, top_k, top_p, prompt_length, weights)
    found = {f"step {n}": _p_of_uniform([step.uniform], bins=20) for n, step in enumerate(steps)}
    found["steps 0 and 1 together"] = _p_of_uniform([steps[0].uniform, steps[1].uniform], bins=6)
    return Reading(found, "", {"draws": DRAWS})


def next_token_distribution(logits: Tensor, *, temperature: float, top_k: int, top_p: float) -> Tensor:
    """The definition: logits (..., V) -> probabilities (..., V). `top_k` 0 and `top_p` 1 filter nothing.

    Top-p keeps the smallest set of likeliest tokens whose mass, after top-k, reaches p (Holtzman et al., 2020).
    """
    ordered, order = (logits / temperature).softmax(-1).sort(dim=-1, descending=True)
    if top_k:
        ordered[..., top_k:] = 0.0
        ordered = ordered / ordered.sum(-1, keepdim=True)
    if top_p < 1.0:
        ordered[ordered.cumsum(-1) - ordered >= top_p] = 0.0
        ordered = ordered / ordered.sum(-1, keepdim=True)
    return torch.zeros_like(ordered).scatter(-1, order, ordered)


@dataclass(frozen=True)
class _Step:
    """What was drawn at one step, for each of the rows: (N) tensors."""

    probability: Tensor  # of the drawn token, by the definition, given the row's own context
    uniform: Tensor  # U(0, 1) if the draws are right


@functools.lru_cache(maxsize=8)
def _sampled(
    subject: Generates, size: str, temperature: float, top_k: int, top_p: float, prompt_length: int, weights: Weights
) -> list[_Step]:
    """Three tokens drawn after one prompt, many times over, held against the definition step by step."""
    prompt, _ = batch(SIZES[size], "random", rows=1, length=prompt_length)
    model = holding(subject, SIZES[size], state(size, weights))
    prompts = prompt.expand(DRAWS, -1).contiguous()
    filters = {"top_k": top_k or None, "top_p": top_p if top_p < 1.0 else None}
    answer = subject.generate(model, prompts, SAMPLED_STEPS, temperature=temperature, seed=0, **filters)  # type: ignore[arg-type]
    within = torch.rand(SAMPLED_STEPS, DRAWS, generator=torch.Generator().manual_seed(0)).double()
    steps = []
    for step in range(SAMPLED_STEPS):
        end = prompt_length + step
        with torch.no_grad():
            logits = model.logits(answer[:, max(0, end - SIZES[size].context) : end])[:, -1].double()
        expected = next_token_distribution(logits, temperature=temperature, top_k=top_k, top_p=top_p)
        drawn = answer[:, end : end + 1]
        mass = expected.gather(1, drawn)[:, 0]
        below = (expected.cumsum(1).gather(1, drawn)[:, 0] - mass).clamp(min=0.0)
        steps.append(_Step(mass, below + within[step] * mass))
    return steps


def _p_of_uniform(numbers: list[Tensor], *, bins: int) -> float:
    """The p-value of numbers (N) that should be uniform on [0, 1], or of several that should be independent as well."""
    cell = torch.zeros_like(numbers[0], dtype=torch.int64)
    for uniform in numbers:
        cell = cell * bins + (uniform * bins).long().clamp(0, bins - 1)
    cells = bins ** len(numbers)
    counts = torch.bincount(cell, minlength=cells).double()
    expected = len(cell) / cells
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((cells - 1) / 2.0).double(), statistic / 2))


def _stepped(subject: Caches, model: Model, ids: Tensor, chunks: list[int]) -> Tensor:
    subject.step(model, ids.flip(1)[:, :2], subject.new_cache(model, ids.shape[0]))  # must leave no trace
    cache = subject.new_cache(model, ids.shape[0])
    return torch.cat([subject.step(model, chunk, cache) for chunk in ids.split(chunks, dim=1)], dim=1)


def _tokens_differing(found: Tensor, expected: Tensor) -> Reading:
    differing = (found != expected).nonzero()
    first = differing[0].tolist() if len(differing) else None
    hint = f"first at row {first[0]}, position {first[1]}" if first else ""
    return Reading(len(differing), "tokens", {"hint": hint})
