"""The order of queries, keys and values in a projection, compared with the published order."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from harness.core.sizes import Size
from harness.subjects.adapters.weight_discovery.names import spelled_order
from harness.subjects.adapters.weight_discovery.projection_columns import Column


def spelled_columns(name: str, width: int, size: Size) -> list[Column]:
    """Return the columns in the order that the projection's name spells (`to_kv`); empty where it spells none."""
    edges, D = size.third_edges, size.head_width
    widths = {kind: edges[kind + 1] - edges[kind] for kind in range(3)}
    for parts in (1, 2, 3):
        order = spelled_order(name, parts)
        if order and sum(widths[kind] for kind in order) == width:
            return [Column(kind, column // D) for kind in order for column in range(widths[kind])]
    return []


def column_groups(
    known: list[Column], width: int, position: int, size: Size, *, plain: bool
) -> Iterator[tuple[list[int], int]]:
    """Yield own columns in published order, and the published column at which they begin.

    `known` are the roles of the columns; where it is empty, they are taken to begin at `position`. With `plain`, the
    heads keep the order in which they are stored.
    """
    edges, D = size.third_edges, size.head_width
    if not known:
        yield list(range(width)), position
        return
    groups: dict[int, list[int]] = {}
    for index, column in enumerate(known):
        groups.setdefault(column.kind, []).append(index)
    if sorted(groups) == [0, 1, 2] and [c.kind for c in known] == sorted(c.kind for c in known):
        yield list(range(width)), 0  # the published order, in one piece
        return
    for kind, own in groups.items():
        heads = [known[index].head for index in own]
        if width == D:  # the projection of one head
            yield own, edges[kind] + heads[0] * D
        elif plain or len(own) == width:
            # Separate projections: the stride of their heads belongs to the computation, not to the layout.
            yield own, edges[kind]
        else:
            yield sorted(own, key=lambda index: (known[index].head, index)), edges[kind]


def layout_note(own: str, known: list[Column], C: int) -> list[str]:
    """Return the remark on a fused projection; empty if it is known to have the checkpoint's layout."""
    if not known:
        return [
            f"{own}: its order of queries, keys and values could not be found by behaviour; the published order is "
            "assumed, not proved"
        ]
    kinds = [column.kind for column in known]
    if kinds == sorted(kinds):
        return []
    runs = [len(list(group)) for _, group in itertools.groupby(kinds)]
    words = ", ".join(("queries", "keys", "values")[kind] for kind in dict.fromkeys(kinds))
    mixed = "" if max(runs) >= C else " head by head" if max(runs) > 1 else " number by number"
    name = re.sub(r"\d+", "*", own)
    return [f"{name} contains {words}{mixed}; GPT-2's checkpoint queries, keys, values: a layout difference, not a bug"]
