"""The network and the class GPT: attention, loss, input errors, tying and initialisation."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from gpt import GPT, PRESETS, ContextError, GPTConfig, TokenError, WeightsError
from gpt.tests.examples import as_attention, debug, ids

# ---------------------------------------------------------------------------- attention


@pytest.mark.parametrize("attention", ["looped", "naive"])
def test_every_form_of_attention_gives_the_same_outputs_and_gradients(attention):
    flash = debug().double()
    other = as_attention(flash, attention)
    for model in (flash, other):
        model(ids(), ids(seed=1))[1].backward()
    torch.testing.assert_close(other(ids())[0], flash(ids())[0], rtol=1e-11, atol=1e-11)
    for module in ("transformer.wte", "transformer.h.0.ln_1", "transformer.h.1.attn.c_proj"):
        found, expected = (model.get_submodule(module).weight.grad for model in (other, flash))
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("attention", ["looped", "naive", "flash"])
def test_no_position_attends_to_a_later_one(attention):
    model, before = debug(attention=attention), ids(1)
    after = before.clone()
    after[0, 20:] = (after[0, 20:] + 1) % 211
    found, expected = model(after)[0], model(before)[0]
    assert torch.equal(found[:, :20], expected[:, :20])
    assert not torch.isclose(found[:, 20:], expected[:, 20:]).all(dim=-1).any()


def test_the_mask_has_the_size_of_the_context_and_is_not_in_the_state_dict():
    for attention in ("looped", "naive", "flash"):
        model = debug(attention=attention)
        assert {tuple(mask.shape) for mask in model.buffers()} == {(32, 32)}
        assert not any("mask" in name for name in model.state_dict())


@pytest.mark.parametrize("attention", ["looped", "naive", "flash"])
def test_dropout_is_active_in_training_only(attention):
    model = debug(attention=attention, dropout=0.5)
    assert torch.equal(model(ids())[0], model(ids())[0])
    model.train()
    assert not torch.allclose(model(ids())[0], model(ids())[0])


def test_flash_attention_applies_dropout_to_attention_weights():
    """With its dropout left at 0, as SDPA's default has it, training would differ from the naive path."""
    model = debug(dropout=0.5).train()
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and not name.endswith("attn_dropout"):
            module.p = 0.0
    assert not torch.allclose(model(ids())[0], model(ids())[0])


# ---------------------------------------------------------------------------- the whole model


def test_the_parameters_have_hugging_faces_names():
    from transformers import GPT2Config, GPT2LMHeadModel

    small = PRESETS["debug"]
    theirs = GPT2LMHeadModel(GPT2Config(vocab_size=211, n_positions=32, n_embd=48, n_layer=3, n_head=4))
    assert list(GPT(small, device="meta").state_dict()) == list(theirs.state_dict())


def test_a_hook_sees_every_component():
    seen = []
    model = debug()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: seen.append(name))
    model(ids())
    block = [f"transformer.h.0.{part}" for part in ("ln_1", "attn", "ln_2", "mlp", "mlp.gelu", "attn.c_proj")]
    assert {"", "transformer.wte", "transformer.wpe", "transformer.ln_f", "lm_head", *block} <= set(seen)


def test_a_hook_sees_the_attention_weights_of_the_naive_form():
    model, rows = debug(attention="naive"), []
    model.blocks[0].attn.attn_dropout.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0]))
    model(ids())
    assert rows[0].shape == (2, 4, 32, 32)
    torch.testing.assert_close(rows[0].sum(dim=-1), torch.ones(2, 4, 32))


def test_the_loss_is_the_mean_over_the_targets_that_are_not_ignored():
    model, targets = debug(), ids(seed=1)
    targets[0, :10] = -100
    logits, loss = model(ids(), targets)
    log_probabilities = logits.log_softmax(dim=-1)[targets != -100]
    expected = -log_probabilities[torch.arange(54), targets[targets != -100]].mean()
    torch.testing.assert_close(loss, expected)


def test_a_loss_of_bfloat16_logits_is_summed_in_float32():
    """In 16 bits 10.978 would be 11.0."""
    model = debug().bfloat16()
    logits, loss = model(ids(), ids(seed=1))
    assert logits.dtype == torch.bfloat16
    assert loss.dtype == torch.float32


def test_last_only_returns_the_logits_of_the_last_position():
    model = debug()
    found, _ = model(ids(), last_only=True)
    torch.testing.assert_close(found, model(ids())[0][:, -1:])


def test_a_sequence_longer_than_the_context_is_a_clear_error():
    with pytest.raises(ContextError, match=r"33 tokens are longer than the context of 32.*idx\[:, -32:\]"):
        debug()(ids(length=33))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.tensor([[0, 211]]), "token id 211 is outside the vocabulary of 211; expected 0 to 210"),
        (torch.tensor([[0, -1]]), "token id -1 is outside"),
        (torch.tensor([[0.5, 1.0]]), "token ids are torch.float32; expected a tensor of torch.int64"),
        ([[1, 2]], "token ids are list"),
        (torch.tensor([1, 2]), r"of shape \(2,\); expected \(batch, time\)"),
        (torch.zeros(1, 0, dtype=torch.int64), r"of shape \(1, 0\).*at least one token"),
    ],
)
def test_inputs_that_are_not_token_ids_are_a_named_error(wrong, message):
    with pytest.raises(TokenError, match=message):
        debug()(wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (ids(length=31), r"targets are of shape \(2, 31\); expected \(2, 32\)"),
        (ids() + 211, "outside the vocabulary"),
        (ids() - 300, "outside the vocabulary"),
        (ids().tolist(), "targets are list; expected a tensor of torch.int64"),
    ],
)
def test_targets_that_do_not_fit_are_a_named_error(wrong, message):
    with pytest.raises(TokenError, match=message):
        debug()(ids(), wrong)


def test_targets_of_32_bits_are_as_good_as_ids_of_32_bits():
    model = debug()
    assert torch.equal(model(ids(), ids().int())[1], model(ids(), ids())[1])


def test_the_model_compiles_into_one_graph():
    """Reading the values of the ids would split the graph in two."""
    model = debug()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(ids(), ids())[1], model(ids(), ids())[1])


# ---------------------------------------------------------------------------- tying


def is_tied(model: GPT) -> bool:
    head, embedding = model.lm_head.weight, model.transformer["wte"].weight
    return head is embedding and head.data_ptr() == embedding.data_ptr()


def reloaded(model: GPT) -> GPT:
    model.load_state_dict(debug().state_dict())
    return model


def assigned(model: GPT) -> GPT:
    state = {name: tensor.clone() for name, tensor in debug().state_dict().items()}
    model.load_state_dict(state, assign=True)
    return model


def wrapped(model: GPT) -> GPT:
    outer = nn.Sequential(model)
    outer.load_state_dict({f"0.{name}": tensor.clone() for name, tensor in debug().state_dict().items()}, assign=True)
    return outer.to(torch.float64)[0]


@pytest.mark.parametrize(
    "after",
    [
        lambda model: model,
        reloaded,
        assigned,
        wrapped,
        copy.deepcopy,
        lambda model: copy.deepcopy(model).to(torch.bfloat16),
        lambda model: model.to("meta").to_empty(device="cpu"),
        lambda model: assigned(model.to("meta")),
    ],
    ids=["construction", "load", "load-assign", "wrapped", "deepcopy", "dtype", "to_empty", "meta-assign"],
)
def test_a_tied_head_stays_tied_after(after):
    """An operation that makes a new tensor for each name would make two parameters of one."""
    model = after(debug())
    assert is_tied(model)
    assert len(list(model.parameters())) == len(model.state_dict()) - 1


@pytest.mark.parametrize("after", [lambda model: model, copy.deepcopy, assigned, lambda model: model.double()])
def test_an_untied_head_stays_untied(after):
    model = after(debug(tied=False))
    assert not is_tied(model)
    assert len(list(model.parameters())) == len(model.state_dict())


@pytest.mark.parametrize("assign", [False, True])
def test_two_different_heads_do_not_fit_into_a_tied_model(assign):
    """One of them would be lost silently."""
    with pytest.raises(WeightsError, match=r"lm_head.weight differs from transformer.wte.weight.*tied=False"):
        debug().load_state_dict(debug(tied=False).state_dict(), assign=assign)


def test_a_model_moved_from_meta_has_correct_masks():
    """The masks are in no checkpoint, and to_empty would leave them uninitialised."""
    empty = GPT(PRESETS["debug"], device="meta").to_empty(device="cpu")
    filled = assigned(GPT(PRESETS["debug"], device="meta"))
    for model in (empty, filled):
        for mask in model.buffers():
            assert torch.equal(mask, torch.ones(32, 32, dtype=torch.bool).tril())


# ---------------------------------------------------------------------------- initialisation


def std(model: GPT, name: str) -> float:
    return float(model.get_parameter(name).detach().std())


RESIDUAL = 0.02 / math.sqrt(2 * 3)


@pytest.mark.parametrize(
    ("init", "embedding", "linear", "residual", "bias"),
    [
        ("gpt2", 0.02, 0.02, RESIDUAL, 0.0),
        ("unscaled", 0.02, 0.02, 0.02, 0.0),
        ("pytorch", 1.0, 1 / math.sqrt(3 * 48), 1 / math.sqrt(3 * 192), 1 / math.sqrt(3 * 48)),
        ("kaiming", 0.02, math.sqrt(2 / 48), math.sqrt(2 / 192), 0.0),
    ],
)
def test_every_family_of_weights_is_initialised_by_its_recipe(init, embedding, linear, residual, bias):
    model = GPT(replace(PRESETS["debug"], init=init), seed=0)
    assert std(model, "transformer.wte.weight") == pytest.approx(embedding, rel=0.05)
    assert std(model, "transformer.h.1.attn.c_attn.weight") == pytest.approx(linear, rel=0.05)
    assert std(model, "transformer.h.1.mlp.c_proj.weight") == pytest.approx(residual, rel=0.05)
    assert std(model, "transformer.h.1.mlp.c_fc.bias") == pytest.approx(bias, rel=0.15)
    assert std(model, "transformer.ln_f.weight") == 0
    assert std(model, "transformer.ln_f.bias") == 0


def test_an_untied_head_is_initialised_as_a_linear_layer():
    model = GPT(replace(PRESETS["debug"], init="kaiming", tied=False), seed=0)
    assert std(model, "lm_head.weight") == pytest.approx(math.sqrt(2 / 48), rel=0.05)


@pytest.mark.parametrize("init", ["gpt2", "pytorch"])
def test_a_seed_fixes_the_weights_and_leaves_the_global_random_state_alone(init):
    config = replace(PRESETS["debug"], init=init)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = GPT(config, seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = GPT(config, seed=5).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    third = GPT(config, seed=6).state_dict()
    assert not torch.equal(first["lm_head.weight"], third["lm_head.weight"])


def test_without_a_seed_the_weights_follow_the_global_random_state():
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        heads.append(GPT(PRESETS["debug"]).lm_head.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_model_on_meta_draws_no_random_numbers_and_has_shapes():
    before = torch.get_rng_state()
    model = GPT(GPTConfig(), device="meta")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.is_meta for parameter in model.parameters())
    logits, loss = model(torch.zeros(2, 7, dtype=torch.int64, device="meta"))
    assert logits.shape == (2, 7, 50257)
    assert loss is None


def test_the_default_device_is_used():
    with torch.device("meta"):
        assert GPT(PRESETS["debug"]).lm_head.weight.is_meta
