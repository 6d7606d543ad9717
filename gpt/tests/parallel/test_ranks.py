"""Ranks of each kind train as one process does on the global batch, in float64."""

from dataclasses import replace

import pytest
import torch

from gpt import GPT, PRESETS
from gpt.errors import ParallelError
from gpt.parallel import (
    accumulate_gradients,
    clip_gradients,
    data_parallel,
    full_state_dict,
    fully_sharded,
    load_checkpoint,
    save_checkpoint,
    seed_ranks,
    share_of_rank,
    tensor_parallel,
)
from gpt.parallel.gradients import _square
from gpt.tests.parallel.forked_ranks import on_ranks
from gpt.token_ids import IGNORED

KINDS = ("data", "sharded", "tensor")
STEPS = 3


def wrap(kind, model, mesh):
    return data_parallel(model) if kind == "data" else _meshed(kind)(model, mesh)


def _meshed(kind):
    return fully_sharded if kind == "sharded" else tensor_parallel


def small(seed=0, **changes):
    return GPT(replace(PRESETS["debug"], **changes), seed=seed).double()


def batches(step):
    """Two micro-batches of four rows; the last two rows of the first have few targets."""
    ids = torch.randint(211, (2, 4, 12), generator=torch.Generator().manual_seed(step))
    targets = ids.roll(-1, 2)
    targets[0, 2:, 3 + step :] = IGNORED
    return list(zip(ids, targets, strict=True))


def trained(kind, rank, mesh, model):
    """Return the losses and norms of some steps, and the weights after them."""
    wrapped = wrap(kind, model, mesh)
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-2, eps=1e-3, foreach=False)
    losses, norms = [], []
    for step in range(STEPS):
        own = batches(step)
        if kind != "tensor":
            own = [tuple(share_of_rank(each, rank=rank, world_size=mesh.size()) for each in pair) for pair in own]
        losses.append(accumulate_gradients(wrapped, own))
        norms.append(clip_gradients(wrapped, 0.3))
        optimizer.step()
        optimizer.zero_grad()
    tied = wrapped.module if kind == "data" else wrapped
    is_tied = tied.lm_head.weight is tied.transformer["wte"].weight
    return wrapped, optimizer, {"losses": losses, "norms": norms, "weights": full_state_dict(wrapped), "tied": is_tied}


def in_ranks(rank, mesh, kind, folder):
    """Train models that start with another seed on each rank, and save."""
    wrapped, optimizer, found = trained(kind, rank, mesh, small(seed=rank))
    save_checkpoint(wrapped, optimizer, folder)
    return found


def loaded(rank, mesh, kind, folder):
    """Read a checkpoint into another model, and train one more step."""
    wrapped = wrap(kind, small(seed=9), mesh)
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-2, eps=1e-3, foreach=False)
    load_checkpoint(wrapped, optimizer, folder)
    return full_state_dict(wrapped)


def in_one_process():
    model = small(seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-3)
    losses, norms = [], []
    for step in range(STEPS):
        ids, targets = (torch.cat(each) for each in zip(*batches(step), strict=True))
        loss = model(ids, targets)[1]
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3).item())
        optimizer.step()
        optimizer.zero_grad()
    return losses, norms, model.state_dict()


@pytest.fixture(scope="module", params=KINDS)
def run(request, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("checkpoint"))
    return request.param, folder, on_ranks(2, in_ranks, request.param, folder)


def test_two_ranks_are_one_process_on_the_global_batch(run):
    """Steps in float64 agree to 1e-12; a sum for a mean, a mean of means or a local norm differ in the first digits."""
    losses, norms, weights = in_one_process()
    for found in run[2]:
        assert found["losses"] == pytest.approx(losses, rel=1e-13)
        assert found["norms"] == pytest.approx(norms, rel=1e-12)
        assert found["weights"].keys() == weights.keys()
        for name, weight in weights.items():
            torch.testing.assert_close(found["weights"][name], weight, rtol=0, atol=1e-12)


def test_the_ranks_are_bitwise_equal_and_the_head_stays_tied(run):
    first, second = run[2]
    assert first["tied"]
    assert second["tied"]
    assert all(torch.equal(weight, second["weights"][name]) for name, weight in first["weights"].items())


@pytest.mark.parametrize("ranks", [1, 4])
def test_what_two_ranks_save_any_number_of_ranks_reads(run, ranks):
    kind, folder, found = run
    for weights in on_ranks(ranks, loaded, kind, folder):
        assert all(torch.equal(weight, found[0]["weights"][name]) for name, weight in weights.items())


def queries_of_a_rank(rank, mesh):
    model = small(seed=0)
    whole = model.blocks[0].attn.c_attn.weight.detach().clone()
    own = tensor_parallel(model, mesh).blocks[0].attn.c_attn.weight.to_local()
    return {"own": own, "whole": whole}


def test_a_tensor_parallel_rank_has_the_queries_keys_and_values_of_its_heads():
    C = PRESETS["debug"].n_embd
    for rank, found in enumerate(on_ranks(2, queries_of_a_rank)):
        rows = slice(rank * C // 2, (rank + 1) * C // 2)
        for third, part in zip(found["whole"].split(C), found["own"], strict=True):
            assert torch.equal(part, third[rows])


def masks(rank, mesh, kind):
    model = wrap(kind, small(seed=0, dropout=0.5), mesh).train()
    seed_ranks(5, data_rank=0 if kind == "tensor" else rank)
    return model(batches(0)[0][0])[0]


@pytest.mark.parametrize(("kind", "same"), [("data", False), ("sharded", False), ("tensor", True)])
def test_dropout_differs_between_ranks_with_other_rows_alone(kind, same):
    first, second = on_ranks(2, masks, kind)
    assert torch.equal(first, second) is same


def mixed_by_equal_heads(rank, mesh, attention):
    """Return what two ranks with the same weights give c_proj, without and with dropout, and what they draw next."""
    model = tensor_parallel(small(seed=0, dropout=0.5, attention=attention), mesh)
    attn = model.blocks[0].attn
    generator = torch.Generator().manual_seed(1)
    for parameter in (attn.c_attn.weight, attn.c_attn.bias):
        own = parameter.detach().to_local()
        own.copy_(torch.randn(own.shape, generator=generator))
    mixed = []
    attn.c_proj.register_forward_pre_hook(lambda _, inputs: mixed.append(inputs[0].to_local().detach().clone()))
    x = torch.randn(1, 12, PRESETS["debug"].n_embd, generator=generator).double()
    drawn = []
    for training in (False, True):
        seed_ranks(5, data_rank=0)
        attn.train(training)(x)
        drawn.append(torch.rand(()))
    seed_ranks(5, data_rank=0)
    return {"mixed": mixed, "drawn": drawn, "untouched": torch.rand(())}


@pytest.mark.parametrize("attention", ["naive", "flash"])
def test_the_heads_of_tensor_parallel_ranks_drop_different_weights(attention):
    """Regression: all ranks had the same masks, because they are seeded equally for the residual stream."""
    first, second = on_ranks(2, mixed_by_equal_heads, attention)
    assert torch.equal(first["mixed"][0], second["mixed"][0])
    assert not torch.allclose(first["mixed"][1], second["mixed"][1])
    assert first["drawn"] == second["drawn"]
    assert first["drawn"][0] == first["untouched"]  # nothing is drawn without dropout


def without_a_target(rank, mesh):
    ids = torch.arange(8).view(2, 4)
    targets = ids if rank == 0 else torch.full_like(ids, IGNORED)
    wrapped = data_parallel(small(seed=0))
    loss = accumulate_gradients(wrapped, [(ids, targets)])
    return {"loss": loss, "gradient": wrapped.module.lm_head.weight.grad}


def test_a_rank_without_targets_adds_nothing():
    ids = torch.arange(8).view(2, 4)
    model = small(seed=0)
    model(ids, ids)[1].backward()
    for found in on_ranks(2, without_a_target):
        torch.testing.assert_close(found["gradient"], model.lm_head.weight.grad, rtol=0, atol=1e-15)


def without_any_target(rank, mesh, kind):
    ids = torch.arange(8).view(2, 4)
    try:
        accumulate_gradients(wrap(kind, small(seed=0), mesh), [(ids, torch.full_like(ids, IGNORED))])
    except ParallelError as error:
        return {"error": str(error)}
    return {"error": ""}


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_without_any_target_is_an_error_on_every_rank(kind):
    """Regression: it was a division by zero."""
    for found in on_ranks(2, without_any_target, kind):
        assert "skip this step on all ranks" in found["error"]


@pytest.mark.parametrize("gradients", [0, 2])
def test_the_norm_is_computed_where_the_parameters_are(gradients):
    """Regression: zeros on the CPU, which no GPU adds up. The meta device shows it without one."""
    given = [torch.ones(3, device="meta")] * gradients
    assert _square(given, torch.device("meta")).device.type == "meta"


def refusals(rank, mesh):
    errors = {}
    for name, changes in {"heads": {"n_head": 3}, "looped": {"attention": "looped"}}.items():
        try:
            tensor_parallel(small(seed=0, **changes), mesh)
        except ParallelError as error:
            errors[name] = str(error)
    return errors


def test_heads_that_the_ranks_cannot_share_are_an_error():
    for errors in on_ranks(2, refusals):
        assert "3 heads cannot be shared by 2 ranks" in errors["heads"]
        assert "choose 'naive' or 'flash'" in errors["looped"]


def test_a_process_that_is_no_rank_is_told_how_to_be_one():
    with pytest.raises(ParallelError, match="torchrun"):
        data_parallel(small(seed=0))


def test_rows_that_the_ranks_cannot_share_evenly_are_an_error():
    assert torch.equal(share_of_rank(torch.arange(6), rank=1, world_size=3), torch.tensor([2, 3]))
    with pytest.raises(ParallelError, match="give 4 or 6"):
        share_of_rank(torch.arange(5), rank=0, world_size=2)
    with pytest.raises(ParallelError, match="expected 0 to 1"):
        share_of_rank(torch.arange(4), rank=2, world_size=2)
