"""Clipping by the global norm."""

import math

import pytest
import torch

from gpt.training.clipping import clip, global_norm


def gradients(dtype: torch.dtype = torch.float32, scale: float = 1.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(7, 5), (5,), (3, 4)]
    return [(scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype) for shape in shapes]


def as_one_vector(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([part.flatten() for part in parts]).double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_norm_is_that_of_all_gradients_as_one_vector(dtype):
    """In bfloat16 a norm that is summed or rounded in bfloat16 would be off by up to 0.4%."""
    found = gradients(dtype)
    assert global_norm(found) == pytest.approx(float(as_one_vector(found).norm()), rel=1e-6)


def test_the_norm_of_millions_of_elements_is_exact_to_float32():
    """torch's own float32 norm of this tensor is 3e-4 too small: small squares are lost in a large sum."""
    large = torch.full((4096, 1024), 1.1)
    assert global_norm([large]) == pytest.approx(1.1 * 2048, rel=1e-6)


def test_a_clipped_gradient_is_torchs():
    ours, parameters = gradients(), [torch.nn.Parameter(part) for part in gradients()]
    for parameter in parameters:
        parameter.grad = parameter.detach().clone()
    expected = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    found = clip(ours, 1.0)
    assert found.norm == pytest.approx(float(expected), rel=1e-6)
    for part, parameter in zip(ours, parameters, strict=True):
        torch.testing.assert_close(part, parameter.grad, rtol=1e-6, atol=0)


def test_a_clipped_gradient_has_the_limit_as_its_norm_and_keeps_its_direction():
    """Clipping each tensor by itself, or each value, would turn the gradient."""
    before, after = gradients(torch.float64, scale=4.1), gradients(torch.float64, scale=4.1)
    found = clip(after, 1.0)
    assert found.norm == pytest.approx(float(as_one_vector(before).norm()), rel=1e-12)
    assert found.clipped_norm == pytest.approx(1.0, rel=1e-6)
    assert found.cosine == pytest.approx(1.0, abs=1e-14)
    ratios = as_one_vector(after) / as_one_vector(before)
    torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios), rtol=1e-13, atol=0)


def test_the_cosine_is_measured_on_what_was_written():
    """In bfloat16 the scaled gradient is rounded to three digits, which turns it a little: 1.0 would be assumed."""
    before, after = gradients(torch.bfloat16), gradients(torch.bfloat16)
    found = clip(after, 1.0)
    expected = float(torch.cosine_similarity(as_one_vector(before), as_one_vector(after), dim=0))
    assert expected < 1 - 5e-7
    assert found.cosine == pytest.approx(expected, abs=1e-7)


def test_a_gradient_within_the_limit_is_bitwise_unchanged():
    after = gradients()
    found = clip(after, 100.0)
    assert all(torch.equal(part, expected) for part, expected in zip(after, gradients(), strict=True))
    assert found.clipped_norm == found.norm
    assert found.cosine is None


def test_a_limit_of_zero_clips_nothing():
    after = gradients(scale=1000.0)
    assert clip(after, 0.0).cosine is None
    assert all(torch.equal(part, expected) for part, expected in zip(after, gradients(scale=1000.0), strict=True))


def test_a_gradient_of_zeros_stays():
    assert clip([torch.zeros(3, 2)], 1.0).norm == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_reported_and_not_scaled(bad):
    """inf times 0 would be NaN in every other gradient, and would hide the first."""
    after = [torch.tensor([1.0, 2.0]), torch.tensor([bad, 3.0])]
    assert not math.isfinite(clip(after, 1.0).norm)
    assert after[0].tolist() == [1.0, 2.0]
    assert after[1][1] == 3.0
