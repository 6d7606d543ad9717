"""A recording: what a training program did in one rehearsal, event by event.

Recordings are data. The recorder writes them (`recorder.py`), `recording_files.py` stores and reads them, and measures
are functions of them, so that a recording can be judged again without running anything. Tests may build them by hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from harness.training.events import (
    Backward,
    Clip,
    Event,
    Forward,
    Load,
    LookAhead,
    MadeNaN,
    Phase,
    Printed,
    Save,
    Seeded,
    Stream,
    Zeroed,
)
from harness.training.optimizer_steps import Step, of_several

if TYPE_CHECKING:
    from harness.training.markov import MarkovSource

Ended = Literal["finished", "stopped", "killed", "failed"]


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A parameter of the model."""

    shape: tuple[int, ...]
    dtype: str
    requires_grad: bool = True
    embedding: bool = False
    """It is the table of an `nn.Embedding`, or has the name of a table of positions."""
    alias_of: str | None = None
    """The first name of the same parameter, for instance of a head that is tied to the embedding."""
    registered: bool = True
    """It is a parameter of the model; False for one of a module that is called in the model, and is no part of it."""
    line: str = ""
    """The user's line that made its module, if that is known."""


AnyEvent = TypeVar("AnyEvent", bound=Event)


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What a training program did in one rehearsal."""

    program: str
    """The training program, as `--trainer` names it."""
    rehearsal: str
    ended: Ended
    """"finished" by itself, "stopped" after the steps that were needed, "killed" on purpose, or "failed"."""
    message: str = ""
    """What ended it, if it failed, and the last lines that it printed."""
    events: tuple[Event, ...] = field(default=(), repr=False)
    parameters: Mapping[str, Parameter] = field(default_factory=dict, repr=False)
    """The model's parameters by name, in the order of `named_parameters`; aliases are among them."""
    constants: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The floating tensors of the model's modules that are no parameters, buffers too, by name: a hash of each."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the rehearsal set, in the words of `setting_words.py` (lr, warmup, steps ...).

    A word that the program has no setting for is absent; its own default applies then.
    """
    source: MarkovSource | None = None
    """The source of the text, where it is a Markov source of known entropy."""
    text: str = field(default="", repr=False)
    """The text that the rehearsal gave to the program."""
    rank: int = 0
    ranks: int = 1

    @cached_property
    def steps(self) -> list[Step]:
        """Return the optimizer steps in order; the steps of several optimizers after the same gradients are one."""
        together: dict[int, list[Step]] = {}
        for step in self._of(Step):
            together.setdefault(step.number, []).append(step)
        return [of_several(steps) for steps in together.values()]

    @property
    def saves(self) -> list[Save]:
        """Return what was saved, in order."""
        return list(self._of(Save))

    @property
    def loads(self) -> list[Load]:
        """Return what was loaded, in order."""
        return list(self._of(Load))

    @property
    def streams(self) -> list[Stream]:
        """Return the streams of tokens, in the order in which the program read or made them."""
        return list(self._of(Stream))

    @property
    def look_aheads(self) -> list[LookAhead]:
        """Return the passes that were computed again with other later tokens."""
        return list(self._of(LookAhead))

    @property
    def printed(self) -> list[Printed]:
        """Return the lines that the program printed."""
        return list(self._of(Printed))

    @property
    def seeded(self) -> list[Seeded]:
        """Return the calls that seeded a global generator."""
        return list(self._of(Seeded))

    def forwards(self, phase: Phase | None = None) -> list[Forward]:
        """Return the forward passes in order; of one phase, or of both."""
        return [each for each in self._of(Forward) if phase in (None, each.phase)]

    @cached_property
    def trained(self) -> list[Forward]:
        """Return the passes that a backward pass used, in order: the micro-batches of all steps.

        Passes whose gradients are set to zero, before backward passes of other lines make the step's own, are none.
        """
        since = {step: self._counts_since(step) for step in {each.step for each in self._of(Zeroed)}}
        return [each for each in self._of(Forward) if each.used and each.order > since.get(each.step, -1)]

    def _counts_since(self, step: int) -> int:
        """Return the event after which the backward passes before a step count."""
        zeroed = max(each.order for each in self._of(Zeroed) if each.step == step)
        backward = [each for each in self.backward_passes if each.step == step]
        kept = {each.line for each in backward if each.order > zeroed}
        dropped = {each.line for each in backward if each.order < zeroed}
        return zeroed if kept and dropped and not kept & dropped else -1

    def forwards_of(self, step: int) -> list[Forward]:
        """Return the micro-batches of a step: the passes that its backward passes used."""
        return [each for each in self.trained if each.step == step]

    @property
    def backward_passes(self) -> list[Backward]:
        """Return the backward passes, in order."""
        return list(self._of(Backward))

    @property
    def made_nan(self) -> list[MadeNaN]:
        """Return the first call of each step that made a NaN of tensors without one."""
        return list(self._of(MadeNaN))

    def clips_of(self, step: int) -> list[Clip]:
        """Return the calls of torch's clipping functions before step `step`."""
        return [each for each in self._of(Clip) if each.step == step]

    def _of(self, kind: type[AnyEvent]) -> Iterator[AnyEvent]:
        return (each for each in self.events if isinstance(each, kind))
