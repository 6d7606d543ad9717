"""The trainer on a CUDA device: what the CPU cannot show. Skipped where there is none."""

import math

import pytest
import torch

from gpt.tests.training.small_trainer import everything, in_float64, same, trainer
from gpt.training.ranks import Ranks, choose_device
from gpt.training.trainer import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def on_cuda(**changes) -> Trainer:
    return trainer(Ranks(device=choose_device("cuda")), **changes)


def test_the_weights_start_as_on_a_cpu_and_the_optimizer_is_fused():
    made, expected = on_cuda(), trainer().weights()
    assert all(torch.equal(weight.cpu(), expected[name]) for name, weight in made.weights().items())
    assert made.optimizer.param_groups[0]["fused"]


def test_training_in_float64_is_the_cpus():
    made, plain = in_float64(on_cuda(accumulation=2)), in_float64(trainer(accumulation=2))
    for _ in range(5):
        found, expected = made.train_step(), plain.train_step()
        assert (found.loss, found.norm) == pytest.approx((expected.loss, expected.norm), rel=1e-9)
    assert made.evaluate() == pytest.approx(plain.evaluate(), rel=1e-9)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16", "pure-bfloat16"])
def test_every_precision_learns(precision):
    made = on_cuda(precision=precision, steps=60)
    results = [made.train_step() for _ in range(60)]
    assert results[-1].loss < results[0].loss - 1
    assert math.isfinite(made.evaluate())
    assert made.sample().startswith("\n")


def test_float16_scales_its_loss():
    made = on_cuda(precision="float16")
    assert made.scaler.is_enabled()
    results = [made.train_step() for _ in range(20)]
    assert not results[-1].skipped
    assert made.scaler.get_scale() >= 1
    made.load_state_dict(made.state_dict())


def test_validation_and_samples_leave_the_cuda_generator_alone():
    made = on_cuda(dropout=0.2)
    made.train_step()
    before = everything(made)
    made.evaluate()
    made.sample()
    assert same(everything(made), before)


def test_dropout_continues_after_a_resume():
    first = on_cuda(dropout=0.2)
    first.train_step()
    weights, state = {name: weight.clone() for name, weight in first.weights().items()}, first.state_dict()
    expected = first.train_step().loss
    torch.rand(9, device="cuda")
    second = on_cuda(dropout=0.2)
    second.load_weights(weights)
    second.load_state_dict(state)
    assert second.train_step().loss == pytest.approx(expected, rel=1e-6)
