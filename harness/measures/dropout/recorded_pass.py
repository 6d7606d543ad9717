"""A training pass with dropout on, recorded: what is drawn, and which dropouts of the formula it is."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from harness.core.devices import CPU
from harness.core.errors import MissingAbility
from harness.core.seeds import seeded
from harness.core.sizes import SIZES, Size
from harness.oracle import model_cache, noise_verdict
from harness.oracle.declared import declared_gpt2
from harness.oracle.gpt2_with_deviations import DeviatingGPT2
from harness.oracle.probe_weights import State, state
from harness.oracle.replayed_dropout import GPT2_SITES, Mask, MasksByValue, replaying
from harness.oracle.tokens import batch
from harness.subjects.build import build_with_weights
from harness.subjects.dropout_calls import has_dropout_setting
from harness.subjects.model import Model
from harness.subjects.protocols import Subject
from harness.subjects.random_draws import Draw, Drop, RandomDraws

When = Literal["first", "after an evaluation", "after new weights", "in an evaluation afterwards"]
# What is done with one model: the last pass is judged.
EVENTS: Mapping[When, Sequence[str]] = {
    "first": ("training",),
    "after an evaluation": ("training", "evaluation", "training"),
    "after new weights": ("training", "new weights", "training"),
    "in an evaluation afterwards": ("training", "evaluation"),
}
DROPOUT_LAYERS = (nn.Dropout, nn.Dropout1d, nn.AlphaDropout)
MOST_NAMED = 3  # draws that a message names
ROWS, LENGTH = 3, 24
SEED = 1
SAME = 1e-6  # of the largest logit, in float64


@dataclass(frozen=True)
class Recorded:
    """A recorded pass; if it is the first of a model, also a second one of the same model after another seed.

    Attributes:
        name: The subject's.
        size: The sizes of the model.
        draws: The random numbers that the first pass draws, in the order of execution.
        masks: The dropouts of the first pass, by operation of the formula and layer.
        unexplained: Its other drops: from values that the formula does not compute.
        second: The masks of the second pass; empty if there was none.
        logits: The first pass's logits (B, T, V).
        agrees: They are the formula's, with these masks.
        has_layers: The model has dropout layers of PyTorch's.
        elsewhere: The first pass draws from these generators, too, which are not PyTorch's.
    """

    name: str
    size: Size
    draws: Sequence[Draw]
    drops: Sequence[Drop]
    masks: Mapping[tuple[str, int | None], Sequence[Mask]]
    unexplained: Sequence[Drop]
    second: Mapping[tuple[str, int | None], Sequence[Mask]]
    logits: Tensor
    agrees: bool
    has_layers: bool
    elsewhere: tuple[str, ...] = ()

    @property
    def sites(self) -> list[str]:
        """The operations that have a dropout, in the order of execution."""
        return list(dict.fromkeys(operation for operation, _ in self.masks))

    @property
    def other_sites(self) -> list[str]:
        """Those of them at which GPT-2 has none."""
        return [site for site in self.sites if site not in GPT2_SITES]

    def masks_of(self, site: str) -> list[Mask]:
        """Return the masks of an operation in all layers."""
        return [mask for (operation, _), masks in self.masks.items() if operation == site for mask in masks]

    def raise_if_unclear(self) -> None:
        """Raise MissingAbility, which names the draws, if random numbers do something else than drop such values."""
        if not self.agrees and (unclear := [*map(str, self.unclear), *self.elsewhere]):
            said = "; ".join(dict.fromkeys(unclear[:MOST_NAMED])) + ", ..." * (len(unclear) > MOST_NAMED)
            raise MissingAbility(
                f"{self.name} draws random numbers in training mode that are no mask of a value of GPT-2's: {said}"
            )

    @property
    def unclear(self) -> list[Draw]:
        """The draws that drop from no value of GPT-2's and from none of such a shape."""
        masks = [drop for masks in self.masks.values() for mask in masks for drop in mask.drops]
        likely = [drop for drop in self.unexplained if drop.before is not None and drop.after.numel() in self._counts]
        clear = frozenset[int]().union(*(drop.draws for drop in (*masks, *likely)))
        unused = frozenset[int]().union(*(drop.draws for drop in self.drops if not drop.used))
        return [draw for number, draw in enumerate(self.draws) if number not in clear | unused]

    @property
    def _counts(self) -> set[int]:
        """The numbers of elements of the values that a GPT-2 drops from, whole, row by row or head by head."""
        B, T, H, C = ROWS, LENGTH, self.size.heads, self.size.width
        return {rows * each for rows in (1, B) for each in (T * C, T * T, H * T * T)}


def candidate(
    subject: Subject, size: str, rate: float, dtype: str, when: When = "first", *, seeded: bool = True
) -> Model:
    """Return the subject with probe weights in `dtype`, in the mode of the last event, after the others.

    With `seeded`, each of its calls begins with the same random numbers.
    """
    model = build_with_weights(subject, SIZES[size], state(size, "probe"), dtype, dropout=rate)
    *before, last = EVENTS[when]
    for event in before:
        if event == "new weights":
            model.load(weights(size, when))
        else:
            model.module.train(event == "training")
            _use(model, SIZES[size])
    model.module.train(last == "training")
    return dataclasses.replace(model, calling=SeededCall(model.calling)) if seeded else model


@dataclass
class SeededCall:
    """The call of a model, after a seed."""

    calling: Callable[[nn.Module, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
    seed: int = field(default_factory=lambda: seeded(SEED))

    def __call__(self, module: nn.Module, ids: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the logits and the loss or None, as the call that is seeded does."""
        torch.manual_seed(self.seed)
        _seed_others(self.seed)
        # A fused kernel of a GPU draws its masks where nobody sees them. On the CPU no fused one has dropout.
        on_cpu = ids.device.type == CPU
        with contextlib.nullcontext() if on_cpu else sdpa_kernel(SDPBackend.MATH):
            return self.calling(module, ids, targets)


def weights(size: str, when: When) -> State:
    """Return the weights that the model has in the last pass."""
    factor = 0.8 if "new weights" in EVENTS[when] else 1.0
    return {name: factor * tensor for name, tensor in state(size, "probe").items()}


def reference(size: str, when: When, dtype: str) -> Model:
    """Return the formula as a model, GPT-2's or the declared GPT-2's, in the last pass."""
    declared = declared_gpt2()
    gpt2 = declared if isinstance(declared, DeviatingGPT2) else DeviatingGPT2()
    return gpt2.oracle(SIZES[size], weights(size, when), dtype)


def record(subject: Subject, size: str, rate: float, when: When = "first") -> Recorded:
    """Return the recorded pass in float64. Raises MissingAbility if nothing drops, and no rate can be asked for."""
    key = ("recorded pass", subject, size, rate, when)
    return model_cache.cached(key, lambda: _record(subject, size, rate, when))


def _record(subject: Subject, size: str, rate: float, when: When) -> Recorded:
    with isolated_random_numbers():
        model = candidate(subject, size, rate, "float64", when)
        ids, targets = batch(SIZES[size], "random", rows=ROWS, length=LENGTH)
        draws = RandomDraws()
        with draws.following():
            logits, _ = model.logits_and_loss(ids, targets)
        elsewhere = tuple(
            name for name, state in _other_states().items() if state != _seeded_states(seeded(SEED))[name]
        )
        first, count = len(draws.drops), len(draws.draws)
        if when == "first":
            with draws.following(), torch.no_grad():
                assert isinstance(model.calling, SeededCall)
                model.calling.seed += 1
                model.logits_and_loss(ids, targets)
    if EVENTS[when][-1] == "training" and not count and not has_dropout_setting(subject):
        raise MissingAbility(f"{subject.name} has no setting for the rate of a dropout, and drops nothing")
    formula = reference(size, when, "float64")
    found = _found(formula, draws.drops[:first], ids)
    return Recorded(
        subject.name,
        SIZES[size],
        draws.draws[:count],
        draws.drops[:first],
        found.masks,
        found.unexplained,
        _found(formula, draws.drops[first:], ids).masks if when == "first" else {},
        logits.detach(),
        bool(noise_verdict.distance(logits.detach(), found.logits) <= SAME * noise_verdict.max_abs(found.logits)),
        any(isinstance(module, DROPOUT_LAYERS) for module in model.module.modules()),
        elsewhere,
    )


@dataclass(frozen=True)
class _Found:
    masks: Mapping[tuple[str, int | None], Sequence[Mask]]
    unexplained: Sequence[Drop]
    logits: Tensor


def _found(formula: Model, drops: Sequence[Drop], ids: Tensor) -> _Found:
    by_value = MasksByValue(drops)
    with replaying(by_value), torch.no_grad():
        logits = formula.logits(ids)
    return _Found(dict(by_value.masks), by_value.unexplained, logits)


@contextlib.contextmanager
def isolated_random_numbers() -> Iterator[None]:
    """Restore the random numbers of torch, Python and NumPy after the block."""
    before, of_numpy = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(before)
            numpy.random.set_state(of_numpy)


def _seed_others(seed: int) -> None:
    random.seed(seed)
    numpy.random.seed(seed)


def _other_states() -> dict[str, str]:
    """Return the states of the generators that are not PyTorch's, as text by name."""
    return {"Python's random": str(random.getstate()), "numpy.random": str(numpy.random.get_state(legacy=False))}


@functools.cache
def _seeded_states(seed: int) -> dict[str, str]:
    """Return the states after a seed."""
    with isolated_random_numbers():
        _seed_others(seed)
        return _other_states()


def _use(model: Model, size: Size) -> None:
    """Run a pass over another batch in the present mode; in training mode with its backward pass."""
    ids, targets = batch(size, "random", rows=2, length=11, seed=1)
    with RandomDraws(), torch.set_grad_enabled(model.module.training):
        loss = model.loss(ids, targets)
        if model.module.training:
            loss.backward()
    model.module.zero_grad()
