"""Measures of sampling: each step's probabilities, or the tokens that were drawn, against the definition."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from harness.core.sizes import SIZES
from harness.measures.cached_model import cached_model
from harness.measures.chi_squared import chi_squared_tail
from harness.oracle import noise_verdict
from harness.oracle.probe_weights import Weights
from harness.oracle.tokens import batch
from harness.subjects.model import Model
from harness.subjects.protocols import Generates
from harness.suites.measure_registry import Reading, measure

SAMPLED_STEPS = 2
PROBABILITY_ROWS = 32  # different prompts, if the probabilities can be observed
# Rows, if only the drawn tokens can be observed: enough for a p-value below 1e-20 of the wrong samplers in
# harness/tests/measures/test_wrong_gpts.py.
DRAWN_ROWS = 1_000
LEAST_LIKELY = 1e-6
# Differs from every seed that a subject is given: with the same seed, the same numbers would enter both sides.
OWN_SEED = 8_675_309


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
    """Return the distance of each step's distribution from the definition: temperature, then top-k, then top-p.

    If the subject calls `torch.multinomial`, this is the largest difference between the probabilities that it passes
    and those of the definition. Otherwise it is judged by the drawn tokens: 1 if any has probability 0 by the
    definition, or if Pearson's chi-squared test rejects numbers that are uniform for correct draws, and else 0.
    """
    model = cached_model(subject, size, weights)
    settings: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k or None,
        "top_p": top_p if top_p < 1.0 else None,
        "seed": 0,
    }

    def definition(logits: Tensor) -> Tensor:
        return next_token_distribution(logits, temperature=temperature, top_k=top_k, top_p=top_p)

    prompts, _ = batch(SIZES[size], "random", rows=PROBABILITY_ROWS, length=prompt_length)
    with _ObservedDraws() as observed:
        answer = subject.generate(model, prompts, SAMPLED_STEPS, **settings)
    steps = list(_steps(model, answer, prompt_length, definition))
    if [len(draw.probabilities) for draw in observed.draws] == [PROBABILITY_ROWS] * SAMPLED_STEPS:
        gaps = [draw.distance_from(step) for draw, step in zip(observed.draws, steps, strict=True)]
        return Reading({f"step {n}": gap for n, gap in enumerate(gaps)}, "of probability", {"seen": "probabilities"})
    prompts, _ = batch(SIZES[size], "random", rows=DRAWN_ROWS, length=prompt_length)
    answer = subject.generate(model, prompts, SAMPLED_STEPS, **settings)
    found = {}
    for n, step in enumerate(_steps(model, answer, prompt_length, definition)):
        outside, likelihood = int((step.mass == 0).sum()), _p_value_of_uniform([step.uniform], bins=20)
        # `not >=`: a p-value of NaN must count as wrong.
        found[f"step {n}"] = 1.0 if outside or not likelihood >= LEAST_LIKELY else 0.0
    return Reading(found, "of probability", {"seen": f"{DRAWN_ROWS} draws"})


@measure
def draws_p_value(
    subject: Generates, *, size: str, weights: Weights = "probe", prompt_length: int = 4, rows: int = 600
) -> Reading:
    """Return the p-values of the draws: of two steps, of both together, and of neighbouring rows.

    Each draw is turned into a number that is uniform on [0, 1] for a correct sampler, in every context, and
    independent of all others. Pearson's chi-squared test judges the numbers. The p-value of a correct sampler is
    uniform between 0 and 1; that of a wrong one approaches 0 as draws are added.
    """
    prompt, _ = batch(SIZES[size], "random", rows=1, length=prompt_length)
    model = cached_model(subject, size, weights)
    answer = subject.generate(model, prompt.expand(rows, -1).contiguous(), 2, seed=0)
    drawn = [step.uniform for step in _steps(model, answer, prompt_length, lambda logits: logits.softmax(-1))]
    found = {f"step {n}": _p_value_of_uniform([uniform], bins=20) for n, uniform in enumerate(drawn)}
    for n, (first, second) in enumerate(itertools.pairwise(drawn)):
        found[f"steps {n} and {n + 1} together"] = _p_value_of_uniform([first, second], bins=6)
    for n, uniform in enumerate(drawn):
        found[f"neighbouring rows at step {n}"] = _p_value_of_uniform([uniform[::2], uniform[1::2]], bins=6)
    return Reading(found, "", {"draws": rows})


def next_token_distribution(logits: Tensor, *, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Return the probabilities (..., V) that the definition gives to logits (..., V).

    A `top_k` of 0 and a `top_p` of 1 filter nothing. Top-p keeps the smallest set of most probable tokens whose mass,
    after top-k, reaches p (Holtzman et al., 2020).
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
    """One sampled step of an answer, for each of the rows."""

    expected: Tensor  # (N, V): the definition's probabilities, given the row's own context
    drawn: Tensor  # (N): the token
    uniform: Tensor  # (N): U(0, 1) if the draws are correct

    @property
    def mass(self) -> Tensor:
        """The definition's probability (N) of the tokens that were drawn."""
        return self.expected.gather(1, self.drawn[:, None])[:, 0]


def _steps(model: Model, answer: Tensor, prompt_length: int, definition: Callable[[Tensor], Tensor]) -> Iterator[_Step]:
    """Yield the sampled steps of an answer (N, T), each with the definition's probabilities."""
    rng = torch.Generator().manual_seed(OWN_SEED)
    for end in range(prompt_length, answer.shape[1]):
        with torch.no_grad():
            logits = model.logits(answer[:, max(0, end - model.size.context) : end])[:, -1].double()
        expected, drawn = definition(logits), answer[:, end]
        within = torch.rand(len(answer), generator=rng).double()
        # Cumulated from the most probable token down, so that an error adds up over rows of different contexts.
        ordered, order = expected.sort(dim=1, descending=True)
        rank = (order == drawn[:, None]).long().argmax(1, keepdim=True)
        mass = ordered.gather(1, rank)[:, 0]
        below = (ordered.cumsum(1).gather(1, rank)[:, 0] - mass).clamp(min=0.0)
        yield _Step(expected, drawn, below + within * mass)


@dataclass(frozen=True)
class _Draw:
    """One call of `torch.multinomial`: its probabilities (N, any number), and the column (N, 1) that it returned."""

    probabilities: Tensor
    column: Tensor

    def distance_from(self, step: _Step) -> float:
        """Return the largest difference of probability: of all tokens by rank, and of the tokens that were drawn.

        By rank, because a subject may draw from sorted probabilities, or from the k most probable tokens alone.
        """
        given = self.probabilities / self.probabilities.sum(-1, keepdim=True)
        taken = given.gather(1, self.column)[:, 0]
        ranked, wanted = (p.sort(dim=-1, descending=True).values for p in (given, step.expected))
        columns = max(ranked.shape[1], wanted.shape[1])
        ranked, wanted = (torch.nn.functional.pad(p, (0, columns - p.shape[1])) for p in (ranked, wanted))
        return noise_verdict.maximum(noise_verdict.distance(ranked, wanted), noise_verdict.distance(taken, step.mass))


class _ObservedDraws(TorchFunctionMode):
    """Record the arguments and results of `torch.multinomial` inside the block."""

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


def _p_value_of_uniform(numbers: list[Tensor], *, bins: int) -> float:
    """Return the chi-squared p-value of numbers (N) as uniform on [0, 1]; of several tensors, as independent too."""
    cell = torch.zeros_like(numbers[0], dtype=torch.int64)
    for uniform in numbers:
        cell = cell * bins + (uniform * bins).long().clamp(0, bins - 1)
    cells = bins ** len(numbers)
    counts = torch.bincount(cell, minlength=cells).double()
    expected = len(cell) / cells
    statistic = ((counts - expected) ** 2 / expected).sum()
    return chi_squared_tail(float(statistic), cells - 1)
