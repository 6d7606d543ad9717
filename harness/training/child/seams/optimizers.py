"""The seam of optimizers: torch's global hooks before and after each step."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from harness.training.child.passes import Passes
from harness.training.child.recorder import Recorder
from harness.training.child.request import MOST_BYTES, MOST_PARAMETERS
from harness.training.child.seams.averages import Averages
from harness.training.child.seams.gradients import GradientWatch
from harness.training.child.seams.patches import Patches
from harness.training.child.user_lines import definition_line
from harness.training.recording_files import digest

NAMED = ("params", "param_names", "lr", "betas", "eps", "weight_decay")  # a group's options with a field of their own


class OptimizerSeam:
    """Records each optimizer step: groups, and the tensors before and after it.

    With several optimizers the one with most elements counts the steps; the others' steps have the same numbers.
    """

    def __init__(self, recorder: Recorder, passes: Passes, watch: GradientWatch) -> None:
        self.recorder, self.passes, self.watch = recorder, passes, watch
        self.unrecorded = ""
        """Why the tensors of steps are not recorded; "" while they are."""
        self._sizes: dict[int, int] = {}  # of optimizers, by id: their elements
        self._owned: dict[int, set[int]] = {}  # the ids of their parameters
        self._stepped: set[int] = set()  # optimizers that made a step
        self._backwards = 0  # backward passes before the last step that counted
        self._steps: Counter[int] = Counter()
        self._row: dict[str, Any] | None = None
        self._handles: list[Any] = []
        self.averages = Averages(recorder)
        self._at_backward: dict[int, Tensor] = {}  # parameters in the last backward pass, by id
        self._built_rates: dict[int, list[float]] = {}
        self._lines: dict[int, dict[str, str]] = {}  # the user's lines about an optimizer, by its id

    def install(self, patches: Patches) -> None:
        """Register the hooks."""
        patches.replace(Optimizer, "add_param_group", self._adds_group)
        patches.replace(LRScheduler, "__init__", self._builds_scheduler)
        self._handles = [register_optimizer_step_pre_hook(self._before), register_optimizer_step_post_hook(self._after)]

    def remove(self) -> None:
        """Remove them."""
        for handle in self._handles:
            handle.remove()

    def _adds_group(self, original: Callable[..., None]) -> Callable[..., None]:
        def add_param_group(optimizer: Optimizer, group: dict[str, Any]) -> None:
            original(optimizer, group)
            own = optimizer.param_groups[-1]["params"]
            self.watch.add(own)
            self._built(optimizer)
            rates = self._built_rates.setdefault(id(optimizer), [])
            rates[len(optimizer.param_groups) - 1 :] = [float(optimizer.param_groups[-1]["lr"])]
            if self.recorder.active:
                self._lines.setdefault(id(optimizer), {})["built_line"] = self.recorder.line()

        return add_param_group

    def _builds_scheduler(self, original: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(original)  # its signature is read by torch's composed schedulers
        def build(scheduler: LRScheduler, optimizer: Optimizer, *args: Any, **options: Any) -> None:
            if self.recorder.active:
                self._lines.setdefault(id(optimizer), {})["rate_line"] = self.recorder.line()
            original(scheduler, optimizer, *args, **options)

        return build

    def _built(self, optimizer: Optimizer) -> None:
        """Note the size of an optimizer, so that it is known before the first step which of several counts the steps.

        One that has made no step, and whose parameters are in a newer one, will make none.
        """
        own = {id(parameter): parameter.numel() for parameter in _own_parameters(optimizer)}
        for other in [key for key, parameters in self._owned.items() if key not in self._stepped]:
            if other != id(optimizer) and self._owned[other] & own.keys():
                del self._owned[other], self._sizes[other]
        self._owned[id(optimizer)] = set(own)
        self._sizes[id(optimizer)] = sum(own.values())

    # ------------------------------------------------------------------------ a step

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """Record what is there before a step; of a step with a closure, which computes the gradients, after that."""
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if not callable(closure) or not self.recorder.active:
            self._begins(optimizer)
            return None

        def closure_first() -> Any:
            loss = closure()
            self._begins(optimizer)
            return loss

        return (args[0], closure_first, *args[2:]), {key: kwargs[key] for key in kwargs if key != "closure"}

    def _begins(self, optimizer: Optimizer) -> None:
        if not self.recorder.active:
            return
        with self.recorder.observing():
            kind = type(optimizer)
            self.begins(optimizer, kind.__name__, self.recorder.line(), definition_line(kind.step))

    def begins(self, optimizer: Any, kind: str, line: str, rule_line: str) -> None:
        """Record what is there before a step of a kind, called on a line, by a rule of a line; inside `observing`."""
        self.watch.disarm()
        self.recorder.know_ranks()
        self.passes.flush()
        self._know(optimizer)
        parameters = self._parameters(optimizer)
        self._row = {
            "order": self.recorder.next_order(),
            "number": self._number(optimizer),
            "optimizer": kind,
            "groups": self._groups(optimizer),
            "line": line,
            "rule_line": rule_line,
            "clip_line": self.watch.clip_line,
            **self._lines.get(id(optimizer), {}),
            "rng": self.recorder.rng(),
            "tensors": {},
            "hashes": {},
        }
        if self.recorder.request.detail != "losses":
            self._put("before", self._named(parameters, lambda parameter: parameter))
            if not self.unrecorded and (averages := self.averages.values()):
                self._put("average", averages)
            if not self.unrecorded and not self._are_those_of_the_backward(parameters):
                self._put("at_gradient", self._named(parameters, lambda each: self._at_backward.get(id(each), each)))
            self._put("gradient", self._named(parameters, lambda parameter: parameter.grad))
            self._put("unclipped", self._named(parameters, self.watch.unclipped))
            self._put_states("state_before", optimizer, parameters)

    def after_backward(self) -> None:
        """Keep the parameters of a backward pass: the program may change them before the optimizer does."""
        small = 0 < sum(self._sizes.values()) <= MOST_PARAMETERS
        if small and self.recorder.request.detail == "tensors" and not self.unrecorded:
            with self.recorder.observing():
                self._at_backward = {id(each): each.detach().clone() for each in self.watch.parameters.values()}

    def _are_those_of_the_backward(self, parameters: Iterable[Tensor]) -> bool:
        kept = self._at_backward
        return all(id(each) not in kept or torch.equal(each, kept[id(each)]) for each in parameters)

    def _after(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self.recorder.active and self._row is not None:
            self.ends(optimizer)

    @property
    def is_open(self) -> bool:
        """Return True between the beginning and the end of a step."""
        return self._row is not None

    @property
    def has_optimizers(self) -> bool:
        """Return True if the program has built an optimizer of torch."""
        return bool(self._owned)

    def ends(self, optimizer: Any) -> None:
        """Write the step, with what is there after it. Raises StopRecording if it was the last one that is needed."""
        assert self._row is not None
        with self.recorder.observing():
            if self.recorder.request.detail != "losses":
                parameters = self._parameters(optimizer)
                self._put("after", self._named(parameters, lambda parameter: parameter))
                self._put_states("state_after", optimizer, parameters)
            self.recorder.writer.event("Step", {**self._row, "unrecorded": self.unrecorded})
            self._row = None
            self._steps[id(optimizer)] += 1
            if id(optimizer) != self._main:
                return
            self._backwards = self.recorder.backwards
            self.recorder.write_settings()
            self.recorder.step += 1
        self.recorder.completed(self._steps[self._main])

    def _number(self, optimizer: Optimizer) -> int:
        """Return the number of a step: that of the last one that counted, if no backward pass came in between."""
        after = self._sizes and id(optimizer) != self._main and self._backwards == self.recorder.backwards
        return (
            self.recorder.step - 1
            if after and self.recorder.step > self.recorder.request.first_step
            else self.recorder.step
        )

    @property
    def _main(self) -> int:
        return max(self._sizes, key=lambda key: self._sizes[key])

    def _know(self, optimizer: Optimizer) -> None:
        """Name the parameters, and decide how much of them is recorded, at the first step of an optimizer."""
        if id(optimizer) in self._stepped:
            return
        self._stepped.add(id(optimizer))
        own = list(_own_parameters(optimizer))
        self.watch.add(own)
        self._sizes[id(optimizer)] = sum(parameter.numel() for parameter in own)
        self.watch.find_model()
        self.recorder.write_parameters()
        count = sum(self._sizes.values())
        if self.recorder.request.detail != "tensors":
            self.unrecorded = f"the rehearsal records {self.recorder.request.detail}"
        elif count > MOST_PARAMETERS:
            self.unrecorded = f"the model has {count:,} parameters, and up to {MOST_PARAMETERS:,} are recorded"

    def _parameters(self, optimizer: Optimizer) -> list[Tensor]:
        """Return the parameters of an optimizer, and those of the model that no optimizer has."""
        return [*_own_parameters(optimizer), *self.watch.forgotten]

    def _groups(self, optimizer: Any) -> list[dict[str, Any]]:
        rates = self._built_rates.get(id(optimizer), [])
        built = [*rates, *[None] * len(optimizer.param_groups)]
        return [
            {**self._group(group), "built_lr": lr} for group, lr in zip(optimizer.param_groups, built, strict=False)
        ]

    def _group(self, group: Mapping[str, Any]) -> dict[str, Any]:
        betas = group.get("betas")
        return {
            "lr": float(group["lr"]),
            "betas": [float(beta) for beta in betas] if betas is not None else None,
            "eps": float(group["eps"]) if "eps" in group else None,
            "weight_decay": float(group.get("weight_decay") or 0.0),
            "names": [self.recorder.names.name_of(parameter) for parameter in group["params"]],
            "options": {
                key: value
                for key, value in group.items()
                if key not in NAMED and isinstance(value, bool | int | float | str)
            },
        }

    # ------------------------------------------------------------------------ tensors

    def _named(self, parameters: Iterable[Tensor], value_of: Callable[[Tensor], Tensor | None]) -> dict[str, Tensor]:
        """Return the values of parameters by name; those that are None are left out."""
        values = ((parameter, value_of(parameter)) for parameter in parameters)
        return {self.recorder.names.name_of(parameter): value for parameter, value in values if value is not None}

    def _put(self, part: str, tensors: Mapping[str, Tensor]) -> None:
        """Store a part of the step's tensors, or their hashes only."""
        assert self._row is not None
        if not self.unrecorded and self.recorder.writer.bytes > MOST_BYTES:
            self.unrecorded = f"the tensors of the steps before it have {MOST_BYTES >> 20} MiB, which is the limit"
        hashes: dict[str, str] = {}
        self._row["hashes"][part] = hashes
        if self.unrecorded:
            self._row["tensors"] = {}
            hashes |= {name: digest(tensor) for name, tensor in tensors.items()}
            return
        stored = self._row["tensors"][part] = {}
        for name, tensor in tensors.items():
            stored[name], hashes[name] = self.recorder.writer.store(tensor)

    def _put_states(self, part: str, optimizer: Optimizer, parameters: Iterable[Tensor]) -> None:
        assert self._row is not None
        hashes: dict[str, str] = {}
        stored: dict[str, Any] = {}
        self._row["hashes"][part] = hashes
        for parameter in parameters:
            state = {key: _as_tensor(value) for key, value in optimizer.state.get(parameter, {}).items()}
            tensors = {str(key): value for key, value in state.items() if value is not None}
            if tensors:
                name = self.recorder.names.name_of(parameter)
                keys = [(key, *self._stored(value)) for key, value in sorted(tensors.items())]
                stored[name] = {key: row for key, row, _ in keys}
                hashes[name] = hashlib.blake2b(repr([(k, h) for k, _, h in keys]).encode(), digest_size=12).hexdigest()
        if not self.unrecorded:
            self._row["tensors"][part] = stored

    def _stored(self, tensor: Tensor) -> tuple[dict[str, Any], str]:
        return ({}, digest(tensor)) if self.unrecorded else self.recorder.writer.store(tensor)


def _own_parameters(optimizer: Optimizer) -> Iterable[Tensor]:
    """Yield the parameters of an optimizer, each once."""
    seen: set[int] = set()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield parameter


def _as_tensor(value: Any) -> Tensor | None:
    """Return a value of an optimizer's state as a tensor; None for what is no number."""
    if isinstance(value, Tensor):
        return value
    return torch.tensor(value, dtype=torch.float64) if isinstance(value, int | float) else None
