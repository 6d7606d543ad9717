"""The key-value cache: the same logits as without it, clear errors, and no more memory than needed."""

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
def test_cached_logits_equal_uncached_ones_for_any_chunks(attention, chunks):
    """With is_causal and fewer queries than keys the mask is aligned at the top left: a new token sees one key."""
    model = debug(attention=attention).double()
    torch.testing.assert_close(in_chunks(model, ids(), chunks), model(ids())[0], rtol=1e-11, atol=1e-11)


def test_a_cache_in_sixteen_bits_is_as_exact_as_the_model_in_sixteen_bits():
    oracle = debug().double()
    model = copy.deepcopy(oracle).bfloat16()
    expected = model.double()(ids())[0]  # of the rounded weights, in float64
    model = model.bfloat16()
    errors = [(found.double() - expected).abs().mean() for found in (in_chunks(model, ids(), [7, 25]), model(ids())[0])]
    assert errors[0] < 1.5 * errors[1]


def test_a_shorter_length_discards_the_latest_positions():
    model, cache = debug(), debug().new_cache(2)
    model(ids(seed=3), cache=cache)
    cache.length = 10
    model(ids()[:, :5], cache=cache)
    again = torch.cat((ids(seed=3)[:, :10], ids()[:, :6]), dim=1)
    torch.testing.assert_close(model(ids()[:, 5:6], cache=cache)[0], model(again)[0][:, -1:])


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_full_cache_is_a_clear_error_and_is_left_unchanged(attention):
    model = debug(attention=attention)
    cache = model.new_cache(2)
    model(ids(length=30), cache=cache)
    with pytest.raises(ContextError, match="contains 30 positions and 3 more do not fit in its 32"):
        model(ids(length=3), cache=cache)
    assert cache.length == 30


def test_a_cache_for_another_batch_is_a_clear_error():
    """A batch of one would be broadcast into every row silently."""
    model = debug()
    with pytest.raises(CacheError, match=r"a batch of 1 and the cache one of 4.*new_cache\(1\)"):
        model(ids(1), cache=model.new_cache(4))
    with pytest.raises(CacheError, match="batch_size=0"):
        model.new_cache(0)


@pytest.mark.parametrize(
    "wrong", [{"batch_size": None}, {"batch_size": "1"}, {"batch_size": 2**63}, {"positions": 1.5}]
)
def test_a_size_of_a_cache_that_is_no_count_is_a_named_error(wrong):
    with pytest.raises(CacheError, match=rf"{next(iter(wrong))} is .*; expected a whole number of at most 31 bits"):
        debug().new_cache(**{"batch_size": 1, **wrong})


def test_a_cache_of_another_model_is_a_clear_error():
    with pytest.raises(CacheError, match="of another model"):
        debug()(ids(1), cache=KVCache(PRESETS["gpt2"], 1))


def test_a_cache_of_fewer_positions_has_room_for_those_only():
    model = debug()
    cache = model.new_cache(2, positions=6)
    assert (cache.capacity, cache.bytes) == (6, model.new_cache(2).bytes * 6 // model.config.block_size)
    torch.testing.assert_close(model(ids()[:, :6], cache=cache)[0], model(ids()[:, :6])[0])
    with pytest.raises(ContextError, match="contains 6 positions and 1 more do not fit in its 6"):
        model(ids()[:, 6:7], cache=cache)
    for positions in (0, model.config.block_size + 1):
        with pytest.raises(CacheError, match=f"positions={positions} is not between 1 and the context"):
            model.new_cache(2, positions=positions)


def test_a_generation_allocates_only_the_positions_that_it_needs(monkeypatch):
    model, caches = debug(), []

    def new_cache(*arguments, **options):
        caches.append(GPT.new_cache(model, *arguments, **options))
        return caches[-1]

    monkeypatch.setattr(model, "new_cache", new_cache)
    model.generate(ids()[:, :4], 3)
    model.generate(ids()[:, :4], model.config.block_size)
    assert [cache.capacity for cache in caches] == [7, model.config.block_size]


def test_a_failed_forward_pass_leaves_the_cache_unchanged():
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


def test_the_memory_of_a_cache_equals_the_closed_form():
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


def test_the_memory_of_a_cache_is_freed_with_it():
    """A reference cycle would keep it until the garbage collector runs: 75 MB per call of generate at 124M."""
    model, cache = debug(), debug().new_cache(2)
    model(ids(), cache=cache)
    memory = weakref.ref(cache.keys)
    gc.disable()
    try:
        del cache
        assert memory() is None
    finally:
        gc.enable()


def test_a_copy_of_a_cache_is_independent():
    model, cache = debug(), debug().new_cache(2)
    model(ids()[:, :4], cache=cache)
    fork = copy.deepcopy(cache)
    model(ids(seed=1)[:, :4], cache=fork)
    assert cache.length == 4
    torch.testing.assert_close(model(ids()[:, 4:], cache=cache)[0], model(ids())[0][:, 4:])


@pytest.mark.parametrize("attention", ["naive", "flash"])
@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_a_growing_cache_gives_the_same_logits_from_the_memory_it_needs(attention, chunks):
    model = debug(attention=attention)
    allocated, growing = model.new_cache(4), model.new_cache(4, growing=True)
    for part in ids(4).split(chunks, dim=1):
        assert torch.equal(model(part, cache=growing)[0], model(part, cache=allocated)[0])
        assert growing.bytes == allocated.bytes * growing.length // allocated.capacity


def test_a_growing_cache_discards_refuses_and_fills_up_like_the_other():
    model = debug()
    cache = model.new_cache(2, growing=True)
    model(ids(2, seed=3), cache=cache)
    with pytest.raises(ContextError, match="contains 32 positions"):
        model(ids(2)[:, :1], cache=cache)
    cache.length = 10
    found = model(ids(2)[:, :5], cache=cache)[0]
    again = torch.cat((ids(2, seed=3)[:, :10], ids(2)[:, :5]), dim=1)
    torch.testing.assert_close(found, model(again)[0][:, 10:])
    with pytest.raises(CacheError, match="a batch of 1"):
        model(ids(1), cache=cache)


def test_a_growing_cache_for_looped_attention_is_a_clear_error():
    with pytest.raises(CacheError, match="head by head"):
        debug(attention="looped").new_cache(1, growing=True)
