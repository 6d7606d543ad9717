"""The measures, one subject matter a module."""

import importlib
import pkgutil


def load_all() -> None:
    """Import every module beside this one, so that each registers its measures."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
