"""A sampled answer: the probabilities that a subject draws from, or its draws, against a definition."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from harness.core.errors import MissingAbility
from harness.core.seeds import seeded
from harness.measures.chi_squared import chi_squared_tail
from harness.oracle import noise_verdict
from harness.subjects.model import Model

SAMPLED_STEPS = 2
PROBABILITY_ROWS = 32  # different prompts, if the probabilities can be observed
LONG, LONG_ROWS = 20, 4  # from so many steps on, so many rows
# Rows, if only the drawn tokens can be observed: enough for a p-value below 1e-20 of the wrong samplers in
# harness/tests/measures/test_wrong_gpts.py.
DRAWN_ROWS = 1_000
LEAST_LIKELY = 1e-6
ROUNDING = 1e-5  # of the largest logit: what float32 may differ by between a call with a cache and one without
# Differs from every seed that a subject is given: with the same seed, the same numbers would enter both sides.
OWN_SEED = 8_675_309

# From the logits (N, V) of the last position and the tokens (N, T) so far to the probabilities (N, V) of the next.
Definition = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SampledAnswer:
    """The tokens (N, T) that a subject generated, and the draws that it made for them if they could be observed."""

    model: Model
    tokens: Tensor
    prompt_length: int
    draws: tuple[_Draw, ...] = ()

    @property
    def seen(self) -> str:
        """What the subject is judged by."""
        return "probabilities" if self.draws else f"{len(self.tokens)} draws"

    def distances(self, definition: Definition) -> dict[str, float]:
        """Return the distance of each step's distribution from the definition.

        If the subject calls `torch.multinomial`, this is the largest difference between the probabilities that it
        passes and those of the definition. Otherwise it is judged by the drawn tokens: 1 if any has probability 0 by
        the definition, or if Pearson's chi-squared test rejects numbers that are uniform for correct draws, and else 0.
        """
        steps = list(steps_of(self.model, self.tokens, self.prompt_length, definition))
        if self.draws:
            gaps = [draw.distance_from(step) for draw, step in zip(self.draws, steps, strict=True)]
            return {f"step {n}": gap for n, gap in enumerate(gaps)}
        found = {}
        for n, step in enumerate(steps):
            outside, likelihood = int((step.mass == 0).sum()), p_value_of_uniform([step.uniform], bins=20)
            # `not >=`: a p-value of NaN must count as wrong.
            found[f"step {n}"] = 1.0 if outside or not likelihood >= LEAST_LIKELY else 0.0
        return found


def sampled(
    model: Model,
    generate: Callable[[Tensor, int], Tensor],
    prompts: Callable[[int], Tensor],
    *,
    steps: int = SAMPLED_STEPS,
) -> SampledAnswer:
    """Return what `generate(prompts (N, T), new tokens)` samples; `prompts(N)` are as many different prompts.

    Raises MissingAbility for a long text whose probabilities cannot be observed: its draws would take minutes.
    """
    rows = PROBABILITY_ROWS if steps < LONG else LONG_ROWS
    given = prompts(rows)
    with _ObservedDraws() as observed:
        answer = generate(given, steps)
    if [len(draw.probabilities) for draw in observed.draws] == [rows] * steps:
        return SampledAnswer(model, answer, given.shape[1], tuple(observed.draws))
    if steps >= LONG:
        raise MissingAbility("the subject draws without torch.multinomial: the probabilities of a long text are unseen")
    given = prompts(DRAWN_ROWS)
    return SampledAnswer(model, generate(given, steps), given.shape[1])


@dataclass(frozen=True)
class Step:
    """One sampled step of an answer, for each of the rows."""

    expected: Tensor  # (N, V): the definition's probabilities, given the row's own context
    drawn: Tensor  # (N): the token
    mass: Tensor  # (N): the definition's probability of it
    uniform: Tensor  # (N): U(0, 1) if the draws are correct


def steps_of(model: Model, answer: Tensor, prompt_length: int, definition: Definition) -> Iterator[Step]:
    """Yield the sampled steps of an answer (N, T), each with the definition's probabilities."""
    rng = torch.Generator().manual_seed(seeded(OWN_SEED))
    for end in range(prompt_length, answer.shape[1]):
        with torch.no_grad():
            logits = model.logits(answer[:, max(0, end - model.size.context) : end])[:, -1].double()
        expected, drawn = definition(logits, answer[:, :end]), answer[:, end]
        within = torch.rand(len(answer), generator=rng).double()
        # Cumulated from the most probable token down, so that an error adds up over rows of different contexts.
        ordered, order = expected.sort(dim=1, descending=True)
        rank = (order == drawn[:, None]).long().argmax(1, keepdim=True)
        mass = ordered.gather(1, rank)[:, 0]
        below = (ordered.cumsum(1).gather(1, rank)[:, 0] - mass).clamp(min=0.0)
        # At the edge of top-k and top-p, rounding decides which of two nearly equal tokens is in.
        raised = logits.scatter_add(1, drawn[:, None], ROUNDING * logits.abs().amax(1, keepdim=True))
        at_the_edge = definition(raised, answer[:, :end]).gather(1, drawn[:, None])[:, 0]
        yield Step(expected, drawn, torch.where(mass == 0, at_the_edge, mass), below + within * mass)


@dataclass(frozen=True)
class _Draw:
    """One call of `torch.multinomial`: its probabilities (N, any number), and the column (N, 1) that it returned."""

    probabilities: Tensor
    column: Tensor

    def distance_from(self, step: Step) -> float:
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


def p_value_of_uniform(numbers: list[Tensor], *, bins: int) -> float:
    """Return the chi-squared p-value of numbers (N) as uniform on [0, 1]; of several tensors, as independent too."""
    cell = torch.zeros_like(numbers[0], dtype=torch.int64)
    for uniform in numbers:
        cell = cell * bins + (uniform * bins).long().clamp(0, bins - 1)
    cells = bins ** len(numbers)
    counts = torch.bincount(cell, minlength=cells).double()
    expected = len(cell) / cells
    statistic = ((counts - expected) ** 2 / expected).sum()
    return chi_squared_tail(float(statistic), cells - 1)
