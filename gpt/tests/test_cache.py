import copy
import gc
import weakref

import pytest
import torch

from gpt import GPT, PRESETS, CacheError, ContextError, KVCache
from gpt.tests.examples import debug, ids

ATTENTIONS = ["looped", "naive", "flash"]
CHUNKS = [[32], [1] * 32, [5, 1, 1, 13, 12], [31, 1], [1, 31]]


def in_chunks(model, tokens, chunks):
    cache = model.new_cache(len(tokens))
    return torch.cat([model(part, cache=cache)[0] for part in tokens.split(chunks, dim=1)], dim=1)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_cached_logits_are_the_uncached_ones_however_the_tokens_are_cut(attention, chunks):
    """is_causal with fewer queries than keys aligns at the top left: a new token would see the first key only."""
    model = debug(attention=attention).double()
    torch.testing.assert_close(in_chunks(model, ids(), chunks), model(ids())[0], rtol=1e-11, atol=1e-11)


def test_a_cache_in_sixteen_bits_is_as_exact_as_the_model_in_sixteen_bits():
    oracle = debug().double()
    model = copy.deepcopy(oracle).bfloat16()
    truth = model.double()(ids())[0]  # the rounded weights, exactly
    model = model.bfloat16()
    errors = [(found.double() - truth).abs().mean() for found in (in_chunks(model, ids(), [7, 25]), model(ids())[0])]
    assert errors[0] < 1.5 * errors[1]


def test_shortening_a_cache_forgets_the_latest_positions():
    model, cache = debug(), debug().new_cache(2)
    model(ids(seed=3), cache=cache)
    cache.length = 10
    model(ids()[:, :5], cache=cache)
    again = torch.cat((ids(seed=3)[:, :10], ids()[:, :6]), dim=1)
    torch.testing.assert_close(model(ids()[:, 5:6], cache=cache)[0], model(again)[0][:, -1:])


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_full_cache_is_a_clear_error_and_stays_as_it_was(attention):
    model = debug(attention=attention)
    cache = model.new_cache(2)
    model(ids(length=30), cache=cache)
    with pytest.raises(ContextError, match="holds 30 positions and 3 more do not fit in its 32"):
        model(ids(length=3), cache=cache)
    assert cache.length == 30


def test_a_cache_for_another_batch_is_a_clear_error():
    """A batch of one would be copied into every row without a word."""
    model = debug()
    with pytest.raises(CacheError, match=r"a batch of 1 and the cache one of 4.*new_cache\(1\)"):
        model(ids(1), cache=model.new_cache(4))
    with pytest.raises(CacheError, match="batch_size=0"):
        model.new_cache(0)


def test_a_cache_of_another_model_is_a_clear_error():
    with pytest.raises(CacheError, match="of another model"):
        debug()(ids(1), cache=KVCache(PRESETS["gpt2"], 1))


def test_a_cache_of_fewer_positions_holds_those_and_no_more():
    model = debug()
    cache = model.new_cache(2, positions=6)
    assert (cache.capacity, cache.bytes) == (6, model.new_cache(2).bytes * 6 // model.config.block_size)
    torch.testing.assert_close(model(ids()[:, :6], cache=cache)[0], model(ids()[:, :6])[0])
    with pytest.raises(ContextError, match="holds 6 positions and 1 more do not fit in its 6"):
        model(ids()[:, 6:7], cache=cache)
    for positions in (0, model.config.block_size + 1):
        with pytest.raises(CacheError, match=f"positions={positions} is not between 1 and the context"):
            model.new_cache(2, positions=positions)


def test_a_generation_takes_no_more_memory_than_its_tokens_need(monkeypatch):
    model, made = debug(), []

    def new_cache(*given, **options):
        made.append(GPT.new_cache(model, *given, **options))
        return made[-1]

    monkeypatch.setattr(model, "new_cache", new_cache)
    model.generate(ids()[:, :4], 3)
    model.generate(ids()[:, :4], model.config.block_size)
    assert [cache.capacity for cache in made] == [7, model.config.block_size]


def test_a_forward_pass_that_fails_leaves_the_cache_as_it_was():
    model = debug()
    cache = model.new_cache(2)
    hook = model.blocks[2].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(ids(length=4), cache=cache)
    hook.remove()
    torch.testing.assert_close(model(ids(), cache=cache)[0], model(ids())[0])


def test_a_cache_keeps_no_graph_alive():
    model = debug()
    cache = model.new_cache(2)
    logits, _ = model(ids(), cache=cache)
    assert torch.is_grad_enabled()
    assert not logits.requires_grad
    assert not cache.keys.requires_grad


def test_a_cache_occupies_what_the_closed_form_says():
    config = PRESETS["gpt2"]  # 2 * L * T * C * 2 bytes
    assert KVCache(config, 1, dtype=torch.bfloat16, device="meta").bytes == 37_748_736
    assert KVCache(config, 32, dtype=torch.bfloat16, device="meta").bytes == 32 * 37_748_736


def test_a_new_cache_has_the_dtype_that_attention_will_write():
    assert debug().bfloat16().new_cache(1).keys.dtype == torch.bfloat16
    assert GPT(PRESETS["debug"], device="meta").new_cache(1).keys.is_meta
    model = debug()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cache = model.new_cache(2)
        assert cache.keys.dtype == torch.bfloat16
        model(ids(), cache=cache)


def test_the_memory_of_a_cache_goes_with_it():
    """A cycle would keep it until the garbage collector runs: 75 MB a call of generate at 124M."""
    model, cache = debug(), debug().new_cache(2)
    model(ids(), cache=cache)
    memory = weakref.ref(cache.keys)
    gc.disable()
    try:
        del cache
        assert memory() is None
    finally:
        gc.enable()


def test_a_copy_of_a_cache_goes_its_own_way():
    model, cache = debug(), debug().new_cache(2)
    model(ids()[:, :4], cache=cache)
    fork = copy.deepcopy(cache)
    model(ids(seed=1)[:, :4], cache=fork)
    assert cache.length == 4
    torch.testing.assert_close(model(ids()[:, 4:], cache=cache)[0], model(ids())[0][:, 4:])


@pytest.mark.parametrize("attention", ["naive", "flash"])
@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_a_growing_cache_gives_the_same_and_holds_what_it_needs(attention, chunks):
    model = debug(attention=attention)
    kept, grown = model.new_cache(4), model.new_cache(4, growing=True)
    for part in ids(4).split(chunks, dim=1):
        assert torch.equal(model(part, cache=grown)[0], model(part, cache=kept)[0])
        assert grown.bytes == kept.bytes * grown.length // kept.capacity


def test_a_growing_cache_forgets_refuses_and_fills_up_as_the_other_does():
    model = debug()
    cache = model.new_cache(2, growing=True)
    model(ids(2, seed=3), cache=cache)
    with pytest.raises(ContextError, match="holds 32 positions"):
        model(ids(2)[:, :1], cache=cache)
    cache.length = 10
    found = model(ids(2)[:, :5], cache=cache)[0]
    again = torch.cat((ids(2, seed=3)[:, :10], ids(2)[:, :5]), dim=1)
    torch.testing.assert_close(found, model(again)[0][:, 10:])
    with pytest.raises(CacheError, match="a batch of 1"):
        model(ids(1), cache=cache)


def test_looped_attention_has_no_growing_cache_and_says_so():
    with pytest.raises(CacheError, match="head by head"):
        debug(attention="looped").new_cache(1, growing=True)
