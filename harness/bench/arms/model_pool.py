"""Models for the arms, each built once and holding the same weights whenever an arm takes one."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.bench.arms.registry import ArmSpec
from harness.core.errors import Missing, MissingResource
from harness.core.sizes import SIZES, Size
from harness.oracle.deviations import Deviation, in_force
from harness.oracle.hugging_face import oracle
from harness.oracle.probe_weights import state
from harness.oracle.tokens import batch
from harness.subjects.model import Model, Subject

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from harness.oracle.gpt2_with_deviations import DeviatingGPT2


class ModelPool:
    """Builds models of one size on one device, and keeps them until `close`.

    `places` says where peers are that are no packages (`{"nanogpt": PATH}`); with `deviations` the truth is GPT-2 with
    those.
    """

    def __init__(
        self,
        subject: Subject,
        size: Size,
        device: str = "cpu",
        *,
        places: Mapping[str, str] | None = None,
        deviations: Sequence[Deviation] = (),
    ) -> None:
        self.subject = subject
        self.size = size
        self.device = device
        self.places = dict(places or {})
        self.deviations = tuple(deviations)
        self._peers: dict[str, Subject] = {}
        self._models: dict[tuple[Any, ...], Model] = {}
        self._own_weights: dict[int, dict[str, Tensor]] = {}

    def who(self, way: ArmSpec) -> Subject:
        """Who computes: the subject, or a peer. MissingResource where that peer, or that way, is not to be had here."""
        kind = torch.device(self.device).type
        if kind not in way.devices:
            raise MissingResource(f"{way.name} ({way.what}) exists on {', '.join(way.devices)}, and this is {kind}")
        if way.peer is None:
            return self.subject
        if self.deviating_gpt2:
            declared = ", ".join(each.says for each in self.deviations)
            raise MissingResource(f"{way.name} ({way.what}) computes GPT-2 without what is declared: {declared}")
        if way.peer not in self._peers:
            from harness.bench.peers import peer

            self._peers[way.peer] = peer(way.peer, **self.places)
        return self._peers[way.peer]

    def model(self, way: ArmSpec, copy: int = 0, *, size: Size | None = None) -> Model:
        """A model for `way` with the run's weights; `copy` tells twins apart."""
        who, size = self.who(way), size or self.size
        key = (who.name, size, way.dtype, way.attention, way.compiled, copy)
        if key not in self._models:
            options = {} if way.attention is None else {"attention": way.attention}
            built = who.build(size, seed=0, dtype=way.dtype, device=self.device, **options)
            if way.compiled:
                torch.compiler.reset()  # what another arm compiled is not to count as this one's
                built.module.compile(dynamic=False)
            self._models[key] = built
            if built.weight_map is None:
                if way.peer is not None or copy == 0:
                    self._own_weights[id(built)] = {n: t.clone() for n, t in built.module.state_dict().items()}
                else:
                    self._own_weights[id(built)] = self._own_weights[id(self.model(way, size=size))]
        return self.restore(self._models[key])

    def truth(self, *, stored_in: torch.dtype | None = None) -> Model:
        """GPT-2 in float64 with the run's weights, those rounded to what `stored_in` can hold.

        The outside oracle, with the declared deviations; or the subject itself, where nobody knows its weights.
        """
        key = ("truth", "float64")
        if key not in self._models:
            if self.own_truth:
                self._models[key] = self.subject.build(self.size, seed=0, dtype="float64", device=self.device)
                weights = self._models[key].module.state_dict()
                self._own_weights[id(self._models[key])] = {name: tensor.clone() for name, tensor in weights.items()}
            else:
                with in_force(self.deviating_gpt2.truth) if self.deviating_gpt2 else contextlib.nullcontext():
                    self._models[key] = oracle(self.size, state(self.size.name, "probe"), "float64")
                self._models[key].module.to(self.device)
        return self.restore(self._models[key], stored_in)

    @functools.cached_property
    def own_truth(self) -> bool:
        """Whether the subject is held against itself, in float64: without a weight map nobody else can hold its."""
        try:
            return self.subject.build(SIZES["debug"], seed=0).weight_map is None
        except Missing:  # it is of one size only
            return self.subject.build(self.size, seed=0).weight_map is None

    @property
    def called(self) -> str:
        """What the truth is, in the words of a verdict."""
        if self.own_truth:
            return "the subject itself in float64 (its weights cannot be mapped)"
        return "GPT-2 with the declared deviations in float64" if self.deviating_gpt2 else "GPT-2 in float64"

    @functools.cached_property
    def deviating_gpt2(self) -> DeviatingGPT2 | None:
        """How the truth differs from GPT-2; None where nothing is declared that GPT-2 is to be changed by."""
        from harness.oracle.gpt2_with_deviations import DeviatingGPT2, forms_with_deviations

        form = next(iter(forms_with_deviations(self.deviations, self.subject))) if self.deviations else DeviatingGPT2()
        return None if form == DeviatingGPT2() else form

    def restore(self, model: Model, stored_in: torch.dtype | None = None) -> Model:
        """Put the weights back as every arm begins: the probe weights, or the seed's where nobody can map them.

        Probe weights, because under GPT-2's own start a wrong bias or gain changes no output at all.
        """
        if id(model) in self._own_weights:
            model.module.load_state_dict(self._own_weights[id(model)])
        elif model.size.name == self.size.name:
            model.load(state(self.size.name, "probe"))
        model.module.zero_grad(set_to_none=True)
        round_parameters(model, stored_in)
        return model

    def ids(self, *, rows: int, length: int) -> tuple[Tensor, Tensor]:
        """Random token ids and their targets, each (rows, length), on the run's device."""
        ids, targets = batch(self.size, "random", rows=rows, length=length)
        return ids.to(self.device), targets.to(self.device)

    def close(self) -> None:
        """Let every model go."""
        self._models.clear()
        self._own_weights.clear()
        self._peers.clear()
        if torch.device(self.device).type == "cuda":
            torch.cuda.empty_cache()


def round_parameters(model: Model, dtype: torch.dtype | None) -> None:
    """Give every parameter a value that `dtype` can hold; for None, leave them."""
    if dtype is not None:
        with torch.no_grad():
            for parameter in model.module.parameters():
                parameter.copy_(parameter.to(dtype))


def autocast(device: str, dtype: str | None) -> AbstractContextManager[Any]:
    """torch.autocast in `dtype`, or nothing for None."""
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype=getattr(torch, dtype))
