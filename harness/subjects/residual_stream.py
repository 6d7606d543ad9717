"""The residual stream of a model whose blocks are no modules: read off its operations as they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from harness.subjects.forward_hooks import arranged
from harness.subjects.weight_map import WeightMap

ADDING = frozenset(("add", "__add__", "__radd__", "__iadd__", "add_"))
IN_PLACE = frozenset(("__iadd__", "add_"))
EMBEDDING, DOWN = "transformer.wte.weight", "mlp.c_proj.weight"


class Streams(TorchFunctionMode):
    """While open, notes the sum of the embeddings, and of each block the sum that its feed-forward layer ends in.

    A result is followed from the product with a block's last matrix through what takes no other tensor (the bias, a
    reshape, a dropout) to the sum with the stream, and to a bias that is added after it. `outputs` holds them, each in
    `shape()`, which is (B, T, C). `replacement` (B, T, C) takes the place of the embeddings' sum.
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
        self.following: dict[int, str] = {}  # a result's id -> the place that it is on its way to
        self.there: dict[int, str] = {}  # a sum's id -> the block that it ends
        self.alive: list[Tensor] = []  # or the id of one that is gone comes back as another's
        self.blocks = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if not isinstance(result, Tensor) or not result.is_floating_point():
            return result
        given = list(_tensors((args, kwargs or {})))
        storages = {_storage(t) for t in given}
        free = [t for t in given if t.is_floating_point() and _storage(t) not in self.parameters]
        place = next((self.following[id(t)] for t in given if id(t) in self.following), None)
        name = getattr(function, "__name__", "")
        if place is not None and name in ADDING and len({id(t) for t in given}) > 1 and result.ndim == 3:
            partner = [t for t in given if id(t) not in self.following]
            if free != given and place != "embedding":
                self._follow(result, place)  # a bias: still on its way
            elif partner or place == "embedding":
                return self._arrived(result, place, in_place=name in IN_PLACE)
        elif name in ADDING and (ended := [self.there[id(t)] for t in free if id(t) in self.there]) and free != given:
            return self._arrived(result, ended[0], in_place=name in IN_PLACE)  # the bias after the sum: (x + h W) + b
        elif storages & self.tokens and not free and result.ndim == 3:
            if "embedding" not in self.outputs:
                self._follow(result, "embedding")
        elif storages & self.down and free:
            self._follow(result, f"block {self.blocks}")
            self.blocks += 1
        elif place is not None and len(free) <= 1:
            self._follow(result, place)
        return result

    def _follow(self, result: Tensor, place: str) -> None:
        self.following[id(result)] = place
        self.alive.append(result)

    def _arrived(self, result: Tensor, place: str, in_place: bool) -> Tensor:
        self.following = {key: other for key, other in self.following.items() if other != place}
        if place == "embedding" and self.replacement is not None:
            result = arranged(self.replacement, tuple(result.shape))
        self.there[id(result)] = place
        self.alive.append(result)
        kept = arranged(result, self.shape())
        self.outputs[place] = kept.clone() if in_place else kept  # what comes next will write into it
        return result


def _storage(tensor: Tensor) -> int:
    """What tells a tensor's memory; 0 for one that has none."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # sparse, in a library's own layout, or not computed at all
        return 0


def _tensors(nest: Any) -> Any:
    if isinstance(nest, Tensor):
        yield nest
    elif isinstance(nest, list | tuple):
        for item in nest:
            yield from _tensors(item)
    elif isinstance(nest, dict):
        yield from _tensors(list(nest.values()))
