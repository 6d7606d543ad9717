"""A plan of requests that arrive at fixed steps, and what an engine made of it."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.errors import SubjectError
from harness.core.sizes import SIZES
from harness.oracle.tokens import batch
from harness.subjects.forward_answer import unpack
from harness.subjects.model import Model
from harness.subjects.protocols import ServingEngine

# Prompts and answers of other lengths, arriving while others are in the middle. One has a prompt of one token, one gets
# a single token, and where a prompt takes one step, three end in the same step.
PROMPTS = (3, 11, 5, 14, 1, 7)  # tokens
NEW_TOKENS = (10, 9, 1, 7, 12, 4)
ARRIVES = (0, 1, 2, 2, 5, 6)  # before this step
REQUESTS = 3  # at once: half of them wait
POSITIONS = 60  # of memory, for the three longest of them and little more
QUIET = 20  # steps without a token, after which nothing more is expected: a prompt may be read token by token


@dataclass(frozen=True)
class Planned:
    """One request: its prompt, how many tokens it asks for, before which step it arrives, and its settings."""

    prompt: tuple[int, ...]
    new_tokens: int
    arrives: int
    settings: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0.0})


@dataclass
class Served:
    """What an engine made of a plan.

    tokens: the new tokens of each request.
    steps: for each request, the step in which each of its tokens was made.
    rows: the rows of logits (N, V) that the model computed in each step, in no known order; empty if not watched.
    """

    tokens: list[list[int]]
    steps: list[list[int]]
    rows: list[Tensor]


def usual_plan(size: str, *, seed: int = 0, settings: Sequence[Mapping[str, Any]] = ()) -> list[Planned]:
    """Return the plan that most measures use; `settings` of each request, greedy by default."""
    ids, _ = batch(SIZES[size], "random", rows=len(PROMPTS), length=max(PROMPTS), seed=seed)
    greedy: Mapping[str, Any] = {"temperature": 0.0}
    return [
        Planned(tuple(row[:length].tolist()), new, arrives, settings[number] if settings else greedy)
        for number, (row, length, new, arrives) in enumerate(zip(ids, PROMPTS, NEW_TOKENS, ARRIVES, strict=True))
    ]


def serve(engine: ServingEngine, model: Model, plan: Sequence[Planned], *, watch: bool = False) -> Served:
    """Submit each request before its step, and step until all have their tokens, or nothing more comes.

    Requests of one step are submitted in the plan's order. Two more steps are done then, which show a token too many.
    """
    numbers: dict[int, int] = {}  # in the plan -> of the engine
    found = Served([[] for _ in plan], [[] for _ in plan], [])
    quiet = 0
    for step in range(sum(len(each.prompt) + each.new_tokens for each in plan) + plan[-1].arrives + QUIET):
        for at, each in enumerate(plan):
            if at not in numbers and each.arrives <= step:
                numbers[at] = engine.submit(each.prompt, each.new_tokens, **each.settings)
        complete = len(numbers) == len(plan) and all(
            len(tokens) >= each.new_tokens for tokens, each in zip(found.tokens, plan, strict=True)
        )
        with _rows_of(model, watch) as rows:
            try:
                engine.step()
            except Exception:
                if not complete and not quiet:
                    raise
                break  # an engine may refuse to step without requests
        found.rows.append(torch.cat(rows) if rows else torch.empty(0, model.size.vocab_size))
        quiet = 0 if _collect(engine, numbers, found, step) else quiet + 1
        if quiet > (1 if complete else QUIET):
            break
    return found


def _collect(engine: ServingEngine, numbers: Mapping[int, int], found: Served, step: int) -> bool:
    """Read the tokens of every request, and return True if there is a new one."""
    more = False
    for at, number in numbers.items():
        tokens = engine.tokens(number)
        if tokens[: len(found.tokens[at])] != found.tokens[at]:
            raise SubjectError(f"request {at} had the tokens {found.tokens[at]}, and has {tokens} after another step")
        found.steps[at] += [step] * (len(tokens) - len(found.tokens[at]))
        more |= len(tokens) > len(found.tokens[at])
        found.tokens[at] = tokens
    return more


@contextlib.contextmanager
def _rows_of(model: Model, watch: bool) -> Iterator[list[Tensor]]:
    """Collect the rows of logits (N, V) that the module or its head returns inside the block; none unless `watch`."""
    rows: list[Tensor] = []
    vocabulary = model.size.vocab_size

    def collect(module: nn.Module, arguments: tuple[Any, ...], answer: Any) -> None:
        with contextlib.suppress(Exception):
            logits = answer if isinstance(answer, Tensor) else unpack(answer)[0]
            rows.append(logits.detach()[..., :vocabulary].flatten(0, -2).to("cpu"))

    heads = [m for m in model.module.modules() if isinstance(m, nn.Linear) and m.out_features >= vocabulary]
    watched = (*heads, model.module) if watch else ()
    hooks = [module.register_forward_hook(collect) for module in watched]
    try:
        yield rows
    finally:
        for hook in hooks:
            hook.remove()


# By module, since neighbouring checks share one and ask for the same: each answer takes a forward pass for every token.
_answers: weakref.WeakKeyDictionary[nn.Module, dict[tuple[int, ...], list[int]]] = weakref.WeakKeyDictionary()


@torch.no_grad()
def greedy_alone(model: Model, prompt: Sequence[int], new_tokens: int) -> list[int]:
    """Return the greedy tokens after a prompt by their definition: a full forward pass for each of them.

    They are remembered, so the weights must stay as they are.
    """
    found = _answers.setdefault(model.module, {}).setdefault(tuple(prompt), [])
    while len(found) < new_tokens:
        window = [*prompt, *found][-model.size.context :]
        found.append(int(model.logits(torch.tensor([window]))[0, -1].argmax()))
    return found[:new_tokens]


@torch.no_grad()
def logits_alone(model: Model, prompt: Sequence[int], tokens: Sequence[int]) -> Tensor:
    """Return the logits (len(tokens), V) that each token is chosen from, by one forward pass over all before it."""
    ids = torch.tensor([[*prompt, *tokens[:-1]]])
    return model.logits(ids)[0, len(prompt) - 1 :]
