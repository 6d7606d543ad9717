"""What the tests of the harness share: pytest's own pytester, and the shipped suites."""

from pathlib import Path

import pytest

from harness.suite import read_suite

pytest_plugins = ["pytester"]

VERIFICATIONS = Path(__file__).parents[2] / "verifications"


@pytest.fixture(scope="session")
def shipped():
    """Every check that the project ships, by 'suite::id'."""
    suites = [read_suite(path) for path in sorted(VERIFICATIONS.glob("*.toml"))]
    return {f"{suite.name}::{check.id}": check for suite in suites for check in suite.checks}
