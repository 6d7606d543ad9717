"""The closed forms of costs, compared with published figures and with PyTorch's count of FLOPs."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel

from gpt import GPT, GPTConfig
from harness.bench.costs import (
    ADAMW_PASSES,
    Cost,
    attention,
    attention_backward,
    attention_layer,
    attention_peak_bytes,
    backward,
    cache_bytes,
    decode_step,
    forward,
    generate,
    model_flops,
    multiplied_weights,
    optimizer_step,
    prefill,
    streamed_weights,
    training_step,
)
from harness.bench.memory import peak_bytes
from harness.core.sizes import SIZES
from harness.oracle.closed_forms import parameter_count

SMALL, PUBLISHED = SIZES["debug"], SIZES["124M"]
B, T = 2, 24


def huggingface(size=SMALL, *, attention="eager", device="cpu"):
    config = GPT2Config(
        vocab_size=size.vocab_size,
        n_positions=size.context,
        n_embd=size.width,
        n_layer=size.layers,
        n_head=size.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    config._attn_implementation = attention
    with torch.device(device):
        return GPT2LMHeadModel(config)


def reference(attention, size=SMALL):
    return GPT(
        GPTConfig(
            vocab_size=size.vocab_size,
            block_size=size.context,
            n_embd=size.width,
            n_layer=size.layers,
            n_head=size.heads,
            dropout=0.0,
            attention=attention,
        ),
        seed=0,
    )


def counted(call):
    """Return the FLOPs of the matrix products that PyTorch counts."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def ids(batch=B, tokens=T, size=SMALL, device="cpu"):
    return torch.zeros(batch, tokens, dtype=torch.long, device=device)


# Published figures, and figures derived elsewhere


def test_the_figures_of_gpt2_are_the_known_ones():
    assert multiplied_weights(PUBLISHED) == 123_532_032
    assert streamed_weights(PUBLISHED) == 123_653_376  # what nanoGPT prints
    assert model_flops(PUBLISHED, tokens=1024) / 1e6 == pytest.approx(855, abs=0.5)
    assert cache_bytes(PUBLISHED, tokens=1024) == 37_748_736
    assert cache_bytes(PUBLISHED, tokens=1024, batch=32) == pytest.approx(1.208e9, rel=1e-3)


@pytest.mark.parametrize("context", [1, 10, 1024])
def test_a_step_of_decoding_takes_247_megaflop_and_36864_a_position(context):
    cost = decode_step(PUBLISHED, batch=1, context=context)
    assert cost.flops == 2 * 123_532_032 + 36_864 * context


@pytest.mark.parametrize(("element_bytes", "megabytes"), [(4, 494.6), (2, 247.3)])
def test_a_step_of_decoding_reads_the_weights_once_and_each_sequences_cache(element_bytes, megabytes):
    cached = cache_bytes(PUBLISHED, tokens=100, element_bytes=element_bytes)
    cost = decode_step(PUBLISHED, batch=8, context=100, element_bytes=element_bytes)
    assert (cost.moved_bytes - 8 * cached) / 1e6 == pytest.approx(megabytes, abs=0.05)


def test_a_prompt_computes_the_pairs_that_causality_leaves():
    whole = prefill(PUBLISHED, batch=1, tokens=1024, last_only=False)
    assert whole.flops == 2 * 123_532_032 * 1024 + 36_864 * 1024 * 1025 / 2


def test_the_last_positions_logits_alone_save_29_percent():
    every = forward(PUBLISHED, batch=1, tokens=1024)
    last = forward(PUBLISHED, batch=1, tokens=1024, last_only=True)
    assert 1 - last.flops / every.flops == pytest.approx(0.29, abs=0.001)


def test_naive_attention_is_bound_by_its_scores_and_flash_is_not():
    sizes = {"heads": 12, "head_width": 64, "tokens": 4096, "element_bytes": 2}
    naive, flash = attention("naive", **sizes), attention("flash", **sizes)
    assert naive.moved_bytes - flash.moved_bytes == 4 * 384 * 2**20  # the lessons' matrix of 384 MiB, four times
    assert naive.intensity < 156 < flash.intensity  # the ridge of an A100
    assert naive.flops / flash.flops == pytest.approx(2, rel=1e-3)


def test_scores_that_fit_in_the_cache_do_not_move():
    sizes = {"heads": 12, "head_width": 64, "tokens": 1024}
    matrix = 4 * 1024**2
    flash = attention("flash", **sizes).moved_bytes
    assert attention("naive", **sizes, last_level_bytes=12 * matrix).moved_bytes == flash
    assert attention("naive", **sizes, last_level_bytes=12 * matrix - 1).moved_bytes > flash
    assert attention("looped", **sizes, last_level_bytes=matrix).moved_bytes == flash


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_a_pass_reads_every_parameter_except_the_positions(size):
    assert streamed_weights(size) == parameter_count(size) - size.context * size.width


def test_the_convention_of_papers_is_near_the_products_that_naive_attention_computes():
    step = training_step(PUBLISHED, batch=1, tokens=1024, attention="naive").flops / 1024
    assert step == pytest.approx(model_flops(PUBLISHED, tokens=1024), rel=1e-3)
    # Flash computes half the pairs, and in the backward pass one product in five again: 9 products, not 8 or 6.
    causal = model_flops(PUBLISHED, tokens=1024, causal=True)
    recomputed = 2 * PUBLISHED.layers * PUBLISHED.width * 1025 / 2
    flash = training_step(PUBLISHED, batch=1, tokens=1024).flops / 1024
    assert flash == pytest.approx(causal + recomputed, rel=1e-3)


# PyTorch's count, for the operations that it counts correctly


@pytest.mark.parametrize("last_only", [False, True])
def test_a_forward_pass_is_what_pytorch_counts(last_only):
    model = huggingface()
    found = counted(lambda: model(ids(), logits_to_keep=1 if last_only else 0))
    assert found == forward(SMALL, batch=B, tokens=T, attention="naive", last_only=last_only).flops


def test_looped_heads_compute_what_batched_ones_do():
    model = reference("looped")
    expected = forward(SMALL, batch=B, tokens=T, attention="looped").flops
    assert counted(lambda: model(ids())) == expected


@pytest.mark.parametrize("checkpointing", [False, True])
def test_forward_and_backward_are_what_pytorch_counts(checkpointing):
    model = huggingface().train()
    if checkpointing:
        for block in model.transformer.h:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    found = counted(lambda: model(ids(), labels=ids(), use_cache=False).loss.backward())
    expected = forward(SMALL, batch=B, tokens=T, attention="naive") + backward(
        SMALL, batch=B, tokens=T, attention="naive", checkpointing=checkpointing
    )
    assert found == expected.flops


def test_a_step_over_several_batches_computes_each_of_them():
    once = training_step(SMALL, batch=B, tokens=T, attention="naive")
    thrice = training_step(SMALL, batch=B, tokens=T, attention="naive", accumulation=3)
    assert thrice.flops == 3 * once.flops
    # One step of the optimizer for all three, and the gradients read before they are added to.
    optimizer = optimizer_step(parameter_count(SMALL)).moved_bytes
    gradients = 4 * parameter_count(SMALL)
    assert thrice.moved_bytes == 3 * (once.moved_bytes - optimizer) + optimizer + 2 * gradients


def test_a_published_size_is_counted_on_the_meta_device():
    model = huggingface(PUBLISHED, device="meta")
    found = counted(lambda: model(ids(1, 128, device="meta"), labels=ids(1, 128, device="meta")).loss.backward())
    assert found == training_step(PUBLISHED, batch=1, tokens=128, attention="naive").flops


def test_a_step_of_decoding_is_what_pytorch_counts():
    model = huggingface()
    with torch.no_grad():
        past = model(ids(B, 9), use_cache=True).past_key_values
        found = counted(lambda: model(ids(B, 1), past_key_values=past, use_cache=True))
    assert found == decode_step(SMALL, batch=B, context=10).flops


def test_several_positions_after_a_cache_are_what_pytorch_counts():
    model = huggingface()
    with torch.no_grad():
        past = model(ids(B, 9), use_cache=True).past_key_values
        found = counted(lambda: model(ids(B, 5), past_key_values=past, use_cache=True))
    assert found == forward(SMALL, batch=B, tokens=5, past=9, attention="naive").flops


def test_a_generation_reads_every_weight_once_for_the_prompt_and_once_a_step_in_its_own_bytes():
    options = {"batch": 1, "prompt": 5, "new_tokens": 4, "use_cache": True}
    plain, eighth = generate(SMALL, **options), generate(SMALL, **options, weight_bytes=0.5)
    passes = 1 + 3  # the last token is never fed back
    assert plain.moved_bytes - eighth.moved_bytes == passes * streamed_weights(SMALL) * (4 - 0.5)
    assert plain.flops == eighth.flops


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_generation_is_what_pytorch_counts(use_cache):
    model = reference("naive")
    found = counted(lambda: model.generate(ids(B, 5), 8, temperature=0.0, use_cache=use_cache))
    expected = generate(SMALL, batch=B, prompt=5, new_tokens=8, use_cache=use_cache, attention="naive")
    assert found == expected.flops


def test_attention_by_itself_is_what_pytorch_counts():
    sizes = {"heads": 4, "head_width": 12, "tokens": T, "batch": B}
    q, k, v = (torch.randn(B, 4, T, 12, requires_grad=True) for _ in range(3))
    assert counted(lambda: (q @ k.mT).softmax(-1) @ v) == attention("naive", **sizes).flops
    out = (q @ k.mT).softmax(-1) @ v
    assert counted(lambda: out.sum().backward()) == attention_backward("naive", **sizes).flops


def test_attention_with_its_projections_is_what_pytorch_counts():
    layer = reference("naive").transformer["h"][0].attn
    found = counted(lambda: layer(torch.randn(B, T, SMALL.width)))
    assert found == attention_layer(SMALL, batch=B, tokens=T, attention="naive").flops


def test_pytorch_sees_no_attention_in_sdpa_on_a_cpu():
    """Why costs are closed forms: the counter omits these products, more than a tenth at T = 1024."""
    model = huggingface(attention="sdpa")
    inside = attention("naive", heads=SMALL.heads, head_width=SMALL.head_width, tokens=T, batch=B).flops
    every = forward(SMALL, batch=B, tokens=T, attention="naive").flops
    assert counted(lambda: model(ids())) == every - SMALL.layers * inside
    q = torch.randn(1, 4, 64, 16)
    assert counted(lambda: F.scaled_dot_product_attention(q, q, q, is_causal=True)) == 0


# Bytes


class Passes(TorchDispatchMode):
    """Counts the arrays of `length` elements that operations read and write; a view does neither."""

    def __init__(self, length):
        super().__init__()
        self.length, self.count = length, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        read, written = self._places(args), self._places([result])
        if function._schema.is_mutable or not read & written:
            self.count += len(read) + len(written)
        return result

    def _places(self, values):
        return {
            value.data_ptr() for value in values if isinstance(value, torch.Tensor) and value.numel() == self.length
        }


def test_naive_attention_goes_over_its_scores_four_times_and_seven_times_back():
    q, k, v = (torch.randn(B, 4, T, 12, requires_grad=True) for _ in range(3))
    sizes = {"heads": 4, "head_width": 12, "tokens": T, "batch": B, "element_bytes": 1}
    scores = B * 4 * T * T
    with Passes(scores) as passes:
        out = (q @ k.mT).softmax(-1) @ v
    assert passes.count * scores == attention("naive", **sizes).moved_bytes - attention("flash", **sizes).moved_bytes
    with Passes(scores) as passes:
        out.sum().backward()
    naive, flash = attention_backward("naive", **sizes), attention_backward("flash", **sizes)
    assert passes.count * scores == naive.moved_bytes - flash.moved_bytes


def test_unfused_adamw_goes_over_memory_twenty_times():
    weight = torch.nn.Parameter(torch.randn(1000))
    adamw = torch.optim.AdamW([weight], foreach=False)
    weight.grad = torch.randn(1000)
    adamw.step()  # the first one makes the state
    with Passes(1000) as passes:
        adamw.step()
    assert passes.count == ADAMW_PASSES["for-loop"] == ADAMW_PASSES["foreach"]


def test_a_pass_reads_its_weights_and_its_past_and_writes_its_logits_and_its_cache():
    V, C = SMALL.vocab_size, SMALL.width
    first = forward(SMALL, batch=B, tokens=T, element_bytes=1)
    assert first.moved_bytes == streamed_weights(SMALL) + T * C + B * T * V
    later = forward(SMALL, batch=B, tokens=T, past=8, element_bytes=1)
    assert later.moved_bytes - first.moved_bytes == cache_bytes(SMALL, tokens=8, batch=B, element_bytes=1)
    with_cache = prefill(SMALL, batch=B, tokens=T, element_bytes=1, last_only=False)
    assert with_cache.moved_bytes - first.moved_bytes == cache_bytes(SMALL, tokens=T, batch=B, element_bytes=1)


def test_a_backward_pass_reads_the_weights_and_writes_their_gradients():
    assert backward(SMALL, batch=B, tokens=SMALL.context).moved_bytes == 2 * 4 * parameter_count(SMALL)


def test_fused_adamw_moves_28_bytes_a_parameter():
    assert optimizer_step(1, kind="fused").moved_bytes == 28


@pytest.mark.parametrize("tokens", [16, 96, 256, 1024])
def test_the_peak_of_attention_is_what_the_allocator_counts(tokens):
    heads, head_width = 3, 16
    q, k, v = (torch.randn(B, heads, tokens, head_width) for _ in range(3))

    def naive(q, k, v):
        scores = (q @ k.mT).mul_(1 / math.sqrt(head_width))
        return scores.softmax(-1) @ v

    calls = {
        "naive": lambda: naive(q, k, v),
        "looped": lambda: torch.cat([naive(*(x[:, h] for x in (q, k, v))) for h in range(heads)], dim=-1),
        "flash": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    }
    for kind, call in calls.items():
        expected = attention_peak_bytes(kind, heads=heads, head_width=head_width, tokens=tokens, batch=B)
        assert peak_bytes(torch.no_grad()(call))["profiler"] == pytest.approx(expected, rel=0.02), kind


def test_costs_add_up():
    one = Cost(3, 6)
    assert one + one * 2 == Cost(9, 18)
    assert one.intensity == 0.5
