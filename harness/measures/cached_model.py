"""The model that neighbouring checks share, so that it is not built again for each of them."""

from __future__ import annotations

from harness.core.sizes import SIZES
from harness.oracle import model_cache
from harness.oracle.probe_weights import Weights, state
from harness.subjects.build import build_with_weights
from harness.subjects.model import Model
from harness.subjects.protocols import Subject


def cached_model(subject: Subject, size: str, weights: Weights, dtype: str = "float32") -> Model:
    """Return the subject with these weights, from the cache if the last check used the same model.

    The caller must leave the model as it is: a measure that changes it builds its own.
    """
    return model_cache.cached(
        ("cached model", subject, size, weights, dtype),
        lambda: build_with_weights(subject, SIZES[size], state(size, weights), dtype),
    )
