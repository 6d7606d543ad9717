"""The folder in which the plugin is tried."""

import pytest

from harness.tests.pytest_plugin.small_suite import SUITE


@pytest.fixture
def project(pytester):
    """A folder with one suite in it."""
    (pytester.mkdir("verifications") / "small.toml").write_text(SUITE)
    pytester.makeini("[pytest]\naddopts = --no-diagnosis")
    return pytester
