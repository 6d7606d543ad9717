"""NaN and infinity in a step: the error says where they came from, and nothing has changed."""

import math

import pytest
import torch
from torch import nn

from gpt.errors import NonFinite
from gpt.tests.training.small_trainer import corpus, everything, same, trainer
from gpt.training.nonfinite import FirstNonFinite
from gpt.training.trainer import Trainer


def message_of(made: Trainer) -> str:
    with pytest.raises(NonFinite) as caught:
        made.train_step()
    return str(caught.value)


@pytest.mark.parametrize(
    ("parameter", "place"),
    [
        ("transformer.wpe.weight", "the output of transformer.wpe"),
        ("transformer.h.0.ln_1.bias", "the output of transformer.h.0.ln_1"),
        ("transformer.h.1.mlp.c_fc.bias", "the output of transformer.h.1.mlp.c_fc"),
        ("transformer.ln_f.weight", "the output of transformer.ln_f"),
    ],
)
def test_a_nan_in_the_loss_names_the_step_the_windows_and_the_first_module(parameter, place):
    made = trainer(dropout=0.1)
    made.train_step()
    made.model.get_parameter(parameter).data[-1] = math.nan
    message = message_of(made)
    batch = trainer(dropout=0.1).loader
    next(batch)
    second = next(batch)
    assert message.startswith("step 1: the loss is nan; the first values that are not finite are " + place)
    assert f"4 windows, from the tokens {', '.join(map(str, second.starts.tolist()))} on" in message
    assert repr(bytes(second.ids[0].tolist()).decode()) in message


def test_what_a_module_computes_between_its_parts_is_named_by_the_next_part():
    """Queries and keys of 1e30 are finite and their product is not: attention itself overflows, not a layer."""
    made = trainer(attention="naive")
    made.model.transformer["h"][0].attn.c_attn.weight.data.mul_(1e25)
    assert "the input of transformer.h.0.attn.attn_dropout" in message_of(made)


def test_a_failed_step_changes_nothing_and_a_repaired_run_goes_on_as_if_it_had_not_been():
    untouched = trainer(dropout=0.2, accumulation=2)
    expected = [untouched.train_step().norm for _ in range(2)]
    made = trainer(dropout=0.2, accumulation=2)
    assert made.train_step().norm == expected[0]
    bias = made.model.get_parameter("transformer.h.1.ln_2.bias")
    bias.data[0], kept = math.nan, bias[0].item()
    before = everything(made)
    messages = [message_of(made) for _ in range(2)]
    found = everything(made)
    for state in (before, found):
        state["transformer.h.1.ln_2.bias"] = state["transformer.h.1.ln_2.bias"].nan_to_num()
    assert same(found, before)
    assert messages[0] == messages[1]
    assert all(parameter.grad is None for parameter in made.model.parameters())
    bias.data[0] = kept
    assert made.train_step().norm == expected[1]


def test_the_micro_batch_that_has_the_nan_is_named():
    """The forward pass makes the NaN without the model's modules, so that none of them is blamed."""
    made = trainer(accumulation=3)
    forward, calls = made.forward, []

    def faulty(ids: torch.Tensor, targets: torch.Tensor) -> tuple[None, torch.Tensor]:
        calls.append(ids)
        return None, forward(ids, targets)[1] * (math.nan if len(calls) == 2 else 1.0)

    made.forward = faulty
    message = message_of(made)
    assert "micro-batch 1 of rank 0" in message
    assert repr(bytes(calls[1][0].tolist()).decode()) in message
    assert "every module's output is finite when the forward pass is computed again" in message


def test_a_nan_in_the_gradient_names_the_first_parameter_of_the_backward_pass():
    made = trainer()
    before = everything(made)
    for name in ("transformer.h.0.ln_1.weight", "transformer.h.1.ln_2.weight", "transformer.wte.weight"):
        made.model.get_parameter(name).register_hook(lambda gradient: gradient * math.nan)
    message = message_of(made)
    assert message.startswith("step 0: the gradient norm is nan and the loss is finite")
    assert "the gradient of transformer.h.1.ln_2.weight is not finite" in message
    assert same(everything(made), before)


def test_a_gradient_whose_squares_overflow_is_not_blamed_on_a_parameter():
    made = trainer()
    made.model.get_parameter("transformer.ln_f.bias").register_hook(lambda gradient: gradient * 0 + 1e30)
    assert "every gradient is finite" in message_of(made)


def test_an_infinite_loss_is_an_error_too():
    made = trainer(text=corpus(), clip=0.0)
    made.forward = lambda ids, targets: (None, made.model(ids, targets)[1] + math.inf)
    assert "the loss is inf" in message_of(made)


def test_watching_leaves_no_hook_behind_and_ignores_integers():
    model = nn.Sequential(nn.Embedding(3, 2), nn.Identity())
    watch = FirstNonFinite()
    with watch.watching(model):
        model(torch.tensor([0, 1]))
    assert watch.where is None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
