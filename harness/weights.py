"""The weight map: how a model's own parameters stand to the published GPT-2 checkpoint's, row by row, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.errors import SubjectError
from harness.size import Size


@dataclass(frozen=True)
class Row:
    """One own parameter, and the published one that it holds, or a part of it.

    `transposed`: the own matrix is (out, in), as nn.Linear keeps it; the checkpoint's Conv1D keeps (in, out).
    `part`: the columns [start, stop) of the published tensor's last axis that the own one holds; None for all.
    """

    published: str
    own: str
    transposed: bool = False
    part: tuple[int, int] | None = None

    def part_of(self, published: Tensor) -> Tensor:
        """The part of the published tensor that this row stands for, a view."""
        return published if self.part is None else published[..., slice(*self.part)]

    def to_published(self, own: Tensor) -> Tensor:
        """The own tensor in the published orientation, a view."""
        return own.mT if self.transposed else own


@dataclass(frozen=True)
class WeightMap:
    """Rows that cover every published parameter once, and every own parameter once."""

    rows: tuple[Row, ...]

    def write(self, published: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
        """Copy published tensors into the own ones, in place. A shape that does not fit names both sides."""
        with torch.no_grad():
            for row in self.rows:
                # A head of its own starts as the checkpoint has it: the token embedding.
                name = "transformer.wte.weight" if row.published == "lm_head.weight" else row.published
                source = row.part_of(published[name])
                source = source.mT if row.transposed else source
                target = own[row.own]
                if source.shape != target.shape:
                    raise SubjectError(
                        f"{row.own} has shape {tuple(target.shape)}, but {row.published} of the checkpoint fits it "
                        f"as {tuple(source.shape)}"
                    )
                target.copy_(source)

    def read(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Own tensors (weights, or gradients) under their published names, in the published orientation."""
        parts: dict[str, list[tuple[int, Tensor]]] = {}
        for row in self.rows:
            start = row.part[0] if row.part else 0
            parts.setdefault(row.published, []).append((start, row.to_published(own[row.own].detach())))
        return {
            name: pieces[0][1]
            if len(pieces) == 1
            else torch.cat([piece for _, piece in sorted(pieces, key=lambda p: p[0])], dim=-1)
            for name, pieces in parts.items()
        }

    def path(self, component: str) -> str:
        """The own submodule that holds every parameter of a published component: their deepest common module."""
        own = [row.own.split(".")[:-1] for row in self.rows if row.published.startswith(f"{component}.")]
        if not own:
            raise SubjectError(f"no parameter of the subject stands for {component}")
        return ".".join(_common_prefix(own))


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


def _common_prefix(paths: list[list[str]]) -> list[str]:
    prefix = []
    for words in zip(*paths, strict=False):
        if len(set(words)) > 1:
            break
        prefix.append(words[0])
    return prefix
