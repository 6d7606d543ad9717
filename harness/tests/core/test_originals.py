"""What a subject replaced, found in the names of the watched modules."""

import pytest
from torch.nn import functional as F

from harness.core.originals import Originals
from harness.oracle import noise_verdict


@pytest.fixture
def watched(monkeypatch):
    """Return names as they are; what a test replaces is restored."""
    monkeypatch.setattr(F, "gelu", F.gelu)
    monkeypatch.setattr(noise_verdict, "CHUNK", noise_verdict.CHUNK)
    found = Originals()
    found.record()
    return found


def test_a_replaced_function_is_found_until_it_is_restored(watched):
    assert not watched.patches()
    F.gelu = F.relu
    for _ in range(2):
        assert [patch.path for patch in watched.patches()] == ["torch.nn.functional.gelu"]
    watched.patches()[0].undo()
    assert not watched.patches()


def test_another_number_is_no_replacement_and_hides_none_in_the_same_module(watched):
    noise_verdict.CHUNK += 1
    assert not watched.patches()
    noise_verdict.distance = (original := noise_verdict.distance).__call__
    try:
        assert [patch.name for patch in watched.patches()] == ["distance"]
    finally:
        noise_verdict.distance = original


def test_an_added_name_is_no_replacement_and_hides_none_in_the_same_module(watched, monkeypatch):
    monkeypatch.setattr(F, "added_by_a_subject", F.relu, raising=False)
    assert not watched.patches()
    F.gelu = F.relu
    assert [patch.name for patch in watched.patches()] == ["gelu"]
