"""The weight map: which parameter of a model is which one of the published GPT-2 checkpoint, in both directions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.core.errors import SubjectError
from harness.core.sizes import Size


@dataclass(frozen=True)
class MappedWeight:
    """One line of a weight map: an own parameter, or a piece of it, and the published one, or a part of it.

    `transposed`: the own matrix is (out, in), as in nn.Linear; the checkpoint's Conv1D stores (in, out).
    `part`: the range [start, stop) on the published tensor's `axis` that the own one contains; None for all.
    `layout`: the arrangement of an own tensor with other axes, such as one for the heads; None for the published axes.
    `evidence`: the reason for the row: 'name', 'shape', 'order of use', 'behaviour', 'analogy', or 'by hand'.
    """

    published: str
    own: str
    transposed: bool = False
    part: tuple[int, int] | None = None
    axis: int = -1
    layout: Layout | None = None
    evidence: str = "by hand"

    @property
    def is_beyond_gpt2(self) -> bool:
        """True for a parameter that GPT-2 does not have, as the gate of an MLP: it keeps its own values by default."""
        return self.published == "lm_head.bias" or ".mlp.c_gate." in self.published

    def part_of(self, published: Tensor) -> Tensor:
        """Return the part of the published tensor that this row stands for, as a view."""
        if self.part is None:
            return published
        return published.narrow(self.axis, self.part[0], self.part[1] - self.part[0])

    def to_published(self, own: Tensor) -> Tensor:
        """Return the own tensor in the published orientation; a view where the layout allows one."""
        if self.layout is not None:
            return self.layout.flat(self.layout.seen(own))
        return own.mT if self.transposed else own

    def write(self, published: Tensor, own: Tensor) -> None:
        """Copy the part of `published` into `own`, in place. Raises SubjectError naming both shapes if they differ."""
        source = self.part_of(published)
        target = own.mT if self.transposed else own
        if self.layout is not None:
            target = self.layout.seen(own)
            fits = self.layout.flat(target).shape == source.shape
        else:
            fits = target.shape == source.shape
        if not fits:
            raise SubjectError(
                f"{self.own} has shape {tuple(own.shape)}; expected, for {self.published} of the checkpoint, "
                f"{tuple(source.mT.shape if self.transposed else source.shape)}"
            )
        target.copy_(source.reshape(target.shape))


@dataclass(frozen=True)
class Layout:
    """The arrangement of an own tensor: reshape it to `view`, index by `index`, permute by `axes`.

    `rows`: the number of axes that make up the published tensor's first axis; the others make up its last. None for a
    vector. `index`: for each axis of the view None (all of it), an int (one place; drops the axis), or (start, stop).

    TransformerLens stores a query matrix as (head, width, head width): axes (1, 0, 2), of which 1 is the published row.
    """

    axes: tuple[int, ...]
    rows: int | None
    view: tuple[int, ...] | None = None
    index: tuple[int | tuple[int, int] | None, ...] = ()

    def seen(self, own: Tensor) -> Tensor:
        """Return a view of `own` with the published axes, each of which may still be split into several."""
        tensor = own if self.view is None else own.view(self.view)
        for axis in reversed(range(len(self.index))):
            entry = self.index[axis]
            if isinstance(entry, int):
                tensor = tensor.select(axis, entry)
            elif entry is not None:
                tensor = tensor.narrow(axis, entry[0], entry[1] - entry[0])
        return tensor.permute(self.axes)

    def flat(self, seen: Tensor) -> Tensor:
        """Return the result of `seen` with the published tensor's number of axes."""
        if self.rows is None:
            return seen.flatten()
        # Flatten the last axes first: they are counted from the front.
        return seen.flatten(self.rows).flatten(0, self.rows - 1)


@dataclass(frozen=True)
class WeightMap:
    """Rows that cover published parameters, each once. A complete map has none missing and none unmapped.

    `missing`: published parameters that the subject lacks, as rows without an own name. `unmapped_parameters`: own
    parameters that GPT-2 does not have; they keep their own values. `notes`: remarks on layout differences, which are
    not bugs. `size`: the sizes whose published shapes the map covers, if some of them are not GPT-2's.
    """

    rows: tuple[MappedWeight, ...]
    missing: tuple[MappedWeight, ...] = ()
    unmapped_parameters: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    size: Size | None = None

    @property
    def gaps(self) -> str:
        """The unmapped and missing parameters as text; empty for a complete map."""
        absent = list(dict.fromkeys(family(row.published) for row in self.missing))
        return "; ".join(
            text
            for text in (
                f"parameters of the subject without a published name: {some(list(self.unmapped_parameters))}"
                if self.unmapped_parameters
                else "",
                f"parameters of the checkpoint without one of the subject: {some(absent)}" if absent else "",
            )
            if text
        )

    @property
    def has_longer_tables(self) -> bool:
        """True if an embedding has more rows than GPT-2's; those keep their own values."""
        tables = ("transformer.wte.weight", "transformer.wpe.weight")
        return any(row.published in tables and row.layout is not None and row.layout.index for row in self.rows)

    def write(self, published: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
        """Copy published tensors into the own ones, in place. Raises SubjectError for a shape that does not fit."""
        with torch.no_grad():
            for row in self.rows:
                # The checkpoint's head is tied: an untied one gets a copy of the token embedding.
                tied = row.published == "lm_head.weight" and row.published not in published
                name = "transformer.wte.weight" if tied else row.published
                if name in published:
                    row.write(published[name], own[row.own])

    def read(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return own tensors (weights or gradients) under their published names, in the published orientation.

        A part that the subject lacks, such as a key bias, is zero. A whole tensor that it lacks is left out.
        """
        parts: dict[str, list[tuple[MappedWeight, Tensor]]] = {}
        for row in self.rows:
            parts.setdefault(row.published, []).append((row, row.to_published(own[row.own].detach())))
        for row in self.missing:
            if row.part is not None and row.published in parts:
                shape = list(parts[row.published][0][1].shape)
                shape[row.axis] = row.part[1] - row.part[0]
                parts[row.published].append((row, parts[row.published][0][1].new_zeros(shape)))
        return {name: joined(pieces) for name, pieces in parts.items()}

    def path(self, component: str) -> str:
        """Return the path of the own submodule with every parameter of a published component, and none of another.

        It is their deepest common module. Raises SubjectError if the subject has no parameter of the component, and
        LookupError if it has no separate module for it, as when a block owns all of its parameters itself.
        """
        inside = [row for row in self.rows if row.published.startswith(f"{component}.")]
        if not inside:
            raise SubjectError(f"no parameter of the subject is mapped to {component}")
        path = ".".join(_common_prefix([row.own.split(".")[:-1] for row in inside]))
        under = f"{path}." if path else ""
        others = [row for row in self.rows if row not in inside and row.own.startswith(under)]
        if others:
            raise LookupError(
                f"no module of the subject is {component} alone: '{path or 'the model'}' also contains {others[0].own}"
            )
        return path


def joined(pieces: list[tuple[MappedWeight, Tensor]]) -> Tensor:
    """Return one published tensor from its parts, each given with its row."""
    if len(pieces) == 1:
        return pieces[0][1]
    pieces = sorted(pieces, key=lambda piece: piece[0].part or (0, 0))
    return torch.cat([tensor for _, tensor in pieces], dim=pieces[0][0].axis)


def published_shapes(size: Size) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter of the published checkpoint, Conv1D's (in, out). The head is tied: wte.

    A gated MLP has one matrix more, `mlp.c_gate`, which GPT-2 does not have.
    """
    C, F, QKV = size.width, size.hidden_width, size.third_edges[-1]
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (size.vocab_size, C),
        "transformer.wpe.weight": (size.context, C),
    }
    for layer in range(size.layers):
        block = f"transformer.h.{layer}"
        shapes |= {
            f"{block}.ln_1.weight": (C,),
            f"{block}.ln_1.bias": (C,),
            f"{block}.attn.c_attn.weight": (C, QKV),
            f"{block}.attn.c_attn.bias": (QKV,),
            f"{block}.attn.c_proj.weight": (C, C),
            f"{block}.attn.c_proj.bias": (C,),
            f"{block}.ln_2.weight": (C,),
            f"{block}.ln_2.bias": (C,),
            f"{block}.mlp.c_fc.weight": (C, F),
            f"{block}.mlp.c_fc.bias": (F,),
            f"{block}.mlp.c_proj.weight": (F, C),
            f"{block}.mlp.c_proj.bias": (C,),
        }
        if size.gated:
            shapes |= {f"{block}.mlp.c_gate.weight": (C, F), f"{block}.mlp.c_gate.bias": (F,)}
    return shapes | {"transformer.ln_f.weight": (C,), "transformer.ln_f.bias": (C,)}


def family(published: str) -> str:
    """Return a parameter's name without its layer: `transformer.h.3.attn.c_proj.weight` -> `attn.c_proj.weight`."""
    words = [word for word in published.split(".") if word not in ("transformer", "h") and not word.isdigit()]
    return ".".join(words)


def some(names: list[str]) -> str:
    """Return the first four of a list of names as text, and the number of the others."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _common_prefix(paths: list[list[str]]) -> list[str]:
    prefix = []
    for words in zip(*paths, strict=False):
        if len(set(words)) > 1:
            break
        prefix.append(words[0])
    return prefix
