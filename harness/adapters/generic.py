"""The subject made of any GPT class, factory or module: built, called and asked in its own style."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.adapters.calling import call, unpack
from harness.adapters.construct import Constructor, constructor
from harness.adapters.locate import locate
from harness.adapters.names import map_by_names
from harness.errors import MissingAbility, SubjectError
from harness.size import SIZES, Size
from harness.subject import Model, Subject


def adapt(spec: str) -> Subject:
    """The subject that `FILE.py:NAME` or `package.module:NAME` names. Raises SubjectError in one line.

    An object that satisfies the Subject protocol itself (an adapter) is taken as it is.
    """
    target, module = locate(spec)
    if inspect.isclass(target) and not issubclass(target, nn.Module) and hasattr(target, "build"):
        target = target()
    if not isinstance(target, nn.Module) and isinstance(target, Subject):
        return target
    return _adapted(spec, target, constructor(target, module))


def _adapted(spec: str, target: Any, how: Constructor) -> Subject:
    """A subject with just the abilities that the target has, so that the protocols tell the truth about it."""
    kind = target if inspect.isclass(target) else type(target)
    abilities = [ability for ability in ABILITIES if ability.found_in(kind, how)]
    made: AdaptedSubject = type("AdaptedSubject", (*abilities, AdaptedSubject), {})(spec, target, how)
    return made


class AdaptedSubject:
    """Builds and calls a GPT in the style that it was written in."""

    def __init__(self, name: str, target: Any, how: Constructor) -> None:
        self.name = name
        self.target = target
        self.how = how

    def build(self, size: Size, *, seed: int = 0, dtype: str = "float32", device: str = "cpu", **options: Any) -> Model:
        """A fresh model in eval mode; see `Subject.build`."""
        torch.manual_seed(seed)
        if self.how.takes("seed"):
            options["seed"] = seed
        if device == "meta" or not self.how.takes("device"):
            with torch.device(device):
                module = self.how.build(size, **options)
        else:
            module = self.how.build(size, device=device, **options)
        if not self.how.words and not _is_of(size, module):
            raise MissingAbility(f"{self.name} is built at a size of its own, which is not {size.name}")
        return self.handle(module.eval().to(getattr(torch, dtype)), size)

    def handle(self, module: nn.Module, size: Size) -> Model:
        """The handle on a module that is already built."""
        try:
            return Model(module, size, call, map_by_names(module, size))
        except ValueError as error:
            return Model(module, size, call, None, str(error))


def _is_of(size: Size, module: nn.Module) -> bool:
    """Whether a module that takes no sizes happens to have these: both embeddings have rows and columns to tell."""
    shapes = {tuple(parameter.shape) for parameter in module.parameters()}
    return {(size.vocab_size, size.width), (size.context, size.width)} <= shapes


class _Ability:
    """A mixin that is part of the adapted subject where the target offers the ability."""

    target: Any
    how: Constructor
    name: str

    @classmethod
    def found_in(cls, kind: type, how: Constructor) -> bool:
        """Whether the target has what the ability needs."""
        raise NotImplementedError


class _ChoosesAttention(_Ability):
    attentions = ("looped", "naive", "flash")

    @classmethod
    def found_in(cls, kind: type, how: Constructor) -> bool:
        return "attention" in how.words


class _ChoosesInit(_Ability):
    recipes = ("gpt2", "unscaled", "pytorch", "kaiming")

    @classmethod
    def found_in(cls, kind: type, how: Constructor) -> bool:
        return "init" in how.words


class _Unties(_Ability):
    unties = True

    @classmethod
    def found_in(cls, kind: type, how: Constructor) -> bool:
        return how.takes("tied")


class _Generates(_Ability):
    @classmethod
    def found_in(cls, kind: type, how: Constructor) -> bool:
        function = getattr(kind, "generate", None)
        return callable(function) and _counts_tokens(function)

    def generate(self, model: Model, ids: Tensor, new_tokens: int, **settings: Any) -> Tensor:
        """See `Generates.generate`. A setting that the subject lacks, and that matters, is MissingAbility."""
        function: Any = model.module.generate
        parameters = inspect.signature(function).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            for key in [key for key in settings if key not in parameters]:
                value = settings.pop(key)
                if key == "seed" and value is not None:
                    torch.manual_seed(value)  # it draws from the global generator
                    continue
                if value is not None and (key, value) != ("temperature", 1.0):  # which change nothing
                    raise MissingAbility(f"generate of {self.name} has no setting '{key}'")
        ids_out = function(ids, new_tokens, **{k: v for k, v in settings.items() if v is not None})
        if not isinstance(ids_out, Tensor) or ids_out.shape != (ids.shape[0], ids.shape[1] + new_tokens):
            found = tuple(ids_out.shape) if isinstance(ids_out, Tensor) else type(ids_out).__name__
            raise SubjectError(
                f"generate gave {found}, expected ids of shape {(ids.shape[0], ids.shape[1] + new_tokens)}: "
                "the prompt and the new tokens"
            )
        return ids_out


def _counts_tokens(function: Any) -> bool:
    """Whether it is called as generate(ids, new tokens, ...); Hugging Face's, for one, is not."""
    words = list(inspect.signature(function).parameters)
    return len(words) > 2 and any(word in words[2] for word in ("token", "length", "step", "new"))


class _Caches(_Ability):
    @classmethod
    def found_in(cls, kind: type, how: Constructor) -> bool:
        forward = getattr(kind, "forward", None)
        return (
            callable(getattr(kind, "new_cache", None)) and "cache" in inspect.signature(forward).parameters
            if forward
            else False
        )

    def new_cache(self, model: Model, batch_size: int) -> Any:
        """See `Caches.new_cache`."""
        module: Any = model.module
        return module.new_cache(batch_size)

    def step(self, model: Model, ids: Tensor, cache: Any) -> Tensor:
        """See `Caches.step`."""
        return unpack(model.module(ids, cache=cache))[0]


class _Checkpoints(_Ability):
    @classmethod
    def found_in(cls, kind: type, how: Constructor) -> bool:
        return callable(getattr(kind, "from_pretrained", None)) and callable(getattr(kind, "save_pretrained", None))

    def load_checkpoint(self, directory: Path) -> Model:
        """See `Checkpoints.load_checkpoint`."""
        module = self.target.from_pretrained(directory).eval()
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
    _Caches,
    _Checkpoints,
)


def _config_sizes(directory: Path) -> tuple[tuple[int, int], int]:
    import json

    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return (config["n_layer"], config["n_embd"]), config["n_positions"]
