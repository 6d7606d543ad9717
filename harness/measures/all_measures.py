"""Every measure by name. Importing a module of `harness.measures` registers the measures in it."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping

import harness.measures
from harness.suites.measure_registry import REGISTRY, Measure


@functools.cache
def measures() -> Mapping[str, Measure]:
    """Return every measure by its name. The first call imports the modules of `harness.measures`."""
    for module in pkgutil.walk_packages(harness.measures.__path__, prefix="harness.measures."):
        importlib.import_module(module.name)
    return REGISTRY
