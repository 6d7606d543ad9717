"""Generation: sample one token after the other from the model's next-token probabilities."""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gpt.config import LARGEST
from gpt.errors import ContextError, GenerationError
from gpt.network import Network
from gpt.seeds import generator_of
from gpt.token_ids import check_ids


@torch.no_grad()
def generate(
    model: Network,
    idx: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    use_cache: bool = True,
) -> Tensor:
    """Return the prompts idx (B, T) with `max_new_tokens` appended, (B, T + max_new_tokens).

    `temperature` 0 is greedy; `top_k` and `top_p` restrict the choice, in this order. `seed` fixes the samples
    without touching the global random state. With a cache each new token computes one position, and the tokens
    are the same. Past the context the window slides: every position changes, and the whole window is computed
    again for each token.

    Raises `GenerationError` for an argument out of range, `ContextError` for a prompt longer than the
    context, `TokenError` for a prompt that is not token ids, `SeedError` for a seed that is no whole number.
    """
    config = model.config
    check_arguments(max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p)
    check_prompt(idx, config.vocab_size, config.block_size)
    generator = generator_of(seed, idx.device)

    B, T = idx.shape
    ids = torch.cat((idx, idx.new_empty(B, max_new_tokens)), dim=1)  # (B, T) -> (B, T + new)
    with evaluating(model):
        cache = model.new_cache(B, positions=min(ids.size(1), config.block_size)) if use_cache else None
        for end in range(T, T + max_new_tokens):
            if cache is not None and end <= config.block_size:
                logits, _ = model(ids[:, cache.length : end], cache=cache, last_only=True)
            else:
                logits, _ = model(ids[:, max(0, end - config.block_size) : end], last_only=True)
            ids[:, end] = choose(logits[:, -1], temperature, top_k, top_p, generator)  # (B, 1, V) -> (B)
    return ids


def choose(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the next token of each row: (B, V) -> (B)."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = next_token_probabilities(logits, temperature, top_k, top_p)
    try:
        return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)
    except RuntimeError as error:
        if torch.isfinite(probabilities).all():
            raise
        raise GenerationError("the logits have NaN or infinity, so nothing can be sampled: are the weights?") from error


def next_token_probabilities(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Return the probabilities that `choose` samples from, (B, V) -> (B, V).

    Temperature is applied first, then top-k, then top-p over the remaining tokens: Hugging Face's order. Top-k keeps
    every token that ties with the k-th, and all tokens for a k beyond the vocabulary. Top-p keeps the token that
    crosses `top_p`, so that at least one remains.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # sums are wrong in 16 bits
    # Shifted by the maximum first, so that a tiny temperature cannot overflow, and none is 0 in 32 bits.
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / max(temperature, torch.finfo(logits.dtype).tiny)
    if top_k is not None:
        kth = logits.topk(min(top_k, logits.size(-1)), dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < kth, -math.inf)
    probabilities = logits.softmax(dim=-1)
    if top_p is not None and top_p < 1:  # at 1, rounding of the sum must not drop the rarest tokens
        ordered, order = probabilities.sort(dim=-1, descending=True)
        before = ordered.cumsum(dim=-1) - ordered  # the sum of all likelier tokens
        ordered = ordered.masked_fill(before >= top_p, 0.0)
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered)
        probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
    return probabilities


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module in eval mode inside the block, and restore its own mode afterwards, also after an error."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def check_prompt(idx: Tensor, vocab_size: int, block_size: int) -> None:
    """Raise `TokenError` or `ContextError` unless idx (B, T) can be continued."""
    check_ids(idx, vocab_size)
    if idx.size(1) > block_size:
        raise ContextError(
            f"the prompt has {idx.size(1)} tokens and the context {block_size}; "
            f"pass the last ones, idx[:, -{block_size}:]"
        )


def check_arguments(max_new_tokens: int, *, temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raise `GenerationError` unless every argument is in range."""
    if not _is_int(max_new_tokens) or max_new_tokens < 0:
        raise GenerationError(f"max_new_tokens={max_new_tokens!r}; expected a count, 0 or more")
    if max_new_tokens > LARGEST:
        bits = max_new_tokens.bit_length()  # an int may have more digits than Python shows
        raise GenerationError(f"max_new_tokens has {bits} bits; expected a count of at most {LARGEST}")
    if not _is_number(temperature) or not 0 <= temperature <= sys.float_info.max:
        raise GenerationError(
            f"temperature={temperature!r}; expected 0 (greedy) or a positive number, 1 for the model's own"
        )
    if top_k is not None and (not _is_int(top_k) or top_k < 1):
        raise GenerationError(f"top_k={top_k!r}; expected a count of 1 or more, or None for all tokens")
    if top_p is not None and (not _is_number(top_p) or not 0 < top_p <= 1):
        raise GenerationError(f"top_p={top_p!r}; expected a share above 0 up to 1, or None for all")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
