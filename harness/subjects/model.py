"""What the harness asks of a GPT under judgement: the protocols, one an ability, and the handle on a built model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from harness.core.errors import MissingAbility, SubjectError
from harness.core.sizes import Size
from harness.subjects.float32_as_float64 import Float32AsFloat64
from harness.subjects.forward_hooks import hooked
from harness.subjects.residual_stream import Streams
from harness.subjects.weight_map import WeightMap


@runtime_checkable
class Subject(Protocol):
    """An implementation that can be built at a size. The one ability that every subject has."""

    name: str

    def __hash__(self) -> int:
        """Any; what is measured of a subject is kept for the checks that follow."""
        ...

    def build(self, size: Size, *, seed: int = 0, dtype: str = "float32", device: str = "cpu", **options: Any) -> Model:
        """A fresh model in eval mode. `options`: attention, init, tied, dropout, bias, where the subject has them.

        Raises MissingAbility for a size or an option that the subject does not have.
        """
        ...


@runtime_checkable
class ChoosesAttention(Subject, Protocol):
    """Offers several ways to compute attention, as `build(..., attention=NAME)`."""

    attentions: tuple[str, ...]


@runtime_checkable
class ChoosesInit(Subject, Protocol):
    """Offers several initialisation recipes, as `build(..., init=NAME)`."""

    recipes: tuple[str, ...]


@runtime_checkable
class Unties(Subject, Protocol):
    """Can be built with a head of its own, as `build(..., tied=False)`."""

    unties: bool


@runtime_checkable
class Generates(Subject, Protocol):
    """Continues a prompt."""

    def generate(
        self,
        model: Model,
        ids: Tensor,
        new_tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        use_cache: bool | None = None,
    ) -> Tensor:
        """`ids` (B, T) int64 -> (B, T + new_tokens). Temperature 0 is greedy; `use_cache=None` leaves the choice."""
        ...


@runtime_checkable
class Caches(Subject, Protocol):
    """Decodes step by step with a key/value cache."""

    def new_cache(self, model: Model, batch_size: int) -> Any:
        """An empty cache for `batch_size` sequences of up to the model's context."""
        ...

    def step(self, model: Model, ids: Tensor, cache: Any) -> Tensor:
        """Append `ids` (B, T) to the cache; the logits (B, T, V) of those positions."""
        ...


@runtime_checkable
class ChoosesCache(Caches, Protocol):
    """Offers several kinds of cache: "growing" concatenates keys and values at each step."""

    caches: tuple[str, ...]

    def new_cache(self, model: Model, batch_size: int, *, kind: str | None = None) -> Any:
        """An empty cache of that kind; None leaves the choice."""
        ...


@runtime_checkable
class Checkpoints(Subject, Protocol):
    """Reads and writes a Hugging Face GPT-2 directory (config.json, model.safetensors)."""

    def load_checkpoint(self, directory: Path) -> Model:
        """The model that the directory holds."""
        ...

    def save_checkpoint(self, model: Model, directory: Path) -> None:
        """Write `model` so that Hugging Face's GPT2LMHeadModel reads it."""
        ...


@dataclass
class Model:
    """A built module, and how to call it: whatever its style, `logits`, `loss` and named weights come out alike."""

    module: nn.Module
    size: Size
    calling: Callable[[nn.Module, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
    weight_map: WeightMap | None = None
    weight_map_missing: str = ""
    _asked: tuple[int, ...] = field(default=(), init=False, repr=False, compare=False)  # the ids' (B, T)

    def logits(self, ids: Tensor) -> Tensor:
        """Next-token logits of every position: `ids` (B, T) int64 -> (B, T, V)."""
        with self._asked_for(ids):
            logits, _ = self.calling(self.module, ids.contiguous(), None)
        return self._checked(logits, ids)

    def logits_alone(self, ids: Tensor) -> Tensor:
        """The logits as they come without targets: `ids` (B, T) -> (B, T, V), or the last position's, (B, 1, V)."""
        from harness.subjects.forward_call import without_targets  # not at the top: the adapters are made of Models

        with self._asked_for(ids):
            return without_targets(self.module, ids.contiguous())[..., : self.size.vocab_size]

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy in nats, of `targets` (B, T) already shifted; the model's own where it has one."""
        return self.logits_and_loss(ids, targets)[1]

    def logits_and_loss(self, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Both from one forward pass."""
        with self._asked_for(ids):
            logits, loss = self.calling(self.module, ids.contiguous(), targets.contiguous())
            if loss is not None and logits.shape[:2] != ids.shape:
                # Logits of some positions alone go with a loss of some alone: what it is a loss of is judged apart.
                logits, _ = self.calling(self.module, ids.contiguous(), None)
        checked = self._checked(logits, ids)
        if loss is None:
            # Of all columns: those of a padded vocabulary take part in the softmax.
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return checked, loss

    @property
    def weights(self) -> WeightMap:
        """How the model's parameters stand to the published checkpoint's; MissingAbility where nobody knows."""
        if self.weight_map is None:
            raise MissingAbility(f"no weight map: {self.weight_map_missing}")
        return self.weight_map

    def load(self, published: Mapping[str, Tensor]) -> Model:
        """Copy a published state dict (Hugging Face's names and orientation) into the module, in place."""
        self.weights.write(published, dict(self.module.named_parameters()))
        return self

    def gradients(self) -> dict[str, Tensor]:
        """Every parameter's gradient under its published name; zeros where backward never came."""
        own = {
            name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for name, parameter in self.module.named_parameters()
        }
        return self.weights.read(own)

    def component(self, published: str) -> nn.Module:
        """The submodule that is the published component (`transformer.h.0.attn`, say).

        MissingAbility where the subject has no module for it, as when a block keeps all of its parameters itself.
        """
        try:
            return self.module.get_submodule(self.weights.path(published))
        except LookupError as error:
            raise MissingAbility(str(error)) from error

    @property
    def vocabulary_is_padded(self) -> bool:
        """Whether the token embedding has more rows than there are tokens."""
        return self.weight_map is not None and any(
            row.published == "transformer.wte.weight" and row.layout is not None and row.layout.index != ()
            for row in self.weight_map.rows
        )

    @contextlib.contextmanager
    def watched(
        self,
        components: Mapping[str, str],
        *,
        read: dict[str, Tensor] | None = None,
        given: Mapping[str, Tensor] | None = None,
        answered: dict[str, Tensor] | None = None,
    ) -> Iterator[None]:
        """While open, collects what published components read and answer, and has those in `given` read that instead.

        `components`: place -> published component; the tensors go by place. All are (B, T, C), whatever order of axes
        the subject's own have. MissingAbility for a component that is no module.
        """
        modules = {place: self.component(published) for place, published in components.items()}
        with hooked(modules, self._stream_shape, read=read, given=given, answered=answered):
            yield

    @contextlib.contextmanager
    def block_outputs(self) -> Iterator[dict[str, Tensor]]:
        """While open, collects the residual stream: 'embedding' (B, T, C), then 'block 0' ... of each forward."""
        first: dict[str, Tensor] = {}
        answered: dict[str, Tensor] = {}
        outputs: dict[str, Tensor] = {}
        blocks = self._blocks()
        with contextlib.ExitStack() as stack:
            streams = stack.enter_context(Streams(self.module, self.weights, self._stream_shape))
            stack.enter_context(self.watched(blocks, answered=answered))
            stack.enter_context(self.watched(dict(list(blocks.items())[:1]), read=first))
            yield outputs
        # A layer may be no module, or one that only holds its parts and is not called.
        outputs.update({"embedding": first["block 0"], **answered} if answered else streams.outputs)

    def _blocks(self) -> dict[str, str]:
        """The layers, if they are modules: 'block 0' -> its published component, and so on."""
        blocks = {f"block {layer}": f"transformer.h.{layer}" for layer in range(self.size.layers)}
        try:
            for published in blocks.values():
                self.component(published)
        except MissingAbility:
            return {}
        return blocks

    @contextlib.contextmanager
    def stream_replaced(self, stream: Tensor) -> Iterator[None]:
        """While open, the first block reads `stream` (B, T, C) instead of the embeddings."""
        first = dict(list(self._blocks().items())[:1])
        # Both ways: a layer need not be a module that is called.
        with (
            self.watched(first, given=dict.fromkeys(first, stream)),
            Streams(self.module, self.weights, self._stream_shape, stream),
        ):
            yield

    def _stream_shape(self) -> tuple[int, ...]:
        """(B, T, C) of the pass that runs."""
        return (*self._asked, self.size.width)

    @contextlib.contextmanager
    def precision(self) -> Iterator[None]:
        """What a float64 model makes on the way, `torch.tensor(0.79...)` or `x.float()`, is float64 as well."""
        before = torch.get_default_dtype()
        if next(self.module.parameters()).dtype != torch.float64:
            yield
            return
        torch.set_default_dtype(torch.float64)
        try:
            with Float32AsFloat64():
                yield
        finally:
            torch.set_default_dtype(before)

    @contextlib.contextmanager
    def _asked_for(self, ids: Tensor) -> Iterator[None]:
        self._asked = tuple(ids.shape)
        with self.precision():
            yield

    def _checked(self, logits: Tensor, ids: Tensor) -> Tensor:
        expected = (*ids.shape, self.size.vocab_size)
        if self.vocabulary_is_padded and logits.shape[-1] > self.size.vocab_size:
            logits = logits[..., : self.size.vocab_size]
        if tuple(logits.shape) != expected:
            raise SubjectError(
                f"logits have shape {tuple(logits.shape)}, expected {expected}: (batch, time, vocabulary) for ids of "
                f"shape {tuple(ids.shape)}"
            )
        return logits


def build_with_weights(
    subject: Subject, size: Size, published: Mapping[str, Tensor], dtype: str = "float32", **options: Any
) -> Model:
    """The subject built in `dtype` with published weights in it.

    Every parameter is overwritten, so the random numbers of its own start are not drawn (a third of the time).
    """
    before = torch.get_default_dtype()
    # Built as float64 from the start, not converted: half the time and a third less memory at the peak.
    torch.set_default_dtype(torch.float64 if dtype == "float64" else before)
    try:
        with _NothingDrawn():
            model = subject.build(size, dtype=dtype, **options)
        if model.weights.unmapped_parameters or model.vocabulary_is_padded:  # what is not overwritten starts as it does
            model = subject.build(size, dtype=dtype, **options)
    finally:
        torch.set_default_dtype(before)
    return model.load(published)


class _NothingDrawn(TorchFunctionMode):
    """While open, the functions that fill a parameter with random numbers leave it as it is.

    Other tensors get theirs: `nn.init.trunc_normal_` draws into one until all of its numbers are within the bounds.
    """

    drawing = frozenset(
        getattr(torch.Tensor, name)
        for name in ("normal_", "uniform_", "log_normal_", "exponential_", "geometric_", "cauchy_", "erfinv_")
    )

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in self.drawing and isinstance(args[0], nn.Parameter):
            return args[0]
        return function(*args, **(kwargs or {}))
