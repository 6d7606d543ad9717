"""Names that modules of the harness had in earlier versions, importable while a subject is imported."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

# An earlier module, and for each of its names the present module and the name there. Adapters import only these.
RENAMED: dict[str, dict[str, tuple[str, str]]] = {
    "harness.adapters": {"adapt": ("harness.subjects.adapters", "adapt")},
    "harness.adapters.calling": {
        name: ("harness.subjects.forward_call", name) for name in ("call", "unpack", "targets_keyword")
    },
    "harness.subject": {"Model": ("harness.subjects.model", "Model")},
    "harness.weights": {
        "Row": ("harness.subjects.weight_map", "MappedWeight"),
        "Layout": ("harness.subjects.weight_map", "Layout"),
        "WeightMap": ("harness.subjects.weight_map", "WeightMap"),
    },
    "harness.size": {name: ("harness.core.sizes", name) for name in ("Size", "SIZES")},
    "harness.errors": {name: ("harness.core.errors", name) for name in ("SubjectError", "MissingAbility")},
}


class RenamedModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """A finder and loader of the earlier names. It is last on sys.meta_path, and only while a subject is imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the spec of a module by its earlier name."""
        if fullname not in RENAMED:
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=fullname == "harness.adapters")

    def exec_module(self, module: ModuleType) -> None:
        """Give the module the present objects under their earlier names."""
        for name, (present, attribute) in RENAMED[module.__name__].items():
            setattr(module, name, getattr(importlib.import_module(present), attribute))

    def forget(self) -> None:
        """Remove the earlier names from sys.modules, and from the package that imports set them on."""
        for name in RENAMED:
            if sys.modules.pop(name, None) is not None and name.count(".") == 1:
                vars(sys.modules["harness"]).pop(name.split(".")[1], None)
