"""The seam of updates that a program writes itself, without an optimizer of torch: parameters change in their place."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from harness.training.child.recorder import Recorder, StopRecording
from harness.training.child.seams.gradients import GradientWatch, place
from harness.training.child.seams.optimizers import OptimizerSeam
from harness.training.child.user_lines import definition_of, line_of, users_frames
from harness.training.optimizer_steps import HAND_WRITTEN
from harness.training.setting_words import word_of

IN_PLACE = ("add", "sub", "mul", "div", "addcdiv", "addcmul", "lerp", "copy", "clamp", "zero", "fill")
OPERATORS = ("__iadd__", "__isub__", "__imul__", "__itruediv__", "__setitem__")


class OwnUpdates:
    """Makes a step of the first change of a parameter after a backward pass, up to what the program does next.

    The step ends when the function that computed the backward pass is at another line while the program prints, or else
    when it calls the model, prints or saves. A program that has an optimizer of torch has no such steps.
    """

    def __init__(self, recorder: Recorder, watch: GradientWatch, optimizers: OptimizerSeam) -> None:
        self.recorder, self.watch, self.optimizers = recorder, watch, optimizers
        self.waiting = False
        """True from a backward pass to the first change of a parameter."""
        self._optimizer: _Update | None = None
        self._loop: tuple[FrameType, int] | None = None  # the frame of the backward pass, and its line at the change
        self._backward: FrameType | None = None
        self.functions: dict[Any, Callable[..., None]] = dict.fromkeys(_functions(), self._changes)

    def after_backward(self) -> None:
        """Note a backward pass: what changes a parameter now begins a step."""
        self.waiting = not self.optimizers.has_optimizers
        self._backward = next(users_frames(), None) if self.waiting else None
        if self.waiting and not self.watch.parameters:
            self.watch.add(self._parameters())  # so that clipping is seen before the first step

    def _changes(self, args: Any, options: Any) -> None:
        """Begin a step, if what is changed is a parameter."""
        if self.optimizers.has_optimizers:  # built since the backward pass
            self.waiting = False
            return
        tensors = args[0] if args else None
        given = [tensors] if isinstance(tensors, Tensor) else tensors if isinstance(tensors, list | tuple) else []
        places = {place(each) for each in given if isinstance(each, Tensor)}
        parameters = self._parameters()
        if not any(place(each) in places for each in parameters):
            return
        self.waiting = False
        frames = list(users_frames())
        above = frames[1:]  # not the frame itself: it goes on line by line
        self._loop = (self._backward, self._backward.f_lineno) if self._backward in above and self._backward else None
        self._backward = None  # a frame keeps all that is in it
        self._optimizer = self._optimizer or _Update(parameters)
        self._optimizer.param_groups[0]["lr"] = _learning_rate(frames)
        self.optimizers.begins(
            self._optimizer,
            HAND_WRITTEN,
            line_of(self._loop[0] if self._loop else frames[0]),
            definition_of(frames[0]),
        )

    def goes_on(self, *, surely: bool = False) -> None:
        """End the step, if the program has left it. `surely`: what it does now is no part of an update."""
        if self._optimizer is None or not self.optimizers.is_open or not self.recorder.active:
            return
        if not surely and self._loop is not None:
            frame, line = self._loop
            surely = frame.f_lineno != line or frame not in users_frames()
        if surely or self._loop is None:
            self._loop = None
            self.optimizers.ends(self._optimizer)

    def finish(self) -> None:
        """End the step with the run."""
        with contextlib.suppress(StopRecording):
            self.goes_on(surely=True)

    def _parameters(self) -> list[Tensor]:
        if self._optimizer is not None:
            return list(self._optimizer.param_groups[0]["params"])
        return [each for each in self.recorder.names.largest_called() if each.requires_grad]


class _Update:
    """What stands for an optimizer: one group with the parameters of the model, and no state."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": parameters, "lr": 0.0}]
        self.state: dict[Tensor, Any] = {}


def _functions() -> Iterator[Any]:
    """Yield the functions of torch that change a tensor in its place."""
    names = (*(f"{name}_" for name in IN_PLACE), *(f"_foreach_{name}_" for name in IN_PLACE), *OPERATORS)
    for name in names:
        for owner in (torch, Tensor):
            if hasattr(owner, name):
                yield getattr(owner, name)
    yield vars(torch._C.TensorBase)["data"].__set__


def _learning_rate(frames: list[FrameType]) -> float:
    """Return the number that the innermost of these functions calls a learning rate; 0 if none does."""
    for frame in frames:
        own = frame.f_locals.get("self")
        for values in (frame.f_locals, vars(own) if hasattr(own, "__dict__") else {}):
            for name, value in values.items():
                if isinstance(value, int | float) and not isinstance(value, bool) and word_of(name) == "lr":
                    return float(value)
    return 0.0
