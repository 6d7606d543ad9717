"""The build method of an adapter, completed by the options that it does not take and the map that it does not give."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from harness.core.errors import MissingAbility, SubjectError
from harness.core.sizes import Size
from harness.subjects.adapters.adapted_subject import AdaptedSubject
from harness.subjects.adapters.construction.constructor import BY_SIZE, Constructor
from harness.subjects.model import Model

# Options that change what is built, and the attribute of a subject that has them; see `protocols`.
CHOICES = {"attention": "attentions", "init": "recipes", "tied": "unties"}


class CompletedBuild:
    """An adapter's `build(self, size)`, or one that takes seed, dtype, device and further options."""

    def __init__(self, spec: str, adapter: Any) -> None:
        build: Callable[..., Any] = adapter.build
        self.spec, self.own, self.adapter = spec, build, adapter
        parameters = inspect.signature(build).parameters
        self.takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        self.taken = frozenset(parameters)
        self._maps: AdaptedSubject | None = None

    def __call__(
        self, size: Size, *, seed: int = 0, dtype: str = "float32", device: str = "cpu", **options: Any
    ) -> Model:
        """Return the adapter's model in eval mode, in `dtype` on `device`; see `Subject.build`."""
        given = {"seed": seed, "dtype": dtype, "device": device, **options}
        for name in [name for name in given if name not in self.taken]:
            if name in CHOICES and not hasattr(self.adapter, CHOICES[name]):  # **options would swallow it
                raise MissingAbility(f"{self.spec}.build has no option '{name}'")
            if not self.takes_all:
                del given[name]
        torch.manual_seed(seed)
        with torch.device("meta" if device == "meta" else "cpu"):  # see `AdaptedSubject.build`
            model = self.own(size, **given)
        if not isinstance(model, Model):
            raise SubjectError(
                f"{self.spec}.build returned a {type(model).__name__}, expected a harness.subjects.model.Model: "
                "Model(module, size)"
            )
        model.module.eval().to(device, getattr(torch, dtype))
        return model if model.weight_map is not None or model.weight_map_missing else self._mapped(model, size)

    def _mapped(self, model: Model, size: Size) -> Model:
        """Return the model with a weight map that is found, as for a class that needs no adapter."""
        if self._maps is None:

            def build(arguments: dict[str, Any]) -> nn.Module:
                torch.manual_seed(0)
                built: Model = self.own(arguments["size"])
                return built.module

            constructor = Constructor(frozenset(), build, BY_SIZE)
            self._maps = AdaptedSubject(self.spec, build, constructor, type(model.module), calling=model.calling)
        return self._maps.model_of(model.module, size)
