"""Measures of generation: the cache against the full forward pass, tokens against their definitions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from harness.core.errors import Missing
from harness.core.sizes import SIZES
from harness.oracle import model_cache, noise_verdict
from harness.oracle.probe_weights import Weights, state
from harness.oracle.tokens import Tokens, batch
from harness.subjects.forward_call import unpack
from harness.subjects.model import Caches, Generates, Model, build_with_weights
from harness.suites.measure_registry import Reading, measure

SAMPLED_STEPS = 2
SEEN_ROWS = 32  # prompts, all different, where probabilities are seen
DRAWS = 1_000  # rows, where only draws are: a wrong sampler's p-value is below 1e-20 then, see test_wrong_gpts.py
LEAST_LIKELY = 1e-6
OWN_SEED = 8_675_309  # no seed that a subject is given: the same numbers would go into both sides


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
        model = build_with_weights(subject, SIZES[size], state(size, weights), dtype, **options)
        with torch.no_grad():
            full[dtype] = model.logits(ids)
            stepped[dtype] = _stepped(subject, model, ids, chunks)
    truth = full["float64"]
    # One floor for all positions: that of a single one is a matter of luck.
    floor = noise_verdict.distance(full["float32"], truth)
    return noise_verdict.reading(
        [
            noise_verdict.Difference(
                f"position {t}",
                scale=noise_verdict.largest(truth[:, t]),
                float32=noise_verdict.distance(stepped["float32"][:, t], truth[:, t]),
                float64=noise_verdict.distance(stepped["float64"][:, t], truth[:, t]),
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
    model = _held(subject, size, weights)
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
    model = _held(subject, size, weights)
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
    model = _held(subject, size, weights)
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
    model = build_with_weights(subject, SIZES[size], state(size, weights))
    given, before = prompt.clone(), {name: t.clone() for name, t in model.module.state_dict().items()}
    graphs: list[bool] = []
    hook = model.module.register_forward_hook(lambda m, args, out: graphs.append(unpack(out)[0].requires_grad))
    first = subject.generate(model, prompt, 8, temperature=0.0)
    hook.remove()
    subject.generate(model, other, 8, temperature=0.0)
    again = subject.generate(model, prompt, 8, temperature=0.0)
    model.module.train()
    subject.generate(model, prompt, 8, temperature=0.0)
    training = model.module.training
    after = model.module.state_dict()
    return Reading(
        {
            "the prompt": not torch.equal(prompt, given),
            "the state dict": any(not torch.equal(t, after[name]) for name, t in before.items()),
            "the training flag": not training,
            "the next answer": not torch.equal(first, again),
            "gradients are recorded": any(graphs),
        }
    )


@measure
def answer_lengths(subject: Generates, *, size: str, weights: Weights = "probe") -> Reading:
    """Whether so many tokens are appended as were asked for, and the prompt comes back whole; and what came instead.

    None at all, after a single token, after a prompt that fills the context, and after a longer one. A ValueError is
    an answer too: who refuses none, or a prompt beyond the context, does not get it wrong.
    """
    context = SIZES[size].context
    model = _held(subject, size, weights)
    found: dict[str, str] = {}
    for place, length, new_tokens in (
        ("none asked for", 4, 0),
        ("a prompt of one token", 1, 3),
        ("a prompt as long as the context", context, 3),
        ("a prompt longer than the context", context + 7, 3),
    ):
        prompt, _ = batch(SIZES[size], "random", rows=2, length=length)
        try:
            answer = subject.generate(model, prompt, new_tokens, temperature=0.0)
            whole = answer.shape == (2, length + new_tokens) and torch.equal(answer[:, :length], prompt)
            found[place] = "right" if whole else f"ids of shape {tuple(answer.shape)}, or another prompt"
        except Missing:
            raise
        except ValueError:
            found[place] = "right" if place in ("none asked for", "a prompt longer than the context") else "refused"
        except Exception as error:
            found[place] = f"{type(error).__name__}: {error}"
    return Reading(found)


@measure
def sampling_by_definition(
    subject: Generates,
    *,
    size: str,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    prompt_length: int = 4,
    weights: Weights = "probe",
) -> Reading:
    """Whether each step draws from the definition: temperature, then the k likeliest, then the smallest set of mass p.

    Exactly, where the probabilities can be seen on their way into `torch.multinomial`: the largest difference from
    the definition's. Otherwise by what was drawn: no token to which the definition gives nothing, and Pearson's
    chi-squared over numbers that are uniform if the draws are right.
    """
    model = _held(subject, size, weights)
    settings: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k or None,
        "top_p": top_p if top_p < 1.0 else None,
        "seed": 0,
    }

    def definition(logits: Tensor) -> Tensor:
        return next_token_distribution(logits, temperature=temperature, top_k=top_k, top_p=top_p)

    prompts, _ = batch(SIZES[size], "random", rows=SEEN_ROWS, length=prompt_length)
    with _SeenDraws() as seen:
        answer = subject.generate(model, prompts, SAMPLED_STEPS, **settings)
    steps = list(_steps(model, answer, prompt_length, definition))
    if [len(draw.probabilities) for draw in seen.draws] == [SEEN_ROWS] * SAMPLED_STEPS:
        gaps = [draw.distance_from(step) for draw, step in zip(seen.draws, steps, strict=True)]
        return Reading({f"step {n}": gap for n, gap in enumerate(gaps)}, "of probability", {"seen": "probabilities"})
    prompts, _ = batch(SIZES[size], "random", rows=DRAWS, length=prompt_length)
    answer = subject.generate(model, prompts, SAMPLED_STEPS, **settings)
    found = {}
    for n, step in enumerate(_steps(model, answer, prompt_length, definition)):
        outside, likelihood = int((step.mass == 0).sum()), _p_of_uniform([step.uniform], bins=20)
        # As a distance: nothing where the draws could well be right, all of it where they could not.
        found[f"step {n}"] = 1.0 if outside or not likelihood >= LEAST_LIKELY else 0.0
    return Reading(found, "of probability", {"seen": f"{DRAWS} draws"})


@measure
def draws_p_value(
    subject: Generates, *, size: str, weights: Weights = "probe", prompt_length: int = 4, rows: int = 600
) -> Reading:
    """How likely right draws look like these: two steps, both together, and each two neighbouring rows.

    Each draw is turned into a number that is uniform on [0, 1] if it came from the model's distribution, whatever its
    context was, and independent of all others; Pearson's chi-squared test judges the numbers. For the right sampler
    the value is anywhere between 0 and 1, for a wrong one it falls to nothing as draws are added.
    """
    prompt, _ = batch(SIZES[size], "random", rows=1, length=prompt_length)
    model = _held(subject, size, weights)
    answer = subject.generate(model, prompt.expand(rows, -1).contiguous(), 2, seed=0)
    drawn = [step.uniform for step in _steps(model, answer, prompt_length, lambda logits: logits.softmax(-1))]
    found = {f"step {n}": _p_of_uniform([uniform], bins=20) for n, uniform in enumerate(drawn)}
    for n, (first, second) in enumerate(itertools.pairwise(drawn)):
        found[f"steps {n} and {n + 1} together"] = _p_of_uniform([first, second], bins=6)
    for n, uniform in enumerate(drawn):
        found[f"neighbouring rows at step {n}"] = _p_of_uniform([uniform[::2], uniform[1::2]], bins=6)
    return Reading(found, "", {"draws": rows})


@measure
def cache_past_the_context(subject: Caches, *, size: str, weights: Weights = "probe") -> Reading:
    """Whether one token too many is refused or answered rightly, by a full cache and in a chunk that crosses its edge.

    Right is what the full forward pass answers for the last `context` tokens: the window slid.
    """
    context = SIZES[size].context
    model = build_with_weights(subject, SIZES[size], state(size, weights))
    ids, _ = batch(SIZES[size], "random", rows=2, length=context + 2)
    found, told = {}, {}
    for place, filled, more in (("one token, the cache full", context, 1), ("three tokens, two fit", context - 2, 3)):
        cache = subject.new_cache(model, 2)
        with torch.no_grad():
            subject.step(model, ids[:, :filled], cache)
            try:
                last = subject.step(model, ids[:, filled : filled + more], cache)[:, -1]
            except Exception as error:
                found[place], told[place] = True, f"refused: {type(error).__name__}: {error}"
                continue
            wanted = model.logits(ids[:, filled + more - context : filled + more])[:, -1]
        found[place] = noise_verdict.distance(last, wanted) <= 1e-4 * noise_verdict.largest(wanted)
        told[place] = "right" if found[place] else "other logits than those of the full forward pass"
    return Reading(found, details={"answers": told})


@measure
def cached_half_precision_error(
    subject: Caches,
    *,
    size: str,
    dtype: Literal["bfloat16", "float16"] = "bfloat16",
    weights: Weights = "probe",
    rows: int = 4,
    length: int = 24,
) -> Reading:
    """Error of logits decoded token by token in a 16-bit dtype over that of one uncached pass in the same dtype.

    Both against the subject in float64, root mean square. A cache that keeps fewer bits than the model shows.
    """
    ids, _ = batch(SIZES[size], "random", rows=rows, length=length)
    with torch.no_grad():
        truth = build_with_weights(subject, SIZES[size], state(size, weights), "float64").logits(ids)
        model = build_with_weights(subject, SIZES[size], state(size, weights), dtype)
        full = model.logits(ids).double() - truth
        stepped = _stepped(subject, model, ids, [4] + [1] * (length - 4)).double() - truth
    return Reading(float(stepped.norm() / full.norm()), "of the uncached error")


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
    """One step of an answer, for each of the rows."""

    expected: Tensor  # (N, V): the definition's probabilities, given the row's own context
    drawn: Tensor  # (N): the token
    uniform: Tensor  # (N): U(0, 1) if the draws are right

    @property
    def mass(self) -> Tensor:
        """The definition's probability of what was drawn."""
        return self.expected.gather(1, self.drawn[:, None])[:, 0]


def _held(subject: Generates, size: str, weights: Weights) -> Model:
    """One model for neighbouring checks: generating does not change it, or `generation_changes` says so."""
    return model_cache.cached(
        ("generating", subject, size, weights), lambda: build_with_weights(subject, SIZES[size], state(size, weights))
    )


def _steps(model: Model, answer: Tensor, prompt_length: int, definition: Callable[[Tensor], Tensor]) -> Iterator[_Step]:
    """The sampled steps of an answer, beside the definition."""
    generator = torch.Generator().manual_seed(OWN_SEED)
    for end in range(prompt_length, answer.shape[1]):
        with torch.no_grad():
            logits = model.logits(answer[:, max(0, end - model.size.context) : end])[:, -1].double()
        expected, drawn = definition(logits), answer[:, end]
        within = torch.rand(len(answer), generator=generator).double()
        # From the likeliest token down, so that what is wrong adds up over rows of different contexts.
        ordered, order = expected.sort(dim=1, descending=True)
        rank = (order == drawn[:, None]).long().argmax(1, keepdim=True)
        mass = ordered.gather(1, rank)[:, 0]
        below = (ordered.cumsum(1).gather(1, rank)[:, 0] - mass).clamp(min=0.0)
        yield _Step(expected, drawn, below + within * mass)


@dataclass(frozen=True)
class _Draw:
    """One call of `torch.multinomial`: what went in, (N, anything), and which column came out for each row."""

    probabilities: Tensor
    column: Tensor

    def distance_from(self, step: _Step) -> float:
        """The largest difference of probability: of all of them, in order of size, and of the tokens that were drawn.

        In order of size, since a subject may draw among the sorted, or among the k likeliest alone.
        """
        given = self.probabilities / self.probabilities.sum(-1, keepdim=True)
        taken = given.gather(1, self.column)[:, 0]
        ranked, wanted = (p.sort(dim=-1, descending=True).values for p in (given, step.expected))
        columns = max(ranked.shape[1], wanted.shape[1])
        ranked, wanted = (torch.nn.functional.pad(p, (0, columns - p.shape[1])) for p in (ranked, wanted))
        return noise_verdict.worst(noise_verdict.distance(ranked, wanted), noise_verdict.distance(taken, step.mass))


class _SeenDraws(TorchFunctionMode):
    """While open, keeps what goes into `torch.multinomial` and what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.draws: list[_Draw] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = function(*args, **(kwargs or {}))
        if function in (torch.multinomial, torch.Tensor.multinomial):
            given = args[0] if args else (kwargs or {})["input"]
            given = given.detach().double().reshape(-1, given.shape[-1])
            self.draws.append(_Draw(given, answer.reshape(len(given), -1)[:, :1]))
        return answer


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
