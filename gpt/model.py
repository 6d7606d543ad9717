"""GPT-2, written to be read: B sequences of T tokens, C channels, H heads of size D = C / H, V tokens."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt.cache import GrowingCache, KVCache, LayerCache
from gpt.config import LAYER_NORM_EPS, GPTConfig
from gpt.errors import ConfigError, ContextError, TokenError, WeightsError
from gpt.generate import generate
from gpt.init import RECIPES, initialise
from gpt.linear import Linear

IGNORED = -100  # a target that is left out of the loss: PyTorch's default


def causal_mask(size: int, device: torch.device | str | None = None) -> Tensor:
    """(T, T), true where the query of a row may look at the key of a column: its past and itself."""
    return torch.ones(size, size, dtype=torch.bool, device=device).tril()


def visible(mask: Tensor, queries: int, keys: int) -> Tensor:
    """The part of the mask for the last `queries` of `keys` positions: (queries, keys).

    The queries are the latest positions, so the mask is aligned at its bottom right. Aligned at the
    top left, as `is_causal` does, a new token would see only the first key.
    """
    return mask[keys - queries : keys, :keys]


class Head(nn.Module):
    """One head of attention: softmax(q kᵀ / √D) v, over the past only."""

    mask: Tensor

    def __init__(self, config: GPTConfig, mask: Tensor | None = None) -> None:
        super().__init__()
        self.query = Linear(config.n_embd, config.head_size, bias=config.bias)
        self.key = Linear(config.n_embd, config.head_size, bias=config.bias)
        self.value = Linear(config.n_embd, config.head_size, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)
        # Not persistent: it is no weight, and published checkpoints do not hold it.
        mask = causal_mask(config.block_size) if mask is None else mask
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor, memory: LayerCache | None = None) -> Tensor:
        """(B, T, C) -> (B, T, D)."""
        q, k, v = self.query(x), self.key(x), self.value(x)  # (B, T, C) -> 3 × (B, T, D)
        if memory is not None:
            k, v = memory.append(k, v)  # (B, T, D) -> (B, S, D), the past included
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # (B, T, D) @ (B, D, S) -> (B, T, S)
        scores = scores.masked_fill(~visible(self.mask, q.size(-2), k.size(-2)), -math.inf)
        weights = self.dropout(scores.softmax(dim=-1))
        out: Tensor = weights @ v  # (B, T, S) @ (B, S, D) -> (B, T, D)
        return out


class LoopedSelfAttention(nn.Module):
    """Multi-head attention as it is explained: one head after the other, side by side, then mixed."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        mask = causal_mask(config.block_size)  # one for all heads
        self.heads = nn.ModuleList(Head(config, mask) for _ in range(config.n_head))
        self.c_proj = Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, memory: LayerCache | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        parts = [head(x, memory and memory.head(number)) for number, head in enumerate(self.heads)]
        y = torch.cat(parts, dim=-1)  # H × (B, T, D) -> (B, T, C)
        out: Tensor = self.resid_dropout(self.c_proj(y))
        return out


class CausalSelfAttention(nn.Module):
    """The same function with all heads in one multiplication; `config.attention` picks the inner loop."""

    mask: Tensor

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)  # query, key, value
        self.c_proj = Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.attn_dropout = nn.Dropout(config.dropout)
        self.resid_dropout = nn.Dropout(config.dropout)
        self.flash = config.attention == "flash"
        self.register_buffer("mask", causal_mask(config.block_size), persistent=False)

    def forward(self, x: Tensor, memory: LayerCache | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        B, T, C = x.shape
        q, k, v = self.c_attn(x).split(C, dim=2)  # (B, T, C) -> (B, T, 3C) -> 3 × (B, T, C)
        q = q.view(B, T, self.n_head, -1).transpose(1, 2)  # (B, T, C) -> (B, T, H, D) -> (B, H, T, D)
        k = k.view(B, T, self.n_head, -1).transpose(1, 2)  # (B, T, C) -> (B, T, H, D) -> (B, H, T, D)
        v = v.view(B, T, self.n_head, -1).transpose(1, 2)  # (B, T, C) -> (B, T, H, D) -> (B, H, T, D)
        if memory is not None:
            k, v = memory.append(k, v)  # (B, H, T, D) -> (B, H, S, D), the past included
        y = self.attend_flash(q, k, v) if self.flash else self.attend_naive(q, k, v)
        y = y.transpose(1, 2).reshape(B, T, C)  # (B, H, T, D) -> (B, T, H, D) -> (B, T, C)
        out: Tensor = self.resid_dropout(self.c_proj(y))
        return out

    def attend_naive(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, H, T, D), 2 × (B, H, S, D) -> (B, H, T, D), by the formula: T × S scores are stored."""
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # (B, H, T, D) @ (B, H, D, S) -> (B, H, T, S)
        scores = scores.masked_fill(~visible(self.mask, q.size(-2), k.size(-2)), -math.inf)
        weights: Tensor = self.attn_dropout(scores.softmax(dim=-1))
        return weights @ v  # (B, H, T, S) @ (B, H, S, D) -> (B, H, T, D)

    def attend_flash(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, H, T, D), 2 × (B, H, S, D) -> (B, H, T, D), tile by tile: no scores are stored."""
        T, S = q.size(-2), k.size(-2)
        dropout = self.attn_dropout.p if self.training else 0.0
        if T == 1:  # the latest position sees everything: no mask
            return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        if T == S:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
        return F.scaled_dot_product_attention(q, k, v, visible(self.mask, T, S), dropout_p=dropout)


class FeedForward(nn.Module):
    """Each position by itself: four times wider, GELU, and back."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.gelu = nn.GELU(approximate="tanh")  # GPT-2's; the exact form differs by 8e-4 in the logits
        self.c_proj = Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = self.gelu(self.c_fc(x))  # (B, T, C) -> (B, T, 4C)
        out: Tensor = self.dropout(self.c_proj(x))  # (B, T, 4C) -> (B, T, C)
        return out


class Block(nn.Module):
    """Attention, then the feed-forward network, each added to the stream that it read through a LayerNorm."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = _layer_norm(config)
        self.attn = LoopedSelfAttention(config) if config.attention == "looped" else CausalSelfAttention(config)
        self.ln_2 = _layer_norm(config)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, memory: LayerCache | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = x + self.attn(self.ln_1(x), memory)
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


def _layer_norm(config: GPTConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.n_embd, eps=LAYER_NORM_EPS, bias=config.bias)


def _embedding(rows: int, width: int) -> nn.Embedding:
    # nn.Embedding(rows, width) would draw values; on meta, torch's normal_ first imports its compiler: 1 s.
    return nn.Embedding(rows, width, _weight=torch.empty(rows, width))


class GPT(nn.Module):
    """A GPT-2: tokens in, the logits of each next token out.

    Parameters have the names of Hugging Face's `GPT2LMHeadModel`, and PyTorch's layout, (out, in).
    `seed` fixes the weights without touching the global random state; without it they are drawn from there.
    On `device="meta"` nothing is allocated, and the weights come with `load_state_dict(..., assign=True)` or
    after `to_empty`. A tied head stays tied through every one of these.
    """

    def __init__(self, config: GPTConfig, *, seed: int | None = None, device: torch.device | str | None = None) -> None:
        super().__init__()
        if not isinstance(config, GPTConfig):
            raise ConfigError(f"found {type(config).__name__} as the configuration; expected a GPTConfig")
        self.config = config
        device = torch.device(device) if device is not None else torch.get_default_device()
        with torch.device("meta"):  # so that nothing is drawn, and then drawn again by the recipe
            self.transformer = nn.ModuleDict(
                {
                    "wte": _embedding(config.vocab_size, config.n_embd),
                    "wpe": _embedding(config.block_size, config.n_embd),
                    "drop": nn.Dropout(config.dropout),
                    "h": nn.ModuleList(Block(config) for _ in range(config.n_layer)),
                    "ln_f": _layer_norm(config),
                }
            )
            self.lm_head = Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tied:
            self.tie()
        hooks: Any = self  # torch left these two without types
        hooks.register_load_state_dict_pre_hook(_refuse_two_heads)
        hooks.register_load_state_dict_post_hook(_complete)
        if device.type != "meta":
            self.to_empty(device=device)
            generator = None if seed is None else torch.Generator(device).manual_seed(seed)
            initialise(self, RECIPES[config.init], n_layer=config.n_layer, generator=generator)

    def forward(
        self,
        idx: Tensor,
        targets: Tensor | None = None,
        *,
        cache: KVCache | None = None,
        last_only: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Logits (B, T, V) for ids (B, T), and the mean cross entropy when `targets` (B, T) are given.

        `targets` are already shifted: targets[:, t] is the token after idx[:, t]; -100 leaves a position out.
        With a cache, idx continues what the cache holds, is added to it, and no gradients are recorded.
        `last_only` computes the logits of the last position only, (B, 1, V): 29% less work at T = 1024.

        Raises `ContextError` when the sequence does not fit, `TokenError` when the ids are not token ids.
        """
        if cache is not None and torch.is_grad_enabled():  # what a cache holds must not keep graphs alive
            with torch.no_grad():
                return self.forward(idx, targets, cache=cache, last_only=last_only)
        self._check_input(idx, targets, cache, last_only)

        start = 0 if cache is None else cache.length
        positions = torch.arange(start, start + idx.size(1), device=idx.device)  # (T)
        x = self.transformer["wte"](idx) + self.transformer["wpe"](positions)  # (B, T) -> (B, T, C)
        x = self.transformer["drop"](x)
        for layer, block in enumerate(self.blocks):
            x = block(x) if cache is None else block(x, cache.layer(layer))
        x = self.transformer["ln_f"](x)
        if cache is not None:
            cache.length += idx.size(1)

        logits = self.lm_head(x[:, -1:] if last_only else x)  # (B, T, C) -> (B, T, V)
        if targets is None:
            return logits, None
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))  # a loss in 16 bits has 3 digits
        return logits, F.cross_entropy(exact.flatten(0, 1), targets.flatten())  # (B*T, V), (B*T)

    @property
    def blocks(self) -> Sequence[Block]:
        """The layers, in order."""
        return cast(Sequence[Block], self.transformer["h"])

    def new_cache(self, batch_size: int, *, positions: int | None = None, growing: bool = False) -> KVCache:
        """An empty cache for `batch_size` sequences, of the kind and on the device that the weights are.

        It has room for `positions`, the whole context if not given; with `growing` only for what it holds, which it
        then copies at each step.
        """
        weight = self.blocks[0].mlp.c_fc.weight
        device, dtype = weight.device.type, weight.dtype
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        kind = GrowingCache if growing else KVCache
        return kind(self.config, batch_size, positions=positions, dtype=dtype, device=weight.device)

    generate = generate

    def tie(self) -> None:
        """Make the head the token embedding: one parameter under two names."""
        self.lm_head.weight = self.transformer["wte"].weight  # type: ignore[assignment]  # a Parameter

    def to_empty(self, *, device: Any, recurse: bool = True) -> Self:
        """Allocate without values, as torch does, except for the masks, which no checkpoint holds."""
        super().to_empty(device=device, recurse=recurse)
        self.restore_masks(device)
        return self

    def restore_masks(self, device: torch.device | str | None) -> None:
        """Compute the causal masks again, on `device`."""
        mask = causal_mask(self.config.block_size, device)  # one for all
        for module in self.modules():
            if isinstance(module, (Head, CausalSelfAttention)):
                module.mask = mask

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Everything that moves or casts a module comes through here. Leaving meta, torch makes new
        # parameters one by one, and would make two of the tied one.
        tied = self.lm_head.weight is self.transformer["wte"].weight
        parent: Any = super()  # untyped in torch
        parent._apply(fn, recurse)
        if tied:
            self.tie()
        return self

    def _check_input(self, idx: Tensor, targets: Tensor | None, cache: KVCache | None, last_only: bool) -> None:
        check_ids(idx, self.config.vocab_size)
        batch, time = idx.shape
        context = self.config.block_size
        if cache is not None:
            cache.check_room(self.config, batch, time)
        elif time > context:
            raise ContextError(
                f"{time} tokens are longer than the context of {context}; "
                f"pass the last ones, idx[:, -{context}:], or raise block_size"
            )
        if targets is None:
            return
        if last_only:
            raise TokenError("targets need the logits of every position; leave out last_only")
        if targets.shape != idx.shape:
            found, expected = tuple(targets.shape), tuple(idx.shape)
            raise TokenError(f"targets are of shape {found}; expected {expected}, as the ids are")
        check_ids(targets, self.config.vocab_size, ignored=IGNORED)

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], **options: Any) -> Self:
        """Published weights; `gpt.pretrained.from_pretrained` has the options and the errors."""
        from gpt.pretrained import from_pretrained  # not at the top: it needs more than the model does

        return cast(Self, from_pretrained(cls, name, **options))

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write a directory for `from_pretrained`, Hugging Face's too; see `gpt.pretrained`."""
        from gpt.pretrained import save_pretrained

        save_pretrained(self, folder)

    def load_huggingface(self, state: Mapping[str, Tensor]) -> None:
        """Copy the weights of Hugging Face's GPT-2 into this model; see `gpt.weights`."""
        from gpt.weights import load_huggingface

        load_huggingface(self, state)


def check_ids(idx: Tensor, vocab_size: int, *, ignored: int | None = None) -> None:
    """Raise `TokenError` unless idx is (B, T) of integers, not empty, and inside the vocabulary or `ignored`.

    The values are looked at on a CPU only: on a GPU that would wait for the device at every step (its own
    assertion catches the mistake there), on meta there are none, and inside torch.compile it would cut
    the graph in two.
    """
    if not isinstance(idx, Tensor) or idx.dtype not in (torch.int64, torch.int32):
        found = str(idx.dtype) if isinstance(idx, Tensor) else type(idx).__name__
        raise TokenError(f"token ids are {found}; expected a tensor of torch.int64")
    if idx.dim() != 2 or idx.numel() == 0:
        shape = tuple(idx.shape)
        raise TokenError(f"token ids are of shape {shape}; expected (batch, time) with at least one token")
    if torch.compiler.is_compiling() or idx.device.type != "cpu" or type(idx) is not Tensor:
        return
    low, high = (int(end) for end in idx.aminmax())
    if low >= 0 and high < vocab_size:
        return
    outside = (idx < 0) | (idx >= vocab_size)
    if ignored is not None:
        outside &= idx != ignored
    if outside.any():
        raise TokenError(
            f"token id {int(idx[outside][0])} is outside the vocabulary of {vocab_size}; expected 0 to "
            f"{vocab_size - 1}: was the text encoded for another vocabulary?"
        )


def _refuse_two_heads(model: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """A tied model has room for one of the two; loading both would keep whichever came last."""
    assert isinstance(model, GPT)
    head, embedding = state.get(f"{prefix}lm_head.weight"), state.get(f"{prefix}transformer.wte.weight")
    if not model.config.tied or head is None or embedding is None:
        return
    if head.is_meta or embedding.is_meta or head.data_ptr() == embedding.data_ptr():
        return
    if head.shape == embedding.shape and not torch.equal(head, embedding):
        raise WeightsError(
            "lm_head.weight differs from transformer.wte.weight, and this model has one parameter for both; "
            "load it into a model with tied=False"
        )


def _complete(model: nn.Module, _: object) -> None:
    """load_state_dict(assign=True) makes a parameter of each name, and leaves a meta model's masks there."""
    assert isinstance(model, GPT)
    if model.config.tied:
        model.tie()
    device = model.lm_head.weight.device
    if device.type != "meta" and any(mask.is_meta for mask in model.buffers()):
        model.restore_masks(device)
