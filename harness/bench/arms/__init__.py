"""The arms that are compared, and the comparisons, as data: shared by the benchmarks and the verifications."""

from harness.bench.arms.arm_ceilings import ArmCeilings
from harness.bench.arms.comparison_file import DeclaredComparison, read_comparisons
from harness.bench.arms.derived_metrics import derived, holding
from harness.bench.arms.model_pool import ModelPool
from harness.bench.arms.registry import ArmSpec, WorkKind, arm_specs, work_kinds, work_of

__all__ = [
    "ArmCeilings",
    "ArmSpec",
    "DeclaredComparison",
    "ModelPool",
    "WorkKind",
    "arm_specs",
    "derived",
    "holding",
    "read_comparisons",
    "work_kinds",
    "work_of",
]
