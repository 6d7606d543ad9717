"""The arms that are compared, and the comparisons, as data: shared by the benchmarks and the verifications."""

from harness.bench.arms.arm_ceilings import UnderCeilings
from harness.bench.arms.comparison_file import Declared, read_comparisons
from harness.bench.arms.derived_metrics import derived, holding
from harness.bench.arms.model_pool import Workshop
from harness.bench.arms.registry import Kind, Way, kinds, ways, work_of

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
