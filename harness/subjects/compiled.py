"""Subjects that torch.compile compiles: the class that the user wrote, and how to run them uncompiled."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


def original(module: Any) -> nn.Module:
    """Return the module that torch.compile was given for this one; any other is returned as it is."""
    found: nn.Module = getattr(module, "_orig_mod", module)
    return found


def class_of(module: Any) -> type[nn.Module]:
    """Return the class that the user wrote, of a compiled module too."""
    return type(original(module))


def may_be_compiled() -> bool:
    """Return False if nothing in this process is compiled: what torch.compile needs is not even imported."""
    return "torch._dynamo" in sys.modules


@contextlib.contextmanager
def eagerly() -> Iterator[None]:
    """Run compiled modules and functions uncompiled inside the block.

    A compiled graph does not call the hooks of its modules, and an observer of operations would be compiled with it.
    Nor is it worth seconds of compiling to find out how a GPT is called and what its weights are.
    """
    if not may_be_compiled():  # importing it takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
