"""The rows of a weight map that one traced forward pass gives."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from harness.core.sizes import Size
from harness.subjects.adapters.weight_discovery import traced_vectors
from harness.subjects.adapters.weight_discovery.entry_layout import with_layout
from harness.subjects.adapters.weight_discovery.gated_mlp import gate_columns, mlp_projections
from harness.subjects.adapters.weight_discovery.labelled_parameters import LabelledParameters
from harness.subjects.adapters.weight_discovery.own_widths import own_widths
from harness.subjects.adapters.weight_discovery.parameter_rows import order_is_known, table_row
from harness.subjects.adapters.weight_discovery.projection_columns import Calling, Column, projection_columns
from harness.subjects.adapters.weight_discovery.projection_order import column_groups, layout_note, spelled_columns
from harness.subjects.adapters.weight_discovery.traced_blocks import TracedBlock, own_name, traced_blocks
from harness.subjects.adapters.weight_discovery.tracing import Tracing, Use
from harness.subjects.weight_map import MappedWeight, published_shapes


def traced_rows(module: nn.Module, size: Size, call: Calling, notes: list[str]) -> tuple[list[MappedWeight], Size]:
    """Return every row that a forward pass of `module` gives, and `size` with the widths that are not GPT-2's.

    Remarks on its layout are appended to `notes`. The module's parameters are overwritten.
    """
    parameters = LabelledParameters(module)
    parameters.label()
    with Tracing(parameters, size) as tracing:
        call(module, torch.tensor([[1, 2]]), None)
    uses = _without_repetitions(tracing.uses)
    blocks, tables = traced_blocks([use for use in uses if use.kind == "matrix"], parameters, size)
    size = own_widths(blocks, parameters, uses, size)
    writer = _Rows(parameters, size)
    rows = list(writer.tables([use for use in uses if use.kind == "table"] + tables))
    for component, gain, bias in traced_vectors.norms(uses, blocks, parameters, size):
        rows += writer.rows(f"{component}.weight", gain.entries)
        if bias is not None:
            rows += writer.rows(f"{component}.bias", bias.entries)
    if not blocks:
        return rows, size
    biases = traced_vectors.biases(uses)
    first = next(iter(blocks.values()))
    gated = gate_columns(first, [use for use in uses if use.kind == "gain"], parameters, size, call)
    columns = projection_columns(first, [use for use in uses if use.kind == "gain"], parameters, size, call)
    for layer, block in blocks.items():
        h = f"transformer.h.{layer}"
        for component, use, columns_of_it in mlp_projections(block, first, gated):
            rows += writer.projection(f"{h}.{component}", use, biases, columns_of_it)
        rows += writer.attention_out(f"{h}.attn.c_proj", block.attention_out, biases)
        block_notes = notes if block is first else []  # all layers are alike: one remark is enough
        rows += writer.attention_in(f"{h}.attn.c_attn", block, first, columns, biases, block_notes)
    return rows, size


def _without_repetitions(uses: list[Use]) -> list[Use]:
    """Return the uses without those that repeat the same entries: a call may run twice, a norm may be used twice."""
    seen, distinct = set(), []
    for use in uses:
        key = (
            use.kind,
            tuple(use.entries.shape),
            tuple(use.entries.flatten()[:: max(1, use.entries.numel() // 64)].tolist()),
        )
        if key not in seen:
            seen.add(key)
            distinct.append(use)
    return distinct


@dataclass(frozen=True)
class _Rows:
    """Make rows from the entries that a forward pass uses."""

    parameters: LabelledParameters
    size: Size

    def rows(
        self,
        published: str,
        entries: Tensor,
        part: tuple[int, int] | None = None,
        axis: int = -1,
        evidence: str = "order of use",
    ) -> Iterator[MappedWeight]:
        """Yield the rows of entries, which may come from several own parameters side by side along the last axis."""
        edge = entries.reshape(-1, entries.shape[-1])[0].tolist()
        owners = [self.parameters.name_of(entry) for entry in edge]
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
            row = MappedWeight(published, own, part=piece, axis=axis, evidence=evidence)
            found = with_layout(row, local, self.parameters.shapes[own], self.size)
            if found is not None:
                yield found
            start = stop

    def tables(self, uses: list[Use]) -> Iterator[MappedWeight]:
        """Yield the rows of embeddings and head: the number of their rows decides which they are."""
        seen = set()
        for use in uses:
            own = own_name(use, self.parameters)
            if own in seen:  # tied, or looked up twice
                continue
            seen.add(own)
            shape = self.parameters.shapes[own]
            core = tuple(n for n in shape if n != 1)
            if len(core) != 2:
                continue
            is_head = use.kind == "matrix" and use.entries.shape[0] == self.size.width
            for published, rows in (
                ("lm_head.weight" if is_head else "transformer.wte.weight", self.size.vocab_size),
                ("transformer.wpe.weight", self.size.context),
            ):
                row = table_row(published, own, shape, (rows, self.size.width))
                if row is not None:
                    yield replace(row, evidence="order of use")
                    break

    def projection(
        self, component: str, use: Use, biases: dict[Use, Use], columns: slice = slice(None)
    ) -> Iterator[MappedWeight]:
        """Yield the rows of a matrix, or of some of its columns, and of its bias."""
        yield from self.rows(f"{component}.weight", use.entries[:, columns])
        if use in biases:
            yield from self.rows(f"{component}.bias", biases[use].entries[columns])

    def attention_out(self, component: str, uses: list[Use], biases: dict[Use, Use]) -> Iterator[MappedWeight]:
        """Yield the rows of the output projection, computed in one product or in one for each head."""
        if len(uses) == 1:
            yield from self.projection(component, uses[0], biases)
            return
        start = 0
        for use in uses:
            stop = start + use.entries.shape[0]
            yield from self.rows(f"{component}.weight", use.entries, part=(start, stop), axis=0)
            start = stop
        shared = [biases[use] for use in uses if use in biases]
        if len(shared) == 1:
            yield from self.rows(f"{component}.bias", shared[0].entries)

    def attention_in(
        self,
        component: str,
        block: TracedBlock,
        first: TracedBlock,
        columns: dict[Use, list[Column]],
        biases: dict[Use, Use],
        notes: list[str],
    ) -> Iterator[MappedWeight]:
        """Yield the rows of queries, keys and values; `columns` are the roles found in the first block."""
        C, columns_in_all = self.size.width, self.size.third_edges[-1]
        widths = [use.entries.shape[1] for use in block.attention_in]
        if sum(widths) != columns_in_all or len(widths) != len(first.attention_in):
            return
        position = 0  # the order of use is queries, keys, values, where nothing else decides
        # A separate projection whose heads are cut differently is a bug, not a layout: the others keep their order.
        plain = any(len(found) == C and not _is_by_head(found) for found in columns.values())
        for use, model, width in zip(block.attention_in, first.attention_in, widths, strict=True):
            name, bias = own_name(use, self.parameters), biases.get(use)
            promised = order_is_known(name, None, self.parameters.module)
            known = [] if promised else columns.get(model, [])
            evidence = "name" if promised else "behaviour" if known else "order of use"
            if not promised and not known and (spelled := spelled_columns(name, width, self.size)):
                known, evidence = spelled, "name"
            for own, start in column_groups(known, width, position, self.size, plain=plain):
                part = None if len(own) == columns_in_all else (start, start + len(own))
                yield from self.rows(f"{component}.weight", use.entries[:, own], part=part, evidence=evidence)
                if bias is not None:
                    yield from self.rows(f"{component}.bias", bias.entries[own], part=part, evidence=evidence)
            if width > C and not promised:
                notes += layout_note(name, known, C)
            position += width


def _is_by_head(found: list[Column]) -> bool:
    heads = [column.head for column in found]
    return heads == sorted(heads)
