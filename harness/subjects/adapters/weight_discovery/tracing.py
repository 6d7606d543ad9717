"""Trace how a forward pass uses each parameter: in which order, for what, and where each of its numbers goes.

The parameters are filled with their own indices. The values that reach a matrix product, an addition or a norm then
identify the entries of the parameter, through any views, transposes and slices in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from harness.core.sizes import Size
from harness.subjects.adapters.weight_discovery.labelled_parameters import LabelledParameters

# Operations that move numbers without changing them.
MOVES = frozenset(
    (
        "view", "_unsafe_view", "reshape", "_reshape_alias", "t", "transpose", "permute", "expand", "clone", "_to_copy",
        "copy_", "alias", "detach", "slice", "select", "split", "split_with_sizes", "unbind", "chunk", "cat", "stack",
        "unsqueeze", "squeeze", "as_strided", "index", "index_select", "gather", "narrow", "repeat", "contiguous",
        "lift_fresh", "flatten", "unflatten", "movedim", "flip", "roll",
    )
)  # fmt: skip
LOOKUPS = frozenset(("embedding", "index", "index_select", "gather"))
PRODUCTS = frozenset(("mm", "addmm", "bmm", "baddbmm", "convolution", "mv", "addmv", "linear"))
SCALINGS = frozenset(("mul", "mul_"))
NORMS = {"native_layer_norm": (2, 3), "native_group_norm": (1, 2)}  # where gain and bias are among the arguments
ADDITIONS = frozenset(("add", "add_", "sub", "sub_"))


@dataclass(eq=False)
class Use:
    """One use of parameters.

    `entries` are indices over the numbers of all parameters: (in, out) of a matrix, (n,) of a vector.
    """

    kind: str  # 'matrix', 'gain', 'bias' or 'table'
    entries: Tensor
    number: int  # the position in execution order
    source: Use | None = None  # of a bias: the matrix or gain to whose result it is added
    # `entries` of a matrix are sorted by memory; these are the channels of the input and the result in that order.
    input_order: Tensor | None = None
    result_order: Tensor | None = None
    channels_first: bool = False  # the matrix was the left operand, or a convolution's: (batch, channels, time)
    input_storage: int = 0  # of a matrix: the memory of the tensor that it was multiplied with
    batch_axes: tuple[int, ...] = ()  # of a batched product: the axes of the result before (time, out)


class Tracing(TorchDispatchMode):
    """Record every use of a labelled parameter inside the block, in `uses`.

    `edit(use, input, result)` is called for each matrix product and returns the result to continue with.
    """

    def __init__(
        self, parameters: LabelledParameters, size: Size, edit: Callable[[Use, Any, Any], Any] | None = None
    ) -> None:
        super().__init__()
        self.parameters, self.width, self.edit = parameters, size.width, edit
        self.tables = {size.vocab_size * size.width, size.context * size.width}
        self.uses: list[Use] = []
        self.results: dict[int, Use] = {}  # the storage of a result -> the use that produced it
        self.labelled = {_storage(p) for p in parameters.module.parameters()}
        self.alive: list[Any] = []  # keeps results alive: the memory of a freed one could be given to another tensor

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name == "bernoulli_":  # a dropout that is active by mistake: drop nothing
            return args[0].fill_(1.0)
        output = function(*args, **(kwargs or {}))
        inputs = [t for t in _tensors((args, kwargs or {})) if t.is_floating_point()]
        if not inputs:
            return output
        labelled = [t for t in inputs if _storage(t) in self.labelled]
        if len(labelled) == len(inputs) and name in MOVES and not self._is_lookup(name, args):
            for tensor in _tensors(output):
                self.labelled.add(_storage(tensor))
                self.alive.append(tensor)
            return output
        if labelled:
            output = self._record(name, args, kwargs or {}, output)
        elif name in MOVES:
            source = self.results.get(_storage(inputs[0]))
            if source is not None:
                for tensor in _tensors(output):
                    self.results.setdefault(_storage(tensor), source)
                    self.alive.append(tensor)
        return output

    def _is_lookup(self, name: str, args: Any) -> bool:
        """Return True for an index by token ids: an index by constants only moves numbers."""
        return name in LOOKUPS and any(isinstance(a, Tensor) and not a.is_floating_point() for a in _tensors(args))

    def _is_labelled(self, tensor: Any) -> bool:
        return isinstance(tensor, Tensor) and tensor.is_floating_point() and _storage(tensor) in self.labelled

    def _record(self, name: str, args: Any, kwargs: Any, output: Any) -> Any:
        if name in LOOKUPS:
            self._add("table", self.parameters.entries(args[0]))
        elif name in NORMS:
            weight, bias = (args[at] for at in NORMS[name])
            gain = self._add("gain", self.parameters.entries(weight)) if self._is_labelled(weight) else None
            if self._is_labelled(bias):
                self._add("bias", self.parameters.entries(bias), source=gain)
            self._set_source(output[0], gain)
        elif name in PRODUCTS:
            output = self._product(name, args, output)
        elif name in SCALINGS or name in ADDITIONS:
            vector = next(t for t in args[:2] if self._is_labelled(t))
            other = next((t for t in args[:2] if isinstance(t, Tensor) and t is not vector), None)
            unique = self.parameters.entries(vector).flatten().unique_consecutive()
            entries = _distinct(self.parameters.entries(vector))
            source = None if other is None else self.results.get(_storage(other))
            if entries is None or unique.numel() == 1:
                return output
            if self.parameters.numel_of(int(unique[0])) in self.tables:
                use = self._add("table", entries)
            else:
                entries = _in_order(entries, source) if name in ADDITIONS else entries.flatten()
                use = self._add("gain" if name in SCALINGS else "bias", entries, source=source)
            self._set_source(output, source if use.kind == "bias" and source is not None else use)
        return output

    def _product(self, name: str, args: Any, output: Any) -> Any:
        bias: Any = None
        if name in ("addmm", "baddbmm"):
            bias, left, right = args[:3]
        elif name in ("convolution", "linear"):
            left, right = args[:2]
            bias = args[2] if len(args) > 2 else None
        else:
            left, right = args[:2]
        use = None
        if self._is_labelled(right) != self._is_labelled(left):
            entries = self.parameters.entries(right if self._is_labelled(right) else left)
            if name in ("linear", "convolution"):
                entries = entries.flatten(1).mT
            elif self._is_labelled(left):
                entries = entries.mT
            matrix, batch_axes = self._matrix(entries)
            if matrix is not None:
                weight_rows, bias_row = self._rows(matrix)
                matrix, bias_of_one = matrix[weight_rows], matrix[bias_row]
                order, result_order = matrix[:, 0].argsort(), matrix[0].argsort()
                input_order = weight_rows[order]
                use = self._add("matrix", matrix[order][:, result_order])
                for row in bias_of_one:
                    self._add("bias", row[result_order], source=use)
                use.input_order, use.result_order, use.batch_axes = input_order, result_order, batch_axes
                other = left if self._is_labelled(right) else right
                use.input_storage = _storage(other)
                use.channels_first = name == "convolution" or self._is_labelled(left)
                if self.edit is not None:
                    output = self.edit(use, other, output)
                self._set_source(output, use)
        if self._is_labelled(bias):
            added = _distinct(self.parameters.entries(bias))
            if added is not None:
                self._add("bias", _in_order(added, use), source=use)
        return output

    def _matrix(self, entries: Tensor) -> tuple[Tensor | None, tuple[int, ...]]:
        """Return the matrix (in, out) and the batch axes of the product; a matrix for each head, side by side."""
        if entries.ndim < 3:
            return (entries if entries.ndim == 2 else None), ()
        first = entries[:, 0, 0]
        heads, order = first.unique().numel(), tuple(dict.fromkeys(first.tolist()))
        matrices = torch.stack([entries[first.tolist().index(value)] for value in order])
        if heads == 1:
            return matrices[0], ()
        batch = entries.shape[0] // heads
        batch_axes = (batch, heads) if first[:heads].tolist() == list(order) else (heads, batch)
        if matrices.shape[1] == self.width:  # (H, C, D): every head reads the whole width
            return matrices.permute(1, 0, 2).flatten(1), batch_axes
        return matrices.flatten(0, 1), batch_axes  # (H, D, C): every head reads its own part

    def _rows(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows of a product's matrix, and the one of another parameter: a bias, for an input with a one."""
        owners = [self.parameters.name_of(entry) for entry in matrix[:, 0].tolist()]
        alone = [n for n, owner in enumerate(owners) if owners.count(owner) == 1]
        if len(alone) != 1 or len(set(owners)) != 2:
            alone = []
        rows = [n for n in range(len(matrix)) if n not in alone]
        return torch.tensor(rows), torch.tensor(alone, dtype=torch.long)

    def _add(self, kind: str, entries: Tensor, source: Use | None = None) -> Use:
        use = Use(kind, entries, len(self.uses), source)
        self.uses.append(use)
        return use

    def _set_source(self, output: Any, use: Use | None) -> None:
        if use is not None:
            for tensor in _tensors(output):
                self.results[_storage(tensor)] = use
                self.alive.append(tensor)


def _in_order(bias: Tensor, product: Use | None) -> Tensor:
    """Return the entries of a vector that is added to a product, in the order of the product's columns."""
    if (
        bias.ndim == 1
        and product is not None
        and product.result_order is not None
        and len(product.result_order) == len(bias)
    ):
        return bias[product.result_order]
    return bias.flatten()


def _distinct(entries: Tensor) -> Tensor | None:
    """Return the entries without the axes along which they are only repeated (expand, a batch)."""
    for axis in range(entries.ndim):
        if entries.shape[axis] > 1 and bool((entries == entries.select(axis, 0).unsqueeze(axis)).all()):
            entries = entries.narrow(axis, 0, 1)
    return entries.squeeze() if entries.numel() else None


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors(nest: Any) -> Iterator[Tensor]:
    if isinstance(nest, Tensor):
        yield nest
    elif isinstance(nest, list | tuple):
        for item in nest:
            yield from _tensors(item)
    elif isinstance(nest, dict):
        yield from _tensors(list(nest.values()))
