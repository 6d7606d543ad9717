"""A GPT's own function that copies the tensors of a published checkpoint into a model."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import nn

from harness.core.errors import SubjectError
from harness.subjects.adapters.generation import MODELS

NAMES = re.compile(r"load|copy|assign|import|from_")
# What such functions are called that load something else, or from somewhere else.
OTHERS = re.compile(r"token|data|text|file|path|config|batch|merge|load_state_dict|from_pretrained$|vocab|optim")
# A part of the name of the parameter that takes the tensors.
TENSORS = ("state", "sd", "weight", "param", "tensor", "checkpoint", "ckpt", "dict", "gpt2", "hf", "pretrained")


@dataclass(frozen=True)
class TensorLoader:
    """A method of tensors, a class method that makes the model of them, or a function (model, tensors)."""

    function: Callable[..., Any]
    kind: str  # "method", "class method" or "function"

    @property
    def line(self) -> tuple[str, int]:
        """The file and the line of its `def`."""
        code = inspect.unwrap(self.function).__code__
        lines, first = inspect.getsourcelines(code)
        return code.co_filename, first + next(n for n, line in enumerate(lines) if line.lstrip().startswith("def "))

    def load(self, module: nn.Module, tensors: Any) -> nn.Module:
        """Return the module with the tensors, which may be another one. Raises what the function raises."""
        if self.kind == "class method":
            answer = getattr(type(module), self.function.__name__)(tensors)
        else:
            answer = self.function(module, tensors)
        if self.kind == "class method" and not isinstance(answer, nn.Module):
            raise SubjectError(f"{self.function.__name__} returned {type(answer).__name__}; expected a model")
        return answer if isinstance(answer, nn.Module) else module


def tensor_loader_of(kind: type, module: ModuleType | None) -> TensorLoader | None:
    """Return the loader of a class, a method of its own or a function of its module; None if it has none."""
    for base in kind.__mro__:
        if base.__module__.startswith(("torch.", "transformers.", "builtins")):
            break
        for name, member in vars(base).items():
            function = member.__func__ if isinstance(member, classmethod) else member
            if not inspect.isfunction(function) or not _is_called_so(name):
                continue
            if _takes_tensors(_required(function)[1:]):
                return TensorLoader(function, "class method" if isinstance(member, classmethod) else "method")
    for name, function in vars(module).items() if module is not None else ():
        if inspect.isfunction(function) and function.__module__ == module.__name__ and _is_called_so(name):  # type: ignore[union-attr]
            required = _required(function)
            if required and required[0] in (*MODELS, "m") and _takes_tensors(required[1:]):
                return TensorLoader(function, "function")
    return None


def _is_called_so(name: str) -> bool:
    return NAMES.search(name) is not None and OTHERS.search(name) is None


def _required(function: Callable[..., Any]) -> list[str]:
    parameters: Mapping[str, inspect.Parameter] = inspect.signature(function).parameters
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, each in parameters.items() if each.default is inspect.Parameter.empty and each.kind in kinds]


def _takes_tensors(words: list[str]) -> bool:
    return len(words) == 1 and any(part in words[0].lower() for part in TENSORS)
