"""The model that is trained, and the names of its parameters."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from harness.training.recording import Parameter
from harness.training.recording_files import digest

MOST_SEARCHES = 3  # for a model that is not found: a program may train tensors without a module
POSITIONS = re.compile(r"(^|[._])(wpe|pos_?emb\w*|position\w*|pos_?enc\w*)$")  # a table without an nn.Embedding
WRAPPED = ("module", "_orig_mod")  # in DistributedDataParallel and in what torch.compile returns


class ModelNames:
    """Finds the model among the modules that were called, and names parameters as it does."""

    def __init__(self) -> None:
        self.model: nn.Module | None = None
        self.parameters: dict[str, Parameter] = {}
        self.constants: dict[str, str] = {}  # floating tensors of its modules that are no parameters, as hashes
        self._searches = 0
        self._called: dict[int, nn.Module] = {}
        self._inside: dict[int, nn.Module] = {}
        self._made: dict[int, str] = {}
        self._names: dict[int, str] = {}
        self._unnamed: dict[int, Tensor] = {}  # kept, so that no other tensor gets their id

    def called(self, module: nn.Module) -> None:
        """Note a module that the program called."""
        self._called[id(module)] = module

    def called_inside(self, module: nn.Module) -> None:
        """Note a module that is called inside the call of another one."""
        self._inside[id(module)] = module

    def made(self, module: nn.Module, line: str) -> None:
        """Note the user's line that makes a module."""
        self._made[id(module)] = line

    def largest_called(self) -> list[Tensor]:
        """Return the parameters of the called module that has most elements, each once."""
        called: list[list[Tensor]] = [list(module.parameters()) for module in self._called.values()]
        return max(called, key=lambda own: sum(each.numel() for each in own), default=[])

    def find(self, parameters: Iterable[Tensor]) -> None:
        """Choose the model, once: the called module that owns most of these parameters, without its wrappers."""
        wanted = {id(parameter): parameter.numel() for parameter in parameters}
        if self.model is not None or not wanted or self._searches == MOST_SEARCHES:
            return
        self._searches += 1
        model = _owner_of_most(list(self._called.values()), wanted)
        if model is None or _owned(model, wanted) < sum(wanted.values()):
            # A program that calls the parts of its model has no outermost module: look for one that contains them.
            whole = _owner_of_most([each for each in gc.get_objects() if _is_module(each)], wanted)
            if whole is not None and (model is None or _owned(whole, wanted) > _owned(model, wanted)):
                model = whole
        if model is None:
            return
        self.model = unwrapped(model)
        first: dict[int, str] = {}
        made = {
            id(parameter): self._made.get(id(module), "")
            for module in self.model.modules()
            for parameter in module.parameters(recurse=False)
        }
        tables = {id(module.weight) for module in self.model.modules() if isinstance(module, nn.Embedding)}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            alias = first.get(id(parameter))
            first.setdefault(id(parameter), name)
            kind = str(parameter.dtype).removeprefix("torch.")
            self.parameters[name] = Parameter(
                shape=tuple(parameter.shape),
                dtype=kind,
                requires_grad=parameter.requires_grad,
                embedding=id(parameter) in tables or bool(POSITIONS.search(name)),
                alias_of=alias,
                line=made.get(id(parameter), ""),
            )
        self._names = first
        self._find_unregistered()
        self.constants = {name: digest(each) for name, each in _constants(self.model)}

    def _find_unregistered(self) -> None:
        """Name the parameters of modules that are called inside the model, and are no part of it."""
        parts = {id(module) for module in self.model.modules()} if self.model is not None else set()
        for number, module in enumerate(self._inside.values()):
            if id(module) in parts or any(id(module) in map(id, each.modules()) for each in self._called.values()):
                continue
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.requires_grad and id(parameter) not in self._names:
                    full = f"{type(module).__name__}.{name} of module {number}"
                    self._names[id(parameter)] = full
                    self.parameters[full] = Parameter(
                        shape=tuple(parameter.shape),
                        dtype=str(parameter.dtype).removeprefix("torch."),
                        registered=False,
                        line=self._line_of(module),
                    )

    def _line_of(self, module: nn.Module) -> str:
        """Return the line that made a module, or the one around it that was called."""
        around = [each for each in self._inside.values() if any(part is module for part in each.modules())]
        largest = max(around, key=lambda each: sum(1 for _ in each.modules()), default=module)
        return self._made.get(id(largest), "")

    def of_model(self) -> list[Tensor]:
        """Return the model's parameters, each once."""
        return list(self.model.parameters()) if self.model is not None else []

    def name_of(self, parameter: Tensor) -> str:
        """Return the first name of a parameter in the model; one that is not in it is numbered."""
        key = id(parameter)
        if key not in self._names:
            self._unnamed[key] = parameter
            self._names[key] = f"(not in the model) {len(self._unnamed)}: {tuple(parameter.shape)}"
        return self._names[key]


def _owner_of_most(modules: list[nn.Module], wanted: dict[int, int]) -> nn.Module | None:
    """Return the module that owns most elements of the wanted parameters; of equals, the one with fewest modules."""
    rated = [(_owned(module, wanted), -sum(1 for _ in module.modules()), module) for module in modules]
    best = max(rated, key=lambda item: item[:2], default=None)
    return best[2] if best and best[0] else None


def _owned(module: nn.Module, wanted: dict[int, int]) -> int:
    return sum(wanted.get(id(parameter), 0) for parameter in module.parameters())


def _is_module(thing: object) -> bool:
    # By the type itself: isinstance would run code of objects that pretend to have another class.
    return issubclass(type(thing), nn.Module) and "_parameters" in vars(thing)


def _constants(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the floating tensors of the model's modules that are no parameters, buffers too, with their names."""
    parameters = set(map(id, model.parameters()))
    for prefix, module in model.named_modules():
        for name, value in (*vars(module).items(), *module.named_buffers(recurse=False)):
            if isinstance(value, Tensor) and value.is_floating_point() and id(value) not in parameters:
                yield f"{prefix}.{name}".lstrip("."), value


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the model inside wrappers that own the same parameters."""
    for name in WRAPPED:
        inner = module._modules.get(name)
        if isinstance(inner, nn.Module) and set(map(id, inner.parameters())) == set(map(id, module.parameters())):
            return unwrapped(inner)
    return module


def first_tensor(value: object, *, dims: int, depth: int = 2) -> Tensor | None:
    """Return the first floating-point tensor with at least `dims` dimensions in a model's output."""
    if isinstance(value, Tensor):
        return value if value.is_floating_point() and value.dim() >= dims else None
    if depth == 0 or value is None:
        return None
    if isinstance(value, dict):
        parts = list(value.values())
    elif isinstance(value, list | tuple):
        parts = list(value)
    else:
        parts = list(getattr(value, "__dict__", {}).values())
    found = (first_tensor(part, dims=dims, depth=depth - 1) for part in parts)
    return next((each for each in found if each is not None), None)
