"""The mixture of experts: against its definition, against the dense network, and under a capacity."""

import copy
import math

import pytest
import torch

from gpt import GPT, ConfigError, FeedForward, GPTConfig, MixtureOfExperts, WeightsError
from gpt.experts import Routing, active_parameters, balance_loss, capacity

SHAPE = {"vocab_size": 211, "block_size": 32, "n_layer": 3, "n_head": 4, "n_embd": 48}


def config(**changes):
    return GPTConfig(**{**SHAPE, "n_experts": 6, "experts_per_token": 2} | changes)


def layer(**changes):
    """Return a layer in float64 whose router has opinions: N(0, 1), where GPT-2's recipe draws 0.02."""
    torch.manual_seed(0)
    made = MixtureOfExperts(config(**changes)).double()
    torch.nn.init.normal_(made.router.weight)
    return made


def tokens(rows=3, length=20):
    return torch.randn(rows, length, 48, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def ids(rows=2, length=24):
    return torch.randint(211, (rows, length), generator=torch.Generator().manual_seed(2))


def with_equal_experts(model):
    for module in model.modules():
        if isinstance(module, MixtureOfExperts):
            for expert in module.experts[1:]:
                expert.load_state_dict(module.experts[0].state_dict())
    return model


def dense_of(model):
    """Return the dense model whose feed-forward networks are the first experts of `model`."""
    dense = GPT(GPTConfig(**SHAPE))
    state = {name.replace("mlp.experts.0.", "mlp."): tensor for name, tensor in model.state_dict().items()}
    dense.load_state_dict({name: state[name] for name in dense.state_dict()})
    return dense.to(next(model.parameters()).dtype)


def test_an_output_is_the_gated_sum_of_the_chosen_experts():
    made, x = layer(), tokens()
    y, routing = made(x)
    for token, vector in enumerate(x.view(-1, 48)):
        logits = made.router.weight @ vector
        best = logits.topk(2)
        gates = best.values.softmax(0)
        expected = sum(
            gate * made.experts[int(expert)](vector) for gate, expert in zip(gates, best.indices, strict=True)
        )
        assert torch.allclose(y.view(-1, 48)[token], expected, rtol=0, atol=1e-13)
        assert routing.chosen[token].tolist() == best.indices.tolist()


def test_every_token_reaches_exactly_k_different_experts():
    routing = layer(experts_per_token=3)(tokens())[1]
    assert all(len(set(chosen)) == 3 for chosen in routing.chosen.tolist())
    assert int(routing.counts.sum()) == 60 * 3
    assert int(routing.dropped) == 0


def test_equal_experts_are_the_dense_model():
    model = with_equal_experts(GPT(config(), seed=0).double())
    difference = model(ids())[0] - dense_of(model)(ids())[0]
    assert difference.abs().max() < 1e-14


def test_one_expert_is_the_dense_model_bit_by_bit():
    model = GPT(config(n_experts=1, experts_per_token=1), seed=0)
    assert torch.equal(model(ids())[0], dense_of(model)(ids())[0])


def test_no_experts_is_the_model_of_before():
    """A router or another name in the state dict would end every published checkpoint."""
    model = GPT(GPTConfig(**SHAPE), seed=0)
    assert isinstance(model.blocks[0].mlp, FeedForward)
    assert not [name for name in model.state_dict() if "expert" in name or "router" in name]


def test_a_token_does_not_depend_on_its_batch():
    made, x = layer(), tokens()
    together = made(x)[0]
    alone = torch.stack([torch.stack([made(token[None, None])[0][0, 0] for token in row]) for row in x])
    assert torch.allclose(together, alone, rtol=0, atol=1e-13)


def test_with_one_expert_a_token_the_router_still_gets_a_gradient():
    """A softmax over one logit is 1 whatever the logit is."""
    made = layer(experts_per_token=1)
    made(tokens())[0].square().sum().backward()
    assert made.router.weight.grad.abs().max() > 1e-3


@pytest.mark.parametrize("k", [1, 2])
def test_gradients_are_the_slopes_of_finite_differences(k):
    made = layer(experts_per_token=k, n_experts=4, n_embd=8, n_head=2)
    x = tokens()[:1, :5, :8].clone().requires_grad_()
    parameters = dict(made.named_parameters())

    def output(x, *values):
        return torch.func.functional_call(made, dict(zip(parameters, values, strict=True)), x)[0]

    assert torch.autograd.gradcheck(output, (x, *parameters.values()))


def test_an_expert_that_nobody_chose_has_a_gradient_of_zeros():
    """A missing one would make the ranks of a run wait for each other."""
    made = layer()
    with torch.no_grad():
        made.router.weight[:] = made.router.weight[:1] * torch.arange(6.0)[:, None]
    x = tokens()
    x = x * (x @ made.router.weight[1]).sign()[..., None]  # every token's logits rise with the expert's number
    y, routing = made(x.detach())
    assert routing.counts.tolist() == [0, 0, 0, 0, 60, 60]
    y.square().sum().backward()
    for number, expert in enumerate(made.experts):
        largest = max(float(parameter.grad.abs().max()) for parameter in expert.parameters())
        assert (largest > 0) is (number >= 4)


def test_a_capacity_drops_the_latest_second_choices_first():
    chosen = torch.tensor([[0, 1], [0, 1], [1, 0], [0, 2]])
    made = layer(n_experts=4, capacity_factor=1.0)
    assert capacity(4, 2, 4, 1.0) == 2
    # Expert 0: tokens 0 and 1 by first choice; token 3's first and token 2's second choice do not fit.
    # Expert 1: token 2's first choice, then token 0's second; token 1's second does not fit.
    kept = [[True, True], [True, False], [True, False], [False, True]]
    assert made.within_capacity(chosen).tolist() == kept


def test_what_is_dropped_is_counted_and_adds_nothing():
    made, x = layer(capacity_factor=0.5), tokens()
    y, routing = made(x)
    assert int(routing.counts.sum()) == 120
    assert int(routing.dropped) == 120 - int(routing.kept.sum()) > 0
    most = capacity(60, 2, 6, 0.5)
    assert all(int((routing.kept & (routing.chosen == expert)).sum()) <= most for expert in range(6))
    lost = ~routing.kept.any(dim=1)
    assert lost.any()
    assert y.view(-1, 48)[lost].abs().max() == 0


def test_a_capacity_that_does_not_bind_changes_nothing():
    free, bound = layer(), layer(capacity_factor=3.0)
    assert torch.equal(free(tokens())[0], bound(tokens())[0])


@pytest.mark.parametrize(("per_token", "expected"), [(1, 6.0), (6, 1.0)])
def test_the_balance_loss_is_1_for_even_loads_and_e_for_one_expert(per_token, expected):
    logits = torch.zeros(10, 6)
    logits[:, 0] = 100 if per_token == 1 else 0
    chosen = logits.topk(per_token).indices
    found = balance_loss([Routing(logits, chosen, chosen.double(), chosen >= 0)])
    assert float(found) == pytest.approx(expected)


def test_the_balance_loss_pushes_down_the_logits_of_a_crowded_expert():
    logits = torch.zeros(10, 4, requires_grad=True)
    chosen = torch.zeros(10, 1, dtype=torch.int64)
    balance_loss([Routing(logits, chosen, chosen.double(), chosen >= 0)]).backward()
    assert (logits.grad[:, 0] > 0).all()
    assert (logits.grad[:, 1:] < 0).all()


def test_the_router_scores_in_float32_below_16_bits_too():
    made = layer().bfloat16()
    assert made.score(tokens().bfloat16()).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert made.float().score(tokens().float()).dtype == torch.float32


def test_decoding_with_a_cache_gives_the_logits_of_the_whole_sequence():
    model = GPT(config(), seed=0).double()
    whole = model(ids())[0]
    cache = model.new_cache(2)
    parts = [model(part, cache=cache)[0] for part in ids().split([9, 1, 1, 13], dim=1)]
    assert torch.allclose(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-13)


def test_total_and_active_parameters_are_those_of_the_closed_form():
    C, E, k = 48, 6, 2
    model, dense = GPT(config(), device="meta"), GPT(GPTConfig(**SHAPE), device="meta")
    plain = sum(parameter.numel() for parameter in dense.parameters())
    one = 8 * C * C + 5 * C
    assert sum(parameter.numel() for parameter in model.parameters()) == plain + 3 * ((E - 1) * one + E * C)
    assert active_parameters(model) == plain + 3 * ((k - 1) * one + E * C)
    assert active_parameters(dense) == plain


def test_a_model_with_experts_can_be_copied_after_a_step():
    model = GPT(config(), seed=0)
    model(ids(), ids())[1].backward()
    copy.deepcopy(model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_experts": -1}, "n_experts=-1 is negative"),
        ({"n_experts": 1}, "experts_per_token=2 is outside 1 to n_experts, 1"),
        ({"experts_per_token": 0}, "experts_per_token=0 is outside 1 to n_experts, 6"),
        ({"capacity_factor": -0.5}, "capacity_factor=-0.5 is not a positive number"),
        ({"capacity_factor": math.inf}, "capacity_factor=inf is not a positive number"),
    ],
)
def test_experts_that_cannot_be_are_an_error(changes, message):
    with pytest.raises(ConfigError, match=message):
        config(**changes)


def test_hugging_faces_gpt2_has_no_place_for_experts(tmp_path):
    with pytest.raises(WeightsError, match="n_experts=6, and Hugging Face's GPT-2 has one feed-forward network"):
        GPT(config(), seed=0).save_pretrained(tmp_path)
