"""The noise verdict distinguishes rounding from bugs; both of its factors are measured here."""

import math

import pytest
import torch
from torch import nn

from harness.core.sizes import SIZES
from harness.oracle import noise_verdict
from harness.oracle.hugging_face import oracle
from harness.oracle.noise_verdict import PRECISION_GAIN, Difference
from harness.oracle.probe_weights import state
from harness.oracle.tokens import batch
from harness.subjects.adapters import adapt
from harness.subjects.build import build_with_weights

DEBUG = SIZES["debug"]


def difference(float32, float64, floor32=2e-6, scale=5.0):
    return Difference("logits", scale=scale, float32=float32, float64=float64, floor32=floor32)


def test_bitwise_equal_is_equal():
    assert difference(2e-6, 0.0).verdict == "equal"


def test_a_difference_that_shrinks_with_precision_is_rounding():
    assert difference(3e-6, 8.5e-15).verdict == "rounding"


def test_a_difference_that_stays_in_float64_is_different_however_small():
    """The exact GELU instead of the tanh GELU gives 8.2e-4 in both; a tolerance of 1e-3 would pass it."""
    assert difference(8.2e-4, 8.2e-4).verdict == "different"
    assert difference(2e-6, 1e-9).verdict == "different"


def test_a_float32_error_beyond_the_floor_is_different_even_if_float64_is_right():
    assert difference(1e-3, 8.5e-15).verdict == "different"


@pytest.mark.parametrize("slot", ["float32", "float64"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_infinity_are_different(slot, value):
    numbers = {"float32": 2e-6, "float64": 1e-15} | {slot: value}
    assert difference(**numbers).verdict == "different"


def test_a_measured_floor_of_zero_is_replaced_by_half_a_unit_in_the_last_place():
    assert difference(1e-7, 1e-17, floor32=0.0, scale=5.0).verdict == "rounding"
    assert difference(1e-7, 1e-17, floor32=0.0, scale=5e-6).verdict == "different"


def test_distance_is_nan_for_shapes_that_differ_and_values_that_are_not_finite():
    assert noise_verdict.distance(torch.zeros(3), torch.tensor([0.0, 0.5, -2.0])) == 2.0
    assert math.isnan(noise_verdict.distance(torch.zeros(2), torch.zeros(3)))
    assert math.isnan(noise_verdict.distance(torch.tensor([1.0, math.nan]), torch.zeros(2)))
    assert math.isnan(noise_verdict.distance(torch.tensor([1.0, math.inf]), torch.zeros(2)))


def ratios(module_change):
    """Return the ratio of a changed reference's error to the floor at its worst place, in float32 and in float64."""
    subject = adapt("gpt:GPT")
    ids, targets = batch(DEBUG, "random", rows=2, length=24)

    def candidate(dtype):
        model = build_with_weights(subject, DEBUG, state("debug", "probe"), dtype)
        module_change(model.module)
        return model

    reference = noise_verdict.run_reference(
        lambda dtype: oracle(DEBUG, state("debug", "probe"), dtype), ids, targets, backward=True
    )
    comparison = noise_verdict.compare(candidate, reference, ids, targets)
    rows = comparison.outputs + comparison.gradients
    floors = [max(d.floor32, d.scale * 6e-8) for d in rows]
    return (
        max(d.float32 / floor for d, floor in zip(rows, floors, strict=True)),
        max(d.float64 / (floor * PRECISION_GAIN) for d, floor in zip(rows, floors, strict=True)),
    )


def test_a_correct_model_stays_well_below_both_factors():
    """Measured: 1.96 times the floor in float32, and 2.06 times in float64."""
    above32, above64 = ratios(lambda module: None)
    assert above32 < noise_verdict.FLOOR_FACTOR_32 / 2
    assert above64 < noise_verdict.FLOOR_FACTOR_64 / 8


@pytest.mark.parametrize("epsilon", [1e-12, 1.01e-5])
def test_the_subtlest_fault_is_far_above_the_float64_factor(epsilon):
    """An epsilon that is wrong by 1%, in one norm of three layers, is 5e7 times the floor."""

    def change(module):
        module.transformer["h"][2].ln_2.eps = epsilon

    assert ratios(change)[1] > 1000 * noise_verdict.FLOOR_FACTOR_64


def test_an_error_in_float32_only_is_far_above_the_float32_factor():
    def change(module):
        module.transformer["ln_f"].register_forward_hook(
            lambda m, args, out: out.bfloat16().float() if out.dtype == torch.float32 else out
        )

    assert ratios(change)[0] > 10 * noise_verdict.FLOOR_FACTOR_32


def test_the_gradients_are_listed_in_the_order_of_the_backward_pass():
    subject = adapt("gpt:GPT")
    ids, targets = batch(DEBUG, "random", rows=1, length=4)
    make = lambda dtype: build_with_weights(subject, DEBUG, state("debug", "probe"), dtype)  # noqa: E731
    names = list(noise_verdict.run_reference(make, ids, targets, backward=True).gradients)
    assert names[0].startswith("transformer.ln_f")
    assert names[-1] in ("transformer.wte.weight", "transformer.wpe.weight")
    assert len(names) == 40


def test_a_parameter_that_no_gradient_reaches_counts_as_zero_gradient():
    subject = adapt("gpt:GPT")
    ids, targets = batch(DEBUG, "random", rows=1, length=4)

    def without_wpe(dtype):
        model = build_with_weights(subject, DEBUG, state("debug", "probe"), dtype)
        wpe = model.module.transformer["wpe"]
        wpe.forward = lambda positions: nn.functional.embedding(positions, wpe.weight.detach())
        return model

    make = lambda dtype: build_with_weights(subject, DEBUG, state("debug", "probe"), dtype)  # noqa: E731
    reference = noise_verdict.run_reference(make, ids, targets, backward=True)
    verdicts = {d.where: d.verdict for d in noise_verdict.compare(without_wpe, reference, ids, targets).gradients}
    assert verdicts["transformer.wpe.weight"] == "different"
    assert verdicts["transformer.ln_f.bias"] == "equal"
