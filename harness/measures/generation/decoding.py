"""Measures of decoding: the greedy tokens, the seed, the number of tokens, and side effects."""

from __future__ import annotations

import torch

from harness.core.devices import CPU
from harness.core.errors import Missing
from harness.core.sizes import SIZES
from harness.measures.cached_model import cached_model
from harness.oracle.probe_weights import Weights, state
from harness.oracle.tokens import batch
from harness.subjects.build import build_with_weights
from harness.subjects.forward_answer import unpack
from harness.subjects.protocols import Generates
from harness.suites.measure_registry import Reading, measure

# Relative to the largest logit: two logits this close may change places by float32 rounding.
TIE = 1e-4


@measure
def greedy_by_definition(
    subject: Generates, *, size: str, prompt_length: int, new_tokens: int, weights: Weights = "probe"
) -> Reading:
    """Count the greedy tokens that are not the argmax of a full forward pass over the last `context` tokens.

    Each token is judged after the tokens that the subject itself chose, so that one wrong token counts once. A token
    whose logit is within rounding of the largest one is right.
    """
    prompt, _ = batch(SIZES[size], "random", rows=2, length=prompt_length)
    model = cached_model(subject, size, weights)
    answer = subject.generate(model, prompt, new_tokens, temperature=0.0)
    wrong = []
    for step in range(prompt_length, prompt_length + new_tokens):
        window = answer[:, max(0, step - SIZES[size].context) : step]
        with torch.no_grad():
            last = model.logits(window)[:, -1]
        chosen = last.gather(1, answer[:, step : step + 1])[:, 0]
        # `not all(>=)` and not `any(<)`: NaN compares false, and must count as wrong.
        if not bool((chosen >= last.max(dim=1).values - TIE * last.abs().max()).all()):
            wrong.append(step)
    prompt_returned = bool(torch.equal(answer[:, :prompt_length], prompt))
    return Reading(
        {
            "tokens that are not the argmax": len(wrong),
            "prompts not returned as they were": int(not prompt_returned),
        },
        "",
        {"hint": f"first at position {wrong[0]}" if wrong else ""},
    )


@measure
def seed_reproducible(subject: Generates, *, size: str, weights: Weights = "probe", new_tokens: int = 12) -> Reading:
    """Return True if a seed decides the sampled tokens: equal for the same seed, different for another one."""
    prompt, other = batch(SIZES[size], "random", rows=2, length=6)
    model = cached_model(subject, size, weights)
    first = subject.generate(model, prompt, new_tokens, seed=0)
    # Between the two calls the global generator moves, and another prompt is continued: neither may matter.
    torch.manual_seed(99)
    subject.generate(model, other, new_tokens, seed=3)
    again = subject.generate(model, prompt, new_tokens, seed=0)
    another = subject.generate(model, prompt, new_tokens, seed=2)
    return Reading(
        {
            "same seed, same tokens": torch.equal(first, again),
            "another seed, other tokens": not torch.equal(first, another),
        }
    )


@measure
def generation_changes(subject: Generates, *, size: str, weights: Weights = "probe") -> Reading:
    """Return what generation changes but must not: the prompt, the weights, the training flag, the next greedy answer.

    Recorded gradients count as a change: a graph that grows with every token costs memory.
    """
    model = build_with_weights(subject, SIZES[size], state(size, weights))
    prompt, other = (each.to(model.device) for each in batch(SIZES[size], "random", rows=2, length=6))  # no copies
    given, before = prompt.clone(), {name: t.clone() for name, t in model.module.state_dict().items()}
    graphs: list[bool] = []
    hook = model.module.register_forward_hook(lambda m, args, out: graphs.append(unpack(out)[0].requires_grad))
    first = subject.generate(model, prompt, 8, temperature=0.0)
    hook.remove()
    subject.generate(model, other, 8, temperature=0.0)
    again = subject.generate(model, prompt, 8, temperature=0.0)
    model.module.train()
    subject.generate(model, prompt, 8, temperature=0.0)
    training = model.module.training
    after = model.module.state_dict()
    return Reading(
        {
            "the prompt": not torch.equal(prompt, given),
            "the state dict": any(not torch.equal(t, after[name]) for name, t in before.items()),
            "the training flag": not training,
            "the next answer": not torch.equal(first, again),
            "gradients are recorded": any(graphs),
        }
    )


@measure
def answer_lengths(subject: Generates, *, size: str, weights: Weights = "probe") -> Reading:
    """Return "right" where the requested number of tokens follows an unchanged prompt, or else a description.

    The four cases: no new tokens, a prompt of one token, a prompt that fills the context, and a longer prompt.
    A ValueError is right for no new tokens and for a prompt beyond the context: a subject may refuse both.
    """
    context = SIZES[size].context
    # After an index error in a kernel of CUDA the process has no CUDA.
    model = build_with_weights(subject, SIZES[size], state(size, weights), device=CPU)
    found: dict[str, str] = {}
    for place, length, new_tokens in (
        ("none asked for", 4, 0),
        ("a prompt of one token", 1, 3),
        ("a prompt as long as the context", context, 3),
        ("a prompt longer than the context", context + 7, 3),
    ):
        prompt, _ = batch(SIZES[size], "random", rows=2, length=length)
        try:
            answer = subject.generate(model, prompt, new_tokens, temperature=0.0)
            whole = answer.shape == (2, length + new_tokens) and torch.equal(answer[:, :length], prompt)
            found[place] = "right" if whole else f"ids of shape {tuple(answer.shape)}, or another prompt"
        except Missing:
            raise
        except ValueError:
            found[place] = "right" if place in ("none asked for", "a prompt longer than the context") else "refused"
        except Exception as error:
            found[place] = f"{type(error).__name__}: {error}"
    return Reading(found)
