"""A recording: what a training program did in one rehearsal, event by event.

Recordings are data. The recorder writes them (`recorder.py`), `recording_files.py` stores and reads them, and measures
are functions of them, so that a recording can be judged again without running anything. Tests may build them by hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from torch import Tensor

from harness.core.errors import Missing

if TYPE_CHECKING:
    from harness.training.markov import MarkovSource

IGNORED = -100  # in `Forward.targets`: the position does not count, whatever number the program uses for that

Phase = Literal["train", "eval"]
Ended = Literal["finished", "stopped", "killed", "failed"]
Tensors = Mapping[str, Tensor]
"""Tensors by the name of their parameter."""
States = Mapping[str, Tensors]
"""An optimizer's state: `states[parameter]["exp_avg"]`."""


class NotRecorded(Missing):
    """The recording does not have this: the model was too large for it, or the program ended before; a skip."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that the program did. Events are numbered in the order in which they happened."""

    order: int


@dataclass(frozen=True, kw_only=True)
class Forward(Event):
    """One forward pass of the model, with its loss if one was computed from it."""

    step: int
    """The optimizer steps completed before it."""
    phase: Phase
    """"train" if gradients were being recorded, else "eval"."""
    ids: Tensor
    """The token ids, int64 (B, T); empty, (0, 0), if no embedding was seen."""
    targets: Tensor
    """The targets of the loss, int64 (B, T), IGNORED where the loss ignores them; empty if no loss was seen."""
    loss: float
    """What the loss function returned, in nats; the mean of the counted targets for reduction "none"; NaN if unseen."""
    reduction: str = "mean"
    """The reduction of the loss: "mean", "sum" or "none"."""
    mode: Literal["train", "eval", "mixed"] = "train"
    """The training flags of the model's modules."""
    autocast: str | None = None
    """The type that autocast computes in, for instance "bfloat16"; None if it is off."""
    logits_dtype: str = "float32"
    rng: str = ""
    """A hash of torch's global CPU generator before the pass."""
    used: bool = False
    """True if a backward pass differentiated its loss."""
    line: str = ""
    """The user's line that called the model or the loss, as `train.py:118: source`."""
    ids_line: str = ""
    """The user's line on which the token ids were chosen; "" if that was not seen, as are the next two."""
    targets_line: str = ""
    """The user's line on which the targets were chosen."""
    loss_line: str = ""
    """The user's line that called the loss function."""
    mode_line: str = ""
    """The user's line that called `train()` or `eval()` last."""

    @property
    def counted(self) -> int:
        """Return the number of targets that are not ignored."""
        return int((self.targets != IGNORED).sum())

    @property
    def has_loss(self) -> bool:
        """Return True if a loss was computed from this pass."""
        return self.targets.numel() > 0

    @property
    def idle(self) -> bool:
        """Return True if gradients were recorded of its loss, and no backward pass used them."""
        return self.phase == "train" and self.has_loss and not self.used

    @property
    def validates(self) -> bool:
        """Return True if nothing is trained on its loss: without gradients, or with idle ones in eval mode."""
        return self.has_loss and (self.phase == "eval" or (self.idle and self.mode == "eval"))

    @property
    def total_loss(self) -> float:
        """Return the sum of the losses of the counted targets, in nats."""
        return self.loss if self.reduction == "sum" else self.loss * self.counted


@dataclass(frozen=True, kw_only=True)
class Backward(Event):
    """One backward pass."""

    step: int
    line: str = ""


@dataclass(frozen=True, kw_only=True)
class Zeroed(Event):
    """One call of `zero_grad`."""

    step: int
    line: str = ""


@dataclass(frozen=True, kw_only=True)
class Clip(Event):
    """One call of torch's clipping functions."""

    step: int
    limit: float
    names: tuple[str, ...]
    """The parameters whose gradients were given to it; those without a gradient are among them."""
    line: str = ""


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


@dataclass(frozen=True, kw_only=True)
class Step(Event):
    """One optimizer step. Its tensors are read when they are asked for, and raise `NotRecorded` if they are not there.

    `tensors` has the parts by name: "before", "after", "gradient", "unclipped", "state_before", "state_after",
    "replayed", "replayed32" and "micro_batches". `hashes` has a hash of each tensor of "before", "after", "gradient"
    and "unclipped", and of each parameter's whole state ("state_before", "state_after"). They are recorded at any size;
    a long rehearsal has none.
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
    rng: str = ""
    """A hash of torch's global CPU generator at the step."""
    tensors: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    hashes: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    unrecorded: str = ""
    """Why tensors are not recorded."""

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
        """Return the float64 gradients, at `before`, of the mean cross entropy over all the step's targets.

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


@dataclass(frozen=True, kw_only=True)
class Save(Event):
    """A file that the program saved: the path as given, and the keys of what was saved, nested ones joined by dots."""

    step: int
    path: str
    keys: tuple[str, ...]
    line: str = ""


@dataclass(frozen=True, kw_only=True)
class Load(Event):
    """A file that the program loaded, as `Save`."""

    step: int
    path: str
    keys: tuple[str, ...]
    line: str = ""


@dataclass(frozen=True, kw_only=True)
class Stream(Event):
    """A stream of tokens that the program read or made."""

    name: str
    """Where it comes from: a file's name, or the function that made it."""
    dtype: str
    """The type that the program stores it in."""
    ids: Tensor
    """int64 (N,): the first ones, if it is a long stream."""
    length: int | None = None
    """The tokens of the whole stream; None if `ids` has all of them."""

    @property
    def complete(self) -> bool:
        """Return True if `ids` has the whole stream."""
        return self.length is None or self.length == len(self.ids)


@dataclass(frozen=True, kw_only=True)
class Printed(Event):
    """A line that the program printed, and the user's line that printed it."""

    step: int
    text: str
    line: str = ""


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
    def printed(self) -> list[Printed]:
        """Return the lines that the program printed."""
        return list(self._of(Printed))

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
        backward = [each for each in self._of(Backward) if each.step == step]
        kept = {each.line for each in backward if each.order > zeroed}
        dropped = {each.line for each in backward if each.order < zeroed}
        return zeroed if kept and not kept & dropped else -1

    def forwards_of(self, step: int) -> list[Forward]:
        """Return the micro-batches of a step: the passes that its backward passes used."""
        return [each for each in self.trained if each.step == step]

    def clips_of(self, step: int) -> list[Clip]:
        """Return the calls of torch's clipping functions before step `step`."""
        return [each for each in self._of(Clip) if each.step == step]

    def _of(self, kind: type[AnyEvent]) -> Iterator[AnyEvent]:
        return (each for each in self.events if isinstance(each, kind))
