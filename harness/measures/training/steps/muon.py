"""The measure of Muon's step: momentum, made orthogonal by a Newton-Schulz iteration (Jordan et al. 2024)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.core.errors import MissingAbility
from harness.measures.training.largest_error import rank_of_error
from harness.suites.measure_registry import Reading, measure
from harness.training.optimizer_steps import Group, Step
from harness.training.protocols import Trains

COEFFICIENTS, ITERATIONS = (3.4445, -4.775, 2.0315), 5  # Jordan's, and torch.optim.Muon's defaults
ROUNDING = 1.8  # the bound of the check in verifications/training.toml, where the measured values are
LEAST_FLOOR = 1e-3  # bfloat16 rounds by 2^-9; of a few numbers the mean error may be less by chance


@dataclass(frozen=True, eq=False)
class MuonUpdate:
    """One matrix's update: gradient and momentum before it, the momentum after it, and what it changed, in float64.

    `change` is that of a descent, without decay: (p (1 - lr wd) - p_after) / lr.
    """

    name: str
    group: Group
    gradient: Tensor
    before: Tensor
    after: Tensor
    change: Tensor
    eps: float
    """Of the type of the momentum: 2^-23 for float32."""

    @property
    def beta(self) -> float:
        """The factor of the momentum: the group's option, or what fits the momentum before and after the step."""
        given = (self.group.options.get(word) for word in ("momentum", "mu", "beta"))
        return next((float(value) for value in given if value is not None), self._fitted_beta())

    def _fitted_beta(self) -> float:
        columns = torch.stack((self.before.flatten(), self.gradient.flatten()), dim=1)
        return float(torch.linalg.lstsq(columns, self.after.flatten()[:, None]).solution[0])

    @property
    def kind(self) -> str:
        """The convention of the momentum: a "mean", b m + (1 - b) g, or a "sum", b m + g, whichever is nearer."""
        return min(("mean", "sum"), key=lambda kind: float((self.momentum(kind) - self.after).norm()))

    def momentum(self, kind: str) -> Tensor:
        """Return the momentum after the step as a "mean" or a "sum"."""
        return self.beta * self.before + (1.0 if kind == "sum" else 1 - self.beta) * self.gradient

    def momentum_error(self) -> float:
        """Return the distance of the program's momentum from that of its convention, in roundings of its type."""
        right = self.momentum(self.kind)
        terms = (self.beta * self.before, right - self.beta * self.before, self.after)
        return _or_infinite((self.after - right).norm() / (self.eps * sum(term.norm() for term in terms)))

    def directions(self) -> Iterator[tuple[str, Tensor]]:
        """Yield what may be made orthogonal, by what is wrong with it: "" for the momentum, with Nesterov's or without.

        Nesterov's looks one step ahead. Without an option that says which, both are right.
        """
        mean, sum_ = torch.lerp(self.gradient, self.after, self.beta), self.gradient + self.beta * self.after
        nesterov = self.group.options.get("nesterov")
        if nesterov is not False:
            yield "", mean if self.kind == "mean" else sum_
        if nesterov is not True:
            yield "", self.after
        yield "the gradient, without momentum", self.gradient
        yield "the momentum, without Nesterov's step", self.after
        if self.before.any():
            yield "the momentum before this step", self.before

    def error(self, direction: Tensor, orthogonal: Callable[[Tensor], Tensor]) -> float:
        """Return the distance of the change from the direction made orthogonal, of any length above 0.

        The unit is the distance of the same iteration in bfloat16, in which Muon computes it. An iteration with other
        coefficients is right if it has the singular vectors of the direction and brings its values together.
        """
        exact, half = orthogonal(direction), orthogonal(direction.bfloat16()).double()
        floor = max(float((half - exact).norm() / exact.norm()), LEAST_FLOOR)
        scale = (self.change * exact).sum() / exact.square().sum()
        if not scale > 0:  # the step goes uphill, or nowhere
            return math.inf
        of_iteration = _or_infinite((self.change - scale * exact).norm() / self.change.norm()) / floor
        return min(of_iteration, self._error_of_vectors(direction, half))

    def _error_of_vectors(self, direction: Tensor, half: Tensor) -> float:
        """Return how far the change is from the direction's singular vectors, in the unit of the bfloat16 iteration."""
        u, values, v = torch.linalg.svd(direction, full_matrices=False)
        found, own = u.T @ self.change @ v.T, u.T @ half @ v.T
        strong = values > 0.05 * values[0]  # the iteration leaves the smallest ones behind
        sizes = found.diagonal()[strong]
        if not float(sizes.min()) >= 0.5 * float(sizes.max()):
            return math.inf
        apart = [_or_infinite((each - each.diagonal().diag()).norm() / each.norm()) for each in (found, own)]
        return apart[0] / max(apart[1], LEAST_FLOOR)


def _or_infinite(error: Tensor) -> float:
    return math.inf if error.isnan() else float(error)


def newton_schulz(matrix: Tensor, *, iterations: int = ITERATIONS) -> Tensor:
    """Return the matrix with its singular values near 1, in its own type: X <- a X + (b A + c A²) X with A = X X^T."""
    a, b, c = COEFFICIENTS
    X: Tensor = matrix.mT if matrix.size(-2) > matrix.size(-1) else matrix
    X = X / (X.norm() + 1e-7)
    for _ in range(iterations):
        A = X @ X.mT
        X = a * X + (b * A + c * A @ A) @ X
    return X.mT if matrix.size(-2) > matrix.size(-1) else X


# What may take the iteration's place, by what is wrong with it.
ITERATION: Mapping[str, Callable[[Tensor], Tensor]] = {
    "": newton_schulz,
    "it is not made orthogonal": lambda matrix: matrix,
    "it is one iteration of five": lambda matrix: newton_schulz(matrix, iterations=1),
    "it is the sign of each entry": torch.sign,
}


@measure
def muon_errors(program: Trains, *, rehearsal: str = "plain", steps: int = 5) -> Reading:
    """Return the distance of Muon's updates in each of the first `steps` optimizer steps from its rule, the worst one.

    The rule is computed in float64 from the recorded gradients and momenta. The unit is the distance of the same rule
    in bfloat16. Any length of the update is right: conventions differ.
    """
    recording = program.record(rehearsal)
    found: dict[str, float] = {}
    hint = ""
    for step in recording.steps[:steps]:
        errors = [(_least_error(each), each) for each in muon_updates(step)]
        if not errors:
            continue
        error, update = max(errors, key=lambda item: rank_of_error(item[0]))
        found[f"step {step.number}"] = error
        if not hint and not error <= ROUNDING:
            hint = f"step {step.number}, {update.name}: {_cause(update, error)}"
    if not found:
        raise MissingAbility(f"{program.name} has no optimizer that is called Muon, or none with matrices")
    return Reading(found, "of the rounding of bfloat16", {"hint": hint} if hint else {})


def muon_updates(step: Step) -> Iterator[MuonUpdate]:
    """Yield the updates of the matrices of an optimizer that is called Muon."""
    for group in step.groups:
        if "muon" not in (group.optimizer or step.optimizer).lower() or group.lr <= 0:
            continue
        for name in group.names:
            p, gradient = step.before[name].double(), step.gradient.get(name)
            states = (step.state_before.get(name, {}), step.state_after.get(name, {}))
            before, after = (next((m for m in state.values() if m.shape == p.shape), None) for state in states)
            if p.dim() == 2 and gradient is not None and gradient.any() and after is not None:
                before = torch.zeros_like(p) if before is None else before.double()
                change = (p * (1 - group.lr * group.weight_decay) - step.after[name].double()) / group.lr
                eps = torch.finfo(after.dtype).eps
                yield MuonUpdate(name, group, gradient.double(), before, after.double(), change, eps)


def _least_error(update: MuonUpdate) -> float:
    of_step = min(update.error(each, newton_schulz) for wrong, each in update.directions() if not wrong)
    return max(of_step, update.momentum_error())


def _cause(update: MuonUpdate, error: float) -> str:
    """Return the known mistake that explains an update, or that it is not the rule's."""
    if not update.momentum_error() <= ROUNDING:
        return "the momentum is not that of the step before and this gradient: it is lost, or another factor is used"
    if all(not (update.change * each).sum() > 0 for wrong, each in update.directions() if not wrong):
        return "the update goes uphill, or is zero"
    tried = itertools.product(ITERATION.items(), update.directions())
    candidates = [
        (update.error(direction, orthogonal) if orthogonal is newton_schulz else _plain(update, orthogonal(direction)),
         "; ".join(filter(None, (of_what and f"the update is that of {of_what}", wrong))))
        for (wrong, orthogonal), (of_what, direction) in tried
        if wrong or of_what
    ]  # fmt: skip
    best, sentence = min(candidates)
    return sentence if best <= ROUNDING and best <= error / 2 else "the update is not the momentum made orthogonal"


def _plain(update: MuonUpdate, direction: Tensor) -> float:
    """Return the distance of the change from a direction, of any length, in units of bfloat16's rounding."""
    scale = (update.change * direction).sum() / direction.square().sum()
    return float((update.change - scale * direction).norm() / update.change.norm()) / 2**-9
