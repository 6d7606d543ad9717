"""The search for the line that writes into memory which it must leave alone: answers, parameters, gradients."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from harness.core.errors import Missing
from harness.core.sizes import SIZES
from harness.core.source_lines import SourceLine, location, user_stack
from harness.diagnosis.finding import Finding
from harness.measures.conditions.answers_kept import built
from harness.measures.conditions.sweep import GRADIENTS
from harness.oracle.tokens import batch
from harness.subjects.model import Model
from harness.subjects.protocols import Caches, Generates, Subject
from harness.suites.record import Record

Action = tuple[str, Callable[[], object]]


@dataclasses.dataclass(frozen=True)
class Write:
    """An operation that wrote into a watched tensor: whose memory it was, and the user's line."""

    owner: str
    operation: str
    line: SourceLine | None


class WriteRecorder(TorchDispatchMode):
    """Record the operations that write into the memory of given tensors, inside the block."""

    def __init__(self, watched: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.writes: list[Write] = []
        self._owners = {tensor.untyped_storage().data_ptr(): name for name, tensor in watched.items()}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: to skip it, PyTorch would import it first, which takes seconds."""
        return False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        for number, argument in enumerate(function._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            tensor = args[number] if number < len(args) else given.get(argument.name)
            owner = self._owners.get(tensor.untyped_storage().data_ptr()) if isinstance(tensor, Tensor) else None
            if owner is not None:
                stack = user_stack()
                self.writes.append(Write(owner, function.overloadpacket.__name__, stack[0][0] if stack else None))
        return function(*args, **given)


def overwritten_answers(subject: Subject, record: Record) -> list[Finding]:
    """Return the line that writes into the memory of an answer, for the first place that the check names."""
    size = SIZES[str(record.check.parameters["size"])]
    model = built(subject, size.name)
    ids, targets = batch(size, "random", rows=3, length=9)
    for place in record.where:
        gradients = next((g for g in GRADIENTS if g.replace("_", " ") in place), "recorded")
        with GRADIENTS[gradients]():
            logits, loss = model.one_call(ids.clone(), targets if place.startswith("targets") else None)
            answers = {"the logits": logits} | ({} if loss is None else {"the loss": loss})
            after: list[Action] = []
            if gradients == "recorded":
                scalar = loss if loss is not None else logits.logsumexp(-1).mean()
                after.append(("the backward pass", scalar.backward))
            after += [*_calls(model, ids, targets), *_generation(subject, model, ids)]
            found = _written(answers, after, "answer-overwritten", "behaviour.answers")
        if found:
            return found
    return []


def changed_state(subject: Subject, record: Record) -> list[Finding]:
    """Return the line that writes into a parameter, or into its gradient, in a call that must change nothing."""
    size = SIZES[str(record.check.parameters["size"])]
    model = built(subject, size.name)
    ids, targets = batch(size, "random", rows=3, length=7)
    model.loss(ids, targets).backward()
    watched: dict[str, Tensor] = {}
    for name, parameter in model.module.named_parameters():
        watched[name] = parameter
        if parameter.grad is not None:
            watched[f"{name}.grad"] = parameter.grad
    saved = model.module.state_dict(keep_vars=True)
    watched |= {name: buffer for name, buffer in model.module.named_buffers() if name in saved}
    actions = [*_calls(model, ids, targets), *_decoding(subject, model, ids), *_generation(subject, model, ids)]
    return _written(watched, actions, "call-changes-weights", "behaviour.weights")


def _written(watched: Mapping[str, Tensor], actions: Sequence[Action], fault: str, where: str) -> list[Finding]:
    """Return the finding for the first write into watched memory while the actions run."""
    for name, action in actions:
        with WriteRecorder(watched) as recorder, contextlib.suppress(Missing, RuntimeError):
            action()
        first = next((write for write in recorder.writes if write.line is not None), None)
        if first is not None:
            cause = f"{name} writes into the memory of {first.owner}, by {first.operation}"
            evidence = "the line is the first that writes there"
            return [Finding(where, fault, cause, evidence, *location(first.line))]
    return []


def _calls(model: Model, ids: Tensor, targets: Tensor) -> Iterator[Action]:
    one = ids[:1].contiguous()
    yield "the next call", lambda: model.one_call(ids)
    yield "the next call with targets", lambda: model.one_call(ids, targets)
    yield "the next call with one row, under no_grad", torch.no_grad()(lambda: model.one_call(one))
    yield (
        "the next call with one token, under no_grad",
        torch.no_grad()(lambda: model.one_call(one[:, :1].contiguous())),
    )


def _decoding(subject: Subject, model: Model, ids: Tensor) -> Iterator[Action]:
    @torch.no_grad()
    def decode(given: Tensor) -> None:
        assert isinstance(subject, Caches)
        cache = subject.new_cache(model, len(given))
        for start, end in ((0, 3), (3, 4), (4, 5)):
            subject.step(model, given[:, start:end].contiguous(), cache)

    if isinstance(subject, Caches):
        for rows in (1, len(ids)):
            yield f"decoding with the cache, {rows} row{'s' * (rows > 1)},", lambda rows=rows: decode(ids[:rows])  # type: ignore[misc]


def _generation(subject: Subject, model: Model, ids: Tensor) -> Iterator[Action]:
    if isinstance(subject, Generates):
        for rows in (1, len(ids)):
            yield (
                f"generate, {rows} row{'s' * (rows > 1)},",
                lambda rows=rows: subject.generate(model, ids[:rows, :3].contiguous(), 3, temperature=0.0),  # type: ignore[misc]
            )
