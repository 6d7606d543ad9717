"""What the tests of the harness share: pytest's own pytester, and the shipped suites."""

import signal
from pathlib import Path

import matplotlib.pyplot  # noqa: F401 - see below
import pandas  # noqa: F401
import pytest
import torch
from transformers import GPT2LMHeadModel  # noqa: F401

import gpt  # noqa: F401
from harness.suites.measure_registry import measures
from harness.suites.suite_file import read_suite

pytest_plugins = ["pytester"]

# pytester forgets every module that a run inside this process imports first, and torch does not survive a second
# import: so all of them are imported here.
measures()

VERIFICATIONS = Path(__file__).parents[2] / "verifications"


@pytest.fixture(scope="session")
def shipped():
    """Every check that the project ships, by 'suite::id'."""
    suites = [read_suite(path) for path in sorted(VERIFICATIONS.glob("*.toml"))]
    return {f"{suite.name}::{check.id}": check for suite in suites for check in suite.checks}


@pytest.fixture(autouse=True, scope="session")
def ctrl_c():
    """A shell that starts a job in the background has it ignore Ctrl-C, and its children with it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """These models are tiny: on a busy machine a second thread costs more in waiting than it does in work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
