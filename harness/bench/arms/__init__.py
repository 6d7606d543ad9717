"""The arms that are compared, and the comparisons, as data: shared by the benchmarks and the verifications."""

from harness.bench.arms.all_arms import arm_specs, work_kinds, work_of
from harness.bench.arms.arm_ceilings import ArmCeilings
from harness.bench.arms.comparison_file import read_comparisons
from harness.bench.arms.declared_comparison import DeclaredComparison
from harness.bench.arms.derived_metrics import add_derived_metrics, check_expectations
from harness.bench.arms.model_pool import ModelPool
from harness.bench.arms.registry import ArmSpec, WorkKind

__all__ = [
    "ArmCeilings",
    "ArmSpec",
    "DeclaredComparison",
    "ModelPool",
    "WorkKind",
    "add_derived_metrics",
    "arm_specs",
    "check_expectations",
    "read_comparisons",
    "work_kinds",
    "work_of",
]
