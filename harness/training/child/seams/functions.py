"""The seam of torch's functions: a mode that sees embeddings, losses, token tensors and what changes gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules import module as modules
from torch.overrides import TorchFunctionMode

from harness.training.child.passes import Passes
from harness.training.child.recorder import Recorder
from harness.training.child.seams.gradients import GradientWatch
from harness.training.child.seams.own_updates import OwnUpdates
from harness.training.child.seams.patches import Patches
from harness.training.child.seams.tensor_lines import INTEGERS
from harness.training.child.seams.token_streams import TokenStreams
from harness.training.child.user_lines import line_of, users_frames

CROSS_ENTROPY = ("input", "target", "weight", "size_average", "ignore_index", "reduce", "reduction", "label_smoothing")
# Functions that may be part of the norm of a gradient. A product is one if it is a square.
READS = (
    *("norm", "vector_norm", "_foreach_norm", "pow", "__pow__", "_foreach_pow"),
    *("square", "sum", "dot", "cat", "stack", "double", "float"),
)
PRODUCTS = ("mul", "__mul__")
# Functions that copy or look at numbers, or allocate memory, with any numbers in it.
MAKE_NO_NAN = frozenset(
    getattr(torch.Tensor, name)
    for name in (
        *("view", "reshape", "transpose", "permute", "expand", "unsqueeze", "squeeze", "flatten", "contiguous"),
        *("split", "chunk", "size", "dim", "numel", "detach", "item", "tolist", "new_empty", "__getitem__", "to"),
    )
) | {torch.empty_like}
MOST_NUMBERS = 1 << 24  # of a result in which NaN is looked for
# Functions that change a gradient in its place.
CHANGES = (
    *("mul_", "div_", "__imul__", "__itruediv__", "clamp_", "clip_", "clamp_max_", "clamp_min_", "copy_"),
    *("_foreach_mul_", "_foreach_div_", "_foreach_clamp_max_", "_foreach_clamp_min_", "_foreach_copy_"),
)


class FunctionSeam(TorchFunctionMode):
    """Sees every call of torch's Python functions in the program's main thread, and passes it on unchanged."""

    def __init__(
        self, recorder: Recorder, passes: Passes, watch: GradientWatch, streams: TokenStreams, updates: OwnUpdates
    ) -> None:
        self.recorder, self.passes, self.watch, self.streams = recorder, passes, watch, streams
        self.updates = updates
        self.lines = passes.lines
        self._step_with_nan = -1
        self._of_gradients: dict[Any, Callable[..., None]] = {
            **_by_function(READS, self._reads),
            **_by_function(PRODUCTS, self._multiplies),
            **_by_function(CHANGES, self._changes),
            vars(torch._C.TensorBase)["grad"].__set__: self._sets_gradient,
        }
        self._before: dict[Any, Callable[..., None]] = {
            F.embedding: self._embedding,
            torch.embedding: lambda args, options: self._embedding((args[1], args[0]), options),
            Tensor.__getitem__: self._index,
            Tensor.__setitem__: self._writes,
        }
        self._after: dict[Any, Callable[..., None]] = {
            F.cross_entropy: self._cross_entropy,
            F.nll_loss: self._nll_loss,
            torch.tensor: self._tensor,
            torch.as_tensor: self._tensor,
            torch.gather: self._gather,
            Tensor.gather: self._gather,
            torch.take_along_dim: self._gather,
            Tensor.take_along_dim: self._gather,
            Tensor.__getitem__: self._picks,
            F.one_hot: self._one_hot,
        }

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        before, after = self._before.get(function), self._after.get(function)
        if before is None and self.watch.armed:
            before = self._of_gradients.get(function)
        if self.updates.waiting and function in self.updates.functions and self.recorder.active:
            with self.recorder.observing():
                self.updates.functions[function](args, options)
        if (before is not None or after is not None) and self.recorder.active:
            if before is not None:
                with self.recorder.observing():
                    before(args, options)
            result = function(*args, **options)
            if after is not None:
                with self.recorder.observing():
                    after(args, options, result)
        else:
            result = function(*args, **options)
        if type(result) is Tensor and result.dtype in INTEGERS and result.dim() > 0 and self.recorder.active:
            with self.recorder.observing():
                self.lines.made(function, args, result)
        if self._step_with_nan != self.recorder.step and function not in MAKE_NO_NAN and torch.is_grad_enabled():
            self._look_for_nan(function, (*args, *options.values()), result)
        return result

    # ------------------------------------------------------------------------ numbers

    def _look_for_nan(self, function: Callable[..., Any], given: Sequence[Any], result: Tensor) -> None:
        """Record the call if it makes the first NaN of a step's training passes, of tensors that have none."""
        if type(result) is not Tensor or not result.is_floating_point() or not self.recorder.active:
            return
        try:
            if result.numel() > MOST_NUMBERS or not bool((result != result).any()):
                return
        except Exception:  # on the meta device, or inside of torch.vmap, no number can be read
            return
        with self.recorder.observing():
            of = [each for each in given if isinstance(each, Tensor) and each.is_floating_point()]
            if of and not any(bool(each.isnan().any()) for each in of):
                self._step_with_nan = self.recorder.step
                name = getattr(function, "__name__", "")
                self.recorder.event("MadeNaN", step=self.recorder.step, function=name, line=self.recorder.line())

    # ------------------------------------------------------------------------ forward passes

    def _embedding(self, args: Any, options: Mapping[str, Any]) -> None:
        ids = args[0] if args else options.get("input")
        if isinstance(ids, Tensor):
            self._saw_ids(ids)

    def _index(self, args: Any, options: Mapping[str, Any]) -> None:
        table, index = args
        if isinstance(index, Tensor) and isinstance(table, torch.nn.Parameter) and table.dim() == 2:
            self._saw_ids(index)

    def _saw_ids(self, ids: Tensor) -> None:
        if self.passes.saw_ids(ids):
            self.streams.look_around(ids)

    def _cross_entropy(self, args: Any, options: Mapping[str, Any], result: Tensor) -> None:
        bound = {**dict(zip(CROSS_ENTROPY, args, strict=False)), **options}
        self.passes.saw_loss(bound["input"], bound["target"], bound, result)

    def _nll_loss(self, args: Any, options: Mapping[str, Any], result: Tensor) -> None:
        bound = {**dict(zip(CROSS_ENTROPY, args, strict=False)), **options, "log_probabilities": True}
        self.passes.saw_loss(bound["input"], bound["target"], bound, result)

    # A loss that the program writes itself picks the score of each target.

    def _gather(self, args: Any, options: Mapping[str, Any], result: Tensor) -> None:
        bound = {**dict(zip(("input", "dim", "index"), args, strict=False)), **options}
        scores, index = bound["input"], bound.get("index", bound.get("indices"))
        if not isinstance(index, Tensor):  # take_along_dim(input, indices, dim)
            index, bound["dim"] = bound.get("dim"), index
        if isinstance(index, Tensor) and bound.get("dim") in (-1, scores.dim() - 1) and index.shape[-1:] == (1,):
            self.passes.saw_own_loss(scores, index[..., 0], result)

    def _picks(self, args: Any, options: Mapping[str, Any], result: Any) -> None:
        scores, index = args
        if type(index) is not tuple or len(index) != scores.dim() or not scores.is_floating_point():
            return
        if all(isinstance(each, Tensor) and each.dtype in INTEGERS for each in index):
            self.passes.saw_own_loss(scores, index[-1], result)

    def _one_hot(self, args: Any, options: Mapping[str, Any], result: Tensor) -> None:
        self.passes.saw_one_hot(args[0] if args else options["tensor"], result)

    def _tensor(self, args: Any, options: Mapping[str, Any], result: Tensor) -> None:
        self.streams.saw(result, "torch.tensor")

    def _writes(self, args: Any, options: Mapping[str, Any]) -> None:
        self.lines.written(args[0], args[2])

    # ------------------------------------------------------------------------ gradients

    def _reads(self, args: Any, options: Mapping[str, Any]) -> None:
        self.watch.read(args[0] if args else None)

    def _multiplies(self, args: Any, options: Mapping[str, Any]) -> None:
        if len(args) == 2 and args[0] is args[1]:
            self.watch.read(args[0])

    def _changes(self, args: Any, options: Mapping[str, Any]) -> None:
        self.watch.changing(args[0] if args else None)

    def _sets_gradient(self, args: Any, options: Mapping[str, Any]) -> None:
        self.watch.changing(args[0].grad)


class ModuleSeam:
    """torch's global hooks of modules: they see the outermost call, which is that of the model."""

    def __init__(self, recorder: Recorder, passes: Passes, updates: OwnUpdates) -> None:
        self.recorder, self.passes, self.updates = recorder, passes, updates
        self._handles: list[Any] = []

    def install(self, patches: Patches) -> None:
        """Register the hooks, and watch `train()`, which `eval()` calls."""
        patches.replace(torch.nn.Module, "train", self._sets_mode)
        patches.replace(torch.nn.Module, "__init__", self._makes)
        self._handles = [
            modules.register_module_forward_pre_hook(self._enter),
            modules.register_module_forward_hook(self._leave, with_kwargs=True, always_call=True),
        ]

    def remove(self) -> None:
        """Remove them."""
        for handle in self._handles:
            handle.remove()

    def _makes(self, original: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(original)
        def init(module: torch.nn.Module, *args: Any, **options: Any) -> None:
            original(module, *args, **options)
            if self.recorder.active:
                own = (frame for frame in users_frames() if all(each is not module for each in frame.f_locals.values()))
                frame = next(own, None)
                self.recorder.names.made(module, "" if frame is None else line_of(frame))

        return init

    def _sets_mode(self, original: Callable[..., torch.nn.Module]) -> Callable[..., torch.nn.Module]:
        @functools.wraps(original)
        def train(module: torch.nn.Module, mode: bool = True) -> torch.nn.Module:
            if not self.recorder.active:  # also for the parts of the module, which are called in here
                return original(module, mode)
            with self.recorder.observing():
                self.passes.mode_line = self.recorder.line()
                return original(module, mode)

        return train

    def _enter(self, module: torch.nn.Module, args: Any) -> None:
        if self.passes.is_inner(module):
            if self.recorder.names.model is None and self.recorder.active:
                self.recorder.names.called_inside(module)
        elif self.recorder.active:
            self.updates.goes_on(surely=True)
            with self.recorder.observing():
                self.passes.enter(module)

    def _leave(self, module: torch.nn.Module, args: Any, *rest: Any) -> None:
        kwargs, output = ({}, *rest) if len(rest) == 1 else rest  # after an exception torch leaves the keywords out
        if not self.passes.is_inner(module) and self.recorder.active:
            with self.recorder.observing():
                self.passes.leave(module, args, kwargs, output)


def _by_function(names: Sequence[str], handler: Callable[..., None]) -> dict[Any, Callable[..., None]]:
    """Return the handler by the functions of these names, wherever torch has them."""
    owners = (torch, Tensor, torch.linalg)
    return {getattr(owner, name): handler for name in names for owner in owners if hasattr(owner, name)}
