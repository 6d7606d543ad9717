"""An object of a plain class that computes a GPT, as a module."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from harness.core.errors import SubjectError
from harness.subjects.adapters.not_modules.parameter_nest import Container, register

Setter = Callable[[Any], None]


def builder_of_class(target: Any) -> Callable[..., nn.Module] | None:
    """Return a function that builds a module around an object of `target`; None for what is no plain class to call."""
    if not inspect.isclass(target) or issubclass(target, nn.Module) or _call_of(target) is None:
        return None
    public = [name for name, value in vars(target).items() if inspect.isfunction(value) and not name.startswith("_")]
    methods: dict[str, Any] = {name: _delegating(target, name) for name in public if not hasattr(nn.Module, name)}
    methods["forward"] = _delegating(target, str(_call_of(target)))
    kind: type[ObjectModule] = type(target.__name__, (ObjectModule,), methods)

    @functools.wraps(target, updated=())
    def build(*args: Any, **kwargs: Any) -> nn.Module:
        return kind(target(*args, **kwargs))

    return build


def _call_of(target: type) -> str | None:
    """Return the method that computes logits, `forward` or `__call__`; None if there is none."""
    return next((name for name in ("forward", "__call__") if any(name in vars(c) for c in target.__mro__)), None)


def _delegating(target: type, name: str) -> Callable[..., Any]:
    @functools.wraps(getattr(target, name))
    def method(self: ObjectModule, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._object, name)(*args, **kwargs)

    return method


class ObjectModule(nn.Module):
    """A module around a plain object: the tensors that train become parameters, in the object too.

    These are the ones that its `parameters()` returns, else those that require a gradient, else all of two or fewer
    axes that are no square mask.
    """

    def __init__(self, wrapped: Any) -> None:
        super().__init__()
        self._object = wrapped
        found = list(_members(wrapped, "", set()))
        for path, value, _ in found:
            if isinstance(value, nn.Module):
                self._add(path, value)
        tensors = [(path, value, put) for path, value, put in found if isinstance(value, Tensor)]
        trained = _trained(wrapped, [value for _, value, _ in tensors])
        made: dict[int, nn.Parameter] = {}
        for path, tensor, put in tensors:
            if not any(tensor is each for each in trained):
                continue
            if id(tensor) not in made:
                made[id(tensor)] = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.detach())
                register(self, path, made[id(tensor)])
            put(made[id(tensor)])
        if not any(True for _ in self.parameters()):
            raise SubjectError(
                f"{type(wrapped).__name__} is no torch.nn.Module, and no tensor was found in its attributes; expected "
                "parameters in attributes, dicts and lists"
            )

    def train(self, mode: bool = True) -> ObjectModule:
        """Set the mode, also in the object if it has a flag for it."""
        super().train(mode)
        for holder in [self._object, *(value for _, value, _ in _members(self._object, "", set(), holders=True))]:
            if isinstance(getattr(holder, "training", None), bool):
                holder.training = mode
        return self

    def _add(self, path: str, module: nn.Module) -> None:
        *words, last = path.split(".")
        level: nn.Module = self
        for word in words:
            if word not in level._modules:
                level.add_module(word, Container())
            level = level._modules[word]  # type: ignore[assignment]
        level.add_module(last, module)


def _trained(wrapped: Any, tensors: list[Tensor]) -> list[Tensor]:
    own = getattr(wrapped, "parameters", None)
    if callable(own):
        listed = own()
        return [t for t in (listed.values() if isinstance(listed, dict) else listed) if isinstance(t, Tensor)]
    floating = [t for t in tensors if t.is_floating_point()]
    if any(t.requires_grad for t in floating):
        return [t for t in floating if t.requires_grad]
    return [t for t in floating if t.ndim in (1, 2) and not _is_mask(t)]


def _is_mask(tensor: Tensor) -> bool:
    return tensor.ndim == 2 and tensor.shape[0] == tensor.shape[1] and len(tensor.unique()) <= 2


def _members(holder: Any, path: str, seen: set[int], *, holders: bool = False) -> Iterator[tuple[str, Any, Setter]]:
    """Yield the tensors and modules inside an object, each with its path and a function that replaces it.

    With `holders`, the objects that have them are yielded instead.
    """
    if id(holder) in seen:
        return
    seen.add(id(holder))
    if isinstance(holder, dict):
        items = list(holder.items())
    elif isinstance(holder, list | tuple):
        items = list(enumerate(holder))
    else:
        items = list(getattr(holder, "__dict__", {}).items())
    for key, value in items:
        inner = f"{path}.{key}" if path else str(key)
        put = functools.partial(_replace, holder, key)
        if isinstance(value, Tensor | nn.Module):
            if not holders:
                yield inner, value, put
        elif isinstance(value, dict | list | tuple) or _is_own(value):
            if holders and not isinstance(value, dict | list | tuple):
                yield inner, value, put
            yield from _members(value, inner, seen, holders=holders)


def _is_own(value: Any) -> bool:
    """Return True for an object of a class that is written in Python and is no class or function itself."""
    return hasattr(value, "__dict__") and not inspect.isroutine(value) and not inspect.isclass(value)


def _replace(holder: Any, key: Any, value: Any) -> None:
    if isinstance(holder, dict | list):
        holder[key] = value
    elif isinstance(holder, tuple):
        raise SubjectError(f"a tuple contains parameters that are no nn.Parameter; expected a list ({key})")
    elif getattr(holder, key, None) is not value:
        setattr(holder, key, value)
