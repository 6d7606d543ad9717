"""The search for what makes head and token embedding two tensors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.core.sizes import SIZES
from harness.diagnosis.finding import Finding
from harness.diagnosis.variants.tying import TIE_BREAKERS, UNTIED
from harness.subjects.protocols import Subject

SIZE = "debug"


def search(subject: Subject) -> list[Finding]:
    """Return why head and embedding are two tensors, from the start or after an operation; [] if they are one."""
    for variant in TIE_BREAKERS:
        model = subject.build(SIZES[SIZE])
        try:
            module = variant.after(model)
        except Exception:
            continue  # an operation that fails breaks no tie; that it fails is reported elsewhere
        tables: dict[int, tuple[str, Tensor]] = {}
        for name, parameter in _token_tables(module):
            tables.setdefault(parameter.data_ptr(), (name, parameter))
        if len(tables) < 2:
            continue
        (name, table), (other_name, other_table) = list(tables.values())[:2]
        evidence = f"{name} and {other_name} are {len(tables)} tensors"
        if variant.fault == UNTIED and torch.equal(table, other_table):
            cause = "the head starts as a copy of the embedding, and differs from it after a step of training"
            return [Finding("tying", "head-tied-by-copy", cause, evidence)]
        return [Finding("tying", variant.fault, variant.says, evidence)]
    return []


def _token_tables(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the parameters of shape (vocabulary, width) or (width, vocabulary), with their names."""
    shape = (SIZES[SIZE].vocab_size, SIZES[SIZE].width)
    found = module.named_parameters(remove_duplicate=False)
    return [(name, p) for name, p in found if tuple(p.shape) in (shape, shape[::-1])]
