"""What a subject replaces of torch, Hugging Face or the harness is in force for itself alone, and spoils no verdict."""

import re
import sys

import pytest

from harness.core.errors import SubjectError
from harness.core.originals import ORIGINALS
from harness.judging.runner import make_runner
from harness.tests.judging.naughty import CONSTRUCTION, FORWARD, subject

STATE = "behaviour::changes-no-global-state"
LOGITS = "parity::debug,weights=probe,compare=logits"
LOSS = "parity::debug,weights=probe,compare=loss"
OPERATIONS = "import harness.oracle.formula as formula; formula.OPERATIONS['mlp'] = lambda at, x: x"
KERNEL = "lib = torch.library.Library('aten', 'IMPL'); lib.impl('tanh', lambda x: x.clamp(-1, 1), 'CPU')"
# (where, the line, the check, its verdict, a word of what it says)
REPLACED = [
    # The oracle computes with the original functions, the subject with its own.
    (FORWARD, "torch.tanh = lambda x: x", LOGITS, "pass", ""),
    (FORWARD, "HF.NewGELUActivation.forward = lambda self, x: x.relu()", LOGITS, "pass", ""),
    (CONSTRUCTION, "HF.ACT2CLS['gelu_new'] = torch.nn.ReLU", LOGITS, "pass", ""),
    (FORWARD, "F.gelu = lambda x, **_: x.relu()", LOGITS, "fail", "different"),
    (
        FORWARD,
        "F.layer_norm = lambda x, s, weight, bias, eps, f=F.layer_norm: f(x, s, weight, bias, 1e-2)",
        LOGITS,
        "fail",
        "different",
    ),
    (FORWARD, "F.cross_entropy = lambda x, y, f=F.cross_entropy, **_: 2 * f(x, y)", LOSS, "fail", "different"),
    # What the check itself computes with.
    (FORWARD, "torch.equal = lambda *_: True", LOGITS, "error", "naughty.py:13), which the check computes with, too"),
    (
        FORWARD,
        "torch.Tensor.abs = lambda x: 0 * x",
        LOGITS,
        "error",
        "replaced torch.Tensor.abs (",
    ),
    (FORWARD, OPERATIONS, LOGITS, "error", "harness.oracle.formula.OPERATIONS.mlp ("),
]


@pytest.mark.parametrize(("where", "line", "check", "verdict", "message"), REPLACED, ids=lambda value: str(value)[:40])
def test_what_a_subject_replaces_changes_no_verdict(
    shipped, tmp_path, monkeypatch, where, line, check, verdict, message
):
    """A wrong subject that replaced torch.tanh was green: Hugging Face's GELU was as wrong as its own."""
    record = make_runner(subject(tmp_path, where, line)).run(shipped[check])
    assert record.verdict == verdict
    assert message in record.message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("torch.equal = lambda *_: True", "torch.equal (mine.py:2)"),
        (OPERATIONS, "harness.oracle.formula.OPERATIONS.mlp (mine.py:2)"),
        ("torch.nn.modules.module.register_module_forward_hook(lambda *_: None)", "hooks on every module"),
        ("torch.utils._device.TorchFunctionMode().__enter__()", "function modes (() -> ('TorchFunctionMode',))"),
    ],
)
def test_a_subject_whose_import_changes_the_judge_is_refused(tmp_path, monkeypatch, line, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(f"import torch; import torch.utils._device\n{line}\nfrom gpt import GPT\n")
    with pytest.raises(SubjectError, match=re.escape(message)):
        make_runner("mine.py:GPT")
    assert not ORIGINALS.patches()


def test_what_an_import_replaces_is_in_force_while_the_subject_runs(shipped, tmp_path):
    """As a kernel that a project puts in place of torch's: it was judged with torch's own, and was green."""
    text = "import torch.nn.functional as F\nF.gelu = lambda x, approximate: x.relu()\nfrom gpt import GPT\n"
    (tmp_path / "mine.py").write_text(text)
    assert make_runner(f"{tmp_path}/mine.py:GPT").run(shipped[LOGITS]).verdict == "fail"


def test_a_kernel_that_is_replaced_is_seen_in_what_it_computes(project):
    """In a process of its own: it stays replaced there."""
    code = f"import torch; from harness.core.originals import operations_changed; {KERNEL}; print(operations_changed())"
    assert project.run(sys.executable, "-c", code).stdout.str().startswith("['torch.tanh'")


@pytest.mark.parametrize(
    ("name", "imported"), [("matplotlib", False), ("matplotlib", True), ("zoneinfo", False), ("yaml", True)]
)
def test_a_file_that_is_called_like_a_package_of_the_report_does_not_draw_it(project, name, imported):
    """Matplotlib was imported from it, or a package that matplotlib imports: a traceback in place of the summary."""
    (project.path / f"{name}.py").write_text("assert __name__ == 'imported by the GPT', 'by the harness'\n")
    if imported:
        (project.path / f"{name}.py").write_text("import gpt\nBase = gpt.GPT\n")
    base = f"from {name} import Base" if imported else "from gpt import GPT as Base"
    (project.path / "mine.py").write_text(f"{base}\nclass GPT(Base): pass\n")
    result = project.runpytest_subprocess("--subject", "mine.py:GPT", "-k", "blocks")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["report:  reports/index.*"])


def test_a_file_that_is_called_like_a_package_of_the_oracle_is_the_subjects_alone(project):
    """Hugging Face's GPT-2 was imported from it, and every check of parity was an error."""
    (project.path / "transformers.py").write_text("from gpt import GPT as Base\n")
    (project.path / "mine.py").write_text("from transformers import Base\nclass GPT(Base): pass\n")
    result = project.runpytest_subprocess("--subject", "mine.py:GPT", "-k", "logits")
    result.assert_outcomes(passed=1)


def test_a_file_that_is_called_like_a_package_of_torch_does_not_end_the_run(project):
    """`python -m pytest` finds the files of the current folder first: torch imported this one, an INTERNALERROR."""
    (project.path / "tqdm.py").write_text("raise RuntimeError('not for torch')\n")
    (project.path / "mine.py").write_text("from gpt import GPT\n")
    result = project.runpytest_subprocess("--subject", "mine.py:GPT", "-k", "logits")
    result.assert_outcomes(passed=1)
