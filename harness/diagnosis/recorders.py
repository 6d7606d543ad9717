"""Recorders of what a subject does: the modules it creates, the tensors it computes, the tokens it draws."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from harness.core.source_lines import SourceLine, Stack, user_line, user_stack

MOST_MASKS = 30  # that are kept of a pass


@dataclass(frozen=True)
class Step:
    """One operation of the subject: its name in PyTorch, a CPU copy of its result in float64, and the line that called.

    `dtype`: the result's own. `made`: for a layer of PyTorch's (`nn.GELU()`), the line that created the layer.
    `stack`: the user's lines on the stack, innermost first, each with the id of its `self`.
    """

    operation: str
    tensor: Tensor
    dtype: torch.dtype
    line: SourceLine | None
    made: SourceLine | None = None
    stack: Stack = ()

    def line_in(self, owners: frozenset[int] | None) -> SourceLine | None:
        """Return the innermost line within a method of one of these modules (ids); the innermost if there is none."""
        return next((line for line, own in self.stack if owners and own in owners), self.line)


def is_square(tensor: Tensor) -> bool:
    """Return True for the shape of a mask: (..., T, T)."""
    return 2 <= tensor.ndim <= 4 and tensor.shape[-1] == tensor.shape[-2] > 1


class ModuleCreationSites:
    """Record the line of the user's source that creates each module, inside the block.

    `square`: the lines that give a module a tensor, by its name, whose last two axes are as long as each other, as a
    mask's are.
    """

    def __init__(self) -> None:
        self.lines: weakref.WeakKeyDictionary[nn.Module, SourceLine] = weakref.WeakKeyDictionary()
        self.square: weakref.WeakKeyDictionary[nn.Module, dict[str, SourceLine]] = weakref.WeakKeyDictionary()

    def __enter__(self) -> ModuleCreationSites:
        self._original = original = nn.Module.__init__
        self._register, self._set = register, set_attribute = nn.Module.register_buffer, nn.Module.__setattr__

        def init(module: nn.Module, *args: Any, **kwargs: Any) -> None:
            original(module, *args, **kwargs)
            # Its own __init__ calls this one: the line that creates it is the first outside.
            made = [line for line, owner in user_stack() if owner != id(module)]
            if made:
                self.lines[module] = made[0]

        def register_buffer(module: nn.Module, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
            register(module, name, tensor, persistent)
            self._note(module, name, tensor)

        def set_any(module: nn.Module, name: str, value: Any) -> None:
            set_attribute(module, name, value)
            self._note(module, name, value)

        nn.Module.__init__ = init  # type: ignore[method-assign, assignment]
        nn.Module.register_buffer = register_buffer  # type: ignore[method-assign, assignment]
        nn.Module.__setattr__ = set_any  # type: ignore[method-assign, assignment]
        return self

    def __exit__(self, *error: object) -> None:
        nn.Module.__init__ = self._original  # type: ignore[method-assign]
        nn.Module.register_buffer = self._register  # type: ignore[method-assign]
        nn.Module.__setattr__ = self._set  # type: ignore[method-assign]

    def _note(self, module: nn.Module, name: str, value: Any) -> None:
        is_mask = isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and is_square(value)
        if is_mask and (stack := user_stack(1)):
            self.square.setdefault(module, {})[name] = stack[0][0]


class OperationRecorder(TorchDispatchMode):
    """Record a copy of every floating-point tensor that an operation computes, inside the block.

    `masks`: copies of the tensors of booleans whose last two axes are as long as each other, or of numbers that hide.
    """

    def __init__(self, sites: ModuleCreationSites | None = None) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.masks: list[Tensor] = []
        self._sites = sites or ModuleCreationSites()
        self._modules: list[nn.Module] = []

    def __enter__(self) -> OperationRecorder:
        self._hooks = (
            register_module_forward_pre_hook(lambda module, args: self._modules.append(module)),
            register_module_forward_hook(lambda module, args, out: self._leave(module), always_call=True),
        )
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *error: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        super().__exit__(*error)

    def _leave(self, module: nn.Module) -> None:
        if module in self._modules:
            del self._modules[self._modules.index(module) :]

    def _made(self) -> SourceLine | None:
        module = self._modules[-1] if self._modules else None
        if module is None or not type(module).__module__.startswith("torch."):
            return None
        return self._sites.lines.get(module)

    def _note_mask(self, tensor: Tensor) -> None:
        if is_square(tensor):
            if tensor.dtype != torch.bool:
                hidden = tensor < -1e4
                if not bool((hidden | (tensor == 0)).all()):
                    return
                tensor = ~hidden
            tensor = tensor.to("cpu", copy=True)
            if len(self.masks) < MOST_MASKS and not any(torch.equal(tensor, other) for other in self.masks):
                self.masks.append(tensor)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: to skip it, PyTorch would import it first, which takes seconds."""
        return False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for given in (*args, *(kwargs or {}).values()):
            if isinstance(given, Tensor) and not given.is_meta:
                self._note_mask(given)  # a buffer that is used as it is comes out of no operation
        answer = function(*args, **(kwargs or {}))
        line = made = None
        stack: Stack = ()
        for tensor in answer if isinstance(answer, tuple | list) else (answer,):
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and not tensor.is_meta:
                if line is None:
                    stack, made = user_stack(), self._made()
                    line = stack[0][0] if stack else user_line()
                # A copy, because a later operation may write into it; in two steps, because mps has no float64.
                copy = tensor.detach().to("cpu", copy=True).double()
                self.steps.append(Step(function.overloadpacket.__name__, copy, tensor.dtype, line, made, stack))
        return answer


class DrawRecorder(TorchFunctionMode):
    """Record the probabilities that reach `torch.multinomial`, and the first line that calls it, inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.probabilities: list[Tensor] = []  # (N, V) each, float64, normalised
        self.taken: list[Tensor] = []  # (N) each: the probability of what was drawn
        self.line: SourceLine | None = None

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if function not in (torch.multinomial, torch.Tensor.multinomial):
            return function(*args, **given)
        weights = (args[0] if args else given["input"]).detach().cpu().double()
        weights = (weights / weights.sum(-1, keepdim=True)).reshape(-1, weights.shape[-1])
        self.probabilities.append(weights)
        self.line = self.line or user_line()
        drawn: Tensor = function(*args, **given)
        self.taken.append(weights.gather(1, drawn.cpu().reshape(len(weights), -1)[:, :1])[:, 0])
        return drawn
