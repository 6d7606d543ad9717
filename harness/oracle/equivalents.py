"""Programs that float32 cannot tell from GPT-2: to float64 a constant with eight digits looks like a bug."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.core.sizes import Size
from harness.oracle import noise_verdict
from harness.oracle.formula import Replacement
from harness.oracle.gpt2_with_deviations import DeviatingGPT2
from harness.oracle.probe_weights import State
from harness.oracle.variants import variants


def compare_allowing_equivalents(
    candidate: noise_verdict.Make, truth: noise_verdict.Truth, ids: Tensor, targets: Tensor, *, size: Size, state: State
) -> noise_verdict.NoiseComparison:
    """`noise_verdict.compare`; where float64 alone finds a difference, and a tiny one, held once more against GPT-2 so written.

    As in `0.5 * x * (1 + tanh(0.79788456 * (x + 0.044715 * x**3)))`: the constant is sqrt(2/pi) to eight digits, as
    many as float32 has.
    """
    comparison = noise_verdict.compare(candidate, truth, ids, targets)
    if not comparison.only_beyond_float32:
        return comparison
    for explanation in variants():
        if explanation.harmless:
            written = DeviatingGPT2((Replacement(explanation.operation, explanation.function),))
            with torch.enable_grad():
                other = noise_verdict.truth(
                    lambda dtype, written=written: written.truth(size, state, dtype),  # type: ignore[misc]
                    ids,
                    targets,
                    backward=bool(truth.gradients),
                )
            again = noise_verdict.compare(candidate, other, ids, targets)
            if not again.different:
                return again
    return comparison
