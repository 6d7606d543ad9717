"""The weight map of any model: by names where they decide, then by how the forward pass uses the parameters."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from harness.core.sizes import Size
from harness.subjects.adapters.weight_discovery import unmatched_parameters
from harness.subjects.adapters.weight_discovery.name_map import (
    EMBEDDING,
    HEAD,
    NameMap,
    missing_in_gpt2,
    missing_rows,
    read_names,
)
from harness.subjects.adapters.weight_discovery.projection_columns import Calling
from harness.subjects.adapters.weight_discovery.traced_rows import traced_rows
from harness.subjects.weight_map import MappedWeight, WeightMap, family

GATED = {f"mlp.{component}.{leaf}" for component in ("c_gate", "c_fc") for leaf in ("weight", "bias")}


def discover(module: nn.Module, size: Size, call: Calling) -> WeightMap:
    """Return the weight map of a float64 `module`, whose parameters are overwritten.

    Names decide where they can. What they leave undecided is read off one traced forward pass. Parameters that the
    pass does not use, as where a bug skips a layer or a projection, are matched by the other layers, by their weight,
    and by elimination. The map lists the rest as missing and unmapped.
    """
    named = read_names(module, size)
    if not named.unmapped_parameters and not named.undecided:
        return WeightMap(named.rows, named.missing(size))
    notes: list[str] = []
    try:
        used, own_size = traced_rows(module, size, call, notes)
        if own_size != size:
            size, named = own_size, read_names(module, own_size)
    except Exception as error:  # the names still count where the forward pass cannot be traced
        used = []
        notes.append(f"the forward pass could not be followed: {type(error).__name__}: {error}")
    rows = _merged(named, used, size)
    rows += tuple(unmatched_parameters.by_analogy(rows, module, size))
    rows += tuple(unmatched_parameters.with_their_weights(rows, module, size))
    rows += tuple(unmatched_parameters.by_elimination(rows, module, size))
    rows += tuple(unmatched_parameters.head_bias(rows, module, size))
    mapped = {row.own for row in rows}
    unmapped_parameters = tuple(name for name, _ in module.named_parameters() if name not in mapped)
    return WeightMap(rows, missing_in_gpt2(rows, size), unmapped_parameters, tuple(notes), size)


def _merged(named: NameMap, used: list[MappedWeight], size: Size) -> tuple[MappedWeight, ...]:
    """Return the rows by name, corrected where the name is undecided, and rows by use for what is still missing."""
    by_own: dict[str, list[MappedWeight]] = {}
    for row in used:
        by_own.setdefault(row.own, []).append(row)
    rows: list[MappedWeight] = []
    gates = (
        {family(row.published) for row in used} & GATED if size.gated else set()
    )  # their names do not tell them apart
    for row in named.rows:
        if family(row.published) in gates:
            continue
        seen = by_own.get(row.own, [])
        same = [other for other in seen if family(other.published) == family(row.published) or row.published == HEAD]
        if row.own in named.undecided and same and (row.part is None or [o.part for o in same] == [row.part]):
            rows += same
        else:
            rows.append(row)
    if not used and all(row.published != EMBEDDING for row in rows):
        # Where the pass could not be followed, a head without an embedding is taken to be tied.
        rows = [replace(row, published=EMBEDDING) if row.published == HEAD else row for row in rows]
    mapped = {row.own for row in rows}
    for row in used:
        gaps = {(gap.published, gap.part) for gap in missing_rows(tuple(rows), size)}
        fits = (row.published, row.part) in gaps or any(
            published == row.published and (part is None or _is_within(row.part, part)) for published, part in gaps
        )
        if (row.own not in mapped and fits) or (row.published == "lm_head.weight" and row.own not in mapped):
            rows.append(row)
    return tuple(rows)


def _is_within(part: tuple[int, int] | None, gap: tuple[int, int]) -> bool:
    return part is not None and gap[0] <= part[0] and part[1] <= gap[1]
