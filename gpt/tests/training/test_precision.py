"""Precision: the types of weights, products, gradients and moments, and the updates that 16 bits lose."""

import math

import pytest
import torch
from torch import nn

from gpt.errors import ConfigError, NonFinite
from gpt.tests.training.small_trainer import everything, same, trainer
from gpt.training.lost_updates import SAMPLE, WeightSample
from gpt.training.precision import Precision
from gpt.training.trainer import Trainer

F32, BF16 = torch.float32, torch.bfloat16


def types_of_a_step(made: Trainer) -> dict[str, torch.dtype]:
    found: dict[str, torch.dtype] = {}
    layer, norm = made.model.get_submodule("transformer.h.0.mlp.c_fc"), made.model.get_submodule("transformer.ln_f")
    layer.register_forward_hook(lambda _, __, out: found.update(product=out.dtype))
    norm.register_forward_hook(lambda _, __, out: found.update(norm=out.dtype))
    made.model.register_forward_hook(lambda _, __, out: found.update(loss=out[1].dtype))
    made.optimizer.register_step_pre_hook(lambda *_: found.update(gradient=layer.weight.grad.dtype))
    made.train_step()
    return found | {"weight": layer.weight.dtype, "moment": made.optimizer.state[layer.weight]["exp_avg_sq"].dtype}


@pytest.mark.parametrize(
    ("precision", "weights", "product"),
    [("float32", F32, F32), ("bfloat16", F32, BF16), ("pure-bfloat16", BF16, BF16)],
)
def test_each_precision_has_its_types_and_the_loss_is_always_in_float32(precision, weights, product):
    """Autocast around the backward pass, or weights that are cast too, would change one of these."""
    found = types_of_a_step(trainer(precision=precision))
    assert found.pop("norm") == (BF16 if precision == "pure-bfloat16" else F32)
    assert found == {"product": product, "loss": F32, "gradient": weights, "weight": weights, "moment": weights}


def test_all_precisions_start_from_the_same_weights():
    exact = trainer().weights()
    for name, weight in trainer(precision="pure-bfloat16").weights().items():
        assert torch.equal(weight, exact[name].bfloat16())


def test_the_backward_pass_is_outside_of_autocast():
    made, inside = trainer(precision="bfloat16"), []
    made.model.get_parameter("transformer.h.0.ln_1.bias").register_hook(
        lambda _: inside.append(torch.is_autocast_enabled("cpu"))
    )
    made.train_step()
    assert inside == [False]


def test_float16_on_a_cpu_is_refused_with_what_to_use():
    with pytest.raises(ConfigError, match=r"float16.*CUDA.*bfloat16"):
        trainer(precision="float16")
    with pytest.raises(ConfigError, match="choose one of"):
        Precision("float8", torch.device("cpu"))


# ---------------------------------------------------------------------------- lost updates


def test_near_one_bfloat16_has_no_room_for_a_small_update():
    """The reason for float32 weights: the next number after 1 is 1.0078 in bfloat16 and 1.00098 in float16."""
    for dtype in (torch.bfloat16, torch.float16):
        assert (torch.tensor(1.0, dtype=dtype) + 0.0001).item() == 1.0
    assert (torch.tensor(1.0) + 0.0001).item() > 1.0


def test_pure_bfloat16_loses_updates_that_float32_weights_keep():
    """At lr 1e-4, a weight of 0.02 moves by 1e-4, and one of 1 (a gain) is 0.0039 from its lower neighbour."""
    shares = {}
    for precision in ("float32", "bfloat16", "pure-bfloat16"):
        made = trainer(precision=precision, lr=2e-5, min_lr=2e-5, warmup=0)
        shares[precision] = [made.train_step(measure_lost_updates=True).lost_updates for _ in range(3)][-1]
    assert shares["float32"] < 0.01
    assert shares["bfloat16"] < 0.01
    assert shares["pure-bfloat16"] > 0.2


def test_lost_updates_are_measured_only_when_asked():
    assert trainer().train_step().lost_updates is None


def test_a_lost_update_is_a_weight_with_a_gradient_that_is_bitwise_unchanged():
    parameter = nn.Parameter(torch.zeros(10))
    parameter.grad = torch.tensor([0.0] * 4 + [1.0] * 6)  # the first four should not move
    sample = WeightSample([parameter])
    with torch.no_grad():
        parameter[4:6] = -0.0  # equal to 0.0, but moved
        parameter[6] = 1.0
    assert sample.lost_share() == pytest.approx(3 / 6)


def test_a_large_parameter_is_sampled_evenly_and_counts_by_its_size():
    large, small = nn.Parameter(torch.zeros(4 * SAMPLE)), nn.Parameter(torch.zeros(SAMPLE))
    for parameter in (large, small):
        parameter.grad = torch.ones_like(parameter)
    sample = WeightSample([large, small])
    with torch.no_grad():
        large[: 2 * SAMPLE] += 1  # half of the large one moves, and none of the small one
    assert sample.lost_share() == pytest.approx(3 / 5)


# ---------------------------------------------------------------------------- the scaler, on a CPU


def scaled(scale: float, **changes: object) -> Trainer:
    """Return a float32 trainer whose loss is scaled as in float16, which needs no CUDA."""
    made = trainer(**changes)

    class Scaled(Precision):
        def scaler(self) -> torch.amp.GradScaler:
            return torch.amp.GradScaler("cpu", init_scale=scale)

    made.precision = Scaled("float32", torch.device("cpu"))
    made.scaler = made.precision.scaler()
    return made


def test_the_gradient_is_unscaled_before_it_is_measured_and_clipped():
    """A power of two changes no digit of a gradient, so that the weights are bitwise those of the unscaled run."""
    plain, made = trainer(clip=0.5), scaled(2.0**16, clip=0.5)
    for _ in range(3):
        expected, found = plain.train_step(), made.train_step()
        assert (found.loss, found.norm, found.clipped_norm) == (expected.loss, expected.norm, expected.clipped_norm)
    assert all(torch.equal(weight, plain.weights()[name]) for name, weight in made.weights().items())


def test_an_overflow_skips_the_step_and_scales_less():
    made = scaled(2.0**127)
    before = {name: weight.clone() for name, weight in made.weights().items()}
    result = made.train_step(measure_lost_updates=True)
    assert result.skipped
    assert result.lost_updates is None
    assert not math.isfinite(result.norm)
    assert made.scaler.get_scale() == 2.0**126
    assert made.step == 1
    assert all(torch.equal(weight, before[name]) for name, weight in made.weights().items())
    for _ in range(9):
        result = made.train_step()
    assert not result.skipped
    assert not torch.equal(made.weights()["transformer.ln_f.bias"], before["transformer.ln_f.bias"])


def test_a_gradient_that_is_nan_at_every_scale_is_an_error_and_the_scaler_is_as_before():
    made = scaled(0.5)
    handle = made.model.get_parameter("transformer.ln_f.bias").register_hook(lambda gradient: gradient * math.nan)
    before = everything(made)
    for _ in range(2):  # the second time, a scaler with the marks of an unfinished step would refuse to unscale
        with pytest.raises(NonFinite, match=r"transformer\.ln_f\.bias"):
            made.train_step()
    assert same(everything(made), before)
    handle.remove()
    assert not made.train_step().skipped
