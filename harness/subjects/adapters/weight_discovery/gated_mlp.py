"""Find which matrix of a gated MLP is the gate, by doubling the result of each."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from harness.core.sizes import Size
from harness.subjects.adapters.weight_discovery.labelled_parameters import LabelledParameters
from harness.subjects.adapters.weight_discovery.projection_columns import Calling
from harness.subjects.adapters.weight_discovery.traced_blocks import TracedBlock
from harness.subjects.adapters.weight_discovery.tracing import Tracing, Use

Part = tuple[int, slice]  # which of the first projections of the MLP, and which of its columns


def gate_columns(
    block: TracedBlock, gains: list[Use], parameters: LabelledParameters, size: Size, call: Calling
) -> tuple[Part, Part] | None:
    """Return where the gate is, and where the projection is that it is multiplied with; None without a gate.

    The product is linear in the latter: if that is doubled, so is what the second projection reads. The activation of
    the gate is not linear. Where neither or both are, the gate is taken to be the first.
    """
    if not size.gated or block.down is None:
        return None
    F = size.hidden_width
    parts = [(0, slice(0, F)), (0, slice(F, 2 * F))] if len(block.up) == 1 else [(0, slice(None)), (1, slice(None))]
    _fill(parameters, gains, size)
    try:
        once = _read(block, parameters, size, call, None)
        linear = [torch.allclose(_read(block, parameters, size, call, part), 2 * once, rtol=1e-9) for part in parts]
    except Exception:  # a bug elsewhere costs no more than the order
        linear = [False, True]
    first, second = parts
    return (second, first) if linear == [True, False] else (first, second)


def _fill(parameters: LabelledParameters, gains: list[Use], size: Size) -> None:
    """Fill the parameters with small random numbers, and the gains with numbers around 1."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(parameters.total, generator=generator, dtype=torch.float64) / math.sqrt(size.width)
    for use in gains:
        numbers[use.entries] += 1.0
    parameters.fill(numbers)


def _read(
    block: TracedBlock, parameters: LabelledParameters, size: Size, call: Calling, doubled: Part | None
) -> Tensor:
    """Return what the second projection reads if the result of a part of the first one is doubled."""
    seen: list[Tensor] = []
    assert block.down is not None
    at = None if doubled is None else block.up[doubled[0]]

    def double(use: Use, read: Tensor, output: Tensor) -> Tensor:
        if block.down is not None and use.number == block.down.number:
            seen.append(read.clone())
        elif doubled is not None and at is not None and use.number == at.number and at.result_order is not None:
            output = output.clone()
            columns = at.result_order[doubled[1]]
            output[..., columns] = 2 * output[..., columns]
        return output

    with torch.no_grad(), Tracing(parameters, size, double):
        call(parameters.module, torch.tensor([[1, 2, 3]]), None)
    return seen[-1]


def mlp_projections(
    block: TracedBlock, first: TracedBlock, gated: tuple[Part, Part] | None
) -> Iterator[tuple[str, Use, slice]]:
    """Yield (component, matrix, columns of it) of the MLP's projections; `gated` was found in the first block."""
    if gated is not None and len(block.up) == len(first.up):
        for component, (which, columns) in zip(("mlp.c_gate", "mlp.c_fc"), gated, strict=True):
            yield component, block.up[which], columns
    elif block.up:
        yield "mlp.c_fc", block.up[-1], slice(None)
    if block.down is not None:
        yield "mlp.c_proj", block.down, slice(None)
