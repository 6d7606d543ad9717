"""Training with experts: the balance loss in the gradient and beside the loss, and the loads that a step reports."""

from dataclasses import replace

import pytest
import torch

from gpt import GPT
from gpt.experts import balance_loss
from gpt.tests.training.small_trainer import in_float64, trainer
from gpt.training.config import TrainConfig
from gpt.training.memory import active_parameter_count, flops_per_token, parameter_count

EXPERTS = {"n_experts": 4, "experts_per_token": 2}


def gradients(made):
    found = []
    made.optimizer.register_step_pre_hook(
        lambda *_: found.append({name: p.grad.clone() for name, p in made.model.named_parameters()})
    )
    made.config = replace(made.config, clip=0.0)
    return made.train_step(), found[0]


def test_the_gradient_is_that_of_the_loss_and_the_weighted_balance_loss():
    made, twin = (in_float64(trainer(**EXPERTS, balance_weight=0.5)) for _ in range(2))
    batch = next(twin.loader)
    routings = []
    loss = twin.model(batch.ids, batch.targets, routings=routings)[1]
    (loss + 0.5 * balance_loss(routings)).backward()
    result, found = gradients(made)
    for name, parameter in twin.model.named_parameters():
        assert torch.allclose(found[name], parameter.grad, rtol=1e-12, atol=1e-14)
    assert result.loss == pytest.approx(float(loss.detach()), rel=1e-12)  # the balance loss is not in it
    assert result.balance == pytest.approx(float(balance_loss(routings).detach()), rel=1e-12)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_shares_are_those_of_all_micro_batches(checkpointing):
    """A block that is computed again in the backward pass once counted its tokens twice."""
    made = trainer(**EXPERTS, accumulation=3, gradient_checkpointing=checkpointing)
    twin = trainer(**EXPERTS, accumulation=3)
    routings = [[], []]
    for _ in range(3):
        batch, found = next(twin.loader), []
        twin.model(batch.ids, batch.targets, routings=found)
        for layer, routing in zip(routings, found, strict=True):
            layer.append(routing.counts)
    result = made.train_step()
    for shares, counts in zip(result.expert_shares, routings, strict=True):
        total = torch.stack(counts).sum(0)
        assert int(total.sum()) == 3 * 4 * 8 * 2
        assert shares == pytest.approx((total / total.sum()).tolist(), abs=1e-5)
    assert result.dropped == 0


def test_checkpointing_gives_the_same_gradient_with_experts():
    stored, recomputed = (
        gradients(in_float64(trainer(**EXPERTS, balance_weight=0.5, gradient_checkpointing=value)))[1]
        for value in (False, True)
    )
    for name, gradient in stored.items():
        assert torch.allclose(gradient, recomputed[name], rtol=1e-12, atol=1e-14)


def test_a_dense_model_reports_no_loads():
    result = trainer().train_step()
    assert (result.balance, result.expert_shares, result.dropped) == (None, None, None)


def test_a_full_expert_is_reported():
    result = trainer(**EXPERTS, capacity_factor=0.5).train_step()
    assert 0.4 < result.dropped < 1


def test_the_balance_loss_evens_the_loads():
    """Its factor is large here, so that 20 steps show it."""
    uneven = {}
    for weight in (0.0, 1.0):
        made = trainer(**EXPERTS, balance_weight=weight, weight_decay=0.0)
        with torch.no_grad():
            for block in made.model.blocks:
                block.mlp.router.weight[0] += 0.3 * block.mlp.router.weight[0].sign()
        results = [made.train_step() for _ in range(20)]
        uneven[weight] = max(max(shares) for shares in results[-1].expert_shares)
    assert uneven[1.0] < uneven[0.0]


@pytest.mark.parametrize("changes", [{}, {"bias": False}])
def test_the_closed_forms_count_experts(changes):
    config = TrainConfig(n_layer=3, n_head=4, n_embd=48, block_size=32, vocabulary="bytes", **EXPERTS, **changes)
    model = GPT(config.model(256), device="meta")
    total = sum(parameter.numel() for parameter in model.parameters())
    idle = 3 * 2 * sum(parameter.numel() for parameter in model.blocks[0].mlp.experts[0].parameters())
    assert parameter_count(config, 256) == total
    assert active_parameter_count(config, 256) == total - idle
    assert flops_per_token(config, 256) == 6 * (total - idle - 32 * 48) + 12 * 3 * 48 * 32
