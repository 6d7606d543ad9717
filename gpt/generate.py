"""Generation: one token after the other, each drawn from what the model expects next."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gpt.errors import ContextError, GenerationError

if TYPE_CHECKING:
    from gpt.model import GPT


@torch.no_grad()
def generate(
    model: "GPT",
    idx: Tensor,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    use_cache: bool = True,
) -> Tensor:
    """Continue the prompts idx (B, T) by `max_new_tokens`: (B, T + max_new_tokens).

    `temperature` 0 is greedy; `top_k` and `top_p` narrow the choice, in this order. `seed` fixes the draws
    without touching the global random state. With a cache each token costs one position, and the tokens are
    the same; past the context the window slides, every position changes, and all of it is computed again.

    Raises `GenerationError` for a request without meaning, `ContextError` for a prompt longer than the
    context, `TokenError` for a prompt that is not token ids.
    """
    config = model.config
    check_request(max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p)
    check_prompt(idx, config.vocab_size, config.block_size)
    generator = None if seed is None else torch.Generator(idx.device).manual_seed(seed)

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
    """The next token of each row: (B, V) -> (B)."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = next_token_probabilities(logits, temperature, top_k, top_p)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)


def next_token_probabilities(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """What `choose` draws from, (B, V) -> (B, V): temperature, then top-k, then top-p over what is left.

    The order is Hugging Face's. Tokens as likely as the k-th are all kept, and a k beyond the vocabulary keeps all;
    the nucleus keeps the token that crosses `top_p`, so that it is never empty.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # 16 bits are too few to add up
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / temperature  # shifted: a tiny one cannot overflow
    if top_k is not None:
        kth = logits.topk(min(top_k, logits.size(-1)), dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < kth, -math.inf)
    probabilities = logits.softmax(dim=-1)
    if top_p is not None and top_p < 1:  # at 1 the rounding of the sum must not drop the rarest
        ordered, order = probabilities.sort(dim=-1, descending=True)
        before = ordered.cumsum(dim=-1) - ordered  # what the likelier tokens hold together
        ordered = ordered.masked_fill(before >= top_p, 0.0)
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered)
        probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
    return probabilities


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No dropout inside; afterwards each module is back in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def check_prompt(idx: Tensor, vocab_size: int, block_size: int) -> None:
    """Raise `TokenError` or `ContextError` unless idx (B, T) can be continued."""
    from gpt.model import check_ids  # the model imports this module

    check_ids(idx, vocab_size)
    if idx.size(1) > block_size:
        raise ContextError(
            f"the prompt has {idx.size(1)} tokens and the context {block_size}; "
            f"pass the last ones, idx[:, -{block_size}:]"
        )


def check_request(
    max_new_tokens: int,
    *,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> None:
    """Raise `GenerationError` unless the request has a meaning."""
    if not _is_int(max_new_tokens) or max_new_tokens < 0:
        raise GenerationError(f"max_new_tokens={max_new_tokens!r}; expected a count, 0 or more")
    if not _is_number(temperature) or not 0 <= temperature < math.inf:
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
