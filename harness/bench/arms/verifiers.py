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
from harness.bench.work import Verification, Work
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
FULL = ("float32", "float64")  # the types that float32's bound applies to


def coarse_dtypes(arm_specs: Mapping[str, ArmSpec]) -> dict[str, torch.dtype]:
    """Return the dtype of each arm that computes in 16 bits."""
    return {name: getattr(torch, arm.computes) for name, arm in arm_specs.items() if arm.computes not in FULL}


def oracle_verifier(
    pool: ModelPool,
    control: str,
    arm_specs: Mapping[str, ArmSpec],
    answer: Callable[[Model], Tensor],
    *,
    bound: float,
    rounded_answer: Callable[[Model, torch.dtype], Tensor] | None = None,
) -> Verifier:
    """Return a verifier that compares answers with what `answer` computes by the float64 oracle.

    Arms in 16 bits may be off by a multiple of what rounding the oracle's weights alone changes. `rounded_answer`
    computes that answer for work that also writes the weights; by default it is `answer`.
    """

    def coarse(dtype: torch.dtype) -> Tensor:
        model = pool.oracle(stored_in=dtype)
        return answer(model) if rounded_answer is None else rounded_answer(model, dtype)

    def stored(arm: ArmSpec) -> Tensor:
        return answer(pool.oracle_storing(str(arm.weights), getattr(torch, arm.computes)))

    return TensorVerifier(
        expected=lambda: answer(pool.oracle()),
        control=control,
        bound=bound,
        coarse=coarse,
        dtypes=coarse_dtypes(arm_specs),
        # Once for both verifications, before timing and after it.
        stored={
            name: functools.cache(functools.partial(stored, arm))
            for name, arm in arm_specs.items()
            if arm.weights in ROUNDED
        },
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
    """

    expected: Callable[[], Tensor]
    control: str
    bound: float
    coarse: Callable[[torch.dtype], Tensor] | None = None
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    stored: Mapping[str, Callable[[], Tensor]] = field(default_factory=dict)
    oracle_name: str = "float64"
    _expected: Tensor | None = None
    _control_error: float = math.nan
    _coarse_errors: dict[torch.dtype, float] = field(default_factory=dict)

    def __call__(self, name: str, work: Work) -> Verification:
        """Return the verdict on one arm; the control must be verified first."""
        expected = self._compute_expected()
        answer = work.answer()
        error = relative_error(answer, expected)
        if name == self.control and math.isnan(self._control_error):
            self._control_error = error
        allowed, reason = self._allowed(name)
        message = f"relative error {error:.1e} against {self.oracle_name}; {reason}"
        if name in self.stored:
            return self._beyond_rounding(answer, self.stored[name](), error, allowed, message)
        if not error <= allowed:  # also if it is NaN
            message = f"{message}, so rounding allows {allowed:.1e}; `pytest verifications/` finds what differs"
            return Verification("fail", message, error=error, allowed=allowed)
        return Verification("pass", message, error=error, allowed=allowed)

    def _beyond_rounding(
        self, answer: Tensor, rounded: Tensor, error: float, allowed: float, message: str
    ) -> Verification:
        """Return the verdict on an answer of stored weights, beside float64's with weights so `rounded`."""
        beyond, alone = relative_error(answer, rounded), relative_error(rounded, self._compute_expected())
        message = f"{message}; storing them in fewer bits makes {alone:.1e}, and beyond that it is off by {beyond:.1e}"
        if not beyond <= allowed:
            message = f"{message}; rounding allows {allowed:.1e}"
            return Verification("fail", message, error=error, allowed=alone + allowed)
        return Verification("pass", message, error=error, allowed=alone + allowed)

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
    name processes by closed form: an arm with another count does not do what its name says. `stored` has the arms whose
    weights are in fewer bits: of ids, the float64 logits with weights so rounded, and what rounding its activations
    makes. Such an arm must choose the best token of its own logits, which must be near those.
    """

    oracle_logits: Callable[[Tensor], Tensor]
    control: str
    bound: float
    positions: Mapping[str, int]
    new_tokens: int
    stored: Mapping[str, Callable[[Tensor], tuple[Tensor, float]]] = field(default_factory=dict)
    _generated: Generated | None = None
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
        if (regret := self._regret()) > REGRET_FACTOR * self.bound:
            return Verification("fail", f"a token is not the best one: float64 prefers another, {regret:.1e} above it")
        return self._verify_logits(name, answer, expected)

    def _verify_stored(self, name: str, answer: Generated) -> Verification:
        """Return the verdict on tokens that need not be float64's, because the weights are in fewer bits."""
        chosen = answer.ids[:, -self.new_tokens :]
        if answer.logits is None:
            return Verification("error", "the logits that its tokens were chosen from could not be seen")
        if not torch.equal(answer.logits.argmax(-1), chosen):
            return Verification("fail", "a token is not the best one by the arm's own logits")
        rounded, rounding = self.stored[name](answer.ids[:, :-1])
        exact = self.oracle_logits(answer.ids[:, :-1])
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
            error = relative_error(answer.logits, self._expected_logits[:, -answer.logits.shape[1] :])
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

    def _regret(self) -> float:
        """Return how far the float64 logit of the worst chosen token is below the best, over the RMS of all logits."""
        assert self._generated is not None
        logits = self._expected_logits[:, -self.new_tokens :]
        chosen = self._generated.ids[:, -self.new_tokens :, None]
        return float((logits.amax(-1) - logits.gather(-1, chosen)[..., 0]).max() / logits.square().mean().sqrt())

    @functools.cached_property
    def _expected_logits(self) -> Tensor:
        assert self._generated is not None
        return self.oracle_logits(self._generated.ids[:, :-1])


def _short_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
