"""The model pool: models for the arms, each built once and reset to the same weights for every use."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from harness.bench.arms.registry import ArmSpec
from harness.bench.arms.stored_linears import round_linears, store_linears
from harness.bench.peers import peer
from harness.core.errors import Missing, MissingResource
from harness.core.sizes import SIZES, Size
from harness.oracle.declared import DeclaredGPT2, compared_with, declared_gpt2
from harness.oracle.deviation_fit import DeviationFit
from harness.oracle.deviations import Deviation
from harness.oracle.hugging_face import oracle
from harness.oracle.probe_weights import state
from harness.oracle.tokens import batch
from harness.subjects.model import Model
from harness.subjects.protocols import Subject


class ModelPool:
    """Builds models of one size on one device, and keeps them until `close`.

    `places` gives the paths of peers that are not packages (`{"nanogpt": PATH}`). With `deviations`, the oracle is
    GPT-2 with those.
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
        self._stored_otherwise: set[int] = set()  # their weights stay: nothing trains them

    def subject_for(self, arm: ArmSpec) -> Subject:
        """Return the subject, or the peer that the arm names.

        Raises MissingResource if the arm does not exist on this device, if its peer is not installed, or if its peer
        computes plain GPT-2 and deviations are declared.
        """
        device = torch.device(self.device).type
        if device not in arm.devices:
            exists_on = ", ".join(arm.devices)
            raise MissingResource(f"{arm.name} ({arm.description}) exists on {exists_on}, and this is {device}")
        if arm.peer is None:
            return self.subject
        if self.deviating_gpt2:
            declared = ", ".join(each.says for each in self.deviations)
            raise MissingResource(f"{arm.name} ({arm.description}) computes GPT-2 without what is declared: {declared}")
        if arm.peer not in self._peers:
            self._peers[arm.peer] = peer(arm.peer, **self.places)
        return self._peers[arm.peer]

    def model(self, arm: ArmSpec, copy: int = 0, *, size: Size | None = None) -> Model:
        """Return a model for the arm, with the weights of the run; `copy` distinguishes twins."""
        subject, size = self.subject_for(arm), size or self.size
        key = (subject.name, size, arm.dtype, arm.attention, arm.compiled, arm.weights, copy)
        if key not in self._models:
            options = {} if arm.attention is None else {"attention": arm.attention}
            model = subject.build(size, seed=0, dtype=arm.dtype, device=self.device, **options)
            if arm.compiled:
                torch.compiler.reset()  # so that code that another arm compiled does not count as this one's
                model.module.compile(dynamic=False)
            self._models[key] = model
            if model.weight_map is None:
                if arm.peer is not None or copy == 0:
                    self._own_weights[id(model)] = _clone(model)
                else:
                    self._own_weights[id(model)] = self._own_weights[id(self.model(arm, size=size))]
            if arm.weights is not None:
                store_linears(self.restore(model).module, arm.weights, subject.name)
                self._stored_otherwise.add(id(model))
        return self.restore(self._models[key])

    def parameters(self) -> int | None:
        """Return the number of parameters of the subject at the size of the run, each once; None before it is built."""
        for (name, size, *_), model in self._models.items():
            if (name, size) == (self.subject.name, self.size) and id(model) not in self._stored_otherwise:
                return sum(each.numel() for each in model.module.parameters())
        return None

    def oracle(self, *, stored_in: torch.dtype | None = None) -> Model:
        """Return the oracle in float64 with the weights of the run, rounded to what `stored_in` can represent.

        The oracle is Hugging Face's GPT-2 with the declared deviations; or the subject itself if its weights cannot be
        mapped.
        """
        key = ("oracle", "float64")
        if key not in self._models:
            if self.oracle_is_subject:
                model = self.subject.build(self.size, seed=0, dtype="float64", device=self.device)
                self._own_weights[id(model)] = _clone(model)
            else:
                with compared_with(self.deviating_gpt2):
                    model = oracle(self.size, state(self.size.name, "probe"), "float64")
                model.module.to(self.device)
            self._models[key] = model
        return self.restore(self._models[key], stored_in)

    def oracle_storing(self, form: str, dtype: torch.dtype) -> Model:
        """Return an oracle of its own whose parameters are rounded to `dtype`, and linear layers then to the form."""
        key = ("oracle", form, dtype)
        if key not in self._models:
            model = copy.deepcopy(self.oracle(stored_in=dtype))
            round_linears(model.module, form)
            self._models[key] = model
        return self._models[key]

    @functools.cached_property
    def oracle_is_subject(self) -> bool:
        """True if the subject has no weight map: no other model can have its weights, so it is compared with itself."""
        try:
            return self.subject.build(SIZES["debug"], seed=0).weight_map is None
        except Missing:  # it has one size only
            return self.subject.build(self.size, seed=0).weight_map is None

    @property
    def oracle_name(self) -> str:
        """The name of the oracle in the message of a verification."""
        if self.oracle_is_subject:
            return "the subject itself in float64 (its weights cannot be mapped)"
        return "GPT-2 with the declared deviations in float64" if self.deviating_gpt2 else "GPT-2 in float64"

    @functools.cached_property
    def deviating_gpt2(self) -> DeclaredGPT2 | None:
        """The declared deviations of the oracle from GPT-2; None if no declaration changes GPT-2."""
        if not self.deviations:
            return declared_gpt2()  # of the check that uses the pool, if it does
        gpt2 = DeviationFit(self.deviations, self.subject).gpt2
        return None if gpt2.is_gpt2 else gpt2

    def restore(self, model: Model, stored_in: torch.dtype | None = None) -> Model:
        """Reset the weights to those that every arm starts with, clear the gradients, and return the model.

        These are the probe weights, because GPT-2's initialisation hides a wrong bias or gain: they change no output.
        A model whose weights cannot be mapped gets those that it was built with.
        """
        if id(model) in self._stored_otherwise:
            return model
        if id(model) in self._own_weights:
            model.module.load_state_dict(self._own_weights[id(model)])
        elif model.size.name == self.size.name:
            with compared_with(self.deviating_gpt2):
                model.load(state(self.size.name, "probe"))
        model.module.zero_grad(set_to_none=True)
        round_parameters(model, stored_in)
        return model

    def ids(self, *, rows: int, length: int, number: int = 0) -> tuple[Tensor, Tensor]:
        """Return random token ids and their targets, each (rows, length), on the run's device, other ones by number."""
        ids, targets = batch(self.size, "random", rows=rows, length=length, seed=number)
        return ids.to(self.device), targets.to(self.device)

    def use_ids(self, ids: Tensor, number: int) -> None:
        """Overwrite ids (rows, length) with the random ones of that number, in place."""
        ids.copy_(self.ids(rows=ids.shape[0], length=ids.shape[1], number=number)[0])

    def close(self) -> None:
        """Free all models."""
        self._models.clear()
        self._own_weights.clear()
        self._stored_otherwise.clear()
        self._peers.clear()
        if torch.device(self.device).type == "cuda":
            torch.cuda.empty_cache()


def _clone(model: Model) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.module.state_dict().items()}


def round_parameters(model: Model, dtype: torch.dtype | None) -> None:
    """Round every parameter to a value that `dtype` can represent; none for None."""
    if dtype is not None:
        with torch.no_grad():
            for parameter in model.module.parameters():
                parameter.copy_(parameter.to(dtype))


def autocast(device: str, dtype: str | None) -> AbstractContextManager[Any]:
    """Return torch.autocast in `dtype`, or a context manager that does nothing for None."""
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, dtype=getattr(torch, dtype))
