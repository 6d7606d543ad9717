"""The cost of a GPT's work in closed form: the FLOPs of its matrix products, and the bytes that must move.

FLOPs are those of matrix products, 2·m·n·k each (a multiplication and an addition). Embeddings, norms, GELU and softmax
are not counted, as in the papers. A tied head is one matrix in memory, but costs V·C at every position.

Bytes are compulsory: each pass reads the weights that it uses and its inputs once, and writes its results once.
Activations inside a pass count as cached, because an implementation may tile or fuse so that they are. The time at full
bandwidth is therefore a lower bound: no pass that reads its weights from memory can take less. The exception is naive
attention, which differs from flash only by the scores that it stores: they are counted, unless they fit in the cache
that the caller names.

Names in the formulas: B sequences of T tokens, V words, L layers, C channels, H heads of D = C / H.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

from harness.core.sizes import Size

Attention = Literal["naive", "looped", "flash"]
Optimizer = Literal["fused", "foreach", "for-loop"]

FLOAT32_BYTES = 4
# AdamW, in passes over arrays as long as the parameters. Fused: reads p, g, m, v and writes p, m, v. Otherwise each
# operation passes over memory, as torch.optim.adamw writes them: p·(1 - lr·decay) 2, lerp of m 3, v·beta 2, addcmul 3,
# sqrt 2, division 2, + eps 2, addcdiv 4.
ADAMW_PASSES: dict[Optimizer, int] = {"fused": 7, "foreach": 20, "for-loop": 20}


@dataclass(frozen=True)
class Cost:
    """FLOPs of matrix products, and the fewest bytes that move between memory and processor."""

    flops: float
    moved_bytes: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.moved_bytes + other.moved_bytes)

    def __mul__(self, times: float) -> Cost:
        return Cost(self.flops * times, self.moved_bytes * times)

    __rmul__ = __mul__

    @property
    def intensity(self) -> float:
        """FLOPs per byte: above a machine's ridge point (FLOP/s over bytes/s) the work is compute-bound."""
        return self.flops / self.moved_bytes


NOTHING = Cost(0, 0)


def block_matrices(size: Size) -> int:
    """Return the weights that multiply each position in the blocks: 3C² + C² + 4C² + 4C² = 12C² a block."""
    return 12 * size.layers * size.width**2


def multiplied_weights(size: Size) -> int:
    """Return the weights that multiply each position: the blocks' and the head's V·C. 123,532,032 for GPT-2 124M."""
    return block_matrices(size) + size.vocab_size * size.width


def streamed_weights(size: Size) -> int:
    """Return the parameters that a pass with logits reads: all but the position embedding.

    123,653,376 for GPT-2 124M, as nanoGPT prints. Beside the matrices these are 13C of biases and norms a block
    (3C + C + 4C + C and 4C), and 2C of the last norm.
    """
    return multiplied_weights(size) + (13 * size.layers + 2) * size.width


def causal_pairs(kind: Attention, *, tokens: int, past: int = 0) -> float:
    """Return the query-key pairs that are computed for `tokens` new positions after `past` cached ones.

    Naive and looped attention compute every pair and mask half of them. Flash skips the blocks of the future: the
    T(T+1)/2 pairs are those that causality leaves; a kernel computes a few more, up to one block of keys a query.
    """
    return tokens * past + (tokens * (tokens + 1) / 2 if kind == "flash" else tokens**2)


def attention(
    kind: Attention,
    *,
    heads: int,
    head_width: int,
    tokens: int,
    past: int = 0,
    batch: int = 1,
    element_bytes: int = FLOAT32_BYTES,
    last_level_bytes: int = 0,
) -> Cost:
    """Return the cost of softmax(q kᵀ / √D) v alone: two products of 2D FLOP a pair; q, k, v read, the output written.

    Naive attention also writes the scores, reads them for the softmax, writes the weights and reads them for the second
    product: 4·B·H·T·S elements, unless the matrix fits in `last_level_bytes` of cache (looped: one head's at a time).
    """
    rows = batch * heads
    tensors = Cost(0, element_bytes * rows * head_width * (2 * tokens + 2 * (tokens + past)))
    return tensors + _inside_forward(kind, rows, head_width, tokens, past, element_bytes, last_level_bytes)


def attention_backward(
    kind: Attention,
    *,
    heads: int,
    head_width: int,
    tokens: int,
    batch: int = 1,
    element_bytes: int = FLOAT32_BYTES,
    last_level_bytes: int = 0,
) -> Cost:
    """Return the cost of four products: dv = pᵀdo, dp = do vᵀ, dq = ds k, dk = dsᵀq. Flash recomputes the scores too.

    That is twice the forward pass, and 2.5 times for flash (FlashAttention-2, Dao 2023, section 4.1). q, k, v, the
    output and its gradient are read, dq, dk, dv written. Naive: the weights are read twice, dp is written and read, ds
    is written and read twice: 7·B·H·T² elements.
    """
    rows = batch * heads
    tensors = Cost(0, element_bytes * rows * head_width * 8 * tokens)
    return tensors + _inside_backward(kind, rows, head_width, tokens, element_bytes, last_level_bytes)


def _inside_forward(
    kind: Attention, rows: int, head_width: int, tokens: int, past: int, element_bytes: int, last_level_bytes: int
) -> Cost:
    return _inside(kind, rows, head_width, tokens, past, element_bytes, last_level_bytes, products=2, passes=4)


def _inside_backward(
    kind: Attention, rows: int, head_width: int, tokens: int, element_bytes: int, last_level_bytes: int
) -> Cost:
    products = 5 if kind == "flash" else 4
    return _inside(kind, rows, head_width, tokens, 0, element_bytes, last_level_bytes, products=products, passes=7)


def _inside(
    kind: Attention,
    rows: int,
    head_width: int,
    tokens: int,
    past: int,
    element_bytes: int,
    last_level_bytes: int,
    *,
    products: int,
    passes: int,
) -> Cost:
    """Return the cost of attention of B·H `rows` inside a pass, with its tensors in the cache.

    `products` of pairs are computed, and `passes` over the scores are made if those are stored.
    """
    flops = products * 2 * rows * head_width * causal_pairs(kind, tokens=tokens, past=past)
    square = tokens * (tokens + past)
    at_once = element_bytes * square * (1 if kind == "looped" else rows)
    stored = kind != "flash" and at_once > last_level_bytes
    return Cost(flops, passes * element_bytes * rows * square if stored else 0)


def attention_peak_bytes(
    kind: Attention,
    *,
    heads: int,
    head_width: int,
    tokens: int,
    batch: int = 1,
    element_bytes: int = FLOAT32_BYTES,
    threads: int = 1,
) -> int:
    """Return the peak of attention's forward call on a CPU in bytes, beyond q, k and v.

    Naive: the scores, their softmax and the output at once. Looped: the same for one head, or all heads' outputs twice
    (separate and concatenated). Flash, in torch's CPU kernel (FlashAttentionKernel.cpp): the output, a float32
    logarithm a row, and one float32 tile a thread.
    """
    rows, square = batch * heads, tokens * tokens
    output = rows * tokens * head_width
    if kind == "naive":
        return element_bytes * (2 * rows * square + output)
    if kind == "looped":
        return element_bytes * max(batch * 2 * square + output, 2 * output)
    query_block = min(tokens, 256 if tokens >= 768 else 64 if tokens >= 192 else 32)
    key_block = min(tokens, 512)
    tile = query_block * (key_block + 2 + head_width)
    return element_bytes * output + FLOAT32_BYTES * (rows * tokens + threads * tile)


def attention_layer(
    size: Size,
    *,
    tokens: int,
    batch: int = 1,
    attention: Attention = "flash",
    element_bytes: int = FLOAT32_BYTES,
    last_level_bytes: int = 0,
) -> Cost:
    """Return the cost of one block's attention with its projections, on (B, T, C): 4C² weights and 4C biases."""
    C, positions = size.width, batch * tokens
    projections = Cost(2 * positions * 4 * C**2, element_bytes * (4 * C**2 + 4 * C + 2 * positions * C))
    return projections + _inside_forward(
        attention, batch * size.heads, size.head_width, tokens, 0, element_bytes, last_level_bytes
    )


def forward(
    size: Size,
    *,
    batch: int,
    tokens: int,
    past: int = 0,
    attention: Attention = "flash",
    last_only: bool = False,
    element_bytes: int = FLOAT32_BYTES,
    last_level_bytes: int = 0,
) -> Cost:
    """Return the cost of the logits (B, T, V), or (B, 1, V) with `last_only`, after `past` cached positions.

    FLOPs: 2·12C²·L at each position, 2·V·C at each that has logits, 4·C·L a query-key pair. Bytes: the weights once
    (the tied embedding is the head; T rows of the positions), the past's keys and values, the logits.
    """
    scored = batch * (1 if last_only else tokens)
    flops = 2 * batch * tokens * block_matrices(size) + 2 * scored * size.vocab_size * size.width
    weights = streamed_weights(size) + tokens * size.width
    cached = cached_elements(size, tokens=past, batch=batch)
    products = Cost(flops, element_bytes * (weights + cached + scored * size.vocab_size))
    inside = _inside_forward(
        attention, batch * size.heads, size.head_width, tokens, past, element_bytes, last_level_bytes
    )
    return products + inside * size.layers


def prefill(
    size: Size,
    *,
    batch: int,
    tokens: int,
    attention: Attention = "flash",
    last_only: bool = True,
    element_bytes: int = FLOAT32_BYTES,
) -> Cost:
    """Return the cost of the prompt's pass: a forward pass that also writes the cache.

    2·123.5M·T + 36,864·T(T+1)/2 FLOP with all logits, for GPT-2 124M.
    """
    written = element_bytes * cached_elements(size, tokens=tokens, batch=batch)
    pass_cost = forward(
        size, batch=batch, tokens=tokens, attention=attention, last_only=last_only, element_bytes=element_bytes
    )
    return pass_cost + Cost(0, written)


def decode_step(
    size: Size,
    *,
    batch: int,
    context: int,
    element_bytes: int = FLOAT32_BYTES,
    weight_bytes: float | None = None,
) -> Cost:
    """Return the cost of one new token a sequence, the `context`-th: it sees `context` positions, itself included.

    FLOPs: B·(2·multiplied_weights + 4·L·C·t): 247.1M + 36,864·t for GPT-2 124M. Bytes: the weights once for the whole
    batch, and 2·L·C·t elements of keys and values a sequence, of which t - 1 positions are read and one is written. The
    row of logits is left out (V elements a sequence). `weight_bytes`: of a weight, if it has others than an activation.
    """
    flops = batch * (2 * multiplied_weights(size) + 4 * size.layers * size.width * context)
    weights = streamed_weights(size) * (element_bytes if weight_bytes is None else weight_bytes)
    return Cost(flops, weights + element_bytes * cached_elements(size, tokens=context, batch=batch))


def generate(
    size: Size,
    *,
    batch: int,
    prompt: int,
    new_tokens: int,
    use_cache: bool,
    attention: Attention = "flash",
    last_only: bool = True,
    element_bytes: int = FLOAT32_BYTES,
    weight_bytes: float | None = None,
) -> Cost:
    """Return the cost of `new_tokens` tokens after `prompt` positions; the last token is never fed back.

    Cached: the prompt, then a step for each token. Uncached: a whole pass for each token, over prompt ... prompt +
    new_tokens - 1 positions. None may be beyond the context. `weight_bytes` is as in `decode_step`, with a cache.
    """
    end = prompt + new_tokens
    if use_cache:
        first = prefill(
            size, batch=batch, tokens=prompt, attention=attention, last_only=last_only, element_bytes=element_bytes
        )
        if weight_bytes is not None:
            first += Cost(0, streamed_weights(size) * (weight_bytes - element_bytes))
        step = functools.partial(decode_step, size, batch=batch, element_bytes=element_bytes, weight_bytes=weight_bytes)
        return sum((step(context=length) for length in range(prompt + 1, end)), first)
    passes = (
        forward(size, batch=batch, tokens=length, attention=attention, last_only=last_only, element_bytes=element_bytes)
        for length in range(prompt, end)
    )
    return sum(passes, NOTHING)


def backward(
    size: Size,
    *,
    batch: int,
    tokens: int,
    attention: Attention = "flash",
    checkpointing: bool = False,
    element_bytes: int = FLOAT32_BYTES,
    last_level_bytes: int = 0,
) -> Cost:
    """Return the cost of the gradients: two products for each one of the forward pass, and attention's own.

    The weights are read again and their gradients written. `checkpointing` recomputes the blocks' forward pass (Chen et
    al. 2016) up to the last projection, whose result no gradient needs (PyTorch stops there too): 8C² of 12C².
    """
    rows, positions = batch * size.heads, batch * tokens
    products = Cost(4 * positions * multiplied_weights(size), 0)
    weights = Cost(0, 2 * element_bytes * (streamed_weights(size) + tokens * size.width))
    inside = _inside_backward(attention, rows, size.head_width, tokens, element_bytes, last_level_bytes)
    if checkpointing:
        recomputed = 8 * size.layers * size.width**2
        products += Cost(2 * positions * recomputed, element_bytes * recomputed)
        inside += _inside_forward(attention, rows, size.head_width, tokens, 0, element_bytes, last_level_bytes)
    return products + weights + inside * size.layers


def optimizer_step(parameters: int, *, kind: Optimizer = "fused", element_bytes: int = FLOAT32_BYTES) -> Cost:
    """Return the cost of a step of AdamW without clipping: no products; fused, 28 bytes a parameter in float32.

    For an optimizer that is not fused, each of the 20 passes counts as going through memory, although it may find a
    tensor in the cache. That is the most that such a step moves, and no lower bound.
    """
    return Cost(0, ADAMW_PASSES[kind] * element_bytes * parameters)


def training_step(
    size: Size,
    *,
    batch: int,
    tokens: int,
    attention: Attention = "flash",
    optimizer: Optimizer = "fused",
    accumulation: int = 1,
    checkpointing: bool = False,
    element_bytes: int = FLOAT32_BYTES,
    master_bytes: int = FLOAT32_BYTES,
    last_level_bytes: int = 0,
) -> Cost:
    """Return the cost of forward and backward over `accumulation` batches (B, T), and one step of AdamW.

    The weights of the optimizer have `master_bytes` each. FLOPs are those of the products that are computed: causal for
    flash, every pair for naive; `model_flops` is the convention of papers. From the second batch on the gradients are
    read as well as written.
    """
    pass_cost = forward(
        size,
        batch=batch,
        tokens=tokens,
        attention=attention,
        element_bytes=element_bytes,
        last_level_bytes=last_level_bytes,
    ) + backward(
        size,
        batch=batch,
        tokens=tokens,
        attention=attention,
        checkpointing=checkpointing,
        element_bytes=element_bytes,
        last_level_bytes=last_level_bytes,
    )
    parameters = streamed_weights(size) + size.context * size.width
    summed = Cost(0, (accumulation - 1) * element_bytes * parameters)
    return pass_cost * accumulation + summed + optimizer_step(parameters, kind=optimizer, element_bytes=master_bytes)


def model_flops(size: Size, *, tokens: int, causal: bool = False) -> float:
    """Return the FLOPs of training on one token by the convention of papers, for the utilisation (MFU).

    6·(N - T·C) + 12·L·C·T: 855 MFLOP for GPT-2 124M at T = 1024. N includes biases and norms, and attention counts
    every pair (PaLM, Chowdhery et al. 2022, appendix B; nanoGPT's estimate_mfu). `causal` counts the T(T+1)/2 pairs
    that are not masked.
    """
    keys = (tokens + 1) / 2 if causal else tokens
    return 6 * streamed_weights(size) + 12 * size.layers * size.width * keys


def cached_elements(size: Size, *, tokens: int, batch: int = 1) -> int:
    """Return the elements of keys and values of `tokens` positions in every layer: 2·L·T·C a sequence."""
    return 2 * size.layers * tokens * size.width * batch


def cache_bytes(size: Size, *, tokens: int, batch: int = 1, element_bytes: int = 2) -> int:
    """Return the bytes of a KV cache: 37,748,736 for GPT-2 124M at 1024 tokens in 16 bits."""
    return element_bytes * cached_elements(size, tokens=tokens, batch=batch)
