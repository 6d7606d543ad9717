"""The weight map of a model whose names do not say enough: shapes and the order of use propose, behaviour decides."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.sizes import Size
from harness.subjects.adapters import unmatched_parameters, weight_names
from harness.subjects.adapters.tracing import Parameters, Tracing, Use
from harness.subjects.weight_map import Layout, MappedWeight, WeightMap, family, published_shapes

Calling = Callable[[nn.Module, Tensor, Tensor | None], Any]


def discover(module: nn.Module, size: Size, call: Calling) -> WeightMap:
    """The weight map of `module`, whose numbers are overwritten; float64. What nothing tells is missing or strange.

    Names decide where they speak; what they leave open is read off one traced forward pass. What that does not use, as
    where a layer or a projection is skipped by mistake, goes by the other layers, its weight, and what is left over.
    """
    read = weight_names.read_names(module, size)
    if not read.unmapped_parameters and not read.open:
        return WeightMap(read.rows, read.missing(size))
    notes: list[str] = []
    try:
        used = _Reader(module, size, call).rows(notes)
    except Exception as error:  # a style that cannot be read must not take from the user what the names say
        used = []
        notes.append(f"the forward pass could not be followed: {type(error).__name__}: {error}")
    rows = _reconciled(read, used, module, size)
    rows += tuple(unmatched_parameters.by_analogy(rows, module, size))
    rows += tuple(unmatched_parameters.with_their_weights(rows, module, size))
    rows += tuple(unmatched_parameters.by_elimination(rows, module, size))
    own = {row.own for row in rows}
    unmapped_parameters = tuple(name for name, _ in module.named_parameters() if name not in own)
    return WeightMap(rows, weight_names.absent(rows, size), unmapped_parameters, tuple(notes))


def _reconciled(
    read: weight_names.ParsedNames, used: list[MappedWeight], module: nn.Module, size: Size
) -> tuple[MappedWeight, ...]:
    """Rows by name, corrected where the name left something open; then, for what is still missing, rows by use."""
    by_own: dict[str, list[MappedWeight]] = {}
    for row in used:
        by_own.setdefault(row.own, []).append(row)
    rows: list[MappedWeight] = []
    for row in read.rows:
        seen = by_own.get(row.own, [])
        same = [other for other in seen if family(other.published) == family(row.published)]
        if row.own in read.open and same and (row.part is None or [o.part for o in same] == [row.part]):
            rows += same
        else:
            rows.append(row)
    taken = {row.own for row in rows}
    for row in used:
        gaps = {(gap.published, gap.part) for gap in weight_names.absent(tuple(rows), size)}
        fits = (row.published, row.part) in gaps or any(
            published == row.published and (part is None or _within(row.part, part)) for published, part in gaps
        )
        if (row.own not in taken and fits) or (row.published == "lm_head.weight" and row.own not in taken):
            rows.append(row)
    return tuple(rows)


def _within(part: tuple[int, int] | None, gap: tuple[int, int]) -> bool:
    return part is not None and gap[0] <= part[0] and part[1] <= gap[1]


@dataclass
class _Block:
    """The matrix products of one layer, in execution order."""

    into: list[Use] = field(default_factory=list)  # queries, keys and values
    out: list[Use] = field(default_factory=list)
    up: Use | None = None
    down: Use | None = None


class _Reader:
    """Reads rows off one forward pass over labelled parameters."""

    def __init__(self, module: nn.Module, size: Size, call: Calling) -> None:
        self.module, self.size, self.call = module, size, call
        self.parameters = Parameters(module)
        self.shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}

    def rows(self, notes: list[str]) -> list[MappedWeight]:
        """Every row that the forward pass tells."""
        self.parameters.label()
        with Tracing(self.parameters, self.size) as tracing:
            self.call(self.module, torch.tensor([[1, 2]]), None)
        uses = _first_of_each(tracing.uses)
        blocks, rest = self._blocks([use for use in uses if use.kind == "matrix"])
        rows = list(self._tables([use for use in uses if use.kind == "table"] + rest))
        rows += self._norms(uses, blocks)
        biases = self._biases(uses)
        if not blocks:
            return rows
        first = next(iter(blocks.values()))
        columns = self._columns(first, [use for use in uses if use.kind == "gain"])
        for layer, block in blocks.items():
            h = f"transformer.h.{layer}"
            for component, use in ((f"{h}.mlp.c_fc", block.up), (f"{h}.mlp.c_proj", block.down)):
                if use is not None:
                    rows += self._projection(component, use, biases)
            rows += self._parts(f"{h}.attn.c_proj", block.out, biases, axis=0)
            rows += self._attention_in(
                f"{h}.attn.c_attn", block, first, columns, biases, notes if block is first else []
            )
        return rows

    def _blocks(self, matrices: list[Use]) -> tuple[dict[int, _Block], list[Use]]:
        """The products by layer, in execution order; and those with a table."""
        C, V = self.size.width, self.size.vocab_size
        rest = [
            use
            for use in matrices
            if max(use.entries.shape) >= V and C in use.entries.shape and max(use.entries.shape) not in (3 * C, 4 * C)
        ]
        inside = [use for use in matrices if use not in rest]
        by_layer: dict[int, list[Use]] = {}
        for use, layer in zip(inside, self._layers(inside), strict=True):
            by_layer.setdefault(layer, []).append(use)
        return {layer: self._block(uses) for layer, uses in by_layer.items()}, rest

    def _layers(self, uses: list[Use]) -> list[int]:
        """The layer of each product: by its parameter's number; where that says nothing, one ends where it narrows."""
        numbered = unmatched_parameters.numbered(self.module, self.size)
        named = [numbered.get(self._own_name(use)) for use in uses]
        if None not in named:
            return [place.layer for place in named if place is not None]
        C = self.size.width
        narrowing = [tuple(use.entries.shape) == (4 * C, C) for use in uses]
        found = [sum(narrowing[:at]) for at in range(len(uses))]
        if sum(narrowing) > self.size.layers:
            raise LookupError(f"{sum(narrowing)} feed-forward layers in the forward pass, expected {self.size.layers}")
        return found

    def _block(self, uses: list[Use]) -> _Block:
        C = self.size.width
        found = _Block()
        attention = []
        for use in uses:
            if tuple(use.entries.shape) == (C, 4 * C):
                found.up = use
            elif tuple(use.entries.shape) == (4 * C, C):
                found.down = use
            else:
                attention.append(use)
        found.out = [use for use in attention if use.entries.shape[0] < C]
        if not found.out and sum(use.entries.shape[1] for use in attention) > 3 * C:
            found.out = attention[-1:]
        elif not found.out:  # one of the four is not used: the output projection reads what no other does
            found.out = [use for use in attention[-1:] if use.reads != attention[0].reads]
        found.into = [use for use in attention if use not in found.out]
        return found

    def _tables(self, uses: list[Use]) -> Iterator[MappedWeight]:
        """Embeddings and head: which they are, their number of rows tells."""
        seen = set()
        for use in uses:
            own, _ = self.parameters.of(int(use.entries.flatten()[0]))
            if own in seen:  # tied, or looked up twice
                continue
            seen.add(own)
            shape = self.shapes[own]
            core = tuple(n for n in shape if n != 1)
            if len(core) != 2:
                continue
            is_head = use.kind == "matrix" and use.entries.shape[0] == self.size.width
            for published, rows in (
                ("lm_head.weight" if is_head else "transformer.wte.weight", self.size.vocab_size),
                ("transformer.wpe.weight", self.size.context),
            ):
                row = weight_names.table_row(published, own, shape, (rows, self.size.width))
                if row is not None:
                    yield replace(row, how="order of use")
                    break

    def _norms(self, uses: list[Use], blocks: dict[int, _Block]) -> Iterator[MappedWeight]:
        """Gains in execution order are ln_1, ln_2, ln_1, ... and ln_f; each bias follows its gain.

        Where some are not used, what comes next tells: the attention, the feed-forward layer, or nothing.
        """
        C = self.size.width
        gains = [use for use in uses if use.kind == "gain" and use.entries.numel() == C]
        numbered = unmatched_parameters.numbered(self.module, self.size)
        named = [numbered.get(self._own_name(gain)) for gain in gains]
        layers = [i // 2 if place is None else place.layer for i, place in enumerate(named)]
        components = [f"transformer.h.{layer}.ln_{i % 2 + 1}" for i, layer in enumerate(layers[:-1])]
        components.append("transformer.ln_f")
        if len(gains) != 2 * self.size.layers + 1:
            components = [self._before(gain, uses, blocks) for gain in gains]
        if len(set(components)) != len(components):
            return
        for component, gain in zip(components, gains, strict=True):
            yield from self._vector(f"{component}.weight", gain.entries)
            bias = self._bias_after(gain, uses)
            if bias is not None:
                yield from self._vector(f"{component}.bias", bias.entries)

    def _before(self, gain: Use, uses: list[Use], blocks: dict[int, _Block]) -> str:
        """The norm that a gain is, by the matrix that comes next."""
        following = next((u for u in uses if u.number > gain.number and u.kind == "matrix"), None)
        for layer, block in blocks.items():
            if following is not None and following in (*block.into, *block.out, block.up, block.down):
                return f"transformer.h.{layer}.ln_{2 if following in (block.up, block.down) else 1}"
        return "transformer.ln_f"

    def _bias_after(self, gain: Use, uses: list[Use]) -> Use | None:
        linked = next((u for u in uses if u.kind == "bias" and u.source is gain), None)
        if linked is not None:
            return linked
        # `gain * (x - mean) / std + bias`: the sum's other side is not the product itself, but nothing comes between.
        following = [u for u in uses if u.number > gain.number]
        if following and following[0].kind == "bias" and following[0].source is None:
            return following[0]
        return None

    def _biases(self, uses: list[Use]) -> dict[Use, Use]:
        """The bias of each matrix: added to its own result; else the next that fits and belongs to nothing else."""
        found = {u.source: u for u in uses if u.kind == "bias" and u.source is not None and u.source.kind == "matrix"}
        last: Use | None = None
        gain: Use | None = None
        for use in uses:
            if use.kind == "gain":
                gain, last = use, None
            elif use.kind == "matrix":
                last, gain = use, None
            elif use.kind == "bias" and use.source is None and gain is None and last is not None:
                found.setdefault(last, use)
        return {use: bias for use, bias in found.items() if bias.entries.numel() == use.entries.shape[1]}

    def _projection(self, component: str, use: Use, biases: dict[Use, Use]) -> Iterator[MappedWeight]:
        yield from self._matrix(f"{component}.weight", use.entries)
        if use in biases:
            yield from self._vector(f"{component}.bias", biases[use].entries)

    def _parts(self, component: str, uses: list[Use], biases: dict[Use, Use], axis: int) -> Iterator[MappedWeight]:
        """A projection that is made in one product, or in one for each head."""
        if len(uses) == 1:
            yield from self._projection(component, uses[0], biases)
            return
        start = 0
        for use in uses:
            stop = start + use.entries.shape[axis]
            yield from self._matrix(f"{component}.weight", use.entries, part=(start, stop), axis=axis)
            start = stop
        shared = [biases[use] for use in uses if use in biases]
        if len(shared) == 1:
            yield from self._vector(f"{component}.bias", shared[0].entries)

    def _attention_in(
        self,
        component: str,
        block: _Block,
        first: _Block,
        columns: dict[Use, list[_Column]],
        biases: dict[Use, Use],
        notes: list[str],
    ) -> Iterator[MappedWeight]:
        """The rows of queries, keys and values: which column is which, the first block's behaviour has told."""
        C, D = self.size.width, self.size.head_width
        if sum(use.entries.shape[1] for use in block.into) != 3 * C or len(block.into) != len(first.into):
            return
        position = 0  # where nothing is told, the order of use is queries, keys, values
        # Heads that are cut otherwise out of a projection of its own are a bug, and no layout of the others beside it.
        plain = any(len(found) == C and not _is_by_head(found) for found in columns.values())
        for use, model in zip(block.into, first.into, strict=True):
            bias = biases.get(use)
            promised = weight_names.order_is_known(self._own_name(use), None, self.module)
            known = [] if promised else columns.get(model, [])
            width = use.entries.shape[1]
            how = "name" if promised else "behaviour" if known else "order of use"
            if not promised and not known and (spelt := weight_names.spelt_order(self._own_name(use), width // C)):
                known, how = [_Column(kind, column // D) for kind in spelt for column in range(C)], "name"
            for own, start in _arrangement(known, width, position, C, D, plain=plain):
                part = None if len(own) == 3 * C else (start, start + len(own))
                yield from self._matrix(f"{component}.weight", use.entries[:, own], part=part, how=how)
                if bias is not None:
                    yield from self._vector(f"{component}.bias", bias.entries[own], part=part, how=how)
            if width > C and known and notes is not None:
                notes.extend(_note(self._own_name(use), known, C))
            if width > C and not known and not promised:
                notes.append(
                    f"{self._own_name(use)}: its order of queries, keys and values was not to be told by behaviour; "
                    "the published one is taken, not proved"
                )
            position += width

    def _own_name(self, use: Use) -> str:
        return self.parameters.of(int(use.entries.flatten()[0]))[0]

    def _columns(self, block: _Block, gains: list[Use]) -> dict[Use, list[_Column]]:
        """What each column of the first block's projections is; nothing where behaviour does not tell of all."""
        widths = [use.entries.shape[1] for use in block.into]
        if sum(widths) != 3 * self.size.width or not block.out:
            return {}
        nudged = _Nudged(self.module, self.size, self.call, self.parameters, block, gains)
        try:
            found = nudged.columns() or nudged.columns(time_first=True)
        except Exception:  # positions by the batch's rows, say: what is wrong elsewhere costs no more than the order
            return {}
        if found is None:
            return {}
        starts = itertools.accumulate([0, *widths])
        return {use: found[start : start + width] for use, start, width in zip(block.into, starts, widths)}  # noqa: B905 - one start too many

    def _vector(
        self, published: str, entries: Tensor, part: tuple[int, int] | None = None, how: str = "order of use"
    ) -> Iterator[MappedWeight]:
        yield from self._rows(published, entries, part, -1, how)

    def _matrix(
        self,
        published: str,
        entries: Tensor,
        part: tuple[int, int] | None = None,
        axis: int = -1,
        how: str = "order of use",
    ) -> Iterator[MappedWeight]:
        yield from self._rows(published, entries, part, axis, how)

    def _rows(
        self, published: str, entries: Tensor, part: tuple[int, int] | None, axis: int, how: str
    ) -> Iterator[MappedWeight]:
        """Rows for entries that may come from several own parameters, side by side along the last axis."""
        edge = entries.reshape(-1, entries.shape[-1])[0].tolist()
        owners = [self.parameters.of(entry)[0] for entry in edge]
        whole = published_shapes(self.size)[published]
        base = part[0] if part is not None else 0
        start = 0
        for own, group in itertools.groupby(owners):
            stop = start + len(list(group))
            offset = self.parameters.starts[self.parameters.names.index(own)]
            local = entries[..., start:stop] - offset
            piece = part if (start, stop) == (0, len(owners)) else (base + start, base + stop)
            if piece == (0, whole[axis]):
                piece = None
            row = _described(
                MappedWeight(published, own, part=piece, axis=axis, how=how), local, self.shapes[own], self.size
            )
            if row is not None:
                yield row
            start = stop


@dataclass(frozen=True)
class _Column:
    """What one column of a fused or separate projection turned out to be."""

    kind: int  # 0 query, 1 key, 2 value
    head: int


class _Nudged:
    """Finds out what each column of the attention's projections is, by nudging it and watching what moves.

    Watched is what the output projection reads, at the last position; so that nothing after it, nor the scale, the
    mask or the kernel, has a say. A value moves it alone in a sequence of one; a key at the first position moves it;
    a query does at the last position only. Each row of a batch has another column nudged.
    """

    def __init__(
        self, module: nn.Module, size: Size, call: Calling, parameters: Parameters, block: _Block, gains: list[Use]
    ) -> None:
        self.module, self.size, self.call, self.parameters = module, size, call, parameters
        self.block, self.gains = block, gains
        self.total = 3 * size.width

    def columns(self, *, time_first: bool = False) -> list[_Column] | None:
        """What each column is; None where what moves does not tell. `time_first`: the model works on (time, batch)."""
        self.time_first = time_first
        # Small numbers: a softmax that a wrong scale saturates would not move.
        generator = torch.Generator().manual_seed(0)
        flat = torch.randn(self.parameters.total, generator=generator, dtype=torch.float64)
        flat *= 0.3 / math.sqrt(self.size.width)
        for use in self.gains:
            flat[use.entries] += 1.0
        with torch.no_grad():
            for start, parameter in zip(self.parameters.starts, self.module.parameters(), strict=True):
                parameter.copy_(flat[start : start + parameter.numel()].view(parameter.shape))
        alone, at_first, at_last = (self._moved(*run) for run in ((1, 0), (2, 0), (2, 1)))
        found = []
        for column in range(self.total):
            kind, moved = next(
                (
                    (kind, run[column])
                    for kind, run in ((2, alone), (1, at_first), (0, at_last))
                    if bool(run[column].any())
                ),
                (None, None),
            )
            if kind is None or moved is None:
                return None
            heads = set((moved.nonzero().flatten() // self.size.head_width).tolist())
            if len(heads) != 1:
                return None
            found.append(_Column(kind, heads.pop()))
        counts = [sum(column.kind == kind for column in found) for kind in range(3)]
        return found if counts == [self.size.width] * 3 else None

    def _moved(self, length: int, position: int) -> Tensor:
        """Which channels (columns, C) of the output projection's input move at the last position."""
        rows = self.total + 1  # the last one is left alone
        ids = torch.arange(1, length + 1).expand(rows, length)
        seen: list[Tensor] = []
        numbers = {use.number: use for use in (*self.block.into, *self.block.out)}

        def meddle(use: Use, read: Tensor, output: Tensor) -> Tensor:
            own = numbers.get(use.number)
            if own in self.block.out:
                seen.append(self._batched(read, own, rows, length)[..., own.read_order].clone())
            elif own is not None:
                start = sum(other.entries.shape[1] for other in self.block.into[: self.block.into.index(own)])
                width = own.entries.shape[1]
                nudge = torch.zeros(rows, length, width, dtype=output.dtype)
                nudge[torch.arange(start, start + width), position, own.made_order] = 0.1
                output = output + self._unbatched(nudge, own, output)
            return output

        with torch.no_grad(), Tracing(self.parameters, self.size, meddle):
            self.call(self.module, ids.contiguous(), None)
        # A call may go twice over the same ids, when it gives the last position only at first.
        last = torch.cat(seen[-len(self.block.out) :], dim=-1)[:, -1]
        return (last[:-1] - last[-1:]).abs() > 1e-9 * last.abs().max()

    def _batched(self, tensor: Tensor, use: Use, rows: int, length: int) -> Tensor:
        """(batch, time, channels) of what a product read."""
        if use.heads_first:
            heads = tensor.shape[0] // rows
            if use.heads_first[0] == heads:
                return tensor.view(heads, rows, length, -1).permute(1, 2, 0, 3).flatten(2)
            return tensor.view(rows, heads, length, -1).transpose(1, 2).flatten(2)
        if use.channels_first:
            return tensor.reshape(rows, -1, length).mT
        if self.time_first:
            return tensor.reshape(length, rows, -1).transpose(0, 1)
        return tensor.reshape(rows, length, -1)

    def _unbatched(self, tensor: Tensor, use: Use, like: Tensor) -> Tensor:
        """(batch, time, channels) laid out as `like`, a product's result."""
        rows, length, _ = tensor.shape
        if use.heads_first:
            heads = like.shape[0] // rows
            apart = tensor.view(rows, length, heads, -1)
            by_head = use.heads_first[0] == heads
            return (apart.permute(2, 0, 1, 3) if by_head else apart.transpose(1, 2)).reshape(like.shape)
        if use.channels_first:
            tensor = tensor.mT
        elif self.time_first:
            tensor = tensor.transpose(0, 1)
        return tensor.reshape(like.shape)


def _is_by_head(found: list[_Column]) -> bool:
    heads = [column.head for column in found]
    return heads == sorted(heads)


def _arrangement(
    known: list[_Column], width: int, position: int, C: int, D: int, *, plain: bool
) -> Iterator[tuple[list[int], int]]:
    """Own columns, in published order, and the published column where they begin; `plain`: heads as they come."""
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
        if width == C // (C // D):  # a head's own projection
            yield own, kind * C + heads[0] * D
        elif plain or width == C:
            # Projections that are apart: how their heads are strided is the published model's affair, not a layout.
            yield own, kind * C
        else:
            yield sorted(own, key=lambda index: (known[index].head, index)), kind * C


def _note(own: str, known: list[_Column], C: int) -> list[str]:
    """What is to be said of a fused projection that is not laid out as the checkpoint's; nothing of one that is."""
    kinds = [column.kind for column in known]
    if kinds == sorted(kinds):
        return []
    runs = [len(list(group)) for _, group in itertools.groupby(kinds)]
    words = ", ".join(("queries", "keys", "values")[kind] for kind in dict.fromkeys(kinds))
    mixed = "" if max(runs) >= C else " head by head" if max(runs) > 1 else " number by number"
    name = re.sub(r"\d+", "*", own)
    return [f"{name} holds {words}{mixed}; GPT-2's checkpoint queries, keys, values: a layout difference, not a bug"]


def _first_of_each(uses: list[Use]) -> list[Use]:
    """Uses without those that repeat the very same entries: a call may run twice, a norm may be used twice."""
    seen, kept = set(), []
    for use in uses:
        key = (
            use.kind,
            tuple(use.entries.shape),
            tuple(use.entries.flatten()[:: max(1, use.entries.numel() // 64)].tolist()),
        )
        if key not in seen:
            seen.add(key)
            kept.append(use)
    return kept


def _described(row: MappedWeight, entries: Tensor, shape: tuple[int, ...], size: Size) -> MappedWeight | None:
    """The row with what lies where in it; None for an arrangement that no view gives."""
    everything = torch.arange(math.prod(shape)).view(shape)
    if entries.shape == shape and torch.equal(everything, entries):
        return row
    if len(shape) == 2 and entries.shape == shape[::-1] and torch.equal(everything.mT, entries):
        return replace(row, transposed=True)
    for view in _views(shape, size):
        layout = _layout(entries, view, size)
        if layout is None:
            continue
        layout = replace(layout, view=None if view == shape else view)
        if torch.equal(layout.flat(layout.seen(everything)), entries):
            return replace(row, layout=layout)
    return None


def _views(shape: tuple[int, ...], size: Size) -> Iterator[tuple[int, ...]]:
    """The shape without axes of one, then with a fused axis in its factors, in every order of them."""
    core = tuple(n for n in shape if n != 1)
    yield core
    H, D, C = size.heads, size.head_width, size.width
    for axis, n in enumerate(core):
        factors: list[tuple[int, ...]] = []
        for m in (2, 3):
            if n == m * C:
                factors += [(m, C), *itertools.permutations((m, H, D))]
        if n == C:
            factors += [(H, D), (D, H)]
        for split in factors:
            yield (*core[:axis], *split, *core[axis + 1 :])


def _layout(entries: Tensor, view: tuple[int, ...], size: Size) -> Layout | None:
    """Which axis of `view` each axis of `entries` runs along, by its step in memory."""
    steps = [math.prod(view[axis + 1 :]) for axis in range(len(view))]
    base = int(entries.flatten()[0])
    axes: list[tuple[int, int]] = []  # (axis of the view, length)
    rows = None
    for logical in range(entries.ndim):
        line = entries.movedim(logical, 0).flatten(1)[:, 0] if entries.ndim > 1 else entries
        found = _axes_of(line - line[0], view, steps, size)
        if found is None:
            return None
        if logical == 0 and entries.ndim > 1:
            rows = len(found)
        axes += found
    if len({axis for axis, _ in axes}) != len(axes):
        return None
    index: list[int | tuple[int, int] | None] = []
    lengths = dict(axes)
    for axis, n in enumerate(view):
        start = base // steps[axis] % n
        if axis not in lengths:
            index.append(start)
        else:
            index.append(None if lengths[axis] == n else (start, start + lengths[axis]))
    left = sorted(lengths)
    return Layout(tuple(left.index(axis) for axis, _ in axes), rows, view, tuple(index))


def _axes_of(line: Tensor, view: tuple[int, ...], steps: list[int], size: Size) -> list[tuple[int, int]] | None:
    """The axes of the view that a line of memory offsets runs along, outermost first."""
    n, H, D = len(line), size.heads, size.head_width
    splits: list[tuple[int, ...]] = [(n,)]
    if n == H * D:
        splits.append((H, D))
    if n == 3 * H * D:
        splits += [(3, H * D), (3, H, D)]
    for split in splits:
        found = []
        for level, length in enumerate(split):
            stride = int(line[math.prod(split[level + 1 :])]) if length > 1 else 0
            axis = next((a for a, s in enumerate(steps) if s == stride and view[a] >= length), None)
            if axis is None:
                break
            found.append((axis, length))
        if len(found) == len(split):
            expected = torch.zeros(1, dtype=torch.long)
            for axis, length in found:
                expected = (expected[:, None] + torch.arange(length) * steps[axis]).flatten()
            if torch.equal(expected, line):
                return found
    return None
