"""Generation: the same tokens with and without a cache, reproducible samples, and filters in the right order."""

import numpy
import pytest
import torch

from gpt import GPT, PRESETS, ContextError, GenerationError, SeedError, TokenError
from gpt.generate import choose, next_token_probabilities
from gpt.tests.examples import debug, ids

PROMPT = ids(2, 10)


@pytest.mark.parametrize("attention", ["looped", "naive", "flash"])
@pytest.mark.parametrize("options", [{"temperature": 0}, {"seed": 3}, {"seed": 3, "top_k": 20, "top_p": 0.9}], ids=str)
def test_the_tokens_are_the_same_with_and_without_a_cache_also_beyond_the_context(attention, options):
    """Positions are absolute: past the context all of them change, so a sliding cache would be wrong."""
    model = debug(attention=attention).double()
    cached, uncached = (model.generate(PROMPT, 40, use_cache=use, **options) for use in (True, False))
    assert cached.shape == (2, 50)
    assert torch.equal(cached, uncached)
    assert torch.equal(cached[:, :10], PROMPT)


def test_beyond_the_context_the_model_sees_the_latest_tokens():
    model = debug().double()
    found = model.generate(PROMPT, 40, temperature=0)
    expected = model(found[:, -33:-1])[0][:, -1].argmax(dim=-1)
    assert torch.equal(found[:, -1], expected)


def test_a_cached_token_computes_one_position_and_one_row_of_logits():
    model, embedded, projected = debug(), [], []
    model.transformer["wte"].register_forward_hook(lambda _, inputs, __: embedded.append(inputs[0].size(1)))
    model.lm_head.register_forward_hook(lambda _, inputs, __: projected.append(inputs[0].size(1)))
    model.generate(PROMPT, 5)
    assert embedded == [10, 1, 1, 1, 1]
    model.generate(PROMPT, 5, use_cache=False)
    assert embedded[5:] == [10, 11, 12, 13, 14]
    assert projected == [1] * 10


def test_a_seed_fixes_the_tokens_and_leaves_the_global_random_state_alone():
    model = debug()
    before = torch.get_rng_state()
    first, second, third = (model.generate(PROMPT, 15, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_without_a_seed_the_tokens_follow_the_global_one():
    model, samples = debug(), []
    for _ in range(2):
        torch.manual_seed(7)
        samples.append(model.generate(PROMPT, 5))
    assert torch.equal(*samples)


def test_generation_runs_in_eval_mode_and_restores_the_mode_of_every_module():
    model = debug(dropout=0.5).train()
    model.blocks[1].eval()  # as a user who freezes a block does
    modes = [module.training for module in model.modules()]
    found = model.generate(PROMPT, 5, temperature=0)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(found, model.eval().generate(PROMPT, 5, temperature=0))


def test_the_mode_is_restored_after_an_error():
    model = debug().train()
    model.lm_head.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.generate(PROMPT, 1)
    assert all(module.training for module in model.modules())


def test_generation_records_no_graph():
    assert not debug().generate(PROMPT, 2).requires_grad
    assert not debug().generate(PROMPT, 2).is_inference()


def test_no_new_tokens_return_the_prompt():
    assert torch.equal(debug().generate(PROMPT, 0), PROMPT)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"temperature": -1.0}, "temperature=-1.0; expected 0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"top_k": 0}, "top_k=0; expected a count of 1 or more"),
        ({"top_k": 2.0}, "top_k=2.0"),
        ({"top_p": 0.0}, "top_p=0.0; expected a share above 0 up to 1"),
        ({"top_p": 1.1}, "top_p=1.1"),
        ({"max_new_tokens": -1}, "max_new_tokens=-1"),
        ({"max_new_tokens": 1.5}, "max_new_tokens=1.5"),
        ({"max_new_tokens": 2**63}, "max_new_tokens has 64 bits; expected a count of at most 2147483647"),
        ({"temperature": 10**400}, "temperature=1000"),
    ],
)
def test_an_argument_out_of_range_is_a_named_error(wrong, message):
    with pytest.raises(GenerationError, match=message):
        debug().generate(PROMPT, **{"max_new_tokens": 1, **wrong})


@pytest.mark.parametrize("seed", [1.5, "3", True, float("nan"), numpy.float32(2.0), torch.tensor(3), 2**64, -(2**70)])
def test_a_seed_that_is_no_whole_number_of_64_bits_is_a_named_error(seed):
    for start in (lambda: debug().generate(PROMPT, 1, seed=seed), lambda: GPT(PRESETS["debug"], seed=seed)):
        with pytest.raises(SeedError, match="expected a whole number"):
            start()


def test_a_whole_number_of_numpy_is_a_seed():
    first, second = (debug().generate(PROMPT, 4, seed=seed) for seed in (3, numpy.int64(3)))
    assert torch.equal(first, second)


def test_weights_that_are_no_numbers_are_a_named_error_once_they_are_sampled_from():
    model = debug()
    model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(GenerationError, match="nothing can be sampled"):
        model.generate(PROMPT, 1)


def test_a_temperature_that_is_zero_in_32_bits_chooses_the_likeliest():
    logits = torch.tensor([[0.0, 1.0, 0.5]])
    assert next_token_probabilities(logits, temperature=1e-320).tolist() == [[0.0, 1.0, 0.0]]


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        (ids(1, 33), ContextError, "the prompt has 33 tokens and the context 32"),
        (torch.zeros(1, 0, dtype=torch.int64), TokenError, "at least one token"),
        (torch.tensor([[211]]), TokenError, "token id 211 is outside the vocabulary"),
        (torch.tensor([[0.0]]), TokenError, "expected a tensor of torch.int64"),
    ],
)
@pytest.mark.parametrize("count", [0, 1])
def test_a_prompt_that_cannot_be_continued_is_a_named_error(prompt, error, message, count):
    with pytest.raises(error, match=message):
        debug().generate(prompt, count)


# ---------------------------------------------------------------------------- the distribution

LOGITS = torch.tensor([[3.0, 1.0, 0.5, 0.5, -2.0], [0.0, 0.0, 0.0, 0.0, 5.0]]).double()


def test_temperature_divides_the_logits():
    """Dividing the probabilities instead would cancel out."""
    torch.testing.assert_close(next_token_probabilities(LOGITS, 0.5), (LOGITS / 0.5).softmax(dim=-1))


def test_a_tiny_temperature_is_greedy_and_does_not_overflow():
    for temperature in (1e-30, 1e-44):
        found = next_token_probabilities(LOGITS.float(), temperature)
        assert found.argmax(dim=-1).tolist() == [0, 4]
        assert found.max(dim=-1).values.tolist() == [1.0, 1.0]


def test_temperature_zero_takes_the_likeliest_token():
    assert choose(LOGITS, 0).tolist() == [0, 4]


def test_a_top_k_beyond_the_vocabulary_keeps_every_token():
    assert torch.equal(next_token_probabilities(LOGITS, top_k=1_000), next_token_probabilities(LOGITS))


def test_top_k_keeps_k_tokens_and_those_that_tie_with_the_last():
    found = next_token_probabilities(LOGITS, top_k=2)
    assert (found > 0).sum(dim=-1).tolist() == [2, 5]
    assert (next_token_probabilities(LOGITS[:1], top_k=3) > 0).tolist() == [[True, True, True, True, False]]


def test_top_p_keeps_the_token_that_crosses_it():
    probabilities = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).double()
    for top_p, kept in ((0.4, 1), (0.5001, 2), (0.79, 2), (0.81, 3), (0.999, 4), (1e-9, 1)):
        found = next_token_probabilities(probabilities.log(), top_p=top_p)
        torch.testing.assert_close(found[0, :kept], probabilities[0, :kept] / probabilities[0, :kept].sum())
        assert found[0, kept:].sum() == 0


def test_a_top_p_of_one_drops_nothing():
    """A sum in float32 reaches 1 before the rarest tokens are added."""
    logits = torch.linspace(0, -30, 5000)[None]
    assert (next_token_probabilities(logits, top_p=1.0) > 0).all()


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(0.7, 40, 0.8), (1.3, 10, 0.95), (1.0, 211, 0.5)])
def test_the_order_of_the_filters_is_hugging_faces(temperature, top_k, top_p):
    from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(4, 211, generator=torch.Generator().manual_seed(0)).double() * 3
    expected = logits
    for warper in (TemperatureLogitsWarper(temperature), TopKLogitsWarper(top_k), TopPLogitsWarper(top_p)):
        expected = warper(None, expected)
    found = next_token_probabilities(logits, temperature, top_k, top_p)
    torch.testing.assert_close(found, expected.softmax(dim=-1))


def test_the_samples_follow_the_probabilities():
    probabilities = torch.tensor([0.6, 0.3, 0.1])
    generator = torch.Generator().manual_seed(0)
    samples = choose(probabilities.log().expand(20_000, 3), generator=generator)
    found = samples.bincount(minlength=3) / 20_000
    torch.testing.assert_close(found, probabilities, atol=0.015, rtol=0)  # 4.3 standard errors at 0.5


def test_probabilities_of_sixteen_bit_logits_are_summed_in_float32():
    """In bfloat16 the sum over 50257 tokens stops growing long before 1."""
    logits = torch.zeros(1, PRESETS["gpt2"].vocab_size, dtype=torch.bfloat16)
    kept = (next_token_probabilities(logits, top_p=0.5) > 0).sum().item()
    assert kept == pytest.approx(50257 / 2, rel=0.01)
