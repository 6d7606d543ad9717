"""Work of one feed-forward layer: a mixture of experts, and the dense layers of its active and of its total size."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from harness.bench.arms.error_bounds import float32_bound, relative_error
from harness.bench.arms.model_pool import ModelPool
from harness.bench.arms.registry import ArmSpec, Verifier, work_kind
from harness.bench.arms.verifiers import kept_rows, sample_rows
from harness.bench.arms.workloads.cost_terms import dense_layer_cost, expert_layer_cost
from harness.bench.comparison import TWIN_SUFFIX
from harness.bench.work import Sample, Verification, Work
from harness.core.errors import MissingAbility
from harness.core.sizes import Size
from harness.oracle.expert_gates import CONVENTIONS
from harness.subjects.expert_layer import ExpertLayer
from harness.subjects.protocols import MixesExperts

DENSE = {"dense-active": "active", "dense-total": "total"}
# By the arguments of `_numbers`: a dense arm needs the numbers of the layer, and not the layer.
_KNOWN: weakref.WeakKeyDictionary[ModelPool, dict[tuple[int, int], _Numbers]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class _Numbers:
    """The sizes of a layer: E experts, k a token, and the hidden width of a dense layer with one expert's matrices.

    `linear` is the class of its linear layers: a dense layer of another class would be compared with that class, too.
    """

    experts: int
    per_token: int
    hidden: int
    router: int
    total: int
    active: int
    linear: type[nn.Linear]


def _layer(pool: ModelPool, experts: int, per_token: int, dtype: str = "float32") -> ExpertLayer:
    """Return the subject's layer with seeded weights. Raises MissingAbility if it has none."""
    if not isinstance(pool.subject, MixesExperts):
        raise MissingAbility(f"{pool.subject.name} has no ability 'MixesExperts': it has no mixture of experts")
    return pool.subject.build_experts(pool.size, experts=experts, per_token=per_token, dtype=dtype, device=pool.device)


def _numbers(pool: ModelPool, experts: int, per_token: int) -> _Numbers:
    """Return the sizes of the subject's layer, which is built once to count them."""
    known = _KNOWN.setdefault(pool, {})
    if (experts, per_token) not in known:
        known[experts, per_token] = _counted(_layer(pool, experts, per_token), per_token)
    return known[experts, per_token]


def _counted(layer: ExpertLayer, per_token: int) -> _Numbers:
    k = layer.per_token or per_token
    one = [part.of(part.parameter) for part in layer.expert_parameters[0]]
    matrices = sum(part.numel() for part in one if part.dim() > 1)
    total = sum(parameter.numel() for parameter in layer.module.parameters())
    return _Numbers(
        experts=layer.experts,
        per_token=k,
        hidden=matrices // (2 * layer.width),
        router=layer.router_parameters[0].numel(),
        total=total,
        active=total - (layer.experts - k) * sum(part.numel() for part in one),
        linear=next((type(part) for part in layer.module.modules() if isinstance(part, nn.Linear)), nn.Linear),
    )


def _dense(size: Size, numbers: _Numbers, hidden: int, device: str) -> nn.Module:
    """Return the dense MLP, C to `hidden` to C, in float32, with seeded weights that are the same for every copy."""
    try:
        ends = numbers.linear(size.width, hidden), numbers.linear(hidden, size.width)
    except TypeError:  # a class of the subject's with other arguments
        ends = nn.Linear(size.width, hidden), nn.Linear(hidden, size.width)
    layers = nn.Sequential(ends[0], nn.GELU(approximate="tanh"), ends[1])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.size(-1) ** 0.5)
    return layers.to(device=device)


def _inputs(pool: ModelPool, tokens: int) -> Tensor:
    return torch.randn(1, tokens, pool.size.width, generator=torch.Generator().manual_seed(1)).to(pool.device)


def _make_verifier(
    pool: ModelPool,
    control: str,
    arm_specs: Mapping[str, ArmSpec],
    *,
    tokens: int,
    experts: int = 8,
    per_token: int = 2,
) -> Verifier:
    """Return the verifier of the arms, each against its own definition in float64: the layers are other functions."""

    def answer(name: str) -> Tensor:
        x = _inputs(pool, tokens).double()
        numbers = _numbers(pool, experts, per_token)
        with torch.no_grad():
            if name in DENSE:
                return _dense(pool.size, numbers, _hidden(name, numbers), pool.device).double()(x)  # type: ignore[no-any-return]
            return _by_definition(_layer(pool, experts, per_token, "float64"), x, numbers.per_token)

    # Two products after each other, the longest sum over 4C.
    return _LayerVerifier(functools.cache(answer), 4 * float32_bound(Size("a layer", 1, 1, 1, 1, pool.size.width)))


@dataclass(frozen=True)
class _LayerVerifier:
    """Verifies each arm by its own definition in float64, `expected(name)`: the layers are other functions."""

    expected: Callable[[str], Tensor]
    bound: float

    def __call__(self, name: str, work: Work) -> Verification:
        """Return the verdict on one arm."""
        own = name.removesuffix(TWIN_SUFFIX)
        return self._compare(own, work.answer(), self.expected(own))

    def verify_sample(self, name: str, work: Work, sample: Sample) -> Verification:
        """Return the verdict on what one arm returned while it was timed."""
        own = name.removesuffix(TWIN_SUFFIX)
        return self._compare(own, sample.answer, kept_rows(self.expected(own)))

    def _compare(self, own: str, answer: Tensor, expected: Tensor) -> Verification:
        error = relative_error(answer, expected)
        against = "the same layer" if own in DENSE else "Σ g_i E_i(x) of its own experts, one after the other,"
        message = f"relative error {error:.1e} against {against} in float64; float32 allows {self.bound:.1e}"
        return Verification("pass" if error <= self.bound else "fail", message, error=error, allowed=self.bound)


def _by_definition(layer: ExpertLayer, x: Tensor, k: int) -> Tensor:
    """Return the sum of the chosen experts' outputs, by the convention of gates that is nearest to the layer's own."""
    outputs = torch.stack([layer.expert_output(number, x) for number in range(layer.experts)], dim=1)  # (N, E, C)
    logits, shared = layer.router_logits(x), layer.shared_output(x)
    y = layer(x).reshape(-1, layer.width)
    found = [torch.einsum("ne,nec->nc", gates(logits, k), outputs) + shared for gates in CONVENTIONS.values()]
    return min(found, key=lambda each: float((each - y).norm())).view_as(x)


def _hidden(name: str, numbers: _Numbers) -> int:
    return numbers.hidden * (numbers.per_token if name == "dense-active" else numbers.experts)


@work_kind("expert-layer", make_verifier=_make_verifier)
def expert_layer(
    pool: ModelPool, arm: ArmSpec, copy: int, *, tokens: int, experts: int = 8, per_token: int = 2
) -> Work:
    """Compute one feed-forward layer on (1, tokens, C), without gradients: experts, or a dense MLP.

    The dense layer of the active size has k times an expert's hidden width, that of the total size E times.
    """
    numbers = _numbers(pool, experts, per_token)
    x = _inputs(pool, tokens)
    module: Callable[[Tensor], Tensor]
    if arm.name in DENSE:
        hidden = _hidden(arm.name, numbers)
        dense = _dense(pool.size, numbers, hidden, pool.device)
        parameters = sum(parameter.numel() for parameter in dense.parameters())
        module, total, active = dense, parameters, parameters
        cost = dense_layer_cost(pool.size, tokens=tokens, hidden=hidden)
    else:
        module, total, active = _layer(pool, experts, per_token), numbers.total, numbers.active
        cost = expert_layer_cost(
            pool.size,
            tokens=tokens,
            experts=numbers.experts,
            per_token=numbers.per_token,
            hidden=numbers.hidden,
        )

    @torch.no_grad()
    def call() -> Tensor:
        return module(x)

    def extras() -> dict[str, float]:
        with FlopCounterMode(display=False) as counter:
            call()
        return {
            "total_parameters": total,
            "active_parameters": active,
            "counted_flops_per_token": counter.get_total_flops() / tokens,
            "closed_form_flops_per_token": cost.flops / tokens,
        }

    return Work(
        call=call,
        answer=call,
        sample=sample_rows,  # of one input: how many experts its tokens choose decides about the work
        tokens=tokens,
        flops=cost.flops,
        moved_bytes=cost.moved_bytes,
        extras=extras,
    )
