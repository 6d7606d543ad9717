"""The order of the suites, from coarse to fine: what needs least of the subject comes first."""

from __future__ import annotations

# What a model is made of, how it behaves and starts, what it computes, what is done with it. A failure early in the
# order is one that the diagnosis explains best, so that `-x` stops there. Arms repeat what other suites find.
COARSE_TO_FINE = (
    *("structure", "behaviour", "initialisation", "attention", "loss", "interface", "parity", "precision"),
    *(
        "dropout",
        "conditions",
        "generation",
        "options",
        "loading",
        "pretrained",
        "device",
        "speculation",
        "batching",
        "experts",
        "scaling",
    ),
    *("parallel", "data", "training", "arms", "claims"),
)


def place_of(suite: str) -> int:
    """Return the place of a suite in the order; a suite of the user's own comes first."""
    return COARSE_TO_FINE.index(suite) if suite in COARSE_TO_FINE else -1
