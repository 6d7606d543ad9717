"""Parity with Hugging Face's GPT-2 in float64, where rounding is 1e-15 and larger differences are bugs."""

import pytest
import torch

from gpt.tests.examples import as_attention, debug, excited, ids


@pytest.fixture(scope="module")
def theirs():
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 211, "n_positions": 32, "n_embd": 48, "n_layer": 3, "n_head": 4}
    model = GPT2LMHeadModel(GPT2Config(**sizes, attn_implementation="eager"))
    return excited(model.double().eval(), seed=4)


@pytest.fixture(params=["looped", "naive", "flash"])
def ours(request, theirs):
    model = debug(attention=request.param).double()
    model.load_huggingface(theirs.state_dict())
    return model


def test_logits_and_the_residual_stream_after_every_block_equal_hugging_faces(ours, theirs):
    residual_stream = []
    for block in ours.blocks:
        block.register_forward_hook(lambda *hook: residual_stream.append(hook[2]))
    expected = theirs(ids(), output_hidden_states=True)
    logits, _ = ours(ids())
    torch.testing.assert_close(logits, expected.logits, rtol=1e-11, atol=1e-11)
    for found, other in zip(residual_stream[:2], expected.hidden_states[1:3], strict=True):
        torch.testing.assert_close(found, other, rtol=1e-11, atol=1e-11)


def test_the_loss_and_every_gradient_equal_hugging_faces(ours, theirs):
    theirs.zero_grad()
    output = theirs(ids(), labels=ids())
    # Hugging Face casts its own loss to float32, and so its gradients.
    expected = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids()[:, 1:].flatten())
    expected.backward()
    _, loss = ours(ids()[:, :-1], ids()[:, 1:])
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(loss.float(), output.loss, rtol=1e-6, atol=0)
    for name, gradient in as_batched(ours).items():
        other = theirs.get_parameter(name).grad
        if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            other = other.t()
        assert torch.allclose(gradient, other, rtol=1e-9, atol=1e-11), name


def as_batched(model):
    """Return the gradients by the names of the batched form: the weight map joins the heads."""
    gradients = as_attention(model, model.config.attention)
    with torch.no_grad():
        for parameter, source in zip(gradients.parameters(), model.parameters(), strict=True):
            parameter.copy_(source.grad)
    return dict(as_attention(gradients, "flash").named_parameters())


def test_greedy_generation_equals_hugging_faces(ours, theirs):
    theirs.generation_config.eos_token_id = None
    prompt = ids(2, 8)
    expected = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24, do_sample=False)
    assert torch.equal(ours.generate(prompt, 24, temperature=0), expected)


def test_the_exact_gelu_gives_different_logits(ours, theirs):
    """nanoGPT uses it, and so differs from GPT-2."""
    for block in ours.blocks:
        block.mlp.gelu = torch.nn.GELU()
    difference = (ours(ids())[0] - theirs(ids()).logits).abs().max()
    assert difference > 1e-4
