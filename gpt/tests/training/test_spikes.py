"""The spike guard, and the step that is one on purpose."""

import math

import pytest
import torch

from gpt.data import Batch, vocabulary
from gpt.tests.training.small_trainer import trainer
from gpt.training.batch_text import describe_windows
from gpt.training.spikes import ENOUGH, WINDOW, SpikeGuard


def test_a_norm_of_several_times_the_median_is_a_spike_and_says_so():
    guard = SpikeGuard(3.0)
    assert [guard.check(1.0) for _ in range(20)] == [None] * 20
    assert guard.check(2.9) is None
    assert guard.check(12.3) == "the gradient norm 12.3 is 12.3 times the median of the last steps, 1"


def test_the_first_steps_have_no_median_to_be_compared_with():
    guard = SpikeGuard(3.0)
    assert [guard.check(10.0**step) for step in range(ENOUGH)] == [None] * ENOUGH
    assert guard.check(1e9)


def test_one_spike_does_not_hide_the_next():
    """A mean would have risen to 6.7 and called 12 usual."""
    guard = SpikeGuard(3.0)
    for _ in range(20):
        guard.check(1.0)
    assert guard.check(120.0)
    assert guard.check(12.0)


def test_the_median_follows_the_last_steps():
    guard = SpikeGuard(3.0)
    for norm in [1.0] * 4 * WINDOW + [8.0] * WINDOW:
        guard.check(norm)
    assert guard.check(10.0) is None


def test_a_factor_of_zero_finds_no_spike():
    guard = SpikeGuard(0.0)
    assert [guard.check(norm) for norm in [1.0] * 20 + [1e6]] == [None] * 21


def test_a_norm_that_is_not_finite_is_not_remembered():
    guard = SpikeGuard(3.0)
    for norm in [1.0] * 10 + [math.inf, math.nan] * 20:
        guard.check(norm)
    assert guard.usual() == 1.0


def test_an_injected_batch_is_one_repeated_token_that_the_guard_names():
    plain, spiked = trainer(steps=30), trainer(steps=30, inject_spike_at=15, spike_factor=1.5)
    seen = []
    for step in range(17):
        spiked.model.register_forward_pre_hook(lambda _, args: seen.append(args[0]), prepend=True) if not step else None
        result, expected = spiked.train_step(), plain.train_step()
        if step == 15:
            assert result.norm > 2 * expected.norm
            assert result.clipped_norm == pytest.approx(1.0, rel=1e-5)
            assert result.clip_cosine == pytest.approx(1.0, abs=1e-6)
            assert result.spike.startswith("step 15: the gradient norm")
            assert "4 windows" in result.spike
        elif step < 15:
            assert result.norm == expected.norm
    assert set(seen[15].flatten().tolist()) == {255}
    assert spiked.loader.state_dict() == plain.loader.state_dict()
    assert len(set(seen[16].flatten().tolist())) > 5


def test_windows_are_described_by_their_starts_and_their_text():
    words = vocabulary("bytes", "")
    ids = torch.stack([words.encode("First Citizen:"), words.encode("Before we proc")])
    batch = Batch(ids, ids, torch.tensor([0, 812]), 0, 0)
    assert describe_windows([batch], words) == (
        "2 windows, from the tokens 0, 812 on; the first begin with 0: 'First Citizen:', 812: 'Before we proc'"
    )


def test_a_long_description_is_shortened_and_rows_that_are_no_window_are_left_out():
    words = vocabulary("bytes", "")
    rows = torch.stack([words.encode("a" * 500)] * 50)
    starts = torch.tensor([-1, *range(49)])
    text = describe_windows([Batch(rows, rows, starts, 0, 0)], words)
    assert text.startswith("49 windows, from the tokens 0, 1, 2,")
    assert "-1" not in text
    assert len(text) < 500
    assert describe_windows([Batch(rows[:1], rows[:1], starts[:1], 0, 0)], words) == "no windows"
