"""The sweep: the subject's answers under every condition of a table, compared with GPT-2's by the noise verdict."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from harness.core.error_text import describe_error
from harness.core.errors import Missing, MissingAbility
from harness.measures.conditions.condition import Condition
from harness.measures.conditions.expected import ExpectedAnswers
from harness.oracle import noise_verdict
from harness.oracle.noise_verdict import Difference
from harness.subjects.dropout_calls import WithoutDropout
from harness.subjects.model import Model
from harness.subjects.protocols import Generates, Subject

DTYPES = ("float64", "float32")
GRADIENTS = {
    "recorded": torch.enable_grad,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}


@dataclass(frozen=True)
class Outcome:
    """What came of one condition.

    Attributes:
        difference: Of the logits or the loss, whichever is worse; None if the call raised an error.
        error: The error that a call raised, in one line.
        refused: True if the error is a refusal, which is the subject's right.
        rows_wrong: The rows of the batch that differ, and `positions_wrong` the positions.
    """

    condition: Condition
    difference: Difference | None = None
    error: str = ""
    refused: bool = False
    rows_wrong: frozenset[int] = frozenset()
    positions_wrong: frozenset[int] = frozenset()

    @property
    def verdict(self) -> str:
        """'equal', 'rounding' or 'different', or the error."""
        return self.error if self.difference is None else self.difference.verdict

    @property
    def is_right(self) -> bool:
        """True unless the answer differs or the call fails."""
        return self.refused or (self.difference is not None and self.difference.verdict != "different")


@dataclass
class Sweep:
    """Calls the models of one subject, in float64 and in float32, under one condition after the other.

    `build` makes new models, of the size that the answers are expected at. Without float64 among the `dtypes` only
    float32 is judged, by its floor.
    """

    subject: Subject
    expected: ExpectedAnswers
    build: Callable[[str], Model]
    dtypes: Sequence[str] = DTYPES
    models: dict[str, Model] = field(default_factory=dict)

    def renew(self) -> None:
        """Replace the models by new ones, which nobody has called."""
        self.models = {dtype: self.build(dtype) for dtype in self.dtypes}

    def outcome(self, condition: Condition) -> Outcome:
        """Return what comes of one condition. What the subject raises is part of it."""
        if not self.models:
            self.renew()
        found: dict[str, tuple[Tensor, Tensor | None]] = {}
        for dtype, model in self.models.items():
            try:
                found[dtype] = self._answer(model, condition)
            except Missing:
                raise
            except Exception as error:
                return Outcome(condition, None, describe_error(error), refused=condition.may_be_refused)
        return self._compared(condition, found)

    def _answer(self, model: Model, condition: Condition) -> tuple[Tensor, Tensor | None]:
        training = condition.mode == "train"
        ids, targets = given_ids(self.expected.ids, condition), None
        if condition.call == "targets":
            targets = self.expected.targets[: condition.rows, : condition.length].clone()
        EVENTS[condition.after](self.subject, model, self.expected.ids.clone())
        model.module.train(training)
        with GRADIENTS[condition.gradients](), WithoutDropout() if training else contextlib.nullcontext():
            logits, loss = model.one_call(ids, targets)
        model.module.eval()
        return logits.detach().clone(), None if loss is None else loss.detach().clone()

    def _compared(self, condition: Condition, found: Mapping[str, tuple[Tensor, Tensor | None]]) -> Outcome:
        logits = self.expected.logits(condition)  # (B, T, V)
        shapes = {tuple(answer.shape) for answer, _ in found.values()}
        last = (logits.shape[0], 1, logits.shape[2])
        if shapes == {last}:
            logits = logits[:, -1:]  # nanoGPT's answer without targets
        if shapes - {tuple(logits.shape)}:
            return Outcome(condition, None, f"logits of shape {min(shapes)}, expected {tuple(logits.shape)}")
        differences = [
            Difference(
                str(condition),
                scale=self.expected.scale,
                float32=noise_verdict.distance(found["float32"][0], logits),
                float64=noise_verdict.distance(found["float64"][0], logits) if "float64" in found else 0.0,
                floor32=self.expected.floor,
            )
        ]
        if all(loss is not None for _, loss in found.values()):
            differences.append(self._loss_difference(condition, {d: loss for d, (_, loss) in found.items()}))
        worst = next((each for each in differences if each.verdict == "different"), differences[0])
        rows, positions = self._wrong(differences[0], logits, {d: answer for d, (answer, _) in found.items()})
        return Outcome(condition, worst, rows_wrong=rows, positions_wrong=positions)

    def _loss_difference(self, condition: Condition, found: Mapping[str, Any]) -> Difference:
        expected = self.expected.loss(condition)
        return Difference(
            str(condition),
            scale=float(expected),
            float32=noise_verdict.distance(found["float32"], expected),
            float64=noise_verdict.distance(found["float64"], expected) if "float64" in found else 0.0,
            floor32=self.expected.loss_floor,
        )

    def _wrong(
        self, difference: Difference, expected: Tensor, found: Mapping[str, Tensor]
    ) -> tuple[frozenset[int], frozenset[int]]:
        """Return the rows and the positions at which the logits differ."""
        if difference.verdict != "different":
            return frozenset(), frozenset()
        wrong = torch.zeros(expected.shape[:2], dtype=torch.bool)
        for dtype, answer in found.items():
            floor = self.expected.floor * (1.0 if dtype == "float32" else noise_verdict.PRECISION_GAIN)
            factor = noise_verdict.FLOOR_FACTOR_32 if dtype == "float32" else noise_verdict.FLOOR_FACTOR_64
            wrong |= ~((answer - expected).abs().amax(-1) <= factor * floor)  # NaN is wrong
        rows, positions = wrong.any(1).nonzero().flatten().tolist(), wrong.any(0).nonzero().flatten().tolist()
        return frozenset(rows), frozenset(positions)


def given_ids(ids: Tensor, condition: Condition) -> Tensor:
    """Return the ids (rows, length) of the kind that the condition wants, from `ids` (R, T).

    They are a copy: a subject may write into them, and the expected answers are those of the ids as they were.
    """
    chosen = ids[: condition.rows, : condition.length].clone(memory_format=torch.contiguous_format)
    if condition.ids == "int32":
        return chosen.int()
    if condition.ids == "non-contiguous":
        return chosen.t().contiguous().t()
    if condition.ids == "expanded":
        return chosen[:1].expand(condition.rows, -1)
    return chosen


def _nothing(subject: Subject, model: Model, ids: Tensor) -> None:
    pass


def _too_long(subject: Subject, model: Model, ids: Tensor) -> None:
    with contextlib.suppress(Exception), torch.no_grad():
        model.one_call(torch.cat((ids, ids), dim=1)[:2, : model.size.context + 1].contiguous())


def _backward(subject: Subject, model: Model, ids: Tensor) -> None:
    model.loss(ids[:2, :6], ids[:2, 1:7]).backward()
    model.module.zero_grad(set_to_none=True)


def _step(subject: Subject, model: Model, ids: Tensor) -> None:
    """Make a step of an optimizer that changes no weight, so that the answers are known."""
    model.loss(ids[:3, :5], ids[:3, 1:6]).backward()
    torch.optim.SGD([p for p in model.module.parameters() if p.requires_grad], lr=0.0).step()
    model.module.zero_grad(set_to_none=True)


def _generation(subject: Subject, model: Model, ids: Tensor) -> None:
    if isinstance(subject, Generates):
        with contextlib.suppress(MissingAbility):
            subject.generate(model, ids[:1, : min(4, ids.shape[1])].contiguous(), 3, temperature=0.0)


EVENTS: Mapping[str, Callable[[Subject, Model, Tensor], None]] = {
    "another call": _nothing,  # the condition before it
    "an error (ids too long)": _too_long,
    "a backward pass": _backward,
    "an optimizer step": _step,
    "generation": _generation,
}


def run(sweep: Sweep, conditions: Sequence[Condition], *, enough: int) -> list[Outcome]:
    """Return the outcomes, in order; only the first `enough` if all of these are wrong."""
    return list(until_all_wrong(enough, (sweep.outcome(each) for each in conditions)))


def until_all_wrong(enough: int, outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
    """Yield the outcomes, in order; only the first `enough` if all of these are wrong."""
    wrong = 0
    for number, outcome in enumerate(outcomes, 1):
        yield outcome
        wrong += not outcome.is_right
        if wrong == number == enough:
            return
