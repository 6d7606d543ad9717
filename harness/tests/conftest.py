"""Fixtures of the harness tests: pytest's pytester, the shipped suites, Ctrl-C and one thread."""

import os
import resource
import signal
import sys
from pathlib import Path

import matplotlib.pyplot  # noqa: F401 - see below
import pytest
import torch
from transformers import GPT2LMHeadModel  # noqa: F401

import gpt
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
    """Fail a test that leaves behind what would change those after it: torch's defaults, or another module `gpt`."""
    yield
    left = (torch.get_default_dtype(), torch.is_grad_enabled(), sys.modules.get("gpt"))
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
    sys.modules["gpt"] = gpt
    assert left == (torch.float32, True, gpt)


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


@pytest.fixture
def many_descriptors():
    """Open so many that the next has a number which select() does not take: data kept in a thousand files does it."""
    least, most = 2_048, resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY != most[1] < least:
        pytest.skip(f"the system allows {most[1]} open files; {least} are needed")
    if resource.RLIM_INFINITY != most[0] < least:
        resource.setrlimit(resource.RLIMIT_NOFILE, (least, most[1]))
    opened = [os.open(os.devnull, os.O_RDONLY)]
    while opened[-1] < 1_024:
        opened.append(os.dup(opened[0]))
    yield
    for descriptor in opened:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, most)
