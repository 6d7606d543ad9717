"""The answers of GPT-2 that a sweep expects: one pass over all ids gives those of every shape."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.core.sizes import Size
from harness.measures.conditions.condition import Condition
from harness.oracle import model_cache, noise_verdict
from harness.oracle.declared import declared_gpt2
from harness.oracle.formula import Formula, Replacement
from harness.oracle.gpt2_with_deviations import DeviatingGPT2
from harness.oracle.hugging_face import oracle
from harness.oracle.probe_weights import state_of
from harness.oracle.tokens import batch
from harness.oracle.variants import variants


@dataclass(frozen=True)
class ExpectedAnswers:
    """GPT-2's answers to ids (R, T), in float64, and the errors of its own float32 run.

    A position depends on none behind it and a row on no other row, so the answers to the first rows and tokens are the
    first rows and tokens of the answers. A declared GPT-2 may be another (without a mask): `answer` then answers ids.
    """

    ids: Tensor
    targets: Tensor
    all_logits: Tensor  # (R, T, V)
    floor: float
    loss_floor: float
    answer: Callable[[Tensor], Tensor] | None = None

    @property
    def scale(self) -> float:
        """The largest logit."""
        return noise_verdict.max_abs(self.all_logits)

    def logits(self, condition: Condition) -> Tensor:
        """Return the logits (rows, length, V) under a condition."""
        rows = 1 if condition.ids == "expanded" else condition.rows
        if self.answer is not None:
            found = self.answer(self.ids[:rows, : condition.length].expand(condition.rows, -1))
        else:
            found = self.all_logits[:rows, : condition.length]
        return found.expand(condition.rows, -1, -1)

    def loss(self, condition: Condition) -> Tensor:
        """Return the mean cross entropy in nats under a condition."""
        logits, targets = self.logits(condition), self.targets[: condition.rows, : condition.length]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def expected_answers(size: Size, *, rows: int, seed: int, by_formula: bool = False) -> ExpectedAnswers:
    """Return GPT-2's answers with probe weights to `rows` rows of the whole context.

    They are Hugging Face's, or the formula's, which needs no modules: to build many layers takes long.
    """
    ids, targets = batch(size, "random", rows=rows, length=size.context, seed=seed)
    given = state_of(size, "probe")

    def logits(ids: Tensor, dtype: str) -> Tensor:
        if by_formula and declared_gpt2() is None:
            return Formula(size, {name: t.to(getattr(torch, dtype)) for name, t in given.items()})(ids)
        return oracle(size, given, dtype).logits(ids)

    return model_cache.cached_if_small(
        size.name,
        ("answers under conditions", size, rows, seed),
        lambda: _answers(logits, ids, targets),
    )


def harmless_answers(size: Size, expected: ExpectedAnswers) -> list[ExpectedAnswers]:
    """Return the answers of the variants of GPT-2 that float32 cannot distinguish from it; see `equivalents`."""
    declared = declared_gpt2()
    base = declared if isinstance(declared, DeviatingGPT2) else DeviatingGPT2()
    found = []
    for variant in variants():
        if variant.harmless:
            change = Replacement(variant.operation, variant.function)
            gpt2 = replace(base, replacements=(*base.replacements, change))
            logits = functools.partial(_logits, gpt2, size)
            found.append(_answers(logits, expected.ids, expected.targets))
    return found


def _logits(gpt2: DeviatingGPT2, size: Size, ids: Tensor, dtype: str) -> Tensor:
    return gpt2.oracle(size, state_of(size, "probe"), dtype).logits(ids)


def _answers(logits: Callable[[Tensor, str], Tensor], ids: Tensor, targets: Tensor) -> ExpectedAnswers:
    with torch.no_grad():
        exact, rounded = logits(ids, "float64"), logits(ids, "float32")
    losses, rounded_losses = _losses(exact, targets), _losses(rounded, targets)
    # The floor of a single position or mean varies too much by chance: one floor for all, the largest.
    return ExpectedAnswers(
        ids,
        targets,
        exact,
        noise_verdict.distance(rounded, exact),
        noise_verdict.distance(rounded_losses, losses),
        None if declared_gpt2() is None else _answer_of_each(logits, ids, exact),
    )


def _answer_of_each(
    logits: Callable[[Tensor, str], Tensor], ids: Tensor, exact: Tensor
) -> Callable[[Tensor], Tensor] | None:
    """Return the function that answers ids by themselves; None if their answers are a part of the `exact` ones."""

    def answer(ids: Tensor) -> Tensor:
        with torch.no_grad():
            return logits(ids, "float64")

    half = ids.shape[1] // 2
    alone = noise_verdict.distance(answer(ids[:1, :half]), exact[:1, :half])
    return answer if alone > torch.finfo(torch.float32).eps * noise_verdict.max_abs(exact) else None


def _losses(logits: Tensor, targets: Tensor) -> Tensor:
    found = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return found.view(targets.shape)
