"""Variants of loading and saving: what becomes of a tensor on its way between the file and the subject."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorChange:
    """One change of a tensor: the fault's id ("" if it has none) and the rest of a sentence that begins with names."""

    fault: str
    says: str


# By the name of the change in searches/loading.py.
CHANGES = {
    "transposed": TensorChange(
        "load-conv1d-square-not-transposed",
        "is left transposed: Conv1D stores (in, out), nn.Linear stores (out, in)",
    ),
    "thirds permuted": TensorChange("load-qkv-order", "has its thirds in another order than query, key, value"),
    "interleaved": TensorChange("load-qkv-interleaved", "is regrouped head by head"),
    "rounded": TensorChange("load-half-precision-roundtrip", "is rounded to 16 bits"),
    "rolled": TensorChange("load-wpe-shifted", "is shifted by some rows"),
    "another layer's": TensorChange("load-layers-off-by-one", "has another layer's numbers"),
    "folded": TensorChange("ln-folding-wrong", "has a norm's gain folded in, which the norm applies again"),
    "scaled": TensorChange("", "is scaled by a constant"),
    "reshaped": TensorChange("", "has another shape"),
}

# The fault's id in loading -> the fault's id when the tensor is loaded right and saved wrong.
SAVING_FAULTS = {
    "load-conv1d-square-not-transposed": "save-not-transposed",
    "load-half-precision-roundtrip": "save-half-precision",
}
