"""The tables of all components in one list."""

from __future__ import annotations

from harness.oracle.variants.attention.heads import MERGE, SPLIT
from harness.oracle.variants.attention.mask import MASK
from harness.oracle.variants.attention.projections import OUTPUT, QKV
from harness.oracle.variants.attention.rotary import ROTARY
from harness.oracle.variants.attention.scores import SCORES
from harness.oracle.variants.attention.softmax import MIX, SOFTMAX
from harness.oracle.variants.blocks import BLOCK, STACK
from harness.oracle.variants.embedding import EMBEDDING
from harness.oracle.variants.gated_mlp import GATED_MLP
from harness.oracle.variants.head import HEAD
from harness.oracle.variants.layer_norm import LAYER_NORM
from harness.oracle.variants.mlp import MLP
from harness.oracle.variants.residual_stream import RESIDUAL_STREAM
from harness.oracle.variants.variant import Variant

# In execution order. Among the variants that fit equally well, the diagnosis names the first.
_ALL = (
    *EMBEDDING,
    *LAYER_NORM,
    *QKV,
    *SPLIT,
    *SCORES,
    *ROTARY,
    *MASK,
    *SOFTMAX,
    *MIX,
    *MERGE,
    *OUTPUT,
    *RESIDUAL_STREAM,
    *MLP,
    *GATED_MLP,
    *BLOCK,
    *STACK,
    *HEAD,
)


def variants() -> tuple[Variant, ...]:
    """Return every variant, in the order in which the diagnosis prefers them."""
    return _ALL
