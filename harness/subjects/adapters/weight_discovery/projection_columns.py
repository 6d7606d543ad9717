"""Find which columns of the attention's input projections are queries, keys and values, by perturbing each of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.sizes import Size
from harness.subjects.adapters.weight_discovery.labelled_parameters import LabelledParameters
from harness.subjects.adapters.weight_discovery.traced_blocks import TracedBlock
from harness.subjects.adapters.weight_discovery.tracing import Tracing, Use

Calling = Callable[[nn.Module, Tensor, Tensor | None], Any]
PERTURBATION = 0.1
# Relative to the largest number that the output projection reads; far above the rounding of float64, about 1e-16.
SMALLEST_CHANGE = 1e-9


@dataclass(frozen=True)
class Column:
    """The role of one column of a projection."""

    kind: int  # 0 query, 1 key, 2 value
    head: int  # of the queries, or of the keys and values, which may be fewer


def projection_columns(
    block: TracedBlock, gains: list[Use], parameters: LabelledParameters, size: Size, call: Calling
) -> dict[Use, list[Column]]:
    """Return the role of each column of a block's input projections; empty where behaviour does not decide for all."""
    widths = [use.entries.shape[1] for use in block.attention_in]
    if sum(widths) != size.third_edges[-1] or not block.attention_out:
        return {}
    perturbation = ColumnPerturbation(block, gains, parameters, size, call)
    try:
        found = perturbation.columns() or perturbation.columns(time_first=True)
    except Exception:  # a bug elsewhere, such as positions counted along the batch, costs no more than the order
        return {}
    if found is None:
        return {}
    starts = itertools.accumulate([0, *widths])
    return {
        use: found[start : start + width]
        for use, start, width in zip(block.attention_in, starts, widths)  # noqa: B905 - one start too many
    }


class ColumnPerturbation:
    """Perturb the columns of the attention's input projections and observe the input of its output projection.

    Nothing after that input can influence the answer, nor can the scale, the mask or the kernel of the attention. It
    is observed at the last position. In a sequence of one token only a value changes it. In a sequence of two a key
    perturbed at the first position changes it, and a query does only at the last. Each row of a batch has another
    column perturbed.
    """

    def __init__(
        self, block: TracedBlock, gains: list[Use], parameters: LabelledParameters, size: Size, call: Calling
    ) -> None:
        self.block, self.gains, self.parameters, self.size, self.call = block, gains, parameters, size, call
        self.total = size.third_edges[-1]
        self.time_first = False

    def columns(self, *, time_first: bool = False) -> list[Column] | None:
        """Return the role of each column; None where the changes do not decide.

        `time_first`: the model computes in (time, batch, channels).
        """
        self.time_first = time_first
        self._fill_parameters()
        alone, at_first, at_last = (self._changes(*run) for run in ((1, 0), (2, 0), (2, 1)))
        found = []
        for column in range(self.total):
            kind, changed = next(
                (
                    (kind, run[column])
                    for kind, run in ((2, alone), (1, at_first), (0, at_last))
                    if bool(run[column].any())
                ),
                (None, None),
            )
            if kind is None or changed is None:
                return None
            head = self._head(kind, set((changed.nonzero().flatten() // self.size.head_width).tolist()))
            if head is None:
                return None
            found.append(Column(kind, head))
        counts = [sum(column.kind == kind for column in found) for kind in range(3)]
        K = self.size.key_value_width
        return found if counts == [self.size.width, K, K] else None

    def _head(self, kind: int, changed: set[int]) -> int | None:
        """Return the head of a column, given the heads of queries that it changes; None if these are no such group.

        Keys and values of fewer heads than the queries change several: neighbours, or every so many.
        """
        shared = 1 if kind == 0 else self.size.width // self.size.key_value_width
        first = min(changed)
        if changed == set(range(first, first + shared)) and first % shared == 0:
            return first // shared
        apart = self.size.heads // shared
        return first if changed == set(range(first, self.size.heads, apart)) and first < apart else None

    def _fill_parameters(self) -> None:
        """Fill every parameter with small random numbers: a softmax that a wrong scale saturates would not change."""
        generator = torch.Generator().manual_seed(0)
        numbers = torch.randn(self.parameters.total, generator=generator, dtype=torch.float64)
        numbers *= 0.3 / math.sqrt(self.size.width)
        for use in self.gains:
            numbers[use.entries] += 1.0
        self.parameters.fill(numbers)

    def _changes(self, length: int, position: int) -> Tensor:
        """Return which channels of the output projection's input change at the last position, (columns, C) bool."""
        rows = self.total + 1  # the last row is not perturbed
        ids = torch.arange(1, length + 1).expand(rows, length)
        seen: list[Tensor] = []
        by_number = {use.number: use for use in (*self.block.attention_in, *self.block.attention_out)}

        def perturb(use: Use, read: Tensor, output: Tensor) -> Tensor:
            own = by_number.get(use.number)
            if own in self.block.attention_out:
                seen.append(self._batch_first(read, own, rows, length)[..., own.input_order].clone())
            elif own is not None:
                before = self.block.attention_in[: self.block.attention_in.index(own)]
                start = sum(other.entries.shape[1] for other in before)
                width = own.entries.shape[1]
                change = torch.zeros(rows, length, width, dtype=output.dtype)
                change[torch.arange(start, start + width), position, own.result_order] = PERTURBATION
                output = output + self._like_result(change, own, output)
            return output

        with torch.no_grad(), Tracing(self.parameters, self.size, perturb):
            self.call(self.parameters.module, ids.contiguous(), None)
        # The call runs the module twice if it returns the last position only: the last run counts.
        last = torch.cat(seen[-len(self.block.attention_out) :], dim=-1)[:, -1]
        return (last[:-1] - last[-1:]).abs() > SMALLEST_CHANGE * last.abs().max()

    def _batch_first(self, tensor: Tensor, use: Use, rows: int, length: int) -> Tensor:
        """Return the input of a product as (batch, time, channels)."""
        if use.batch_axes:
            heads = tensor.shape[0] // rows
            if use.batch_axes[0] == heads:
                return tensor.view(heads, rows, length, -1).permute(1, 2, 0, 3).flatten(2)
            return tensor.view(rows, heads, length, -1).transpose(1, 2).flatten(2)
        if use.channels_first:
            return tensor.reshape(rows, -1, length).mT
        if self.time_first:
            return tensor.reshape(length, rows, -1).transpose(0, 1)
        return tensor.reshape(rows, length, -1)

    def _like_result(self, tensor: Tensor, use: Use, result: Tensor) -> Tensor:
        """Return `tensor` (batch, time, channels) in the layout of a product's result."""
        rows, length, _ = tensor.shape
        if use.batch_axes:
            heads = result.shape[0] // rows
            by_head = tensor.view(rows, length, heads, -1)
            heads_outermost = use.batch_axes[0] == heads
            return (by_head.permute(2, 0, 1, 3) if heads_outermost else by_head.transpose(1, 2)).reshape(result.shape)
        if use.channels_first:
            tensor = tensor.mT
        elif self.time_first:
            tensor = tensor.transpose(0, 1)
        return tensor.reshape(result.shape)
