"""Speculative decoding: a draft proposes tokens, and one call of the target accepts or rejects all of them.

Leviathan, Kalman and Matias, 2023 (arXiv 2211.17192); Chen et al., 2023 (arXiv 2302.01318).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from gpt.cache import KVCache
from gpt.errors import ContextError, GenerationError
from gpt.generate import check_arguments, check_prompt, evaluating, next_token_probabilities
from gpt.network import Network
from gpt.seeds import generator_of


@dataclass(frozen=True)
class Sampler:
    """The settings by which logits become a distribution, and the random numbers by which tokens are drawn from it."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    generator: torch.Generator | None = None

    def distribution(self, logits: Tensor) -> Tensor:
        """Return the probabilities of each row, (n, V) -> (n, V); at temperature 0 the likeliest token has all."""
        if self.temperature == 0:
            return torch.zeros_like(logits).scatter(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
        return next_token_probabilities(logits, self.temperature, self.top_k, self.top_p)

    def draw(self, probabilities: Tensor) -> Tensor:
        """Draw one token: (V) -> (1)."""
        return torch.multinomial(probabilities, 1, generator=self.generator)

    def uniform(self, like: Tensor) -> Tensor:
        """Draw a number in [0, 1) for each element of `like`."""
        return torch.rand(like.shape, generator=self.generator, dtype=like.dtype, device=like.device)


class Draft(Protocol):
    """Proposes tokens. Any draft is right: a bad one costs time and changes no probability."""

    def start(self, target: Network, positions: int) -> None:
        """Forget the last sequence. The next one has up to `positions` tokens and is continued for `target`."""
        ...

    def propose(self, ids: Tensor, count: int, sampler: Sampler) -> tuple[Tensor, Tensor]:
        """Return up to `count` tokens (n) after ids (1, T), and the probabilities (n, V) that each was drawn with."""
        ...


class ModelDraft:
    """A model proposes: a smaller one with the target's vocabulary, with a key-value cache of its own."""

    def __init__(self, model: Network) -> None:
        self.model = model
        self.cache: KVCache | None = None

    def start(self, target: Network, positions: int) -> None:
        """Make an empty cache. Raises `GenerationError` or `ContextError` if the model cannot draft for the target."""
        own, expected = self.model.config, target.config.vocab_size
        if own.vocab_size != expected:
            raise GenerationError(f"the draft's vocabulary is {own.vocab_size} and the target's {expected}")
        if own.block_size < positions:
            raise ContextError(f"the draft's context is {own.block_size} and the text will have {positions} tokens")
        self.cache = self.model.new_cache(1, positions=positions)

    def propose(self, ids: Tensor, count: int, sampler: Sampler) -> tuple[Tensor, Tensor]:
        """Draw `count` tokens (n), one after the other, each with the model's probabilities (n, V)."""
        cache = self.cache
        assert cache is not None  # start
        # What was cached and rejected is discarded: the last of ids is the target's own token, and was never cached.
        cache.length = min(cache.length, ids.size(1) - 1)
        start, rows = ids.size(1), [self.model.lm_head.weight.new_empty(0, self.model.config.vocab_size)]
        for _ in range(count):
            logits, _ = self.model(ids[:, cache.length :], cache=cache, last_only=True)  # (1, 1, V)
            rows.append(sampler.distribution(logits[:, -1]))  # (1, V)
            ids = torch.cat((ids, sampler.draw(rows[-1][0])[None]), dim=1)
        return ids[0, start:], torch.cat(rows)


class EarlyExit(ModelDraft):
    """The target's own first layers propose, with its final norm and head: no second set of weights."""

    def __init__(self, model: Network, layers: int) -> None:
        super().__init__(first_layers(model, layers))


class PromptLookup:
    """The text itself proposes: what followed the latest earlier occurrence of its last tokens (Saxena, 2023).

    Looked for are the last `ngram` tokens, then fewer, down to one. Raises `GenerationError` for an `ngram` below 1.
    """

    def __init__(self, ngram: int = 3) -> None:
        if ngram < 1:
            raise GenerationError(f"ngram={ngram}; expected 1 token or more to look for")
        self.ngram = ngram
        self.vocab_size = 0

    def start(self, target: Network, positions: int) -> None:
        """Note the size of the vocabulary."""
        self.vocab_size = target.config.vocab_size

    def propose(self, ids: Tensor, count: int, sampler: Sampler) -> tuple[Tensor, Tensor]:
        """Return the tokens (n) that followed, each with probability 1 (n, V); n is 0 if nothing was found."""
        tokens = ids[0, _after_earlier_occurrence(ids[0].tolist(), self.ngram) :][:count]
        dtype = torch.get_default_dtype()
        return tokens, nn.functional.one_hot(tokens, self.vocab_size).to(dtype)


@dataclass
class Speculation:
    """The result: ids (B, T + new), and what was counted.

    `judged` and `accepted` are by position in a round: how many drafts were judged there, because all before them were
    accepted, and how many of these were accepted. `target_calls` are the forward passes of the target, one a round.
    """

    ids: Tensor
    new_tokens: int
    judged: list[int]
    accepted: list[int]
    target_calls: int = 0

    @property
    def tokens_per_call(self) -> float:
        """New tokens for each call of the target; 1 without speculation."""
        return self.new_tokens / self.target_calls if self.target_calls else 0.0

    @property
    def acceptance(self) -> list[float]:
        """The share of the judged drafts that were accepted, by position in a round."""
        return [accepted / judged for accepted, judged in zip(self.accepted, self.judged, strict=True) if judged]

    def count_round(self, proposed: int, accepted: int) -> None:
        """Count one round of `proposed` drafts, the first `accepted` of which were accepted."""
        self.target_calls += 1
        for position in range(min(accepted + 1, proposed)):  # behind the first that is rejected, none is judged
            self.judged[position] += 1
            self.accepted[position] += position < accepted


@torch.no_grad()
def speculate(
    target: Network,
    draft: Draft | Network,
    idx: Tensor,
    max_new_tokens: int,
    *,
    lookahead: int = 4,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
) -> Speculation:
    """Return the prompts idx (B, T) with `max_new_tokens` appended, distributed exactly as the target's own samples.

    In each round the draft proposes up to `lookahead` tokens, and one call of the target gives its probabilities at
    all of them. The other arguments are those of `gpt.generate.generate`; at temperature 0 the tokens are the same
    as its tokens. A model as `draft` is a `ModelDraft`. The rows are continued one after the other, because each
    accepts another number of tokens.

    Raises `GenerationError` for an argument out of range, `TokenError` for a prompt that is not token ids, and
    `ContextError` if prompt and new tokens exceed the context: the caches cannot follow a window that slides.
    """
    check_arguments(max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p)
    if not isinstance(lookahead, int) or lookahead < 1:
        raise GenerationError(f"lookahead={lookahead!r}; expected a count of 1 or more")
    check_prompt(idx, target.config.vocab_size, target.config.block_size)
    end = idx.size(1) + max_new_tokens
    if end > target.config.block_size:
        raise ContextError(
            f"prompt and new tokens are {end} and the context is {target.config.block_size}; speculation ends there: "
            "ask for fewer tokens, or continue with generate"
        )
    generator = generator_of(seed, idx.device)
    sampler = Sampler(temperature, top_k, top_p, generator)
    drafting = ModelDraft(draft) if isinstance(draft, Network) else draft
    found = Speculation(idx, idx.size(0) * max_new_tokens, [0] * lookahead, [0] * lookahead)
    with _evaluating(target, drafting):
        rows = [_continue(target, drafting, row[None], end, lookahead, sampler, found) for row in idx]
    found.ids = torch.cat(rows)
    return found


def _continue(
    target: Network, draft: Draft, ids: Tensor, end: int, lookahead: int, sampler: Sampler, found: Speculation
) -> Tensor:
    """Return ids (1, T) continued to (1, end), round by round."""
    if ids.size(1) == end:
        return ids
    cache = target.new_cache(1, positions=end)
    draft.start(target, end)
    while ids.size(1) < end:
        # The target adds a token to the accepted ones, so more than this could not all be used.
        count = min(lookahead, end - ids.size(1) - 1)
        tokens, q = draft.propose(ids, count, sampler)  # (n), (n, V)
        n = tokens.size(0)
        # One call: the tokens that are not cached yet, and the drafts. Row i judges draft i, row n follows the last.
        logits, _ = target(torch.cat((ids, tokens[None]), dim=1)[:, cache.length :], cache=cache)
        p = sampler.distribution(logits[0, -n - 1 :])  # (n + 1, V)
        accepted = count_accepted(tokens, p[:n], q, sampler)
        final = residual(p[accepted], q[accepted]) if accepted < n else p[n]  # (V)
        ids = torch.cat((ids, tokens[None, :accepted], sampler.draw(final)[None]), dim=1)
        cache.length = ids.size(1) - 1  # rejected drafts are discarded, and the new token is not cached yet
        found.count_round(n, accepted)
    return ids


def count_accepted(tokens: Tensor, p: Tensor, q: Tensor, sampler: Sampler) -> int:
    """Return how many of the tokens (n) are accepted, up to the first that is not.

    A token x drawn with q(x) is accepted with probability min(1, p(x) / q(x)): p and q are (n, V).
    """
    p_x, q_x = (rows.gather(1, tokens[:, None])[:, 0] for rows in (p, q))  # (n, V) -> (n)
    accept = sampler.uniform(p_x) * q_x < p_x  # no division: at equal probabilities every draft is accepted
    return int(accept.long().cumprod(0).sum())


def residual(p: Tensor, q: Tensor) -> Tensor:
    """Return the distribution (V) of the token after a rejection: max(0, p - q), normalised.

    min(p, q) is what acceptance already gave; both parts together are p.
    """
    rest = (p - q).clamp(min=0.0)
    total = rest.sum()
    return rest / total if total > 0 else p  # by rounding alone: p and q are the same


def first_layers(model: Network, layers: int) -> Network:
    """Return a network of the first layers of a model, with its embeddings, final norm and head: the same tensors.

    Raises `GenerationError` unless 1 <= layers <= the model's.
    """
    if not 1 <= layers <= model.config.n_layer:
        raise GenerationError(f"layers={layers}; expected 1 to {model.config.n_layer}, the number of the model's")
    shallow = Network(replace(model.config, n_layer=layers), device="meta")
    parts = dict(model.transformer.items())
    shallow.transformer = nn.ModuleDict({**parts, "h": nn.ModuleList(model.blocks[:layers])})
    shallow.lm_head = model.lm_head
    shallow.training = model.training
    return shallow


def _after_earlier_occurrence(tokens: list[int], ngram: int) -> int:
    """Return the position after the latest earlier occurrence of the last tokens, the longest n-gram first."""
    for n in range(min(ngram, len(tokens) - 1), 0, -1):
        last = tokens[-n:]
        for start in range(len(tokens) - n - 1, -1, -1):
            if tokens[start : start + n] == last:
                return start + n
    return len(tokens)


@contextmanager
def _evaluating(target: Network, draft: Draft) -> Iterator[None]:
    """Put the target and a draft's model in eval mode inside the block, and restore their modes afterwards."""
    with ExitStack() as stack:
        stack.enter_context(evaluating(target))
        if isinstance(draft, ModelDraft):
            stack.enter_context(evaluating(draft.model))
        yield
