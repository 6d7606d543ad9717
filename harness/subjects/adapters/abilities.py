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
from harness.core.sizes import SIZES, Size
from harness.subjects.adapters import experts, generation, key_value_cache, serving, speculation
from harness.subjects.adapters.construction.choices import ATTENTIONS
from harness.subjects.adapters.construction.constructor import Constructor
from harness.subjects.adapters.experts import build_layer
from harness.subjects.adapters.parallel import parallel_program_of
from harness.subjects.adapters.scaling_abilities import SCALING_ABILITIES
from harness.subjects.adapters.serving_engine import AdaptedEngine, new_engine
from harness.subjects.adapters.tensor_loader import TensorLoader, tensor_loader_of
from harness.subjects.compiled import class_of
from harness.subjects.expert_layer import ExpertLayer
from harness.subjects.model import Model
from harness.subjects.ranks.program import ParallelProgram


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
        function = generation.generate_function_of(class_of(model.module), self.module)
        if function is None:
            raise MissingAbility(f"{self.name} has no generate(ids, new tokens, ...)")
        return function


class _Speculates(_Ability):
    @classmethod
    def found_in(cls, kind: type, constructor: Constructor, module: ModuleType | None) -> bool:
        return next(speculation.speculators_of(kind, module), None) is not None

    def drafts(self, model: Model) -> tuple[str, ...]:
        """Return the kinds of drafts; see `Speculates.drafts`."""
        found = speculation.speculators_of(class_of(model.module), self.module)
        return tuple(dict.fromkeys(draft for each in found for draft in each.drafts))

    def speculation_line(self, model: Model, draft: str) -> tuple[str, int]:
        """Return the file and the line of the function; see `Speculates.speculation_line`."""
        return self._speculator(model, draft).line

    def speculate(
        self,
        model: Model,
        draft: Model | str,
        ids: Tensor,
        new_tokens: int,
        *,
        lookahead: int = 4,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Return the prompt and the new tokens; see `Speculates.speculate`."""
        found = self._speculator(model, draft if isinstance(draft, str) else speculation.MODEL)
        given = draft if isinstance(draft, str) else draft.module
        settings: dict[str, Any] = {"lookahead": lookahead, "top_k": top_k, "top_p": top_p, "seed": seed}
        with model.precision():
            return speculation.speculate(
                found, self.name, model.module, given, ids, new_tokens, temperature=temperature, **settings
            )

    def _speculator(self, model: Model, draft: str) -> speculation.Speculator:
        for found in speculation.speculators_of(class_of(model.module), self.module):
            if draft in found.drafts:
                return found
        raise MissingAbility(f"{self.name} has no speculative decoding with the draft '{draft}'")


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


class _MixesExperts(_Ability):
    @classmethod
    def found_in(cls, kind: type, constructor: Constructor, module: ModuleType | None) -> bool:
        return experts.takes_experts(constructor) or bool(experts.expert_classes(kind, module))

    def build_experts(
        self,
        size: Size,
        *,
        experts: int,
        per_token: int,
        capacity_factor: float | None = None,
        seed: int = 0,
        dtype: str = "float64",
        device: str = "cpu",
    ) -> ExpertLayer:
        """Return one layer of experts; see `MixesExperts.build_experts`."""
        return build_layer(
            self.kind,
            self.constructor,
            self.module,
            size,
            experts=experts,
            per_token=per_token,
            capacity_factor=capacity_factor,
            seed=seed,
            dtype=dtype,
            device=device,
        )


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


class _Parallelizes(_Ability):
    @classmethod
    def found_in(cls, kind: type, constructor: Constructor, module: ModuleType | None) -> bool:
        return bool(parallel_program_of(kind, module).kinds)

    @property
    def parallel_program(self) -> ParallelProgram:
        """Its functions for several ranks; see `Parallelizes.parallel_program`."""
        return parallel_program_of(self.kind, self.module)


class _Serves(_Ability):
    @classmethod
    def found_in(cls, kind: type, constructor: Constructor, module: ModuleType | None) -> bool:
        return serving.engine_class_of(module) is not None

    @property
    def engine_name(self) -> str:
        """The name of the class, and the methods by which it is used."""
        return self._engine_class().description

    def new_engine(self, model: Model, *, requests: int, positions: int, stop: int | None = None) -> AdaptedEngine:
        """Return an engine; see `Serves.new_engine`."""
        return new_engine(self._engine_class(), model, requests=requests, positions=positions, stop=stop)

    def _engine_class(self) -> serving.EngineClass:
        found = serving.engine_class_of(self.module)
        assert found is not None  # found_in
        return found


# In the order of the bases of the adapted subject: _ChoosesCache extends the `new_cache` of _Caches.
ABILITIES: tuple[type[Any], ...] = (
    _ChoosesAttention,
    _ChoosesInit,
    _Unties,
    _Generates,
    _Speculates,
    _ChoosesCache,
    _Caches,
    _Checkpoints,
    _MixesExperts,
    _LoadsTensors,
    _Parallelizes,
    _Serves,
    *SCALING_ABILITIES,
)
