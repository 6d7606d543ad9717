"""GPT-2 as a formula: B sequences of T tokens, C channels, V tokens in the vocabulary."""

from collections.abc import Callable, Sequence
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt.attention import CausalSelfAttention, Head, LoopedSelfAttention, causal_mask
from gpt.cache import Cache, CacheLayer, GrowingCache, KVCache
from gpt.config import LAYER_NORM_EPS, GPTConfig
from gpt.errors import ConfigError, ContextError, TokenError, WeightsError
from gpt.experts import MixtureOfExperts, Routing
from gpt.feed_forward import FeedForward
from gpt.init import RECIPES, initialise
from gpt.linear import Linear
from gpt.seeds import generator_of
from gpt.token_ids import IGNORED, check_ids


class Block(nn.Module):
    """One layer: x + attention(LayerNorm(x)), then x + feed-forward(LayerNorm(x)), by experts if there are any."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = _layer_norm(config)
        self.attn = LoopedSelfAttention(config) if config.attention == "looped" else CausalSelfAttention(config)
        self.ln_2 = _layer_norm(config)
        self.mlp = MixtureOfExperts(config) if config.n_experts else FeedForward(config)

    def forward(self, x: Tensor, cache: CacheLayer | None = None, routings: list[Routing] | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C). Where the experts' tokens were sent is appended to `routings`."""
        x = x + self.attn(self.ln_1(x), cache)
        if isinstance(self.mlp, FeedForward):
            y: Tensor = self.mlp(self.ln_2(x))
            return x + y
        y, routing = self.mlp(self.ln_2(x))
        if routings is not None:
            routings.append(routing)
        return x + y


def _layer_norm(config: GPTConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.n_embd, eps=LAYER_NORM_EPS, bias=config.bias)


def _embedding(rows: int, width: int) -> nn.Embedding:
    # nn.Embedding(rows, width) would draw values; on meta, torch's normal_ first imports its compiler: 1 s.
    return nn.Embedding(rows, width, _weight=torch.empty(rows, width))


class Network(nn.Module):
    """The network of GPT-2: token ids in, the logits of each next token out. `gpt.GPT` adds what users do with it.

    Parameters have the names of Hugging Face's `GPT2LMHeadModel`, and PyTorch's layout, (out, in).
    `seed` fixes the weights without touching the global random state; without it they are drawn from that state.
    On `device="meta"` nothing is allocated, and the weights come with `load_state_dict(..., assign=True)` or
    after `to_empty`. A tied head stays tied through all of these.

    Raises `ConfigError` when `config` is not a `GPTConfig`, `SeedError` for a seed that is no whole number.
    """

    def __init__(self, config: GPTConfig, *, seed: int | None = None, device: torch.device | str | None = None) -> None:
        super().__init__()
        if not isinstance(config, GPTConfig):
            raise ConfigError(f"found {type(config).__name__} as the configuration; expected a GPTConfig")
        self.config = config
        device = torch.device(device) if device is not None else torch.get_default_device()
        with torch.device("meta"):  # without it the layers would draw values, and the recipe would draw them again
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
        hooks: Any = self  # these two methods are untyped in torch
        hooks.register_load_state_dict_pre_hook(_refuse_two_heads)
        hooks.register_load_state_dict_post_hook(_restore_tie_and_masks)
        if device.type != "meta":
            self.to_empty(device=device)
            generator = generator_of(seed, device)
            initialise(self, RECIPES[config.init], n_layer=config.n_layer, generator=generator)

    def forward(
        self,
        idx: Tensor,
        targets: Tensor | None = None,
        *,
        cache: Cache | None = None,
        last_only: bool = False,
        routings: list[Routing] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the logits (B, T, V) of ids (B, T), and the mean cross entropy when `targets` (B, T) are given.

        `targets` are already shifted: targets[:, t] is the token after idx[:, t]; -100 leaves a position out.
        With a cache, idx continues the cached positions and is appended to them, and no gradients are recorded.
        `last_only` computes the logits of the last position only, (B, 1, V): 29% less work at T = 1024.
        To `routings`, each layer of experts appends where it sent the tokens, for `gpt.experts.balance_loss`.

        Raises `ContextError` when the sequence does not fit, `TokenError` when the ids are not token ids,
        `CacheError` when the cache was made for another model or batch size.
        """
        if cache is not None and torch.is_grad_enabled():  # cached tensors must not keep graphs alive
            with torch.no_grad():
                return self.forward(idx, targets, cache=cache, last_only=last_only, routings=routings)
        self._check_input(idx, targets, cache, last_only)

        T, device = idx.size(1), idx.device
        positions = torch.arange(T, device=device) if cache is None else cache.next_positions(T, device)  # (T)
        x = self.transformer["wte"](idx) + self.transformer["wpe"](positions)  # (B, T) -> (B, T, C)
        x = self.transformer["drop"](x)
        for layer, block in enumerate(self.blocks):
            x = block(x, None if cache is None else cache.layer(layer), routings)
        x = self.transformer["ln_f"](x)
        if cache is not None:
            cache.advance(T)
        if last_only:
            x = x[:, -1:] if cache is None else cache.last(x)  # (B, T, C) -> (B, 1, C)

        logits = self.lm_head(x)  # (B, T, C) -> (B, T, V)
        if targets is None:
            return logits, None
        exact = logits.to(torch.promote_types(logits.dtype, torch.float32))  # a loss in 16 bits has 3 digits
        return logits, F.cross_entropy(exact.flatten(0, 1), targets.flatten().long())  # (B*T, V), (B*T)

    @property
    def blocks(self) -> Sequence[Block]:
        """The layers, in order."""
        return cast(Sequence[Block], self.transformer["h"])

    def new_cache(self, batch_size: int, *, positions: int | None = None, growing: bool = False) -> KVCache:
        """Return an empty cache for `batch_size` sequences, in the dtype and on the device of the weights.

        Under autocast it has autocast's dtype. It has room for `positions`, by default the whole context. With
        `growing`, it has room only for the positions it contains, and copies all of them at each step.
        """
        weight = self.blocks[0].ln_1.weight
        device, dtype = weight.device.type, weight.dtype
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        cache_class = GrowingCache if growing else KVCache
        return cache_class(self.config, batch_size, positions=positions, dtype=dtype, device=weight.device)

    def tie(self) -> None:
        """Make the head the token embedding: one parameter under two names."""
        self.lm_head.weight = self.transformer["wte"].weight  # type: ignore[assignment]  # a Parameter

    def to_empty(self, *, device: Any, recurse: bool = True) -> Self:
        """Allocate without values, as torch does, but compute the masks, which are in no checkpoint."""
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

    def _check_input(self, idx: Tensor, targets: Tensor | None, cache: Cache | None, last_only: bool) -> None:
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
        if not isinstance(targets, Tensor):
            raise TokenError(f"targets are {type(targets).__name__}; expected a tensor of torch.int64")
        if targets.shape != idx.shape:
            found, expected = tuple(targets.shape), tuple(idx.shape)
            raise TokenError(f"targets are of shape {found}; expected {expected}, as the ids are")
        check_ids(targets, self.config.vocab_size, ignored=IGNORED)


def _refuse_two_heads(model: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Raise `WeightsError` when a tied model is given two different heads: loading would lose the first silently."""
    assert isinstance(model, Network)
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


def _restore_tie_and_masks(model: nn.Module, _: object) -> None:
    """Complete load_state_dict(assign=True), which makes a parameter of each name and leaves masks on meta."""
    assert isinstance(model, Network)
    if model.config.tied:
        model.tie()
    device = model.lm_head.weight.device
    if device.type != "meta" and any(mask.is_meta for mask in model.buffers()):
        model.restore_masks(device)
