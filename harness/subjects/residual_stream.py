"""Read the residual stream of a model whose blocks are no modules from its operations as they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from harness.subjects.forward_hooks import arranged
from harness.subjects.weight_map import WeightMap

ADDITIONS = frozenset(("add", "__add__", "__radd__", "__iadd__", "add_"))
IN_PLACE = frozenset(("__iadd__", "add_"))
STREAM = (2, 3)  # axes: batch and time may be one
EMBEDDING, DOWN = "transformer.wte.weight", "mlp.c_proj.weight"


class ResidualStream(TorchFunctionMode):
    """Record the sum of the embeddings, and the sum at the end of each block, inside the block.

    A result is followed from the product with a block's last matrix, through operations that take no other tensor (the
    bias, a reshape, a dropout), to the sum with the stream, and to a bias that is added after it. `outputs` contains
    the sums by place, each in `shape()`, which is (B, T, C). `replacement` (B, T, C) replaces the sum of the
    embeddings.
    """

    def __init__(
        self,
        module: nn.Module,
        weights: WeightMap,
        shape: Callable[[], tuple[int, ...]],
        replacement: Tensor | None = None,
    ) -> None:
        super().__init__()
        own = dict(module.named_parameters())
        self.parameters = {_storage(p) for p in own.values()}
        self.tokens = {_storage(own[row.own]) for row in weights.rows if row.published == EMBEDDING}
        self.down = {_storage(own[row.own]) for row in weights.rows if row.published.endswith(DOWN)}
        self.shape, self.replacement = shape, replacement
        self.outputs: dict[str, Tensor] = {}
        self.following: dict[int, str] = {}  # the id of an intermediate result -> the place whose sum it becomes
        self.sums: dict[int, str] = {}  # the id of a sum -> its place
        self.alive: list[Tensor] = []  # keeps results alive: the id of a freed one could be given to another
        self.blocks = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if not isinstance(result, Tensor) or not result.is_floating_point():
            return result
        inputs = list(_tensors((args, kwargs or {})))
        storages = {_storage(t) for t in inputs}
        free = [t for t in inputs if t.is_floating_point() and _storage(t) not in self.parameters]
        if not free and not storages & self.tokens and inputs and all(t.is_floating_point() for t in inputs):
            self._is_made_of_parameters(result, of_down=bool(storages & self.down))
            return result
        place = next((self.following[id(t)] for t in inputs if id(t) in self.following), None)
        name = getattr(function, "__name__", "")
        if place is not None and name in ADDITIONS and len({id(t) for t in inputs}) > 1 and result.ndim in STREAM:
            partner = [t for t in inputs if id(t) not in self.following]
            if free != inputs and place != "embedding":
                self._follow(result, place)  # a bias is added first: the sum with the stream is still to come
            elif partner or place == "embedding":
                return self._record(result, place, in_place=name in IN_PLACE)
        elif name in ADDITIONS and (ended := [self.sums[id(t)] for t in free if id(t) in self.sums]) and free != inputs:
            return self._record(result, ended[0], in_place=name in IN_PLACE)  # a bias after the sum: (x + h W) + b
        elif storages & self.tokens and (not free or not self.blocks) and result.ndim in STREAM:  # one-hot ids are free
            if "embedding" not in self.outputs:
                self._follow(result, "embedding")
        elif storages & self.down and free:
            self._follow(result, f"block {self.blocks}")
            self.blocks += 1
        elif place is not None and len(free) <= 1:
            self._follow(result, place)
        return result

    def _is_made_of_parameters(self, result: Tensor, *, of_down: bool) -> None:
        """Take the result for a parameter, too: a matrix and its bias that are put together, say."""
        self.parameters.add(_storage(result))
        if of_down:
            self.down.add(_storage(result))
        self.alive.append(result)

    def _follow(self, result: Tensor, place: str) -> None:
        self.following[id(result)] = place
        self.alive.append(result)

    def _record(self, result: Tensor, place: str, in_place: bool) -> Tensor:
        self.following = {key: other for key, other in self.following.items() if other != place}
        if place == "embedding" and self.replacement is not None:
            result = arranged(self.replacement.to(result.device), tuple(result.shape))
        self.sums[id(result)] = place
        self.alive.append(result)
        stream = arranged(result, self.shape())
        self.outputs[place] = stream.clone() if in_place else stream  # the next in-place sum overwrites it
        return result


def _storage(tensor: Tensor) -> int:
    """Return the address of a tensor's memory; 0 for one that has none."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # a sparse tensor, a library's own layout, or a meta tensor
        return 0


def _tensors(nest: Any) -> Any:
    if isinstance(nest, Tensor):
        yield nest
    elif isinstance(nest, list | tuple):
        for item in nest:
            yield from _tensors(item)
    elif isinstance(nest, dict):
        yield from _tensors(list(nest.values()))
