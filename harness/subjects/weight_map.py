"""The weight map: how a model's own parameters stand to the published GPT-2 checkpoint's, row by row, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.core.errors import SubjectError
from harness.core.sizes import Size


@dataclass(frozen=True)
class MappedWeight:
    """One own parameter, or a piece of it, and the published one that it holds, or a part of that.

    `transposed`: the own matrix is (out, in), as nn.Linear keeps it; the checkpoint's Conv1D keeps (in, out).
    `part`: the columns [start, stop) of the published tensor's `axis` that the own one holds; None for all.
    `layout`: where the own tensor has other axes, one for each head, say; None where it has the published ones.
    `how`: what the row rests on: 'name', 'shape', 'order of use', 'behaviour', or 'by hand'.
    """

    published: str
    own: str
    transposed: bool = False
    part: tuple[int, int] | None = None
    axis: int = -1
    layout: Layout | None = None
    how: str = "by hand"

    def part_of(self, published: Tensor) -> Tensor:
        """The part of the published tensor that this row stands for, a view."""
        if self.part is None:
            return published
        return published.narrow(self.axis, self.part[0], self.part[1] - self.part[0])

    def to_published(self, own: Tensor) -> Tensor:
        """The own tensor in the published orientation; a view where the layout allows one."""
        if self.layout is not None:
            return self.layout.flat(self.layout.seen(own))
        return own.mT if self.transposed else own

    def write(self, published: Tensor, own: Tensor) -> None:
        """Copy the part of `published` into `own`, in place. A shape that does not fit names both sides."""
        source = self.part_of(published)
        target = own.mT if self.transposed else own
        if self.layout is not None:
            target = self.layout.seen(own)
            fits = self.layout.flat(target).shape == source.shape
        else:
            fits = target.shape == source.shape
        if not fits:
            raise SubjectError(
                f"{self.own} has shape {tuple(own.shape)}, but {self.published} of the checkpoint fits it as "
                f"{tuple(source.mT.shape if self.transposed else source.shape)}"
            )
        target.copy_(source.reshape(target.shape))


@dataclass(frozen=True)
class Layout:
    """An own tensor seen with the published axes: reshaped to `view`, cut by `index`, its axes put in order `axes`.

    `rows`: how many of the axes make the published tensor's first; the others make its last. None for a vector.
    `index`: for each axis of the view all of it (None), one place (an int, which drops the axis), or [start, stop).

    TransformerLens keeps a query matrix as (head, width, head width): axes (1, 0, 2), of which 1 is the published row.
    """

    axes: tuple[int, ...]
    rows: int | None
    view: tuple[int, ...] | None = None
    index: tuple[int | tuple[int, int] | None, ...] = ()

    def seen(self, own: Tensor) -> Tensor:
        """A view of `own` with the published axes, each perhaps still in several."""
        tensor = own if self.view is None else own.view(self.view)
        for axis in reversed(range(len(self.index))):
            entry = self.index[axis]
            if isinstance(entry, int):
                tensor = tensor.select(axis, entry)
            elif entry is not None:
                tensor = tensor.narrow(axis, entry[0], entry[1] - entry[0])
        return tensor.permute(self.axes)

    def flat(self, seen: Tensor) -> Tensor:
        """What `seen` gave, in the published tensor's number of axes."""
        if self.rows is None:
            return seen.flatten()
        # The last axes first: they are counted from the front.
        return seen.flatten(self.rows).flatten(0, self.rows - 1)


@dataclass(frozen=True)
class WeightMap:
    """Rows that cover published parameters, each once. A complete map has nothing missing and no unmapped_parameters.

    `missing`: what the subject has no parameter for, as rows without an own name. `unmapped_parameters`: own parameters that
    GPT-2 does not have; they keep their own values. `notes`: layout differences that are no bugs, in words.
    """

    rows: tuple[MappedWeight, ...]
    missing: tuple[MappedWeight, ...] = ()
    unmapped_parameters: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def gaps(self) -> str:
        """What keeps the map from being complete, in words; empty for a complete one."""
        absent = list(dict.fromkeys(family(row.published) for row in self.missing))
        return "; ".join(
            text
            for text in (
                f"of the subject, no published name fits {some(list(self.unmapped_parameters))}"
                if self.unmapped_parameters
                else "",
                f"of the checkpoint, no parameter of the subject fits {some(absent)}" if absent else "",
            )
            if text
        )

    def write(self, published: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
        """Copy published tensors into the own ones, in place. A shape that does not fit names both sides."""
        with torch.no_grad():
            for row in self.rows:
                # A head of its own starts as the checkpoint has it: the token embedding.
                name = "transformer.wte.weight" if row.published == "lm_head.weight" else row.published
                row.write(published[name], own[row.own])

    def read(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Own tensors (weights, or gradients) under their published names, in the published orientation.

        A part that the subject lacks, as a key bias may be, is zero; a whole tensor that it lacks is left out.
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
        """The own submodule that holds every parameter of a published component, and none of another's.

        Their deepest common module. SubjectError where nothing stands for the component; LookupError where the
        subject has no module of its own for it, as when a block keeps all of its parameters itself.
        """
        inside = [row for row in self.rows if row.published.startswith(f"{component}.")]
        if not inside:
            raise SubjectError(f"no parameter of the subject stands for {component}")
        path = ".".join(_common_prefix([row.own.split(".")[:-1] for row in inside]))
        under = f"{path}." if path else ""
        others = [row for row in self.rows if row not in inside and row.own.startswith(under)]
        if others:
            raise LookupError(
                f"no module of the subject is {component} alone: '{path or 'the model'}' also holds {others[0].own}"
            )
        return path


def joined(pieces: list[tuple[MappedWeight, Tensor]]) -> Tensor:
    """The parts of one published tensor, each with its row, put together."""
    if len(pieces) == 1:
        return pieces[0][1]
    pieces = sorted(pieces, key=lambda piece: piece[0].part or (0, 0))
    return torch.cat([tensor for _, tensor in pieces], dim=pieces[0][0].axis)


def published_shapes(size: Size) -> dict[str, tuple[int, ...]]:
    """Every parameter of the published checkpoint and its shape, Conv1D's (in, out). The head is wte: tied."""
    C = size.width
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (size.vocab_size, C),
        "transformer.wpe.weight": (size.context, C),
    }
    for layer in range(size.layers):
        block = f"transformer.h.{layer}"
        shapes |= {
            f"{block}.ln_1.weight": (C,),
            f"{block}.ln_1.bias": (C,),
            f"{block}.attn.c_attn.weight": (C, 3 * C),
            f"{block}.attn.c_attn.bias": (3 * C,),
            f"{block}.attn.c_proj.weight": (C, C),
            f"{block}.attn.c_proj.bias": (C,),
            f"{block}.ln_2.weight": (C,),
            f"{block}.ln_2.bias": (C,),
            f"{block}.mlp.c_fc.weight": (C, 4 * C),
            f"{block}.mlp.c_fc.bias": (4 * C,),
            f"{block}.mlp.c_proj.weight": (4 * C, C),
            f"{block}.mlp.c_proj.bias": (C,),
        }
    return shapes | {"transformer.ln_f.weight": (C,), "transformer.ln_f.bias": (C,)}


def family(published: str) -> str:
    """The kind of a parameter, over all layers: `transformer.h.3.attn.c_proj.weight` -> `attn.c_proj.weight`."""
    words = [word for word in published.split(".") if word not in ("transformer", "h") and not word.isdigit()]
    return ".".join(words)


def some(names: list[str]) -> str:
    """The first few of a list of names."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _common_prefix(paths: list[list[str]]) -> list[str]:
    prefix = []
    for words in zip(*paths, strict=False):
        if len(set(words)) > 1:
            break
        prefix.append(words[0])
    return prefix
