"""Transfer a weight map to another size where names do not count the layers: by the order of registration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from harness.core.sizes import Size
from harness.subjects.adapters.not_modules.parameter_nest import Container, register
from harness.subjects.adapters.weight_discovery.map_at_other_sizes import at_size
from harness.subjects.weight_map import WeightMap


def by_registration(
    found: WeightMap, names: Sequence[str], small: Size, size: Size, module: nn.Module
) -> WeightMap | None:
    """Return the map `found`, valid at size `small`, for `module` at `size`; None where the order does not tell.

    `names` are the parameters' at the small size, in order. It tells if each layer has the same number of them, one
    layer after the other, as where layers are called by letters, or counted within stages.
    """
    layers: dict[str, set[str]] = {}
    for row in found.rows:
        words = row.published.split(".")
        layers.setdefault(row.own, set()).add(words[2] if words[1] == "h" else "")
    at = [next(iter(layers.get(name, {"?"}))) if len(layers.get(name, ())) == 1 else "?" for name in names]
    inside = [n for n, layer in enumerate(at) if layer not in ("", "?")]
    if not inside or "?" in at:
        return None
    start, count = inside[0], len(inside) // small.layers
    if at[start:][: small.layers * count] != [str(layer) for layer in range(small.layers) for _ in range(count)]:
        return None
    big = [name for name, _ in module.named_parameters()]
    if len(big) != len(names) + (size.layers - small.layers) * count:
        return None
    canonical = dict(zip(names, _counted(len(names), start, count, small.layers), strict=True))
    own = dict(zip(_counted(len(big), start, count, size.layers), big, strict=True))
    renamed = replace(found, rows=tuple(replace(row, own=canonical[row.own]) for row in found.rows))
    container, parameters = Container(), dict(module.named_parameters())
    for name, original in own.items():
        register(container, name, parameters[original])
    made = at_size(renamed, small, size, container)
    rows = tuple(replace(row, own=own[row.own]) for row in made.rows)
    return replace(made, rows=rows, unmapped_parameters=tuple(own[name] for name in made.unmapped_parameters))


def _counted(total: int, start: int, count: int, layers: int) -> list[str]:
    """Return names that count the layers, for parameters in order of registration."""
    end = start + layers * count
    inside = [f"layer.{layer}.part.{part}" for layer in range(layers) for part in range(count)]
    return [*(f"before.{n}" for n in range(start)), *inside, *(f"after.{n}" for n in range(total - end))]
