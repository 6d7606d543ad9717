"""What `generate` reads and draws from, read off its calls of the model and its draws, where no variant fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.sizes import SIZES
from harness.core.source_lines import SourceLine, location, user_line
from harness.diagnosis.finding import Finding
from harness.diagnosis.recorders import DrawRecorder
from harness.diagnosis.variants.sampling import SamplingSettings, definition
from harness.oracle.tokens import batch
from harness.subjects.model import Model
from harness.subjects.protocols import Generates

SIZE = "debug"
ROWS, STEPS = 8, 4
MOST_NAMED = 3  # tokens
LENGTHS = (5, 30)  # of the prompts: within the context, and from within it to beyond it
SAME = 1e-5  # of probability; see searches/generation.py
STRAIGHT = 1e-3  # of the logarithm of a probability, whose slope is fitted


@dataclass
class Generation:
    """A sampled answer (N, T), what the model was given for each new token, and what was drawn from."""

    answer: Tensor
    prompt: Tensor  # (N, P)
    given: list[Tensor] = field(default_factory=list)  # (N, t) each
    read_at: SourceLine | None = None
    draws: DrawRecorder = field(default_factory=DrawRecorder)


def read_off(subject: Generates, model: Model) -> list[Finding]:
    """Return one finding about the first token that is not drawn as the definition has it; [] if nothing is seen."""
    for length in LENGTHS:
        made = _generated(subject, model, SamplingSettings(), length)
        P = made.prompt.shape[1]
        if not torch.equal(made.answer[:, :P], made.prompt):
            at_the_end = torch.equal(made.answer[:, -P:], made.prompt)
            says = "new tokens are put before the prompt" if at_the_end else "the answer does not begin with the prompt"
            return [Finding("generation.prompt", "", says, f"a prompt of {P} tokens and {STEPS} new ones")]
        if len(made.given) != STEPS or [len(p) for p in made.draws.probabilities] != [ROWS] * STEPS:
            return []  # several calls a token, or draws that are not observed
        for step in range(STEPS):
            if found := _at_step(model, made, step):
                return [found]
    return []


def _generated(subject: Generates, model: Model, setting: SamplingSettings, length: int) -> Generation:
    prompt, _ = batch(SIZES[SIZE], "random", rows=ROWS, length=length)
    made = Generation(prompt, prompt)

    def record(module: nn.Module, args: Any, kwargs: Any) -> None:
        ids = next((t for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and not t.is_floating_point()), None)
        if ids is not None and ids.ndim == 2:
            made.given.append(ids.detach().clone())
            made.read_at = made.read_at or user_line()

    hook = model.module.register_forward_pre_hook(record, with_kwargs=True)
    try:
        with made.draws:
            made.answer = subject.generate(
                model, prompt.clone(), STEPS, temperature=setting.temperature, top_k=setting.top_k,
                top_p=setting.top_p, seed=0,
            )  # fmt: skip
    finally:
        hook.remove()
    return made


def _at_step(model: Model, made: Generation, step: int) -> Finding | None:
    """Return what is wrong at a step: the tokens that were read, or what of their logits was drawn from."""
    end, context = made.prompt.shape[1] + step, model.size.context
    so_far, given, drawn = made.answer[:, :end], made.given[step], made.draws.probabilities[step]
    window = so_far[:, -context:]
    if _same(drawn, model.logits(window)[:, -1]):
        says = _of_appended(drawn, made.answer[:, end], made.draws.taken[step])
        line = location(made.draws.line)
        return Finding("generation.rows", "", says, f"new token {step + 1}", *line) if says else None
    if len(given) != len(so_far):
        return None
    logits = model.logits(given)
    evidence = f"the probabilities of new token {step + 1}, after {end} tokens, are by {{}} exactly"
    if not torch.equal(given, window) and _same(drawn, logits[:, -1]):
        says, fault = _of_window(given, so_far, context)
        where = "generation.crop" if end >= context else "generation.context"
        return Finding(where, fault, says, evidence.format("these tokens"), *location(made.read_at))
    for says, chosen in _other_logits(logits):
        if _same(drawn, chosen):
            line = location(made.draws.line)
            return Finding("generation.position", "", f"a token is drawn by {says}", evidence.format("these"), *line)
    return None


def _of_appended(drawn: Tensor, tokens: Tensor, taken: Tensor) -> str:
    """Return which other token is appended, in words; "" if it has the probability of what was drawn, `taken` (N)."""

    def were_drawn(appended: Tensor) -> bool:
        return torch.allclose(drawn.gather(1, appended[:, None])[:, 0], taken, atol=SAME, rtol=0)

    if were_drawn(tokens):
        return ""
    for shift, says in ((-1, "before"), (1, "after")):
        if were_drawn(tokens.roll(shift)):
            return f"to each row the token that was drawn for the row {says} it is appended"
    if bool((tokens == tokens[0]).all()):
        return "one token is appended to all rows"
    return "what is appended is not the token that was drawn"


def _of_window(given: Tensor, so_far: Tensor, context: int) -> tuple[str, str]:
    """Return which tokens (N, t) are read of those so far, in words, and the fault's id or ""."""
    end, length = so_far.shape[1], given.shape[1]
    fits = min(end, context)
    starts = [start for start in range(end - length, -1, -1) if torch.equal(so_far[:, start : start + length], given)]
    if not starts:
        return f"of {end} tokens it reads {length} that are no part of the text, not the last {fits}", ""
    start, stop = starts[0], starts[0] + length
    if stop == end:
        fault = "gen-crop-one-too-short" if end >= context and length == context - 1 else ""
        which = f"only the last {length}" if length > 1 else "only the last one"
        return f"of {end} tokens, with a context of {context}, it reads {which}, not the last {fits}", fault
    return f"of {end} tokens it reads {start + 1} to {stop}, not {end - fits + 1} to {end}", ""


def _other_logits(logits: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield other logits (N, V) that may be made from (N, t, V), in words."""
    last, length = logits[:, -1], logits.shape[1]
    for position in range(length - 1):
        yield f"the logits of token {position + 1} of {length}, not of the last", logits[:, position]
    yield "the mean of the logits over all positions, not by the last", logits.mean(1)
    yield "the logits of row 0, in every row", last[:1].expand_as(last)
    for shift, says in ((1, "before"), (-1, "after")):
        yield f"the logits of the row {says} it", last.roll(shift, 0)
    yield "the negated logits: the least likely is the likeliest", -last
    yield "a softmax over the rows, not over the vocabulary", last.log_softmax(0)
    yield "a softmax of the softmax", last.softmax(-1)


def read_off_settings(run: Any) -> str:
    """Return in words what is drawn from with a setting; "" if it is not seen.

    `run` is a `RecordedGeneration`. The tokens that can be drawn are given by rank, their probabilities by the factor
    of the logits, where that is one number.
    """
    for step, (drawn, logits) in enumerate(zip(run.probabilities, run.logits, strict=True)):
        last, expected = logits[:, -1], definition(logits, run.setting, step)
        if drawn.shape != expected.shape:
            if drawn.shape[1] < expected.shape[1] and _appends_ranks(drawn, run, step):
                return f"{run.setting}: the rank among the {drawn.shape[1]} likeliest is appended, not the token"
            return ""
        order = last.sort(-1, descending=True).indices
        kept, right = ((p > 0).gather(1, order) for p in (drawn, expected))
        never = ((expected > 0) & (drawn == 0)).all(0).nonzero()[:, 0].tolist()
        if 0 < len(never) <= MOST_NAMED and torch.equal(kept.sum(1), right.sum(1) - len(never)):
            return f"{run.setting}: token {', '.join(map(str, never))} cannot be drawn"
        if not torch.equal(kept, right):
            row = int((kept != right).any(-1).long().argmax())
            said = f"tokens of rank {_ranges(kept[row])} can be drawn, not {_ranges(right[row])}"
            return f"{run.setting}: {said} (row {row})"
        factor = _slope(drawn, last)
        if factor is not None and abs(factor * run.setting.temperature - 1) > SAME:
            return f"{run.setting}: logits are multiplied by {factor:.4g}, not by {1 / run.setting.temperature:.4g}"
    return ""


def _appends_ranks(drawn: Tensor, run: Any, step: int) -> bool:
    """Return True if every token is smaller than the number of choices, and has the probability of what was drawn."""
    tokens = run.tokens[step]
    if not bool((tokens < drawn.shape[1]).all()):
        return False
    return torch.allclose(drawn.gather(1, tokens[:, None])[:, 0], run.taken[step], atol=SAME, rtol=0)


def _ranges(kept: Tensor) -> str:
    """Return the ranks, from 1, at which `kept` (V) is true: `1 to 5, 9`."""
    ranks = (kept.nonzero()[:, 0] + 1).tolist()
    parts: list[list[int]] = []
    for rank in ranks:
        if parts and rank == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], rank]
        else:
            parts.append([rank])
    said = [" to ".join(map(str, part)) for part in parts]
    return ", ".join(said[:4]) + (f" and {len(said) - 4} more" if len(said) > 4 else "")


def _slope(drawn: Tensor, logits: Tensor) -> float | None:
    """Return the factor of the logits whose softmax gives these probabilities (N, V); None if there is none."""
    slopes = []
    for p, x in zip(drawn, logits, strict=True):
        y, x = p[p > 0].log(), x[p > 0]
        y, x = y - y.mean(), x - x.mean()
        if len(x) > 1:
            slopes.append(float((x * y).sum() / (x * x).sum()))
            if float((y - slopes[-1] * x).abs().max()) > STRAIGHT:
                return None
    return slopes[0] if slopes and max(slopes) - min(slopes) <= STRAIGHT * abs(slopes[0]) else None


def _same(probabilities: Tensor, logits: Tensor) -> bool:
    """Return True if these probabilities (N, V) are the softmax of the logits (N, V)."""
    expected = logits.double().softmax(-1)
    return probabilities.shape == expected.shape and torch.allclose(probabilities, expected, atol=SAME, rtol=0)
