"""A subject on a device is judged as on the CPU, and the line that leaves a tensor behind is shown.

The device is a pretended one (`harness/tests/pretend_device/`): it computes, and refuses operands on two devices.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.tests.pretend_device.build import build

ROOT = Path(__file__).parents[3]
RIGHT = (ROOT / "harness/tests/readme_gpt.py").read_text().replace("nn.GELU()", 'nn.GELU(approximate="tanh")')
# The GPT of the README makes its mask on the CPU.
BEHIND = "dtype=x.dtype)"
ON_DEVICE = "dtype=x.dtype, device=x.device)"


@pytest.fixture(scope="module")
def library(request):
    found = build(Path(request.config.cache.mkdir("pretend_device")))
    if found is None:
        pytest.skip("a C++ compiler (g++), to make the pretend device")
    return found


@pytest.fixture
def judged(library, tmp_path):
    """Return a function that judges the text of a GPT on the pretend device, and returns what is printed."""

    def judge(text, *arguments):
        (tmp_path / "mine.py").write_text(text)
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "harness.tests.pretend_device.plugin",
            "-p",
            "no:cacheprovider",
        ]
        command += ["--device", "pretend", "--reports", str(tmp_path / "reports"), *arguments]
        environment = {**os.environ, "PRETEND_DEVICE": str(library), "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True).stdout

    return judge


def suites(*names):
    return [str(ROOT / "verifications" / f"{name}.toml") for name in names]


# The suites whose measures take tensors of a model into their own hands.
SUITES = ("structure", "loss", "attention", "precision", "dropout", "options", "loading", "device")
# Of suites that take longer.
CHECKS = [
    "parity::debug,weights=probe,compare=blocks",
    "parity::debug,weights=probe,compare=gradients",
    "behaviour::writes-not-into-its-input",
    "conditions::answers-stay-what-they-were",
    "conditions::newest-weights-are-used",
    "conditions::gradients-match-finite-differences",
    "generation::greedy-by-definition,size=debug,prompt_length=30,new_tokens=12",
    "generation::generation-changes-nothing",
    "generation::cache-ends-with-the-context",
]


def test_a_right_gpt_passes_on_the_device(judged):
    """What a measure does not move to the device or back is an error here."""
    checks = [f"{suites(suite)[0]}::{check}" for suite, check in (each.split("::") for each in CHECKS)]
    # PyTorch copies no storage of a device that is an extension.
    options = ["-m", "debug", "--subject", "gpt:GPT", "-k", "not deepcopy", "-q", "--full-failures"]
    printed = judged("", *suites(*SUITES), *checks, *options)
    assert re.search(r"\d\d passed, \d+ skipped", printed), printed[-3000:]
    assert "failed" not in printed, printed[-6000:]


def test_a_tensor_that_is_left_on_the_cpu_is_named_with_its_line(judged):
    line = next(number for number, text in enumerate(RIGHT.splitlines(), 1) if BEHIND in text)
    printed = judged(RIGHT, *suites("parity"), "-m", "debug", "--subject", "mine.py:GPT", "-x")
    assert "Expected all tensors to be on the same device" in printed
    assert f"mine.py:{line} in forward" in printed


def test_a_table_that_is_not_registered_stays_on_the_cpu_and_is_named(judged):
    text = RIGHT.replace(BEHIND, ON_DEVICE).replace(
        "self.heads = heads\n", "self.heads = heads\n        self.one = torch.ones(1, 1)\n"
    )
    text = text.replace("return self.out_proj(", "return self.one * self.out_proj(")
    assert text.count("self.one") == 2
    printed = judged(text, *suites("parity"), "-m", "debug", "--subject", "mine.py:GPT", "-x")
    assert re.search(r"same device.*mine.py:\d+ in forward", printed, re.S)


def test_a_mistake_is_placed_on_the_device(judged):
    text = RIGHT.replace(BEHIND, ON_DEVICE).replace('nn.GELU(approximate="tanh")', "nn.GELU()")
    line = next(number for number, each in enumerate(text.splitlines(), 1) if "nn.GELU()" in each)
    printed = judged(text, *suites("parity"), "-m", "debug", "--subject", "mine.py:GPT")
    assert "gelu-erf-for-tanh" in printed
    assert f"mine.py:{line}" in printed
    assert "--device pretend" in printed  # in the command that runs it again


def test_a_device_that_is_not_there_ends_the_run_before_anything_runs(tmp_path):
    command = [sys.executable, "-m", "pytest", *suites("parity"), "--device", "cuda:77", "--reports", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--device cuda:77: not available on this machine or in this build of torch" in run.stderr
    assert not list(tmp_path.iterdir())
