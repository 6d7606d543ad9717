"""The rules of the layout: which room may import which, what an import costs, and how large a file may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from harness.tests.import_order import FLOOR, violations

ROOT = Path(__file__).parents[2]
LONGEST_FILE = 400  # lines; the specimen is one program on purpose, and the catalogue is data


def sources(*packages):
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            if "tests" not in path.parts:
                yield path


def test_the_rooms_import_one_another_in_order():
    assert violations(ROOT) == []


def test_only_the_command_line_lies_directly_in_harness():
    assert {path.name for path in (ROOT / "harness").glob("*.py")} == {"__init__.py", "cli.py"}
    rooms = {path.name for path in (ROOT / "harness").iterdir() if (path / "__init__.py").exists()}
    assert rooms - {"tests"} == set(FLOOR) - {"cli"}


# A file, one line in it, and what must be said of it.
BROKEN = {
    "a circle": ({"core/a.py": "import harness.core.b", "core/b.py": "import harness.core.a"}, "circle: "),
    "a circle through a function": (
        {"core/a.py": "def f():\n    from harness.core import b", "core/b.py": "from harness.core.a import f"},
        "circle: ",
    ),
    "a circle of types": (
        {"core/a.py": "if TYPE_CHECKING:\n    from harness.core.b import T", "core/b.py": "from .a import f"},
        "circle: ",
    ),
    "an upward import": ({"core/a.py": "from harness.bench.work import Work"}, "core may not import bench"),
    "an upward import of a module": ({"core/a.py": "from harness import bench"}, "core may not import bench"),
    "an upward import in a function": (
        {"oracle/a.py": "def f():\n    import harness.diagnosis.finding"},
        "oracle may not import diagnosis",
    ),
    "an import across a floor": ({"suites/a.py": "from harness.subjects import b"}, "suites may not import subjects"),
    "a relative upward import": ({"core/a.py": "from ..bench import work"}, "core may not import bench"),
    "a module in no room": ({"loose.py": ""}, "harness.loose is in no room"),
    "a room that has no floor": ({"attic/a.py": ""}, "harness.attic.a is in no room"),
    "a report that reads more than records": (
        {"report/a.py": "from harness.oracle.tokens import batch"},
        "report may not import oracle",
    ),
    "a harness that knows the reference": (
        {"oracle/a.py": "def f():\n    from gpt import GPT"},
        "oracle.a imports gpt",
    ),
    "a reference that knows the harness": ({"../gpt/a.py": "import harness.core"}, "gpt.a imports harness"),
}


@pytest.mark.parametrize(("files", "message"), BROKEN.values(), ids=BROKEN)
def test_what_breaks_the_order_is_found(tmp_path, files, message):
    for room in ("core", "suites", "subjects", "oracle", "bench", "diagnosis", "report"):
        (tmp_path / "harness" / room).mkdir(parents=True)
        (tmp_path / "harness" / room / "__init__.py").touch()
    (tmp_path / "harness/bench/work.py").touch()
    assert violations(tmp_path) == []
    for name, text in files.items():
        path = (tmp_path / "harness" / name).resolve()
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    (found,) = violations(tmp_path)
    assert message in found


def test_a_file_has_at_most_400_lines():
    long = [
        path for path in sources("gpt", "harness", "benchmarks") if len(path.read_text().splitlines()) > LONGEST_FILE
    ]
    assert long == []


def test_the_core_of_judging_knows_neither_pytest_nor_toml():
    files = [ROOT / "harness/judging/run_check.py"]
    files += sources("harness/subjects", "harness/measures", "harness/oracle")
    readers = {"deviations.py"}  # reads the user's declarations
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] not in ("pytest", "tomllib") or path.name in readers, path


def test_the_plugin_costs_other_projects_no_import_of_torch():
    code = (
        "import harness.pytest_plugin.hooks, sys;"
        "print([m for m in ('torch', 'transformers', 'matplotlib') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert answer.stdout.strip() == "[]"


def test_the_command_line_prints_its_help_without_importing_torch():
    code = "import harness.cli, sys; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert answer.stdout.strip() == "[]"


def test_nothing_is_unpickled():
    """torch.load without weights_only, and pickle itself, run the code that a file brings."""
    for path in sources("gpt", "harness", "benchmarks"):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {"pickle", "dill", "joblib"} & {name.split(".")[0] for name in names}, path
        for line in text.splitlines():
            assert "torch.load(" not in line or "weights_only=True" in line, f"{path}: {line}"


def test_the_mandated_folders_are_the_only_ones():
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=False)
    if tracked.returncode != 0:
        pytest.skip("not a git checkout")
    folders = {line.split("/")[0] for line in tracked.stdout.splitlines() if "/" in line}
    assert folders == {".ci", "benchmarks", "gpt", "harness", "reports", "verifications"}
