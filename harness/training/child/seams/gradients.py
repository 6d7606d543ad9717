"""What happens to gradients between the last backward pass and the step: clipping, torch's or hand-written."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed
import torch.nn.utils.clip_grad
from torch import Tensor

from harness.training.child.passes import Passes
from harness.training.child.recorder import Recorder
from harness.training.child.seams.patches import Patches

COLLECTIVES = ("all_reduce", "all_gather", "all_gather_into_tensor", "reduce_scatter_tensor", "broadcast")


class GradientWatch:
    """Keeps the gradients as they were before clipping.

    They are those that torch's clipping function was given. A hand-written function is recognised by what it does:
    after the last backward pass, and the last message between ranks, it reads gradients (for their norm) and then
    changes them. A change before the norm is taken, as the division by the number of ranks, belongs to the gradient.
    """

    def __init__(self, recorder: Recorder, passes: Passes) -> None:
        self.recorder, self.passes = recorder, passes
        self.parameters: dict[int, Tensor] = {}
        """The parameters of all optimizers, and those of the model, by id."""
        self.forgotten: list[Tensor] = []
        """Parameters of the model that no optimizer has."""
        self.armed = False  # from a backward pass to the step
        self._norm_read = False
        self._before: dict[int, Tensor] = {}  # by parameter: its gradient before it was scaled
        self._clipped_by_torch = False
        self.clip_line = ""  # where the program scaled a gradient itself
        self.on_backward: list[Callable[[], None]] = []  # called after each backward pass

    def add(self, parameters: Iterable[Tensor]) -> None:
        """Watch the gradients of these parameters, which are an optimizer's."""
        added = {id(parameter): parameter for parameter in parameters}
        self.parameters |= added
        self.forgotten = [each for each in self.forgotten if id(each) not in added]

    def find_model(self) -> None:
        """Find the model that has these parameters, once, and watch its other ones too."""
        if self.recorder.names.model is None:
            self.recorder.names.find(self.parameters.values())
            self.forgotten = [each for each in self.recorder.names.of_model() if id(each) not in self.parameters]
            self.parameters |= {id(each): each for each in self.forgotten}

    def after_backward(self) -> None:
        """Start again: the gradients are new."""
        self.armed, self._norm_read, self._clipped_by_torch, self.clip_line = True, False, False, ""
        self._before.clear()

    def disarm(self) -> None:
        """Stop: the optimizer's own arithmetic begins."""
        self.armed = False

    def unclipped(self, parameter: Tensor) -> Tensor | None:
        """Return the gradient of a parameter before clipping."""
        return self._before.get(id(parameter), parameter.grad)

    # ------------------------------------------------------------------------ what is seen

    def read(self, tensors: Any) -> None:
        """Note that tensors are read by what may be a norm."""
        if self.armed and not self._norm_read:
            self._norm_read = bool(self._owners(tensors))

    def changing(self, tensors: Any) -> None:
        """Note that tensors will be scaled or overwritten."""
        if self.armed and self._norm_read and not self._clipped_by_torch and (owners := self._owners(tensors)):
            self.clip_line = self.clip_line or self.recorder.line()
            self._keep(owners)

    def summed_over_ranks(self) -> None:
        """Note a message between ranks: what follows is about the gradient of all of them."""
        if self.armed:
            self.after_backward()

    def _keep(self, owners: Iterable[Tensor]) -> None:
        for owner in owners:
            if owner.grad is not None and id(owner) not in self._before:
                self._before[id(owner)] = owner.grad.detach().clone()

    def _owners(self, tensors: Any) -> list[Tensor]:
        """Return the parameters whose gradients are stored where one of these tensors is."""
        if isinstance(tensors, Tensor):
            tensors = [tensors]
        if not isinstance(tensors, list | tuple):
            return []
        places = {place(each) for each in tensors if isinstance(each, Tensor)}
        return [each for each in self.parameters.values() if each.grad is not None and place(each.grad) in places]

    # ------------------------------------------------------------------------ torch's functions

    def install(self, patches: Patches) -> None:
        """Replace torch's backward and clipping functions by ones that are watched."""
        clipping = torch.nn.utils.clip_grad
        for owner in (torch.nn.utils, clipping):
            patches.replace(owner, "clip_grad_norm_", lambda original: self._clips(original, "max_norm"))
            patches.replace(owner, "clip_grad_value_", lambda original: self._clips(original, "clip_value"))
        patches.replace(torch.autograd, "backward", self._backward)
        patches.replace(torch.optim.Optimizer, "zero_grad", self._zeroes)
        patches.replace(torch.nn.Module, "zero_grad", self._zeroes)
        for name in COLLECTIVES if torch.distributed.is_available() else ():
            patches.replace(torch.distributed, name, self._collective)

    def _backward(self, original: Callable[..., None]) -> Callable[..., None]:
        """`Tensor.backward` calls this function of torch.autograd too."""

        def backward(tensors: Any, *args: Any, **options: Any) -> None:
            if not self.recorder.active:
                original(tensors, *args, **options)
                return
            root = tensors if isinstance(tensors, Tensor) else next(iter(tensors), None)
            with self.recorder.observing():
                self.passes.differentiated(root)
                self.find_model()
                self.recorder.event("Backward", step=self.recorder.step, line=self.recorder.line())
            self.recorder.in_backward = True
            self.recorder.backwards += 1
            try:
                original(tensors, *args, **options)
            finally:
                self.recorder.in_backward = False
            self.after_backward()
            for each in self.on_backward:
                each()

        return backward

    def _zeroes(self, original: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(original)
        def zero_grad(owner: Any, *args: Any, **options: Any) -> None:
            original(owner, *args, **options)
            if self.recorder.active:
                self.recorder.event("Zeroed", step=self.recorder.step, line=self.recorder.line())

        return zero_grad

    def _collective(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def collective(*args: Any, **options: Any) -> Any:
            result = original(*args, **options)
            if self.recorder.active:
                self.summed_over_ranks()
            return result

        return collective

    def _clips(self, original: Callable[..., Any], limit_name: str) -> Callable[..., Any]:
        def clip(parameters: Any, *args: Any, **options: Any) -> Any:
            if not self.recorder.active:
                return original(parameters, *args, **options)
            given = [parameters] if isinstance(parameters, Tensor) else list(parameters)
            with self.recorder.observing():
                line = self.recorder.line()
                if not self._clipped_by_torch:  # called for each parameter: the first call of each
                    self._before.clear()
                self._clipped_by_torch = True
                self._keep(given)
                self.find_model()
            result = original(parameters if isinstance(parameters, Tensor) else given, *args, **options)
            with self.recorder.observing():
                self.recorder.event(
                    "Clip",
                    step=self.recorder.step,
                    limit=float(args[0] if args else options[limit_name]),
                    names=[self.recorder.names.name_of(each) for each in given],
                    line=line,
                )
            return result

        return clip


def place(tensor: Tensor) -> tuple[int, Any]:
    """Return where the storage of a tensor is, and the position of the tensor in it."""
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset()
