"""The rules of the layout: who may import whom, and what an import costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def imported(package):
    """(file, module) for every import statement below a package, its tests left out."""
    for path in sorted((ROOT / package).rglob("*.py")):
        if "tests" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((path.relative_to(ROOT), alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield path.relative_to(ROOT), node.module


@pytest.mark.parametrize(("package", "other"), [("gpt", "harness"), ("harness", "gpt")])
def test_neither_package_imports_the_other(package, other):
    found = list(imported(package))
    assert found
    assert not [(path, module) for path, module in found if module.split(".")[0] == other]


def test_the_report_reads_records_and_nothing_else_of_the_harness():
    allowed = {"harness.core.record_files", "harness.core.errors"}
    unmapped_parameters = [
        (path, module)
        for path, module in imported("harness/report")
        if module.startswith("harness.") and not module.startswith("harness.report") and module not in allowed
    ]
    assert not unmapped_parameters


def test_the_core_knows_neither_pytest_nor_toml():
    for path, module in imported("harness"):
        if path.name in ("run.py", "measure.py", "expect.py", "subject.py", "noise.py", "weights.py"):
            assert module.split(".")[0] not in ("pytest", "tomllib"), path


def test_the_plugin_costs_other_projects_no_import_of_torch():
    code = (
        "import harness.pytest_plugin.hooks, sys;"
        "print([m for m in ('torch', 'transformers', 'pandas', 'matplotlib') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert answer.stdout.strip() == "[]"


def test_nothing_is_unpickled():
    """torch.load without weights_only, and pickle itself, run whatever code the file brings."""
    for package in ("gpt", "harness", "benchmarks"):
        assert not [m for _, m in imported(package) if m.split(".")[0] in ("pickle", "dill", "joblib")]
        for path in (ROOT / package).rglob("*.py"):
            if "tests" not in path.parts:
                for line in path.read_text(encoding="utf-8").splitlines():
                    assert "torch.load(" not in line or "weights_only=True" in line, f"{path}: {line}"


def test_tests_and_caches_are_the_only_folders_beside_the_mandated_ones():
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=False)
    if tracked.returncode != 0:
        pytest.skip("not a git checkout")
    folders = {line.split("/")[0] for line in tracked.stdout.splitlines() if "/" in line}
    assert folders == {".ci", "benchmarks", "gpt", "harness", "reports", "verifications"}
