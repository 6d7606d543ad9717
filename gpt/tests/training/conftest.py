"""Fixtures for the tests of runs."""

import pytest

from gpt.training import peak


@pytest.fixture(autouse=True)
def own_cache_and_short_peak(tmp_path_factory, monkeypatch):
    """Keep token files out of the user's cache, and measure the matmul peak in a millisecond."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setattr(peak, "SECONDS", 0.0)
    monkeypatch.setitem(peak.SIZES, "cpu", 64)
