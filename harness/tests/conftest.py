"""Fixtures of the harness tests: pytest's pytester, the shipped suites, Ctrl-C and one thread."""

import signal
import sys
from pathlib import Path

import matplotlib.pyplot  # noqa: F401 - see below
import pandas  # noqa: F401
import pytest
import torch
from transformers import GPT2LMHeadModel  # noqa: F401

import gpt  # noqa: F401
from harness.measures.all_measures import measures
from harness.suites.suite_file import read_suite

pytest_plugins = ["pytester"]

# pytester unloads every module that a run inside this process imports first, and torch cannot be imported twice: all
# of them are imported here.
measures()

VERIFICATIONS = Path(__file__).parents[2] / "verifications"


@pytest.fixture(scope="session")
def shipped():
    """Return every check of `verifications/`, by 'suite::id'."""
    suites = [read_suite(path, measures()) for path in sorted(VERIFICATIONS.glob("*.toml"))]
    return {f"{suite.name}::{check.id}": check for suite in suites for check in suite.checks}


@pytest.fixture(autouse=True)
def process_state():
    """Restore what building a subject in this process may change: the default dtype, and the modules named gpt."""
    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    modules = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "gpt"}
    yield
    torch.set_default_dtype(dtype)
    torch.set_grad_enabled(grad)
    for name in [name for name in sys.modules if name.split(".")[0] == "gpt" and name not in modules]:
        if sys.modules.get("gpt") is not modules.get("gpt"):
            del sys.modules[name]
    sys.modules.update(modules)


@pytest.fixture(autouse=True, scope="session")
def ctrl_c():
    """Restore Ctrl-C: a job that a shell starts in the background ignores it, and so do its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Limit torch to one thread: the models are tiny, and on a busy machine a second thread mostly waits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
