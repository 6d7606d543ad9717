"""AdamW: which parameters decay, and the update against the formula written out in float64."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from gpt import GPT, PRESETS
from gpt.tests.examples import debug
from gpt.tests.training.small_trainer import config, in_float64, trainer
from gpt.training.optimizer import adamw, decay_groups
from gpt.training.schedule import learning_rate


def names_of(model: nn.Module, group: dict) -> set[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)] for parameter in group["params"]}


@pytest.mark.parametrize("changes", [{}, {"tied": False}, {"bias": False}, {"attention": "looped"}])
def test_matrices_decay_and_vectors_do_not_and_each_parameter_is_in_one_group_once(changes):
    model = GPT(replace(PRESETS["debug"], **changes), seed=0)
    decayed, kept = decay_groups(model, 0.1)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert names_of(model, decayed) == {name for name, parameter in model.named_parameters() if parameter.dim() == 2}
    assert names_of(model, kept) == {name for name, parameter in model.named_parameters() if parameter.dim() == 1}
    listed = [id(parameter) for group in (decayed, kept) for parameter in group["params"]]
    assert sorted(listed) == sorted({id(parameter) for parameter in model.parameters()})


def test_a_tied_head_is_in_the_groups_once_and_decays():
    model = debug()
    decayed, _ = decay_groups(model, 0.1)
    assert sum(parameter is model.lm_head.weight for parameter in decayed["params"]) == 1


def test_a_frozen_parameter_and_an_empty_group_are_left_out():
    linear = nn.Linear(3, 2, bias=False)
    assert [group["weight_decay"] for group in decay_groups(linear, 0.1)] == [0.1]
    linear.weight.requires_grad_(False)
    assert decay_groups(linear, 0.1) == []


def test_the_optimizer_is_fused_on_a_cpu_and_has_the_configured_constants():
    optimizer = adamw(debug(), config(beta1=0.8, beta2=0.9, eps=1e-7, lr=3e-2))
    for group in optimizer.param_groups:
        assert group["fused"]
        assert (group["betas"], group["eps"], group["lr"]) == ((0.8, 0.9), 1e-7, 3e-2)


def test_ten_steps_of_training_are_the_formula_of_adamw_in_float64():
    """Each step is recomputed from the gradient that the step used, clipped, at that step's learning rate.

    A wrong beta, an epsilon inside the root, a missing bias correction, decay of vectors, decay inside the gradient or
    a stale learning rate would differ by 1e-6 or more; the formula agrees to 1e-14.
    """
    made = in_float64(trainer(clip=0.5, eps=1e-3, weight_decay=0.3))  # an epsilon that is visible wherever it is
    run = made.config
    used: dict[str, torch.Tensor] = {}
    made.optimizer.register_step_pre_hook(
        lambda *_: used.update({n: p.grad.clone() for n, p in made.model.named_parameters()})
    )
    weights = {name: tensor.clone() for name, tensor in made.weights().items()}
    m = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    v = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    for k in range(10):
        made.train_step()
        lr = learning_rate(k, run)
        for name, p in weights.items():
            g = used[name]
            m[name] = run.beta1 * m[name] + (1 - run.beta1) * g
            v[name] = run.beta2 * v[name] + (1 - run.beta2) * g * g
            m_hat = m[name] / (1 - run.beta1 ** (k + 1))
            v_hat = v[name] / (1 - run.beta2 ** (k + 1))
            decay = run.weight_decay if p.dim() == 2 else 0.0
            p.mul_(1 - lr * decay).sub_(lr * m_hat / (v_hat.sqrt() + run.eps))
            torch.testing.assert_close(made.weights()[name], p, rtol=1e-12, atol=1e-14)
    assert math.isclose(sum(float(g.square().sum()) for g in used.values()), 0.25, rel_tol=1e-4)  # it was clipped


def test_the_fused_kernel_is_the_plain_loop_up_to_rounding():
    """The fused kernel is chosen for its speed; float64 shows that it computes the same function."""
    models = [debug().double() for _ in range(2)]
    fused = adamw(models[0], config())
    plain = torch.optim.AdamW(decay_groups(models[1], 0.1), lr=1e-2, betas=(0.9, 0.95), eps=1e-8, foreach=False)
    for _ in range(3):
        for model, optimizer in zip(models, (fused, plain), strict=True):
            generator = torch.Generator().manual_seed(3)
            for parameter in model.parameters():
                parameter.grad = torch.empty_like(parameter).normal_(generator=generator)
            optimizer.step()
    for found, expected in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_a_weight_without_gradient_only_decays():
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone(), model.bias.detach().clone()
    optimizer = adamw(model, config(lr=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), before[0] * (1 - 0.1 * 0.5))
    assert torch.equal(model.bias.detach(), before[1])
