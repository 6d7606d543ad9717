"""The operations of the formula that each declared deviation changes: several forms where the words leave it open."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.oracle.deviations import Deviation
from harness.oracle.formula import At, Operation, heads
from harness.oracle.variants import variants
from harness.oracle.variants.attention.rotary import BASE, rotary_scores
from harness.oracle.variants.gated_mlp import gated
from harness.oracle.variants.layer_norm import normalise

Form = Mapping[str, Operation]  # operation -> what is computed in its place
NORMS = ("ln_1", "ln_2", "ln_f")
# Of Llama, of nn.LayerNorm, of nn.RMSNorm (None: the dtype's own), and others that occur.
EPSILONS = (1e-6, 1e-5, None, 1e-8, 1e-12, 1e-7, 1e-10, 0.0, 1e-4, 1e-3)
EPSILON_WORDS = ("eps", "epsilon", "variance_epsilon", "norm_eps", "rms_norm_eps", "layer_norm_epsilon", "ln_eps")


def forms_of(deviation: Deviation, module: nn.Module) -> list[Form]:
    """Return the forms that a declaration may mean for the subject's `module`; [{}] if it changes no operation."""
    special = FORMS.get(deviation.id)
    return special(deviation, module) if special is not None else _forms_of_variants(deviation)


def _forms_of_variants(deviation: Deviation) -> list[Form]:
    """Return the variants with the declared ids: a mistake of any norm in all norms, and in each one alone."""
    alone: list[Form] = []
    norms: dict[str, dict[str, Operation]] = {}  # by what is said of them, the norm's name left out
    for variant in variants():
        if deviation.kind is not None and variant.fault in deviation.kind.faults:
            alone.append({variant.operation: variant.function})
            if variant.operation in NORMS:
                words = variant.says.replace(variant.operation, "")
                norms.setdefault(words, {})[variant.operation] = variant.function
    together = [form for form in norms.values() if len(form) > 1]
    return [*together, *alone] or [{}]


def _norms(norm: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Form:
    """Return the form in which every norm is `norm(x, gain, bias)`."""

    def operation(name: str) -> Operation:
        return lambda at, x: norm(x, at[f"{name}.weight"], at[f"{name}.bias"])

    return {name: operation(name) for name in NORMS}


def _epsilons(deviation: Deviation, module: nn.Module) -> Iterator[float | None]:
    """Yield the epsilon that is declared; else those that the subject's modules state, and the usual ones."""
    if deviation.epsilon is not None:
        yield deviation.epsilon
        return
    stated = [getattr(part, word, None) for part in module.modules() for word in EPSILON_WORDS]
    yield from dict.fromkeys((*(number for number in stated if isinstance(number, float)), *EPSILONS))


def _rms_norm(deviation: Deviation, module: nn.Module) -> list[Form]:
    return [_norms(rms_norm(epsilon)) for epsilon in _epsilons(deviation, module)]


def rms_norm(epsilon: float | None) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return RMSNorm; None is nn.RMSNorm's default epsilon, the dtype's own. Half precision is computed in float32."""

    def norm(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
        wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        own = torch.finfo(wide.dtype).eps if epsilon is None else epsilon
        return (wide * (wide.pow(2).mean(-1, keepdim=True) + own).rsqrt()).to(x.dtype) * gain + bias

    return norm


def _layer_norm(deviation: Deviation, module: nn.Module) -> list[Form]:
    found = []
    for epsilon in _epsilons(deviation, module):
        if epsilon not in (None, 1e-5):
            norms = _norms(lambda x, gain, bias, own=epsilon: normalise(x, gain, bias, epsilon=own))  # type: ignore[misc]
            found += [norms, *({name: norm} for name, norm in norms.items())]
    return found


def _rotary(deviation: Deviation, module: nn.Module) -> list[Form]:
    base = BASE if deviation.base is None else deviation.base
    return [{"attn.scores": rotary_scores(interleaved=interleaved, base=base)} for interleaved in (False, True)]


def _gated(*activations: Operation) -> Callable[[Deviation, nn.Module], list[Form]]:
    return lambda deviation, module: [{"mlp": gated, "mlp.activation": activation} for activation in activations]


def _grouped(deviation: Deviation, module: nn.Module) -> list[Form]:
    """Return the form of Llama, in which neighbouring heads share keys and values, and the one in which they alternate.

    The first one is the formula's own.
    """
    return [{}, {"attn.split": _split_alternating}]


def _split_alternating(at: At, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    C, H = at.size.width, at.size.heads
    q, k, v = (heads(at, x) for x in qkv.split((C, *2 * ((qkv.shape[-1] - C) // 2,)), dim=-1))
    return q, k.repeat(1, H // k.shape[1], 1, 1), v.repeat(1, H // v.shape[1], 1, 1)


def _nothing(deviation: Deviation, module: nn.Module) -> list[Form]:
    """Return the form that changes no operation: the parameters that are absent count as zeros."""
    return [{}]


FORMS: dict[str, Callable[[Deviation, nn.Module], list[Form]]] = {
    "rms-norm": _rms_norm,
    "ln-eps-wrong": _layer_norm,
    "rotary-positions": _rotary,
    "swiglu": _gated(lambda at, x: F.silu(x)),
    "geglu": _gated(lambda at, x: F.gelu(x, approximate="tanh"), lambda at, x: F.gelu(x)),
    "reglu": _gated(lambda at, x: x.relu()),
    "glu": _gated(lambda at, x: x.sigmoid()),
    "grouped-queries": _grouped,
    **dict.fromkeys(
        ("untied-head", "head-has-bias", "padded-vocabulary", "bias-free", "bias-missing", "qkv-bias-missing",
         "hidden-width", "pos-missing"),
        _nothing,
    ),
}  # fmt: skip


def combinations(forms: Mapping[Deviation, list[Form]]) -> Iterator[dict[Deviation, Form]]:
    """Yield every choice of one form for each deviation."""
    for chosen in itertools.product(*forms.values()):
        yield dict(zip(forms, chosen, strict=True))
