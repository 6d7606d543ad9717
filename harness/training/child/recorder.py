"""The recorder: what the seams share, and their installation. It observes a run and changes nothing in it.

The seams are torch's global hooks, a `TorchFunctionMode` and replaced functions of torch, numpy and safetensors. They
act in the main thread of the recorded process only: worker processes inherit them and see nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from harness.training.child.model_names import ModelNames
from harness.training.child.observed_settings import Values, constant, observed
from harness.training.child.request import Request
from harness.training.child.user_lines import user_line
from harness.training.recording_files import RecordingWriter

MOST_PRINTED = 20_000  # lines


class StopRecording(BaseException):
    """Raised in the program after the optimizer steps that are needed. Few programs catch a BaseException."""


class Recorder:
    """The state of a recording that the seams share.

    Attributes:
        step: The optimizer steps completed, from `request.first_step`.
        ranks: The rank and the number of ranks, once the program has joined a process group.
        in_backward: Whether torch computes a backward pass.
        backwards: The backward passes so far.
        grad_enabled: Whether gradients are recorded in the program, while `observing` turns them off.
        names: The model and its parameters' names.
    """

    def __init__(self, request: Request, writer: RecordingWriter) -> None:
        self.request, self.writer = request, writer
        self.step = request.first_step
        self.names = ModelNames()
        self.goes_on: Callable[..., None] = lambda **_: None  # what the program did before may have ended
        self._order = 0
        self._process = os.getpid()
        self.grad_enabled = True
        self.ranks: dict[str, int] = {}
        self.in_backward = False
        self.backwards = 0
        self._busy = False
        self._printed = 0
        self._stopped = False
        self._settings: Values | None = None  # at the first step

    @property
    def active(self) -> bool:
        """Return True in the program's own code: not in a worker, another thread, or the recorder itself.

        It is False in a backward pass too, where checkpointed parts of the model are called again.
        """
        return (
            not self._busy
            and not self.in_backward
            and os.getpid() == self._process
            and threading.current_thread() is threading.main_thread()
        )

    @contextlib.contextmanager
    def observing(self) -> Iterator[None]:
        """Keep the recorder's own use of torch out of the recording, and out of autograd."""
        self._busy, self.grad_enabled = True, torch.is_grad_enabled()
        try:
            with torch._C.DisableTorchFunction(), torch.no_grad():
                yield
        finally:
            self._busy = False

    def next_order(self) -> int:
        """Return the number of the next event."""
        self._order += 1
        return self._order - 1

    def event(self, event: str, /, *, order: int | None = None, **row: Any) -> None:
        """Write an event; its number is `order`, or the next one."""
        self.writer.event(event, {"order": self.next_order() if order is None else order, **row})

    def line(self) -> str:
        """Return the user's line that is being executed."""
        return user_line()

    def rng(self) -> str:
        """Return a hash of torch's global CPU generator. It is read, not advanced."""
        return hashlib.blake2b(torch.get_rng_state().numpy().tobytes(), digest_size=8).hexdigest()

    def printed(self, text: str) -> None:
        """Write a line that the program printed; not what is printed because it is stopped, as progress bars do."""
        if self.active and not self._stopped and self._printed < MOST_PRINTED:
            self.goes_on()
            self._printed += 1
            self.event("Printed", step=self.step, text=text, line=self.line())

    def know_ranks(self) -> None:
        """Note the rank, if the program is in a process group."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            self.ranks = {"rank": torch.distributed.get_rank(), "ranks": torch.distributed.get_world_size()}

    def write_parameters(self) -> None:
        """Write the parameters of the model, once it is known."""
        rows = {name: asdict(parameter) for name, parameter in self.names.parameters.items()}
        self.writer.event("parameters", {"parameters": rows, "constants": self.names.constants})

    def write_settings(self) -> None:
        """Write the settings that the program has in its own frames, as far as they are the same since the first step.

        It is called in each step, so that a program that ends by itself has them too.
        """
        now = observed()
        self._settings = now if self._settings is None else self._settings
        self.writer.event("observed", {"settings": constant(self._settings, now)})

    def completed(self, steps_here: int) -> None:
        """End the run if these steps were the last ones that are needed. Raises `StopRecording`."""
        if self.request.kill_after is not None and steps_here >= self.request.kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.request.stop_after is not None and steps_here >= self.request.stop_after:
            self._stopped = True
            raise StopRecording


def as_int64(tensor: Tensor) -> Tensor:
    """Return a copy of token ids or targets as int64 on the CPU."""
    return tensor.detach().to("cpu", torch.int64, copy=True)
