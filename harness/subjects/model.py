"""A built GPT behind one interface: logits, loss, weights and components, whatever its style."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from harness.core.devices import moved
from harness.core.errors import MissingAbility, SubjectError
from harness.core.originals import originals
from harness.core.sizes import Size
from harness.subjects.compiled import eagerly
from harness.subjects.float32_as_float64 import in_float64_throughout
from harness.subjects.forward_call import call, without_targets
from harness.subjects.forward_hooks import hooked
from harness.subjects.residual_stream import ResidualStream
from harness.subjects.weight_map import WeightMap, published_shapes


@dataclass
class Model:
    """A built module, with the same `logits`, `loss` and named weights for every style of GPT.

    `calling(module, ids, targets or None)` returns logits (B, T, V) and a loss or None; by default, the call is found.
    Without a weight map, `weight_map_missing` says why; if neither is given, as by an adapter, the map is found.
    """

    module: nn.Module
    size: Size
    calling: Callable[[nn.Module, Tensor, Tensor | None], tuple[Tensor, Tensor | None]] = call
    weight_map: WeightMap | None = None
    weight_map_missing: str = ""
    # Of the last call: the shape of its ids (B, T) and their device, to which all answers return.
    _ids_shape: tuple[int, ...] = field(default=(), init=False, repr=False, compare=False)
    _home: torch.device = field(default=torch.device("cpu"), init=False, repr=False, compare=False)

    @property
    def device(self) -> torch.device:
        """The device of the module's parameters.

        Ids and targets are moved there, and what is computed from them is moved back to the device of the ids: a
        caller that has CPU tensors needs to know of no other device.
        """
        return next((parameter.device for parameter in self.module.parameters()), torch.device("cpu"))

    def logits(self, ids: Tensor) -> Tensor:
        """Return the next-token logits of every position: `ids` (B, T) int64 -> (B, T, V)."""
        with self._running(ids) as own:
            logits, _ = self.calling(self.module, own.contiguous(), None)
        return self._checked(logits, ids)

    def logits_alone(self, ids: Tensor) -> Tensor:
        """Return the logits that a call without targets gives: `ids` (B, T) -> (B, T, V), or of the last, (B, 1, V)."""
        with self._running(ids) as own:
            logits = without_targets(self.module, own.contiguous())
        return logits[..., : self.size.vocab_size].to(ids.device)

    def one_call(self, ids: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the logits and the model's own loss, or None, of one call with `ids` as they are.

        `ids` (B, T) may be of any integer dtype and layout in memory. The logits are (B, T, V), or (B, 1, V) of the
        last position.
        """
        if targets is None and self.calling is call:
            with self._running(ids) as own:
                return without_targets(self.module, own)[..., : self.size.vocab_size].to(ids.device), None
        logits, loss = self.unchecked_call(ids, targets)
        return logits[..., : self.size.vocab_size], loss

    def unchecked_call(self, ids: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return what `calling` gives: logits (B, T, V), those of a padded vocabulary too, and a loss or None."""
        with self._running(ids) as own:
            logits, loss = self.calling(self.module, own, None if targets is None else moved(targets, self.device))
        return logits.to(ids.device), None if loss is None else loss.to(ids.device)

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross entropy in nats of `targets` (B, T), already shifted; the model's own if it has one."""
        return self.logits_and_loss(ids, targets)[1]

    def logits_and_loss(self, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits (B, T, V) and the loss of one forward pass."""
        with self._running(ids) as own:
            own, own_targets = own.contiguous(), moved(targets, self.device).contiguous()
            logits, loss = self.calling(self.module, own, own_targets)
            if loss is not None and logits.shape[:2] != ids.shape:
                # The model returns logits of some positions only: call it again for all of them. Another check judges
                # which positions the loss is over.
                logits, _ = self.calling(self.module, own, None)
        checked = self._checked(logits, ids)
        if loss is None:
            # Over all columns: those of a padded vocabulary take part in the softmax.
            with originals():
                loss = nn.functional.cross_entropy(logits.flatten(0, 1), own_targets.flatten())
        return checked, loss.to(ids.device)

    @property
    def weights(self) -> WeightMap:
        """The map from the model's parameters to the published checkpoint's. Raises MissingAbility if there is none."""
        if self.weight_map is None:
            raise MissingAbility(f"no weight map: {self.weight_map_missing}")
        return self.weight_map

    def load(self, published: Mapping[str, Tensor]) -> Model:
        """Copy a state dict with Hugging Face's names and orientation into the module, in place. Return the model."""
        shapes = published_shapes(self.size)
        # Widths that are not GPT-2's are reported by the checks of structure: those weights keep their own values.
        fitting = {
            name: tensor
            for name, tensor in published.items()
            if self.size.has_gpt2_widths or name not in shapes or tuple(tensor.shape) == shapes[name]
        }
        self.weights.write(fitting, dict(self.module.named_parameters()))
        return self

    def gradients(self) -> dict[str, Tensor]:
        """Return every parameter's gradient under its published name; zeros for a parameter without a gradient."""
        own = {
            name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for name, parameter in self.module.named_parameters()
        }
        return {name: gradient.to(self._home) for name, gradient in self.weights.read(own).items()}

    def published_state(self) -> dict[str, Tensor]:
        """Return every parameter's value under its published name, on the device of the callers' ids (the CPU)."""
        own = self.weights.read(dict(self.module.named_parameters()))
        return {name: moved(weight, self._home) for name, weight in own.items()}

    def component(self, published: str) -> nn.Module:
        """Return the submodule that is the published component, such as `transformer.h.0.attn`.

        Raises MissingAbility if the subject has no module for it, as when a block owns all of its parameters itself.
        """
        try:
            return self.module.get_submodule(self.weights.path(published))
        except LookupError as error:
            raise MissingAbility(str(error)) from error

    @property
    def vocabulary_is_padded(self) -> bool:
        """True if the token embedding has more rows than the vocabulary has tokens."""
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
        """Collect the inputs (`read`) and outputs (`answered`) of published components inside the block.

        `components` maps a place to a published component; the tensors are collected by place. A component in `given`
        reads that tensor instead of its input. All tensors are (B, T, C), whatever the subject's own order of axes.
        Raises MissingAbility for a component that is no module of the subject.
        """
        modules = {place: self.component(published) for place, published in components.items()}
        with eagerly(), hooked(modules, self._stream_shape, read=read, given=given, answered=answered):
            yield
        for found in (read, answered):
            if found is not None:
                found |= {place: tensor.to(self._home) for place, tensor in found.items()}

    @contextlib.contextmanager
    def block_outputs(self) -> Iterator[dict[str, Tensor]]:
        """Collect the residual stream inside the block: 'embedding' (B, T, C), then 'block 0' and so on.

        The mapping is filled at the end of the block; the last forward pass counts.
        """
        first: dict[str, Tensor] = {}
        answered: dict[str, Tensor] = {}
        outputs: dict[str, Tensor] = {}
        blocks = self._blocks()
        with contextlib.ExitStack() as stack:
            stream = stack.enter_context(ResidualStream(self.module, self.weights, self._stream_shape))
            stack.enter_context(self.watched(blocks, answered=answered))
            stack.enter_context(self.watched(dict(list(blocks.items())[:1]), read=first))
            yield outputs
        # A layer need not be a module, and a module that only contains its parts is never called.
        stream_outputs = {place: tensor.to(self._home) for place, tensor in stream.outputs.items()}
        outputs.update({"embedding": first["block 0"], **answered} if answered else stream_outputs)

    def _blocks(self) -> dict[str, str]:
        """Return place -> published component of the layers; empty if they are no modules."""
        blocks = {f"block {layer}": f"transformer.h.{layer}" for layer in range(self.size.layers)}
        try:
            for published in blocks.values():
                self.component(published)
        except MissingAbility:
            return {}
        return blocks

    @contextlib.contextmanager
    def stream_replaced(self, stream: Tensor) -> Iterator[None]:
        """Make the first block read `stream` (B, T, C) instead of the embeddings inside the block."""
        first = dict(list(self._blocks().items())[:1])
        # Replace it in the module and in the operations: a layer need not be a module that is called.
        with (
            self.watched(first, given=dict.fromkeys(first, stream)),
            ResidualStream(self.module, self.weights, self._stream_shape, stream),
        ):
            yield

    def _stream_shape(self) -> tuple[int, ...]:
        """Return (B, T, C) of the pass that runs."""
        return (*self._ids_shape, self.size.width)

    def precision(self) -> AbstractContextManager[None]:
        """Make a float64 model's intermediate tensors float64 too, such as `torch.tensor(0.79...)` or `x.float()`."""
        return in_float64_throughout(self.module)

    @contextlib.contextmanager
    def _running(self, ids: Tensor) -> Iterator[Tensor]:
        """Yield the ids on the model's device; what is read off the pass returns to theirs."""
        self._ids_shape, self._home = tuple(ids.shape), ids.device
        own = moved(ids, self.device)
        with self.precision():
            yield own

    def _checked(self, logits: Tensor, ids: Tensor) -> Tensor:
        """Return the logits without the padding of the vocabulary. Raises SubjectError for another shape."""
        expected = (*ids.shape, self.size.vocab_size)
        if self.vocabulary_is_padded and logits.shape[-1] > self.size.vocab_size:
            logits = logits[..., : self.size.vocab_size]
        if tuple(logits.shape) != expected:
            raise SubjectError(
                f"logits have shape {tuple(logits.shape)}, expected {expected}: (batch, time, vocabulary) for ids of "
                f"shape {tuple(ids.shape)}"
            )
        return logits.to(ids.device)
