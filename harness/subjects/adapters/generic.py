"""The subject made of any GPT class, factory or module: built, called and asked in its own style."""

from __future__ import annotations

import abc
import contextlib
import inspect
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.errors import MissingAbility, SubjectError
from harness.core.shipped_packages import shipped
from harness.core.sizes import SIZES, Size
from harness.subjects.adapters import generation
from harness.subjects.adapters.construction import ATTENTIONS, Constructor, constructor
from harness.subjects.adapters.huggingface import checkpoint_target
from harness.subjects.adapters.locate import locate, locate_module
from harness.subjects.adapters.transfer import at_size
from harness.subjects.adapters.weight_discovery import discover
from harness.subjects.adapters.weight_names import read_names
from harness.subjects.forward_call import call
from harness.subjects.model import Model, Subject
from harness.subjects.weight_map import WeightMap

SMALL = SIZES["debug"]
# Options under which a subject may have other parameters, and those of them that one model was built with.
SHAPING = ("attention", "tied", "bias")
BuildOptions = tuple[tuple[str, Any], ...]


def adapt(spec: str, *, own: bool = True) -> Subject:
    """The subject that `FILE.py:NAME`, `package.module:NAME` or `hf:DIRECTORY` names. Raises SubjectError in one line.

    An object that satisfies the Subject protocol itself (an adapter) is taken as it is. `own=False` names the shipped
    reference, where the current folder has a module of the same name.
    """
    if not own:
        with shipped(spec.split(":")[0].split(".")[0]):
            return _subject(spec, *locate_module(spec))
    if spec.startswith("hf:"):
        return _subject(spec, *checkpoint_target(Path(spec.removeprefix("hf:"))))
    return _subject(spec, *locate(spec))


def _subject(spec: str, target: Any, module: ModuleType) -> Subject:
    if inspect.isclass(target) and not issubclass(target, nn.Module) and hasattr(target, "build"):
        target = _adapter(spec, target)
    if not isinstance(target, nn.Module) and isinstance(target, Subject):
        return target
    return _adapted(spec, target, constructor(target, module), module)


def _adapter(spec: str, target: type) -> Any:
    """An adapter class made into a subject; what it lacks is said before the first check."""
    try:
        made = target()
    except TypeError as error:
        raise SubjectError(
            f"{spec} has a build method, so it is an adapter, but {target.__name__}() is refused: {error}"
        ) from error
    if not isinstance(getattr(made, "name", None), str):
        raise SubjectError(
            f'{spec} has a build method, so it is an adapter, but no name; expected a class attribute name = "..."'
        )
    parameters = inspect.signature(made.build).parameters
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        lacking = [word for word in ("seed", "dtype", "device") if word not in parameters]
        if lacking:
            raise SubjectError(
                f"{spec}.build({', '.join(parameters)}) takes no '{lacking[0]}'; expected "
                "build(self, size, *, seed=0, dtype='float32', device='cpu', **options)"
            )
    return made


def _adapted(spec: str, target: Any, how: Constructor, module: ModuleType | None = None) -> Subject:
    """A subject with just the abilities that the target has, so that the protocols tell the truth about it."""
    kind = target if inspect.isclass(target) else type(target)
    if not issubclass(kind, nn.Module):
        kind = _built_by(target, how) or kind
    abilities = [ability for ability in ABILITIES if ability.found_in(kind, how, module)]
    made: AdaptedSubject = type("AdaptedSubject", (*abilities, AdaptedSubject), {})(spec, target, how, kind, module)
    return made


def _built_by(target: Any, how: Constructor) -> type | None:
    """The class that a factory builds; known by its annotation, or by having it build a small one."""
    annotation = inspect.get_annotations(target).get("return") if inspect.isfunction(target) else None
    if inspect.isclass(annotation) and issubclass(annotation, nn.Module) and annotation is not nn.Module:
        return annotation
    if not how.words:
        return None  # of one size, which may be a large one
    try:
        with torch.random.fork_rng():
            return type(how.build(SMALL))
    except Exception:
        return None  # it is told where it is asked for


class AdaptedSubject:
    """Builds and calls a GPT in the style that it was written in."""

    def __init__(
        self, name: str, target: Any, how: Constructor, kind: type = nn.Module, module: ModuleType | None = None
    ) -> None:
        self.name = name
        self.target = target
        self.how = how
        self.kind = kind
        self.module = module
        self._maps: dict[tuple[Size, BuildOptions], WeightMap | None] = {}

    def build(self, size: Size, *, seed: int = 0, dtype: str = "float32", device: str = "cpu", **options: Any) -> Model:
        """A fresh model in eval mode; see `Subject.build`."""
        torch.manual_seed(seed)
        variant = tuple(sorted((key, value) for key, value in options.items() if key in SHAPING))
        if self.how.takes("seed"):
            options["seed"] = seed
        if device == "meta" or not self.how.takes("device"):
            # A device context is a function mode: it costs a tenth of the time, and the default needs none.
            with (
                contextlib.nullcontext() if torch.get_default_device() == torch.device(device) else torch.device(device)
            ):
                module = self.how.build(size, **options)
        else:
            module = self.how.build(size, device=device, **options)
        self._refuse_another_size(module, size)
        return self.handle(module.eval().to(getattr(torch, dtype)), size, variant)

    def handle(self, module: nn.Module, size: Size, variant: BuildOptions = ()) -> Model:
        """The handle on a module that is already built, with these of the options that shape it."""
        read = read_names(module, size)
        if not read.unmapped_parameters and not read.open and not read.missing(size):
            return Model(module, size, call, WeightMap(read.rows))
        found = self._map(module, size, variant)
        if found is None or not _useful(found, module, size):
            return Model(module, size, call, None, found.gaps if found is not None else "nothing was found")
        return Model(module, size, call, found)

    def weight_map(self, variant: BuildOptions = ()) -> WeightMap | None:
        """The map as it was found at the debug size, or None where the subject is not built at that size."""
        if (SMALL, variant) not in self._maps:
            self._maps[SMALL, variant] = self._discovered(SMALL, variant)
        return self._maps[SMALL, variant]

    def _map(self, module: nn.Module, size: Size, variant: BuildOptions) -> WeightMap | None:
        """The map, found once where that costs nothing and said again at this size."""
        small = self.weight_map(variant)
        if small is not None:
            return small if size == SMALL else at_size(small, SMALL, size, module)
        if (size, variant) not in self._maps:  # it has one size only, and is asked there
            self._maps[size, variant] = self._discovered(size, variant)
        return self._maps[size, variant]

    def _discovered(self, size: Size, variant: BuildOptions) -> WeightMap | None:
        try:
            with torch.random.fork_rng(), torch.device("cpu"), torch.enable_grad():
                module = self.how.build(size, **dict(variant)).eval().double()
                self._refuse_another_size(module, size)
                return discover(module, size, call)
        except Exception:
            return None  # a subject that does not even build says so in each of its checks

    def _refuse_another_size(self, module: nn.Module, size: Size) -> None:
        if not self.how.words and not _is_of(size, module):
            raise MissingAbility(f"{self.name} is built at a size of its own, which is not {size.name}")


def _is_of(size: Size, module: nn.Module) -> bool:
    """Whether a module that takes no sizes happens to have these: both embeddings have rows and columns to tell."""
    shapes = {tuple(n for n in parameter.shape if n != 1) for parameter in module.parameters()}
    return {(size.vocab_size, size.width), (size.context, size.width)} <= shapes


def _useful(found: WeightMap, module: nn.Module, size: Size) -> bool:
    """Whether comparing means anything: no matrix of GPT-2's is missing while one of the subject's is unexplained."""
    matrices = [row for row in found.missing if row.published.endswith("weight") and ".ln_" not in row.published]
    own = dict(module.named_parameters())
    strange = [own[name].numel() for name in found.unmapped_parameters]
    norms = {row.published for row in found.missing if ".ln_" in row.published and row.published.endswith("weight")}
    vectors = [numel for numel in strange if numel <= 4 * size.width]
    unexplained = len(vectors) < len(strange)
    return bool(found.rows) and not (matrices and (unexplained or len(matrices) > 4)) and not (norms and vectors)


class _Ability(abc.ABC):
    """A mixin that is part of the adapted subject where the target offers the ability."""

    target: Any
    how: Constructor
    name: str
    kind: type
    module: ModuleType | None

    @classmethod
    @abc.abstractmethod
    def found_in(cls, kind: type, how: Constructor, module: ModuleType | None) -> bool:
        """Whether the target has what the ability needs."""


class _ChoosesAttention(_Ability):
    @property
    def attentions(self) -> tuple[str, ...]:
        """The subject's ways to compute attention, in the harness's words where it has one."""
        own = self.how.choices["attention"]
        return tuple(next((w for w, words in ATTENTIONS.items() if word in words), word) for word in own)

    @classmethod
    def found_in(cls, kind: type, how: Constructor, module: ModuleType | None) -> bool:
        return "attention" in how.choices


class _ChoosesInit(_Ability):
    @property
    def recipes(self) -> tuple[str, ...]:
        """The subject's initialisation recipes, in its own words."""
        return self.how.choices["init"]

    @classmethod
    def found_in(cls, kind: type, how: Constructor, module: ModuleType | None) -> bool:
        return "init" in how.choices


class _Unties(_Ability):
    unties = True

    @classmethod
    def found_in(cls, kind: type, how: Constructor, module: ModuleType | None) -> bool:
        return how.takes("tied")


class _Generates(_Ability):
    @classmethod
    def found_in(cls, kind: type, how: Constructor, module: ModuleType | None) -> bool:
        return generation.generator_of(kind, module) is not None

    def generate(self, model: Model, ids: Tensor, new_tokens: int, **settings: Any) -> Tensor:
        """See `Generates.generate`. A setting that the subject lacks, and that matters, is MissingAbility."""
        how = generation.generator_of(type(model.module), self.module)
        if how is None:
            raise MissingAbility(f"{self.name} has no generate(ids, new tokens, ...)")
        with model.precision():
            return generation.generate(how, self.name, model.module, model.size, ids, new_tokens, **settings)

    def at_temperature_zero(self, model: Model, ids: Tensor, new_tokens: int) -> Tensor:
        """What generate(temperature=0) itself gives; MissingAbility where it has no temperature."""
        how = generation.generator_of(type(model.module), self.module)
        if how is None or how.word("temperature") is None or how.flag(generation.DRAWING) is not None:
            raise MissingAbility(f"generate of {self.name} has no temperature, or another word for greedy")
        return generation.at_temperature_zero(how, model.module, model.size, ids, new_tokens)


class _Caches(_Ability):
    @classmethod
    def found_in(cls, kind: type, how: Constructor, module: ModuleType | None) -> bool:
        return generation.caches(kind)

    def new_cache(self, model: Model, batch_size: int) -> Any:
        """See `Caches.new_cache`."""
        with model.precision():
            return generation.new_cache(model.module, batch_size)

    def step(self, model: Model, ids: Tensor, cache: Any) -> Tensor:
        """See `Caches.step`."""
        with model.precision():
            return generation.step(model.module, ids, cache)


class _ChoosesCache(_Ability):
    caches = (generation.GROWING,)

    @classmethod
    def found_in(cls, kind: type, how: Constructor, module: ModuleType | None) -> bool:
        return generation.caches(kind) and generation.grows(kind)

    def new_cache(self, model: Model, batch_size: int, *, kind: str | None = None) -> Any:
        """See `ChoosesCache.new_cache`: `new_cache(batch_size, growing=True)` of the subject's."""
        with model.precision():
            return generation.new_cache(model.module, batch_size, growing=kind == generation.GROWING)


class _Checkpoints(_Ability):
    @classmethod
    def found_in(cls, kind: type, how: Constructor, module: ModuleType | None) -> bool:
        return callable(getattr(kind, "from_pretrained", None)) and callable(getattr(kind, "save_pretrained", None))

    def load_checkpoint(self, directory: Path) -> Model:
        """See `Checkpoints.load_checkpoint`."""
        loader: Any = self.kind
        module = loader.from_pretrained(directory).eval()
        rows, context = _config_sizes(directory)
        size = next((s for s in SIZES.values() if (s.layers, s.width, s.context) == (*rows, context)), None)
        if size is None:
            raise SubjectError(f"{directory} holds a GPT-2 of no size that the harness knows: {rows}")
        return self.handle(module, size)  # type: ignore[attr-defined, no-any-return]

    def save_checkpoint(self, model: Model, directory: Path) -> None:
        """See `Checkpoints.save_checkpoint`."""
        module: Any = model.module
        module.save_pretrained(directory)


ABILITIES: tuple[type[_Ability], ...] = (
    _ChoosesAttention,
    _ChoosesInit,
    _Unties,
    _Generates,
    _ChoosesCache,
    _Caches,
    _Checkpoints,
)


def _config_sizes(directory: Path) -> tuple[tuple[int, int], int]:
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return (config["n_layer"], config["n_embd"]), config["n_positions"]
