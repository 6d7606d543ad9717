"""Do the subject's sampler and its cache generate what its logits say: tests of the program, whatever the weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from harness.core.error_text import describe_error
from harness.core.errors import Missing
from harness.diagnosis.triage import future
from harness.diagnosis.triage.evidence import STANDARD_ERRORS, Evidence, undecided
from harness.diagnosis.triage.loading import LoadedSubject
from harness.oracle.noise_verdict import Difference, distance, max_abs
from harness.subjects.model import Model
from harness.subjects.protocols import Caches, Generates

SAMPLER, GREEDY, CACHE = "sampler", "greedy", "cache"
PROMPT, NEW, CACHED = 4, 48, 24  # tokens
ROUNDING = 1e-4  # of the largest logit; float32 has 1e-7, and sums over a GPT-2 lose two more digits


def sampler(loaded: LoadedSubject, model: Model, prompts: Tensor, *, use_cache: bool | None = None) -> Evidence:
    """Return the evidence on tokens drawn at temperature 1 by the subject's own generate, after `prompts` (B, T).

    Of tokens drawn from the model's probabilities the negative log-likelihood is, at each position, the predictive
    entropy in the mean, with a known variance: the sum of the differences over its standard deviation is normal.
    """
    subject = loaded.subject
    if not isinstance(subject, Generates):
        return undecided(SAMPLER, f"{subject.name} has no generate(ids, new tokens, ...) of its own")
    new = min(NEW, model.size.context - prompts.shape[1])
    try:
        with torch.random.fork_rng():
            drawn = subject.generate(model, prompts, new, temperature=1.0, seed=0, use_cache=use_cache)
    except Missing as missing:
        return undecided(SAMPLER, str(missing))
    except Exception as error:
        return undecided(SAMPLER, f"generate fails: {describe_error(error)}")
    with torch.no_grad():
        log_p = model.logits(drawn)[:, prompts.shape[1] - 1 : -1].double().log_softmax(-1)  # (B, new, V)
    likelihood = -log_p.gather(-1, drawn[:, prompts.shape[1] :, None])[..., 0]
    p, finite = log_p.exp(), log_p.clamp(min=-1e4)
    entropy = -(p * finite).sum(-1)
    variance = (p * finite.square()).sum(-1) - entropy.square()
    gap, number = likelihood - entropy, likelihood.numel()
    deviation = math.sqrt(float(variance.sum().clamp(min=0)))
    if deviation == 0:
        return undecided(SAMPLER, "the model is certain of every token, so any sampler draws the same")
    z = float(gap.sum()) / deviation
    why = (
        "they are more probable than its probabilities allow: a temperature below 1, a filter (top-k), or the "
        "choice of the largest"
        if z < 0
        else "they are less probable than they should be: a temperature above 1, the logits of another position, or "
        "another mode (dropout)"
    )
    return Evidence(
        SAMPLER,
        "wrong" if abs(z) > STANDARD_ERRORS else "right",
        f"of {number} tokens drawn at temperature 1 the mean negative log-likelihood is {float(likelihood.mean()):.3f} "
        f"nats, and the mean predictive entropy {float(entropy.mean()):.3f} (z = {z:+.1f})"
        + (f"; {why}" if abs(z) > STANDARD_ERRORS else ""),
        "log-likelihood and entropy",
        float(gap.mean()),
        deviation / number,
        "nats",
        f"within {STANDARD_ERRORS * deviation / number:.2g} of 0",
        f"{STANDARD_ERRORS:g} standard errors, from the variance of the log-probabilities under the model",
    )


def greedy(loaded: LoadedSubject, model: Model, prompts: Tensor, *, use_cache: bool | None = None) -> Evidence:
    """Return the evidence on greedy generation: each token has the largest logit, but for ties within rounding."""
    subject = loaded.subject
    if not isinstance(subject, Generates):
        return undecided(GREEDY, f"{subject.name} has no generate(ids, new tokens, ...) of its own")
    prompts = prompts[:4]
    new = min(NEW, model.size.context - prompts.shape[1])
    try:
        with torch.random.fork_rng():
            chosen = subject.generate(model, prompts, new, temperature=0.0, use_cache=use_cache)
    except Missing as missing:
        return undecided(GREEDY, str(missing))
    except Exception as error:
        return undecided(GREEDY, f"generate fails: {describe_error(error)}")
    with torch.no_grad():
        logits = model.logits(chosen)[:, prompts.shape[1] - 1 : -1]  # (B, new, V)
    taken = logits.gather(-1, chosen[:, prompts.shape[1] :, None])[..., 0]
    below = (logits.amax(-1) - taken) > ROUNDING * max_abs(logits)
    number = int(below.sum())
    return Evidence(
        GREEDY,
        "wrong" if number else "right",
        f"at temperature 0, {number} of {below.numel()} tokens do not have the largest logit"
        if number
        else f"at temperature 0 each of {below.numel()} tokens has the largest logit",
        "tokens without the largest logit",
        float(number),
        None,
        f"of {below.numel()}",
        "0",
        "uncached logits along the same tokens; ties within 1e-4 of the largest logit",
    )


@torch.no_grad()
def cache(loaded: LoadedSubject, ids: Tensor) -> Evidence:
    """Return the evidence on the cache: logits with and without it along the same tokens `ids` (B, T)."""
    subject = loaded.subject
    if not isinstance(subject, Caches):
        return undecided(CACHE, f"{subject.name} has no cache that the harness can drive")
    ids = ids[:, :CACHED]
    full, stepped = {}, {}
    try:
        for dtype in ("float64", "float32"):
            model = loaded.build(dtype)
            full[dtype] = model.logits(ids)
            kept = subject.new_cache(model, ids.shape[0])
            parts = [subject.step(model, ids[:, :PROMPT], kept)]
            parts += [subject.step(model, ids[:, t : t + 1], kept) for t in range(PROMPT, ids.shape[1])]
            stepped[dtype] = torch.cat(parts, dim=1)
    except Missing as missing:
        return undecided(CACHE, str(missing))
    except Exception as error:
        return Evidence(CACHE, "wrong", f"decoding with the cache fails: {describe_error(error)}")
    expected = full["float64"]
    difference = Difference(
        "logits",
        scale=max_abs(expected),
        float32=distance(stepped["float32"], expected),
        float64=distance(stepped["float64"], expected),
        floor32=distance(full["float32"], expected),
    )
    wrong = difference.verdict == "different"
    off = (stepped["float64"] - expected).abs().amax(dim=(0, 2)) > 64 * max(difference.floor64, 1e-300)
    first = int(off.nonzero()[0]) if wrong and bool(off.any()) else 0
    return Evidence(
        CACHE,
        "wrong" if wrong else "right",
        f"the cached logits differ from the uncached ones along the same {ids.shape[1]} tokens, from position {first} "
        f"on (the first {PROMPT} are one call): keys, values, positions or mask of a later call"
        if wrong
        else f"cached and uncached logits agree along {ids.shape[1]} tokens",
        "cached less uncached logits",
        difference.float64,
        None,
        "",
        future.rounding(difference),
        future.NOISE,
    )
