"""Fixtures for the tests of runs."""

import signal

import pytest

from gpt.tests.training.small_run import train
from gpt.training import peak
from gpt.training.trainer import Trainer


@pytest.fixture(autouse=True)
def own_cache_and_short_peak(tmp_path_factory, monkeypatch):
    """Keep token files out of the user's cache, and measure the matmul peak in a millisecond."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setattr(peak, "SECONDS", 0.0)
    monkeypatch.setitem(peak.SIZES, "cpu", 64)


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """Return the folder of a run that was stopped after 6 of 8 steps, between two checkpoints."""
    original = Trainer.train_step

    def step(trainer, **options):
        if trainer.step == 5:
            signal.raise_signal(signal.SIGINT)
        return original(trainer, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", step)
        assert train(tmp_path / "stopped", "--dropout", 0.1) == 130
    return tmp_path / "stopped"


@pytest.fixture
def straight(tmp_path):
    """Return the folder of the same run, not stopped."""
    assert train(tmp_path / "straight", "--dropout", 0.1) == 0
    return tmp_path / "straight"
