"""The arms that are compared, and the comparisons, as data: shared by the benchmarks and the verifications."""

from harness.arms.declared import Declared, read_comparisons
from harness.arms.holding import derived, holding
from harness.arms.registry import Kind, Way, kinds, ways, work_of
from harness.arms.under import UnderCeilings
from harness.arms.workshop import Workshop

__all__ = [
    "Declared",
    "Kind",
    "UnderCeilings",
    "Way",
    "Workshop",
    "derived",
    "holding",
    "kinds",
    "read_comparisons",
    "ways",
    "work_of",
]
