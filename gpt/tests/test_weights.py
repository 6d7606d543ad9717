"""Weights from Hugging Face and back: bitwise equal, or a named error and an unchanged model."""

import pytest
import torch

from gpt import WeightsError
from gpt.tests.examples import as_attention, debug, excited, ids
from gpt.weights import to_huggingface

SIZES = {"vocab_size": 211, "n_positions": 32, "n_embd": 48, "n_layer": 3, "n_head": 4}


def huggingface(**changes):
    from transformers import GPT2Config, GPT2LMHeadModel

    return excited(GPT2LMHeadModel(GPT2Config(**SIZES, **changes)).eval(), seed=4)


def parameters(model):
    return {name: parameter.clone() for name, parameter in model.named_parameters()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("attention", ["looped", "naive", "flash"])
@pytest.mark.parametrize("tied", [True, False])
def test_weights_from_hugging_face_and_back_are_bitwise_equal(attention, tied):
    theirs = huggingface(tie_word_embeddings=tied)
    ours = debug(attention=attention, tied=tied)
    ours.load_huggingface(theirs.state_dict())
    torch.testing.assert_close(ours(ids())[0], theirs(ids()).logits, rtol=1e-4, atol=1e-4)
    back = to_huggingface(ours)
    for name, tensor in theirs.state_dict().items():
        if name in back:
            assert torch.equal(back[name], tensor), name
            assert back[name].is_contiguous()
    assert theirs.state_dict().keys() - back.keys() == ({"lm_head.weight"} if tied else set())


def test_names_without_their_prefix_and_the_masks_of_old_files_are_read():
    """The published files contain the transformer alone, and its masks as if they were weights."""
    model = debug()
    old = {name.removeprefix("transformer."): tensor for name, tensor in to_huggingface(model).items()}
    for layer in range(3):
        old[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 32, 32)
        old[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    other = debug(attention="naive")
    other.load_huggingface(old)
    assert same(parameters(other), parameters(model))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("transformer.h.1.mlp.c_fc.bias"), "missing in the weights: h.1.mlp.c_fc.bias .our tr"),
        (lambda state: state.update({"transformer.h.3.ln_1.bias": torch.ones(48)}), "unknown to the model: .*h.3.ln_1"),
        (lambda state: state.update({"score.weight": torch.ones(2)}), r"unknown to the model: score.weight \(2,\)"),
        (
            lambda state: state.update({"transformer.h.0.mlp.c_fc.weight": torch.ones(192, 48)}),
            r"h.0.mlp.c_fc.weight is \(192, 48\), expected \(48, 192\) for our transformer.h.0.mlp.c_fc.weight",
        ),
        (
            lambda state: state.update({"wte.weight": torch.ones(211, 48)}),
            "contain both transformer.wte.weight and wte",
        ),
        (lambda state: state.update({"lm_head.weight": torch.ones(211, 48)}), "one parameter for both.*tied=False"),
        (
            lambda state: state.update({"transformer.ln_f.bias": torch.ones(48, dtype=torch.int8)}),
            "torch.int8; expected floating-point",
        ),
    ],
)
@pytest.mark.parametrize("attention", ["looped", "flash"])
def test_weights_that_do_not_fit_are_named_and_leave_the_model_unchanged(change, message, attention):
    model = debug(attention=attention)
    state = to_huggingface(huggingface_like(model))
    change(state)
    before = parameters(model)
    with pytest.raises(WeightsError, match=message):
        model.load_huggingface(state)
    assert same(parameters(model), before)


def huggingface_like(model):
    return excited(as_attention(model, "flash"), seed=7)


def test_a_long_list_of_missing_names_is_shortened():
    with pytest.raises(WeightsError, match="and 36 more"):
        debug().load_huggingface({})


def test_the_square_projection_is_transposed():
    """attn.c_proj loads without an error either way; only the outputs differ."""
    model = debug()
    assert torch.equal(
        to_huggingface(model)["transformer.h.0.attn.c_proj.weight"], model.blocks[0].attn.c_proj.weight.t()
    )


def test_weights_are_copied_and_not_shared():
    theirs = huggingface()
    ours = debug()
    ours.load_huggingface(theirs.state_dict())
    before = ours.lm_head.weight.clone()
    with torch.no_grad():
        theirs.lm_head.weight.zero_()
    assert torch.equal(ours.lm_head.weight, before)
    assert ours.lm_head.weight is ours.transformer["wte"].weight


def test_a_model_without_biases_cannot_be_converted():
    with pytest.raises(WeightsError, match="has bias=False"):
        to_huggingface(debug(bias=False))
    with pytest.raises(WeightsError, match="unknown to the model"):
        debug(bias=False).load_huggingface(huggingface().state_dict())


def test_loading_into_a_model_on_meta_is_a_named_error():
    with pytest.raises(WeightsError, match=r"on the meta device.*to_empty"):
        debug().to("meta").load_huggingface({})
