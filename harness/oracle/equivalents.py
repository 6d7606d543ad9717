"""Programs that float32 cannot distinguish from GPT-2: in float64 a constant with eight digits looks like a bug."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from harness.core.sizes import Size
from harness.oracle import noise_verdict
from harness.oracle.declared import declared_gpt2
from harness.oracle.formula import Replacement
from harness.oracle.gpt2_with_deviations import DeviatingGPT2
from harness.oracle.probe_weights import State
from harness.oracle.variants import variants


def compare_allowing_equivalents(
    candidate: noise_verdict.BuildModel,
    reference: noise_verdict.ReferenceRun,
    ids: Tensor,
    targets: Tensor,
    *,
    size: Size,
    state: State,
) -> noise_verdict.NoiseComparison:
    """Return `noise_verdict.compare`, or the comparison with a harmless variant of GPT-2 that the candidate equals.

    The harmless variants are tried only if float64 alone shows a difference, and only in digits that float32 does not
    have. An example is `0.5 * x * (1 + tanh(0.79788456 * (x + 0.044715 * x**3)))`: its constant is sqrt(2/pi) to eight
    digits, which is as many as float32 has.
    """
    comparison = noise_verdict.compare(candidate, reference, ids, targets)
    if not comparison.only_beyond_float32:
        return comparison
    for variant in variants():
        if variant.harmless:
            declared = declared_gpt2()
            base = declared if isinstance(declared, DeviatingGPT2) else DeviatingGPT2()
            change = Replacement(variant.operation, variant.function)
            gpt2 = replace(base, replacements=(*base.replacements, change))
            with torch.enable_grad():
                other = noise_verdict.run_reference(
                    lambda dtype, gpt2=gpt2: gpt2.oracle(size, state, dtype),  # type: ignore[misc]
                    ids,
                    targets,
                    backward=bool(reference.gradients),
                )
            with_variant = noise_verdict.compare(candidate, other, ids, targets)
            if not with_variant.different:
                return with_variant
    return comparison
