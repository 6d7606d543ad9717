"""Verifiers of the answers of arms: compared with the same work in float64, by an error that rounding allows."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from harness.bench.arms.error_bounds import relative_error
from harness.bench.arms.model_pool import ModelPool
from harness.bench.arms.registry import ArmSpec, Verifier
from harness.bench.arms.stored_linears import ROUNDED
from harness.bench.work import Sample, Verification, Work
from harness.subjects.model import Model

# Two correct float32 programs round in different places. Their errors differ by far less than this factor, and a fault
# is off by hundreds of times more (measured: 1.0 between eager and SDPA, 400 for the erf GELU).
FLOAT32_FACTOR = 4.0
# Rounding the weights alone is one of four roundings of that size: weight, input, product, sum with the residual
# stream. Independent errors add in squares: sqrt(4) = 2 (measured: 1.9 to 2.3). Twice that is allowed.
COARSE_FACTOR = 4.0
# By rounding, a token may be chosen whose logit is below the best one's. One logit of many is off by more than their
# root mean square: ten times that is twice as much as the largest of a million normal values.
REGRET_FACTOR = 10.0
KEPT_ROWS = 64  # of a timed call's output: copying all of it would disturb the call after it
FULL = ("float32", "float64")  # the types that float32's bound applies to


def coarse_dtypes(arm_specs: Mapping[str, ArmSpec]) -> dict[str, torch.dtype]:
    """Return the dtype of each arm that computes in 16 bits."""
    return {name: getattr(torch, arm.computes) for name, arm in arm_specs.items() if arm.computes not in FULL}


# What is kept of the answer to an input, by its number.
Answers = Callable[[int], Tensor]


def kept_of(rows: int) -> Tensor:
    """Return which of so many rows are kept: at most KEPT_ROWS, evenly spaced, with the first and the last."""
    return torch.linspace(0, rows - 1, min(rows, KEPT_ROWS)).long()


def kept_rows(answer: Tensor) -> Tensor:
    """Return the rows that are kept of an answer (..., n): (rows, n)."""
    rows = answer.detach().flatten(0, -2)
    return rows[kept_of(len(rows)).to(rows.device)]


def sample_rows(answer: Tensor, number: int) -> Sample:
    """Return the rows that are kept of a timed call's output."""
    return Sample(number, kept_rows(answer))


def oracle_verifier(
    pool: ModelPool,
    control: str,
    arm_specs: Mapping[str, ArmSpec],
    answer: Callable[[Model], Tensor],
    *,
    bound: float,
    rounded_answer: Callable[[Model, torch.dtype], Tensor] | None = None,
    sampled: Callable[[Model], Answers] | None = None,
    answer_of: Callable[[Answers], Tensor] | None = None,
) -> Verifier:
    """Return a verifier that compares answers with what `answer` computes by the float64 oracle.

    Arms in 16 bits may be off by a multiple of what rounding the oracle's weights alone changes. `rounded_answer`
    computes that answer for work that also writes the weights; by default it is `answer`. `sampled` returns what should
    be kept of timed calls, and `answer_of` takes the answer from that, where it has all of it.
    """

    def coarse(dtype: torch.dtype) -> Tensor:
        model = pool.oracle(stored_in=dtype)
        return answer(model) if rounded_answer is None else rounded_answer(model, dtype)

    def of_stored(arm: ArmSpec) -> tuple[Callable[[], Tensor], Answers]:
        """Return what computes the answer with weights stored as the arm's, and what is kept of its timed calls."""

        def storing() -> Model:
            return pool.oracle_storing(str(arm.weights), getattr(torch, arm.computes))

        @functools.cache
        def kept() -> Answers:
            assert sampled is not None
            return sampled(storing())

        return lambda: answer(storing()) if answer_of is None else answer_of(kept()), lambda number: kept()(number)

    @functools.cache
    def exact() -> Answers:
        assert sampled is not None
        return sampled(pool.oracle())

    def sampled_exact(number: int) -> Tensor:
        pool.oracle()  # restores the weights: `coarse` has rounded them since
        return exact()(number)

    stored: dict[str, Callable[[], Tensor]] = {}
    sampled_stored: dict[str, Answers] = {}
    for name, arm in arm_specs.items():
        if arm.weights in ROUNDED:
            stored[name], sampled_stored[name] = of_stored(arm)
    return TensorVerifier(
        expected=lambda: answer(pool.oracle()) if answer_of is None else answer_of(exact()),
        control=control,
        bound=bound,
        coarse=coarse,
        dtypes=coarse_dtypes(arm_specs),
        stored=stored,
        sampled=sampled_exact if sampled else None,
        sampled_stored=sampled_stored,
        oracle_name=pool.oracle_name,
    )


@dataclass
class TensorVerifier:
    """Verifies answers by their relative error against `expected()`, the same work in float64.

    The control must be as near as the derivation for float32 says (`bound`), and every float32 arm within
    FLOAT32_FACTOR of the control's error. Arms in `dtypes` compute in that dtype: their error must be within
    COARSE_FACTOR of that of `coarse(dtype)`, the float64 answer with nothing but its parameters rounded to the dtype.
    Arms in `stored` have weights in fewer bits, which alone makes a large error: their answer is compared with what
    their function returns, the float64 answer with weights so rounded, by the bound of the dtype that they compute in.
    `sampled` and `sampled_stored` return the same of what is kept of a timed call.
    """

    expected: Callable[[], Tensor]
    control: str
    bound: float
    coarse: Callable[[torch.dtype], Tensor] | None = None
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    stored: Mapping[str, Callable[[], Tensor]] = field(default_factory=dict)
    sampled: Answers | None = None
    sampled_stored: Mapping[str, Answers] = field(default_factory=dict)
    oracle_name: str = "float64"
    _expected: Tensor | None = None
    _control_error: float = math.nan
    _coarse_errors: dict[torch.dtype, float] = field(default_factory=dict)

    def __call__(self, name: str, work: Work) -> Verification:
        """Return the verdict on one arm; the control must be verified first."""
        expected, answer = self._compute_expected(), work.answer()
        if name == self.control and math.isnan(self._control_error):
            self._control_error = relative_error(answer, expected)
        return self._compare(name, answer, expected, self.stored.get(name))

    def verify_sample(self, name: str, work: Work, sample: Sample) -> Verification:
        """Return the verdict on what an arm returned while it was timed; its first answer must be verified."""
        assert self.sampled is not None
        stored = self.sampled_stored.get(name)
        rounded = functools.partial(stored, sample.number) if stored else None
        return self._compare(name, sample.answer, self.sampled(sample.number), rounded)

    def _compare(
        self, name: str, answer: Tensor, expected: Tensor, rounded: Callable[[], Tensor] | None
    ) -> Verification:
        """Return the verdict on an answer; `rounded` computes float64's with stored weights so rounded."""
        error = relative_error(answer, expected)
        allowed, reason = self._allowed(name)
        message = f"relative error {error:.1e} against {self.oracle_name}; {reason}"
        if rounded is not None:
            right = rounded()
            beyond, alone = relative_error(answer, right), relative_error(right, expected)
            message = (
                f"{message}; storing them in fewer bits makes {alone:.1e}, and beyond that it is off by {beyond:.1e}"
            )
            if not beyond <= allowed:
                message = f"{message}; rounding allows {allowed:.1e}"
                return Verification("fail", message, error=error, allowed=alone + allowed)
            return Verification("pass", message, error=error, allowed=alone + allowed)
        if not error <= allowed:  # also if it is NaN
            message = f"{message}, so rounding allows {allowed:.1e}; `pytest verifications/` finds what differs"
            return Verification("fail", message, error=error, allowed=allowed)
        return Verification("pass", message, error=error, allowed=allowed)

    def _compute_expected(self) -> Tensor:
        """Return the float64 answer, computed once, and with it the errors of the coarse dtypes."""
        if self._expected is None:
            self._expected = self.expected()
            if self.coarse is not None:
                for dtype in set(self.dtypes.values()):
                    self._coarse_errors[dtype] = relative_error(self.coarse(dtype), self._expected)
        return self._expected

    def _allowed(self, name: str) -> tuple[float, str]:
        """Return the error that the arm may have, and the reason."""
        if (dtype := self.dtypes.get(name)) is not None:
            rounded = self._coarse_errors[dtype]
            return COARSE_FACTOR * rounded, f"rounding the weights to {_short_name(dtype)} alone makes {rounded:.1e}"
        if name == self.control:
            return self.bound, f"float32 allows {self.bound:.1e}"
        # A control that is closer than float32 requires must not narrow the bound for arms that are about as close.
        allowed = max(FLOAT32_FACTOR * self._control_error, self.bound / FLOAT32_FACTOR)
        return allowed, f"the control's is {self._control_error:.1e}"


@dataclass(frozen=True)
class Generated:
    """The result of a generation, and what was counted during it: None where it could not be observed."""

    ids: Tensor  # (B, prompt + new)
    logits: Tensor | None  # (B, new, V), of the positions that the new tokens were chosen from
    positions: int | None  # that went through the token embedding, per sequence


@dataclass
class GenerationVerifier:
    """Verifies greedy generation: the best tokens, the logits of each step near float64, the right number of positions.

    `oracle_logits` returns the float64 logits (B, T, V) of ids (B, T). `positions` is how many positions an arm of that
    name processes by closed form: an arm with another count does not do what its name says. `prompts` returns those of
    an input, by its number. `stored` has the arms whose weights are in fewer bits: of ids, the float64 logits with
    weights so rounded, and what rounding its activations makes. Such an arm must choose the best token of its own
    logits, which must be near those.
    """

    oracle_logits: Callable[[Tensor], Tensor]
    control: str
    bound: float
    positions: Mapping[str, int]
    new_tokens: int
    prompts: Callable[[int], Tensor]
    stored: Mapping[str, Callable[[Tensor], tuple[Tensor, float]]] = field(default_factory=dict)
    _generated: Generated | None = None
    _seen: tuple[Tensor, Tensor] | None = None
    _control_error: float = math.nan

    def __call__(self, name: str, work: Work) -> Verification:
        """Return the verdict on one arm; the control must be verified first."""
        answer: Generated = work.answer()
        expected = self.positions[name]
        if answer.positions not in (None, expected):
            counted = f"processed {answer.positions:,} positions, but {name} generation takes {expected:,}"
            return Verification("fail", f"{counted}: it does not do what its name says")
        if name in self.stored:
            return self._verify_stored(name, answer)
        if self._generated is None:
            self._generated = answer
        if not torch.equal(answer.ids, self._generated.ids):
            step = int((answer.ids != self._generated.ids).any(0).nonzero()[0])
            return Verification("fail", f"token {step} differs from the control's greedy choice")
        if (regret := self._regret(answer.ids)) > REGRET_FACTOR * self.bound:
            return Verification("fail", _not_the_best(regret))
        return self._verify_logits(name, answer, expected)

    def verify_sample(self, name: str, work: Work, sample: Sample) -> Verification:
        """Return the verdict on the ids that an arm returned while it was timed; its first answer must be verified.

        They must be the best ones by float64. Weights in fewer bits choose other tokens: the arm must choose the same
        ones again, and those are verified.
        """
        ids: Tensor = sample.answer
        if name in self.stored:
            answer: Generated = work.answer()
            if not torch.equal(answer.ids, ids):
                return Verification(
                    "fail", "it returned other tokens while it was timed than it does for that prompt now"
                )
            return self._verify_stored(name, answer)
        prompt = self.prompts(sample.number)
        if ids.shape != (len(prompt), prompt.shape[1] + self.new_tokens) or not torch.equal(
            ids[:, : prompt.shape[1]], prompt
        ):
            return Verification("fail", f"it returned {tuple(ids.shape)} ids that are not the prompt and new tokens")
        if (regret := self._regret(ids)) > REGRET_FACTOR * self.bound:
            return Verification("fail", _not_the_best(regret))
        return Verification("pass", f"float64's greedy tokens: the worst is {regret:.1e} behind the best")

    def _verify_stored(self, name: str, answer: Generated) -> Verification:
        """Return the verdict on tokens that need not be float64's, because the weights are in fewer bits."""
        chosen = answer.ids[:, -self.new_tokens :]
        if answer.logits is None:
            return Verification("error", "the logits that its tokens were chosen from could not be seen")
        if not torch.equal(answer.logits.argmax(-1), chosen):
            return Verification("fail", "a token is not the best one by the arm's own logits")
        rounded, rounding = self.stored[name](answer.ids[:, :-1])
        exact = self._logits(answer.ids)
        error, beyond, alone = (
            relative_error(one[:, -self.new_tokens :], other[:, -self.new_tokens :])
            for one, other in ((answer.logits, exact), (answer.logits, rounded), (rounded, exact))
        )
        allowed = COARSE_FACTOR * rounding
        same = "float64's" if torch.equal(exact[:, -self.new_tokens :].argmax(-1), chosen) else "not float64's"
        message = (
            f"the best tokens by its own logits ({same}), of relative error {error:.1e} against float64; storing the "
            f"weights in fewer bits makes {alone:.1e}, and beyond that it is off by {beyond:.1e}"
        )
        if not beyond <= allowed:
            message = f"{message}; rounding allows {allowed:.1e}"
            return Verification("fail", message, error=error, allowed=alone + allowed)
        return Verification("pass", message, error=error, allowed=alone + allowed)

    def _verify_logits(self, name: str, answer: Generated, expected: int) -> Verification:
        """Return the verdict on the logits that the tokens were chosen from, if they could be observed."""
        parts = ["the control's tokens" if name != self.control else "float64's greedy tokens"]
        error = allowed = None
        if answer.logits is None:
            parts.append("the logits of its steps could not be seen")
        else:
            error = relative_error(answer.logits, self._logits(answer.ids)[:, -answer.logits.shape[1] :])
            if name == self.control and math.isnan(self._control_error):
                self._control_error = error
            # If the control's logits could not be seen, the derived bound remains for the other arms.
            floor = math.inf if math.isnan(self._control_error) else FLOAT32_FACTOR * self._control_error
            allowed = self.bound if name == self.control else min(self.bound, floor)
            parts.append(f"the logits of its steps have relative error {error:.1e} against float64")
            if not error <= allowed:
                message = f"{'; '.join(parts)}, and rounding allows {allowed:.1e}"
                return Verification("fail", message, error=error, allowed=allowed)
        if answer.positions is None:
            return Verification("pass", "; ".join([*parts, "positions could not be counted"]), {}, error, allowed)
        counts = {"positions": answer.positions, "positions_closed_form": expected}
        return Verification("pass", "; ".join(parts), counts, error, allowed)

    def _regret(self, ids: Tensor) -> float:
        """Return how far the float64 logit of the worst chosen token is below the best, over the RMS of all logits."""
        logits = self._logits(ids)[:, -self.new_tokens :]
        chosen = ids[:, -self.new_tokens :, None]
        return float((logits.amax(-1) - logits.gather(-1, chosen)[..., 0]).max() / logits.square().mean().sqrt())

    def _logits(self, ids: Tensor) -> Tensor:
        """Return the float64 logits of ids but the last ones, computed once for arms that return the same ids."""
        if self._seen is None or not torch.equal(self._seen[0], ids):
            self._seen = ids, self.oracle_logits(ids[:, :-1])
        return self._seen[1]


def _not_the_best(regret: float) -> str:
    return f"a token is not the best one: float64 prefers another, {regret:.1e} above it"


def _short_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
