"""The weight map that the names and shapes of a model's parameters give, without running the model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from torch import nn

from harness.core.sizes import Size
from harness.subjects.adapters.weight_discovery.layer_numbers import numbered
from harness.subjects.adapters.weight_discovery.names import ParsedName, parse_name
from harness.subjects.adapters.weight_discovery.parameter_rows import row_by_name
from harness.subjects.weight_map import MappedWeight, WeightMap, published_shapes

EMBEDDING, HEAD = "transformer.wte.weight", "lm_head.weight"


@dataclass(frozen=True)
class NameMap:
    """The rows that names give, the own parameters without a row, and the rows that the names leave undecided."""

    rows: tuple[MappedWeight, ...]
    unmapped_parameters: tuple[str, ...]
    undecided: frozenset[str]  # own names: a square matrix of unknown orientation, a fused one of unknown order

    def missing(self, size: Size) -> tuple[MappedWeight, ...]:
        """Return the published parameters, or parts of them, that have no row."""
        return missing_rows(self.rows, size)


def map_by_names(module: nn.Module, size: Size) -> WeightMap:
    """Return the weight map of `module`. Raises ValueError naming the parameters without a partner on either side."""
    named = read_names(module, size)
    found = WeightMap(named.rows, named.missing(size), named.unmapped_parameters)
    if found.gaps:
        raise ValueError(found.gaps)
    return found


def read_names(module: nn.Module, size: Size) -> NameMap:
    """Return what the names and shapes of the parameters give."""
    shapes = published_shapes(size)
    rows: dict[tuple[str, tuple[int, int] | None], MappedWeight] = {}
    unmapped_parameters, undecided = [], set()
    parsed_names = _parsed_names(module, size)
    numbers = sorted({p.layer for p in parsed_names.values() if p is not None and p.layer is not None})
    for name, parameter in module.named_parameters():
        parsed = parsed_names[name]
        if parsed is not None and parsed.layer is not None and len(numbers) == size.layers:
            # Layers need not be numbered from zero.
            parsed = replace(parsed, layer=numbers.index(parsed.layer))
        row, settled = (
            (None, False) if parsed is None else row_by_name(name, parsed, tuple(parameter.shape), size, shapes, module)
        )
        if row is None or (row.published, row.part) in rows:
            unmapped_parameters.append(name)
            continue
        rows[row.published, row.part] = row
        if not settled:
            undecided.add(name)
    if (EMBEDDING, None) not in rows and (HEAD, None) in rows:
        # A head without an embedding may be both, under this name alone: how it is used decides.
        undecided.add(rows[HEAD, None].own)
    return NameMap(tuple(rows.values()), tuple(unmapped_parameters), frozenset(undecided))


def _parsed_names(module: nn.Module, size: Size) -> dict[str, ParsedName | None]:
    """Return the meaning of each parameter, by its first name: that of any of its names, the embedding's first.

    A tied head and the token embedding are one parameter with two names. A name whose number of the layer is not one
    that counts the layers, as in `attention_0.1.wq`, means nothing.
    """
    first: dict[int, str] = {}
    found: dict[str, ParsedName | None] = {}
    layers = numbered(module, size)
    for name, parameter in module.named_parameters(remove_duplicate=False):
        parsed = parse_name(name, size)
        if parsed is not None and parsed.layer is not None and name in layers and parsed.layer != layers[name].number:
            parsed = None
        own = first.setdefault(id(parameter), name)
        before = found.get(own)
        if before is None or (before.published == HEAD and parsed is not None):
            found[own] = parsed
    claims = Counter((p.published, p.part) for name, p in found.items() if p is not None and name not in layers)
    # Layers that are called by letters: a number that counts something else is the same in all of them.
    return {
        name: None if p is not None and p.layer is not None and claims[p.published, p.part] > 1 else p
        for name, p in found.items()
    }


def missing_rows(rows: tuple[MappedWeight, ...], size: Size) -> tuple[MappedWeight, ...]:
    """Return the published parameters, or parts of them, that have no row, as rows without an own name."""
    missing = []
    for name, shape in published_shapes(size).items():
        mapped = [row for row in rows if row.published == name]
        if not mapped:
            missing.append(MappedWeight(name, ""))
            continue
        axis = mapped[0].axis
        position = 0
        for start, stop in sorted(row.part or (0, shape[axis]) for row in mapped):
            if start > position:
                missing.append(MappedWeight(name, "", part=(position, start), axis=axis))
            position = max(position, stop)
        if position < shape[axis]:
            missing.append(MappedWeight(name, "", part=(position, shape[axis]), axis=axis))
    return tuple(missing)


def missing_in_gpt2(rows: tuple[MappedWeight, ...], size: Size) -> tuple[MappedWeight, ...]:
    """Return the missing rows without those of a gate's bias: GPT-2 has no gate, and a gate need not have a bias."""
    return tuple(row for row in missing_rows(rows, size) if not row.is_beyond_gpt2)
