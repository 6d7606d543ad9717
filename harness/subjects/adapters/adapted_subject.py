"""The subject made of any GPT class, factory or module."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.errors import Missing, MissingAbility, SubjectError
from harness.core.process_exit import ProcessExit
from harness.core.seeds import seed_torch
from harness.core.sizes import SIZES, Size
from harness.subjects.adapters.construction.constructor import BY_SIZE, Constructor
from harness.subjects.adapters.construction.settle import is_settled, settle
from harness.subjects.adapters.construction.shapes import lacking, shapes_of
from harness.subjects.adapters.construction.size_search import problem
from harness.subjects.adapters.importing.project import Project
from harness.subjects.adapters.weight_discovery.discovery import discover
from harness.subjects.adapters.weight_discovery.map_at_other_sizes import at_size
from harness.subjects.adapters.weight_discovery.map_by_registration import by_registration
from harness.subjects.adapters.weight_discovery.name_map import read_names
from harness.subjects.compiled import eagerly
from harness.subjects.forward_call import call
from harness.subjects.forward_search import find_style
from harness.subjects.forward_style import is_known, says_how_it_is_called
from harness.subjects.in_dtype import in_dtype
from harness.subjects.model import Model
from harness.subjects.weight_map import WeightMap

SMALL = SIZES["debug"]
# Options under which a subject may have other parameters: each combination has its own weight map.
SHAPING = ("attention", "tied", "bias")
BuildOptions = tuple[tuple[str, Any], ...]
Calling = Callable[[nn.Module, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]


class AdaptedSubject:
    """A GPT class, factory or module as a subject, built and called in its own style."""

    def __init__(
        self,
        name: str,
        target: Any,
        constructor: Constructor,
        kind: type = nn.Module,
        module: ModuleType | None = None,
        project: Project | None = None,
        calling: Calling = call,
    ) -> None:
        self.name = name
        self.target = target
        self.constructor = constructor
        self.kind = kind
        self.module = module
        self.project = project
        self.calling = calling
        self._is_settled = False
        self._maps: dict[tuple[Size, BuildOptions], WeightMap | None] = {}
        self._has_been_called = False

    def build(self, size: Size, *, seed: int = 0, dtype: str = "float32", device: str = "cpu", **options: Any) -> Model:
        """Return a new model in eval mode; see `Subject.build`."""
        seed_torch(seed)
        shaping = tuple(sorted((key, value) for key, value in options.items() if key in SHAPING))
        if self.constructor.takes("seed"):
            options["seed"] = seed
        if device != "meta" and self.constructor.takes("device"):
            options["device"] = device
        # Elsewhere than on the meta device it is built on the CPU and then moved, as programs do it: a table that
        # `.to(device)` leaves behind is then found. A device context is a function mode: it costs a tenth of the time,
        # and the default needs none.
        built_on = torch.device("meta" if device == "meta" else "cpu")
        with contextlib.nullcontext() if torch.get_default_device() == built_on else built_on:
            module = self._built(size, options)
        self._refuse_another_size(module, size)
        module = in_dtype(module.eval(), getattr(torch, dtype))
        return self.model_of(module if device in ("cpu", "meta") else module.to(device), size, shaping)

    def unmapped(self, size: Size) -> Model:
        """Return a new model without a weight map, to be built and called alone."""
        module = self._built(size, {})
        self._refuse_another_size(module, size)
        self._find_style(module, size)
        return Model(module.eval(), size, self.calling, None, "it was not looked for")

    def model_of(self, module: nn.Module, size: Size, shaping: BuildOptions = ()) -> Model:
        """Return the Model of a module that is already built. `shaping` are the SHAPING options it was built with."""
        self._find_style(module, size)
        named = read_names(module, size)
        if not named.unmapped_parameters and not named.undecided and not named.missing(size):
            return Model(module, size, self.calling, WeightMap(named.rows))
        found = self._map(module, size, shaping)
        if found is None or not _is_useful(found, module, size):
            return Model(module, size, self.calling, None, found.gaps if found is not None else "nothing was found")
        return Model(module, found.size or size, self.calling, found)

    def _find_style(self, module: nn.Module, size: Size) -> None:
        """Find out how the class of `module` is called, on a small model of its own; once.

        It is not run for this if its parameters say it: a forward pass may hang or end the process, which is for the
        checks to report.
        """
        if self._has_been_called or is_known(module) or says_how_it_is_called(module):
            return
        self._has_been_called = True
        for small in (SMALL, size):
            with contextlib.suppress(Exception, ProcessExit), torch.random.fork_rng(), torch.device("cpu"):
                module = self.constructor.build(small)
                with eagerly():
                    find_style(module)
                return  # where no call is found, each check that calls the model reports why

    def weight_map(self, shaping: BuildOptions = ()) -> WeightMap | None:
        """Return the map found at the debug size; None if the subject cannot be built at that size."""
        if (SMALL, shaping) not in self._maps:
            self._maps[SMALL, shaping] = self._discover(SMALL, shaping)
        return self._maps[SMALL, shaping]

    def _map(self, module: nn.Module, size: Size, shaping: BuildOptions) -> WeightMap | None:
        """Return the map for `module`: found once at the debug size, which is cheap, and transferred to `size`."""
        small = self.weight_map(shaping)
        if small is not None:
            return small if size == SMALL else self._map_at(size, module, small, shaping)
        if (size, shaping) not in self._maps:  # the subject has only this size
            self._maps[size, shaping] = self._discover(size, shaping)
        return self._maps[size, shaping]

    def _map_at(self, size: Size, module: nn.Module, small: WeightMap, shaping: BuildOptions) -> WeightMap:
        """Return the map of the debug size for `module` at `size`: by names, or by the order of registration."""
        found = at_size(small, SMALL, size, module)
        if found.unmapped_parameters and not small.unmapped_parameters:  # the names do not count the layers
            with torch.device("meta"), contextlib.suppress(Exception):
                names = [name for name, _ in self._built(SMALL, dict(shaping)).named_parameters()]
                return by_registration(small, names, SMALL, size, module) or found
        return found

    def _discover(self, size: Size, shaping: BuildOptions) -> WeightMap | None:
        """Return the map found on a float64 model of its own; None if it cannot be built."""
        try:
            with torch.random.fork_rng(), torch.device("cpu"), torch.enable_grad():
                module = in_dtype(self._built(size, dict(shaping)).eval(), torch.float64)
                self._refuse_another_size(module, size)
                with eagerly():
                    with contextlib.suppress(Exception):
                        self.calling(module, torch.tensor([[1, 2]]), None)  # the trace has to know how it is called
                    return discover(module, size, self.calling)
        except Exception:
            return None  # building fails in every check, with its own error

    def _built(self, size: Size, options: Mapping[str, Any]) -> nn.Module:
        """Return the module. The first time, settings whose names say nothing are found by behaviour if it needs them.

        Raises SubjectError if the module does not have the size because nothing sets it.
        """
        try:
            module = self.constructor.build(size, **options)
            if self._is_settled or is_settled(self.constructor, shapes_of(module), size):
                self._is_settled = True
                return module
        except Missing:
            raise
        except Exception:
            if self._is_settled or not self.constructor.words:
                raise
        self.constructor = settle(self.constructor, self.project, self.name.rpartition(":")[2])
        module = self.constructor.build(size, **options)
        if self.constructor.words and (wrong := problem(self.constructor, shapes_of(module), size)):
            raise SubjectError(f"{self.name.rpartition(':')[2]} cannot be built at the size {size.name}: {wrong}")
        self._is_settled = True
        return module

    def has_one_size(self) -> bool:
        """Return True if nothing sets the subject's sizes: neither settings, nor its own build(size), nor stand-ins."""
        replaced = self.project is not None and bool(self.project.notes.replaced)
        return not self.constructor.words and self.constructor.description != BY_SIZE and not replaced

    def _refuse_another_size(self, module: nn.Module, size: Size) -> None:
        if not self.constructor.words and set(lacking(shapes_of(module), size)) - {"heads"}:
            raise MissingAbility(f"{self.name} is built at a fixed size, which is not {size.name}")


def _is_useful(found: WeightMap, module: nn.Module, size: Size) -> bool:
    """Return True if a comparison by this map is meaningful.

    It is not if a matrix or a gain of GPT-2 is missing while one of the subject is unmapped, or if more than four
    matrices are missing.
    """
    matrices = [row for row in found.missing if row.published.endswith("weight") and ".ln_" not in row.published]
    own = dict(module.named_parameters())
    unmapped = [own[name].numel() for name in found.unmapped_parameters]
    norms = {row.published for row in found.missing if ".ln_" in row.published and row.published.endswith("weight")}
    vectors = [numel for numel in unmapped if numel <= 4 * size.width]
    unexplained = len(vectors) < len(unmapped)
    return bool(found.rows) and not (matrices and (unexplained or len(matrices) > 4)) and not (norms and vectors)
