"""Speculative decoding, right, in one file: token by token, with inverse sampling; `speculation.toml` changes it.

The drafts: a second model, the text itself (prompt lookup), and the model's first layers.
"""

import functools

import torch

from harness.faults.specimen import GPT

__all__ = ["GPT", "prompt_lookup_generate", "self_speculative_generate", "speculative_generate"]


def speculative_generate(
    target_model, draft_model, input_ids, max_new_tokens, gamma=4, temperature=1.0, top_k=None, top_p=None, seed=None
):
    """Continue (1, T) by `max_new_tokens`, drafted by a second model; return the ids and the drafts accepted."""
    cache = draft_model.new_cache(1)

    def propose(ids, count, warp, rng):
        drafts, q = [], []
        for _ in range(count):
            row = next_row(draft_model, ids + drafts, cache)
            q.append(warp(row))
            drafts.append(draw(q[-1], rng))
        return drafts, q

    forget = functools.partial(crop, cache)
    models = (target_model, draft_model)
    return run(models, propose, forget, input_ids, max_new_tokens, gamma, temperature, top_k, top_p, seed)


def prompt_lookup_generate(
    model, input_ids, max_new_tokens, gamma=4, temperature=1.0, top_k=None, top_p=None, seed=None
):
    """Continue (1, T); the drafts are what followed the last two tokens where they were before."""
    sure = torch.eye(model.config.vocab_size)

    def propose(ids, count, warp, rng):
        for start in range(len(ids) - 3, -1, -1):
            if ids[start : start + 2] == ids[-2:]:
                drafts = ids[start + 2 : start + 2 + count]
                return drafts, [sure[token] for token in drafts]
        return [], []

    return run((model,), propose, lambda n: None, input_ids, max_new_tokens, gamma, temperature, top_k, top_p, seed)


def self_speculative_generate(
    model, input_ids, max_new_tokens, gamma=4, temperature=1.0, top_k=None, top_p=None, seed=None, exit_layer=1
):
    """Continue (1, T); the drafts are those of the model's own first layers."""

    def propose(ids, count, warp, rng):
        drafts, q = [], []
        for _ in range(count):
            text = torch.tensor([ids + drafts])
            x = model.wte(text) + model.wpe(torch.arange(text.size(1)))
            for block in model.h[:exit_layer]:
                x = block(x)
            q.append(warp(model.lm_head(model.ln_f(x[0, -1]))))
            drafts.append(draw(q[-1], rng))
        return drafts, q

    return run((model,), propose, lambda n: None, input_ids, max_new_tokens, gamma, temperature, top_k, top_p, seed)


@torch.no_grad()
def run(models, propose, forget, input_ids, max_new_tokens, gamma, temperature, top_k, top_p, seed):
    """Draft, verify, accept, until there are enough tokens."""
    target_model = models[0]
    end = input_ids.size(1) + max_new_tokens
    if end > target_model.config.block_size:
        raise ValueError(f"{end} tokens; block_size is {target_model.config.block_size}")
    were_training = [model.training for model in models]
    for model in models:
        model.eval()
    rng = torch.Generator()
    rng.manual_seed(torch.seed() if seed is None else seed)
    warp = functools.partial(distribution, temperature=temperature, top_k=top_k, top_p=top_p)
    ids = input_ids[0].tolist()
    cache = target_model.new_cache(1)
    accepted_drafts = 0
    while len(ids) < end:
        count = min(gamma, end - len(ids) - 1)
        drafts, q = propose(ids, count, warp, rng)
        fed = torch.tensor([ids + drafts])[:, cache.length :]
        logits, _ = target_model(fed, cache=cache)
        p = [warp(row) for row in logits[0, -len(drafts) - 1 :]]  # the last row is that behind all drafts
        accepted = 0
        for i, token in enumerate(drafts):
            u = uniform(rng, p[i])
            if u >= p[i][token] / q[i][token]:
                break
            accepted += 1
        if accepted < len(drafts):
            rest = torch.relu(p[accepted] - q[accepted])
            rest = rest / rest.sum()
            token = draw(rest, rng)
        else:
            token = draw(p[accepted], rng)
        ids = ids + drafts[:accepted] + [token]
        crop(cache, len(ids) - 1)
        forget(len(ids) - 1)
        accepted_drafts += accepted
    for model, training in zip(models, were_training, strict=True):
        model.train(training)
    return torch.tensor([ids]), accepted_drafts


@torch.no_grad()
def next_row(model, ids, cache):
    """Return the logits (V) behind the ids, of which those in the cache are not computed again."""
    fed = torch.tensor([ids])[:, cache.length :]
    logits, _ = model(fed, cache=cache)
    return logits[0, -1]


def crop(cache, length):
    """Discard the positions of a cache behind `length`."""
    cache.keys = [keys[:, :, :length] for keys in cache.keys]
    cache.values = [values[:, :, :length] for values in cache.values]


def distribution(logits, temperature, top_k, top_p):
    """Return the probabilities (V) of logits (V): temperature, then top-k, then top-p."""
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(), logits.numel()).to(logits.dtype)
    p = (logits / temperature).softmax(0)
    if top_k is not None:
        best = p.topk(min(top_k, p.numel())).values
        p = torch.where(p < best[-1], 0.0, p)
        p = p / p.sum()
    if top_p is not None:
        ordered, order = p.sort(descending=True)
        ordered[ordered.cumsum(0) - ordered >= top_p] = 0.0
        p = torch.zeros_like(p).scatter(0, order, ordered)
        p = p / p.sum()
    return p


def draw(p, rng):
    """Return a token drawn with the probabilities (V): the one in whose share of [0, 1) a random number falls."""
    u = uniform(rng, p)
    return min(int((p.cumsum(0) <= u).sum()), len(p) - 1)


def uniform(rng, like):
    """Return a random number in [0, 1)."""
    return torch.rand((), generator=rng, dtype=like.dtype)
