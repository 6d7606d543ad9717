"""The function that builds a module around a subject that is none."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import nn

from harness.subjects.adapters.not_modules.function_module import builder_of_function
from harness.subjects.adapters.not_modules.object_module import builder_of_class


def module_builder(target: Any, module: ModuleType) -> Callable[..., nn.Module] | None:
    """Return a function that builds a module around `target`: a forward pass over parameters, or a plain class.

    None for anything else, such as a class of modules or a factory of them.
    """
    return builder_of_function(target, module) or builder_of_class(target)
