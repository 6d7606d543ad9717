"""Continuous batching: the tokens that each request gets alone, no memory of another read, all memory back."""

import math

import pytest
import torch

from gpt import ContextError, Engine, GenerationError, ServingError, TokenError
from gpt.tests.examples import debug

PROMPTS = (3, 11, 5, 14, 1, 7)  # tokens
NEW = (5, 8, 1, 9, 12, 3)  # tokens asked for


def prompts():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(211, (length,), generator=generator) for length in PROMPTS]


def small_engine(model, **sizes):
    """Room for 48 positions: at most four requests at once, and longer prompts are read in parts."""
    return Engine(model, **{"pages": 12, "page_size": 4, "max_batch": 4, "max_step_tokens": 9, **sizes})


def with_poison(engine):
    engine.cache.keys.fill_(math.nan)
    engine.cache.values.fill_(math.nan)
    return engine


def alone(model, prompt, new, **settings):
    return model.generate(prompt[None], new, **settings)[0, len(prompt) :].tolist()


@pytest.mark.parametrize("attention", ["looped", "naive", "flash"])
@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"top_k": 20, "top_p": 0.9}], ids=["greedy", "sampled"])
def test_each_request_gets_the_tokens_of_generate_whoever_its_neighbours_are(attention, settings):
    """The memory is NaN before it is written: a position of another request, or an unused one, makes every token 0."""
    model = debug(attention=attention).double()
    engine, requests = with_poison(small_engine(model)), []
    for number, (prompt, new) in enumerate(zip(prompts(), NEW, strict=True)):  # one arrives before each step
        requests.append(engine.submit(prompt, new, seed=number, **settings))
        engine.step()
    engine.run()
    for number, (prompt, new) in enumerate(zip(prompts(), NEW, strict=True)):
        assert requests[number].tokens == alone(model, prompt, new, seed=number, **settings)
        assert requests[number].status == "finished"


def test_all_pages_are_free_when_no_request_is_left():
    engine = small_engine(debug())
    for prompt, new in zip(prompts(), NEW, strict=True):
        engine.submit(prompt, new)
    engine.run()
    assert engine.idle
    assert sorted(engine.cache.free) == list(range(12))


@pytest.mark.parametrize("steps", [0, 1, 4], ids=["before it starts", "in its prompt", "while it decodes"])
def test_a_cancelled_request_gives_its_pages_back_and_leaves_its_neighbour_alone(steps):
    model = debug().double()
    engine = with_poison(small_engine(model))
    neighbour = engine.submit(prompts()[0], 12, temperature=0.0)
    engine.step()
    request = engine.submit(prompts()[1], 8, temperature=0.0)
    for _ in range(steps):
        engine.step()
    engine.cancel(request)
    so_far = list(request.tokens)
    assert len(engine.cache.free) == 12 - len(neighbour.pages)
    engine.run()
    assert request.status == "cancelled"
    assert request.tokens == so_far
    assert neighbour.tokens == alone(model, prompts()[0], 12, temperature=0.0)


def test_cancelling_twice_or_after_the_end_changes_nothing():
    engine = small_engine(debug())
    request = engine.submit([1, 2], 2)
    engine.run()
    engine.cancel(request)
    assert request.status == "finished"
    assert sorted(engine.cache.free) == list(range(12))


def test_a_request_that_needs_all_pages_is_not_overtaken_by_short_ones_that_come_later():
    engine = small_engine(debug())
    first = [engine.submit([1, 2, 3], 4) for _ in range(3)]
    long = engine.submit(prompts()[1], 22)
    for _ in range(4):  # the three that came before it take four steps
        engine.step()
        engine.submit([5], 4)
    assert all(request.done for request in first)
    engine.step()
    assert long.status == "running"


def test_a_request_ends_at_its_stop_token_and_its_neighbours_do_not():
    model = debug().double()
    expected = alone(model, prompts()[0], 8, temperature=0.0)
    other = alone(model, prompts()[2], 8, temperature=0.0)
    stop = next(token for token in expected if token not in other)
    engine = small_engine(model)
    stopped, neighbour = (
        engine.submit(prompts()[0], 8, temperature=0.0, stop=stop),
        engine.submit(prompts()[2], 8, temperature=0.0, stop=stop),
    )
    engine.run()
    assert stopped.tokens == expected[: expected.index(stop) + 1]
    assert neighbour.tokens == other


def test_a_step_computes_no_more_tokens_than_it_may_and_decoding_comes_first(monkeypatch):
    model = debug()
    engine, rows = small_engine(model), []
    model.register_forward_pre_hook(lambda module, args: rows.append(args[0].size(1)))
    short = engine.submit([1], 6)
    engine.step()
    engine.submit(prompts()[3], 2)  # 14 tokens: 8, then 6 beside the one that decodes
    engine.step()
    engine.step()
    assert rows == [1, 9, 7]
    assert len(short.tokens) == 3


def test_requests_that_can_never_run_are_refused():
    model = debug()
    engine = small_engine(model, pages=5)
    with pytest.raises(ServingError, match="need 6 pages of 4"):
        engine.submit([1] * 11, 11)
    engine.submit([1] * 10, 11)  # 20 positions: the last token is not read
    with pytest.raises(ContextError, match="33 positions"):
        engine.submit([1] * 20, 14)
    with pytest.raises(GenerationError):
        engine.submit([1], 2, temperature=-1.0)
    with pytest.raises(TokenError):
        engine.submit([211], 2)
    with pytest.raises(TokenError, match="expected token ids"):
        engine.submit("a prompt", 2)
    assert engine.submit([1], 0).done


@pytest.mark.parametrize("sizes", [{"pages": 0}, {"page_size": 0}, {"max_batch": 0}, {"max_step_tokens": 3}], ids=str)
def test_an_engine_without_room_is_refused(sizes):
    with pytest.raises(ServingError):
        small_engine(debug(), **sizes)


def test_a_step_leaves_the_mode_of_the_model_and_the_global_random_numbers_alone():
    model = debug().train()
    before = torch.get_rng_state()
    engine = small_engine(model)
    engine.submit([1, 2], 3, seed=0)
    engine.run()
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)


def test_in_sixteen_bits_the_pages_are_in_sixteen_bits():
    engine = small_engine(debug().bfloat16())
    assert engine.cache.keys.dtype == torch.bfloat16
    engine.submit([1, 2], 3)
    engine.run()
