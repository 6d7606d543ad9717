"""The abilities of an adapted subject, each found in the class, its constructor or its module."""

from __future__ import annotations

import abc
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from harness.core.errors import MissingAbility, SubjectError
from harness.core.sizes import SIZES
from harness.subjects.adapters import generation, key_value_cache
from harness.subjects.adapters.construction.choices import ATTENTIONS
from harness.subjects.adapters.construction.constructor import Constructor
from harness.subjects.adapters.scaling_abilities import SCALING_ABILITIES
from harness.subjects.adapters.tensor_loader import TensorLoader, tensor_loader_of
from harness.subjects.model import Model


class _Ability(abc.ABC):
    """A mixin of the adapted subject: one ability, added if the subject offers it."""

    target: Any
    constructor: Constructor
    name: str
    kind: type
    module: ModuleType | None

    @classmethod
    @abc.abstractmethod
    def found_in(cls, kind: type, constructor: Constructor, module: ModuleType | None) -> bool:
        """Return True if the model class, its constructor or its module offers the ability."""


class _ChoosesAttention(_Ability):
    @property
    def attentions(self) -> tuple[str, ...]:
        """The values of the subject's setting for attention, under the harness's names where there is one."""
        own = self.constructor.choices["attention"]
        return tuple(next((w for w, words in ATTENTIONS.items() if word in words), word) for word in own)

    @classmethod
    def found_in(cls, kind: type, constructor: Constructor, module: ModuleType | None) -> bool:
        return "attention" in constructor.choices


class _ChoosesInit(_Ability):
    @property
    def recipes(self) -> tuple[str, ...]:
        """The values of the subject's setting for initialisation."""
        return self.constructor.choices["init"]

    @classmethod
    def found_in(cls, kind: type, constructor: Constructor, module: ModuleType | None) -> bool:
        return "init" in constructor.choices


class _Unties(_Ability):
    unties = True

    @classmethod
    def found_in(cls, kind: type, constructor: Constructor, module: ModuleType | None) -> bool:
        return constructor.takes("tied")


class _Generates(_Ability):
    @classmethod
    def found_in(cls, kind: type, constructor: Constructor, module: ModuleType | None) -> bool:
        return generation.generate_function_of(kind, module) is not None

    def generate(self, model: Model, ids: Tensor, new_tokens: int, **settings: Any) -> Tensor:
        """Return the prompt and the new tokens; see `Generates.generate`.

        Raises MissingAbility for a setting that the subject lacks, unless it has no effect.
        """
        function = self._function(model)
        with model.precision():
            return generation.generate(function, self.name, model.module, model.size, ids, new_tokens, **settings)

    def generate_options(self, model: Model) -> tuple[str, ...]:
        """Return the parameters of generate; see `TakesOptions.generate_options`."""
        function = self._function(model)
        return tuple(word for word in list(function.parameters)[1:] if word != function.count)

    def generate_with(
        self,
        model: Model,
        ids: Tensor,
        new_tokens: int,
        options: Mapping[str, Any],
        *,
        greedy: bool = False,
        seed: int | None = None,
    ) -> Any:
        """Return what generate itself returns with these options; see `TakesOptions.generate_with`."""
        function = self._function(model)
        with model.precision():
            return generation.continue_with(
                function, self.name, model.module, model.size, ids, new_tokens, options, greedy=greedy, seed=seed
            )

    def at_temperature_zero(self, model: Model, ids: Tensor, new_tokens: int) -> Tensor:
        """Return what generate(temperature=0) itself returns. Raises MissingAbility if it has no temperature."""
        function = self._function(model)
        if function.word("temperature") is None or function.flag(generation.SAMPLING) is not None:
            raise MissingAbility(f"generate of {self.name} has no temperature, or another setting for greedy")
        return generation.at_temperature_zero(function, model.module, model.size, ids, new_tokens)

    def _function(self, model: Model) -> generation.GenerateFunction:
        function = generation.generate_function_of(type(model.module), self.module)
        if function is None:
            raise MissingAbility(f"{self.name} has no generate(ids, new tokens, ...)")
        return function


class _Caches(_Ability):
    @classmethod
    def found_in(cls, kind: type, constructor: Constructor, module: ModuleType | None) -> bool:
        return key_value_cache.caches(kind)

    def new_cache(self, model: Model, batch_size: int) -> Any:
        """Return an empty cache; see `Caches.new_cache`."""
        with model.precision():
            return key_value_cache.new_cache(model.module, batch_size)

    def step(self, model: Model, ids: Tensor, cache: Any) -> Tensor:
        """Append `ids` to the cache and return their logits; see `Caches.step`."""
        with model.precision():
            return key_value_cache.step(model.module, ids, cache)


class _ChoosesCache(_Ability):
    caches = (key_value_cache.GROWING,)

    @classmethod
    def found_in(cls, kind: type, constructor: Constructor, module: ModuleType | None) -> bool:
        return key_value_cache.caches(kind) and key_value_cache.grows(kind)

    def new_cache(self, model: Model, batch_size: int, *, kind: str | None = None) -> Any:
        """Return an empty cache by the subject's `new_cache(..., growing=True)`; see `ChoosesCache.new_cache`."""
        with model.precision():
            return key_value_cache.new_cache(model.module, batch_size, growing=kind == key_value_cache.GROWING)


class _Checkpoints(_Ability):
    @classmethod
    def found_in(cls, kind: type, constructor: Constructor, module: ModuleType | None) -> bool:
        return callable(getattr(kind, "from_pretrained", None)) and callable(getattr(kind, "save_pretrained", None))

    def load_checkpoint(self, directory: Path) -> Model:
        """Return the model stored in the directory; see `Checkpoints.load_checkpoint`."""
        loader: Any = self.kind
        module = loader.from_pretrained(directory).eval()
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        layers, width, context = config["n_layer"], config["n_embd"], config["n_positions"]
        size = next((s for s in SIZES.values() if (s.layers, s.width, s.context) == (layers, width, context)), None)
        if size is None:
            raise SubjectError(
                f"{directory} contains a GPT-2 with {layers} layers, width {width} and context {context}; expected one "
                f"of the sizes {', '.join(SIZES)}"
            )
        return self.model_of(module, size)  # type: ignore[attr-defined, no-any-return]

    def save_checkpoint(self, model: Model, directory: Path) -> None:
        """Write the model to the directory; see `Checkpoints.save_checkpoint`."""
        module: Any = model.module
        module.save_pretrained(directory)


class _LoadsTensors(_Ability):
    @classmethod
    def found_in(cls, kind: type, constructor: Constructor, module: ModuleType | None) -> bool:
        return tensor_loader_of(kind, module) is not None

    @property
    def tensor_loader_line(self) -> tuple[str, int]:
        """The file and the line of the function."""
        return self._tensor_loader().line

    def load_tensors(self, model: Model, tensors: Any) -> Model:
        """Return the model with the tensors; see `LoadsTensors.load_tensors`."""
        module = self._tensor_loader().load(model.module, tensors)
        return model if module is model.module else self.model_of(module.eval(), model.size)  # type: ignore[attr-defined]

    def _tensor_loader(self) -> TensorLoader:
        loader = tensor_loader_of(self.kind, self.module)
        assert loader is not None  # found_in
        return loader


# In the order of the bases of the adapted subject: _ChoosesCache extends the `new_cache` of _Caches.
ABILITIES: tuple[type[Any], ...] = (
    _ChoosesAttention,
    _ChoosesInit,
    _Unties,
    _Generates,
    _ChoosesCache,
    _Caches,
    _Checkpoints,
    _LoadsTensors,
    *SCALING_ABILITIES,
)
