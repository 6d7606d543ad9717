"""The events of optimizer steps: their groups, and the tensors before and after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from harness.training.events import Event, NotRecorded

Tensors = Mapping[str, Tensor]
"""Tensors by the name of their parameter."""
States = Mapping[str, Tensors]
"""An optimizer's state: `states[parameter]["exp_avg"]`."""


HAND_WRITTEN = "hand-written"  # instead of an optimizer's class: parameters that the program changes itself


@dataclass(frozen=True, kw_only=True)
class Group:
    """One parameter group at a step, with the names of its parameters."""

    lr: float
    betas: tuple[float, float] | None
    eps: float | None
    weight_decay: float
    names: tuple[str, ...]
    optimizer: str = ""
    """The class of its optimizer, in a step of several optimizers."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """All other options of the group, as far as they are numbers, texts or truth values."""
    built_lr: float | None = None
    """The learning rate with which the group was built."""


@dataclass(frozen=True, kw_only=True)
class Step(Event):
    """One optimizer step. Its tensors are read when they are asked for, and raise `NotRecorded` if they are not there.

    `tensors` has the parts by name: "before", "at_gradient", "after", "gradient", "unclipped", "state_before",
    "state_after", "average", "replayed", "replayed32" and "micro_batches". `hashes` has a hash of each tensor of
    "before", "after", "gradient" and "unclipped", and of each parameter's whole state ("state_before", "state_after").
    They are recorded at any size; a long rehearsal has none.
    """

    number: int
    """The number of the step, from 0; a resumed run continues the numbers of the run that was killed."""
    optimizer: str
    """The class of the optimizer."""
    groups: tuple[Group, ...]
    line: str = ""
    """The user's line that called the step."""
    built_line: str = ""
    """The user's line that built the optimizer, or added its last group."""
    rule_line: str = ""
    """Where the optimizer's class defines its step, if that is a class of the user."""
    rate_line: str = ""
    """The user's line that built a scheduler of torch for the optimizer."""
    clip_line: str = ""
    """The user's line that changed a gradient in its place after it was read, if torch's clipping did not."""
    rng: str = ""
    """A hash of torch's global CPU generator at the step."""
    tensors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    hashes: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    unrecorded: str = ""
    """Why tensors are not recorded."""

    @property
    def is_hand_written(self) -> bool:
        """Return True if no optimizer of torch made the step: its rule, moments and decay are not known.

        The rate of its one group is what the program calls so in the functions that change the parameters; 0 if there
        is none.
        """
        return self.optimizer == HAND_WRITTEN

    def _part(self, part: str) -> Mapping[str, Any]:
        try:
            return self.tensors[part]
        except KeyError:
            because = self.unrecorded or "the rehearsal records none"
            raise NotRecorded(f"step {self.number}: its tensors '{part}' are not recorded: {because}") from None

    @property
    def before(self) -> Tensors:
        """Return the parameters before the step: the optimizer's, and those of the model that no optimizer has."""
        return self._part("before")

    @property
    def at_gradient(self) -> Tensors:
        """Return the parameters in the last backward pass; `before`, unless the program changed them in between."""
        return {**self.before, **self.tensors.get("at_gradient", {})}

    @property
    def average(self) -> Tensors:
        """Return the mean of the weights that the program keeps beside them, before the step."""
        return self._part("average")

    @property
    def after(self) -> Tensors:
        """Return the parameters after the step."""
        return self._part("after")

    @property
    def gradient(self) -> Tensors:
        """Return the gradients that the optimizer used; a parameter without one is left out."""
        return self._part("gradient")

    @property
    def unclipped(self) -> Tensors:
        """Return the gradients before clipping: after the last backward pass and the last sum over ranks.

        They are equal to `gradient` where nothing changed them in between.
        """
        return self._part("unclipped")

    @property
    def state_before(self) -> States:
        """Return the optimizer's tensors before the step, for instance `["wte.weight"]["exp_avg"]`; {} at first."""
        return self._part("state_before")

    @property
    def state_after(self) -> States:
        """Return the optimizer's tensors after the step."""
        return self._part("state_after")

    @property
    def replayed(self) -> Tensors:
        """Return the float64 gradients, at `at_gradient`, of the mean cross entropy over all the step's targets.

        They are computed after the run, with a float64 copy of the program's own model, from the recorded batches.
        """
        return self._part("replayed")

    @property
    def micro_batches(self) -> States:
        """Return the part of `replayed` that each micro-batch has, by its number, if there are a few; {} otherwise."""
        return self.tensors.get("micro_batches", {})

    @property
    def replayed32(self) -> Tensors:
        """Return the same gradients computed in the model's own precision; their error is the noise of that type."""
        return self._part("replayed32")


def of_several(steps: Sequence[Step]) -> Step:
    """Return the steps of several optimizers as one step, with the groups and the tensors of all."""
    if len(steps) == 1:
        return steps[0]
    own = [replace(group, optimizer=step.optimizer) for step in steps for group in step.groups]
    return replace(
        steps[-1],
        optimizer=" and ".join(dict.fromkeys(step.optimizer for step in steps)),
        groups=tuple(own),
        rng=steps[0].rng,
        tensors=_Together([step.tensors for step in steps]),
        hashes=_Together([step.hashes for step in steps]),
        unrecorded="; ".join(dict.fromkeys(step.unrecorded for step in steps if step.unrecorded)),
    )


class _Together(Mapping[str, Any]):
    """Mappings by part and by name as one, put together when a part is read."""

    def __init__(self, parts: Sequence[Mapping[str, Mapping[str, Any]]]) -> None:
        self._parts = parts

    def __getitem__(self, part: str) -> dict[str, Any]:
        found = [each[part] for each in self._parts if part in each]
        if not found:
            raise KeyError(part)
        return {name: value for each in found for name, value in each.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(part for each in self._parts for part in each))

    def __len__(self) -> int:
        return len(list(iter(self)))
