"""The order of batches: each window once an epoch, or starts that are uniform."""

import pickle
import tracemalloc
from collections import Counter

import pytest
import torch

from gpt.data.order import Order
from gpt.errors import LoaderError

WINDOWS = 40


def epoch_order(**changes):
    return Order(**{"name": "epoch", "seed": 0, "windows": 10, "batch": 4, "batches_per_epoch": 3} | changes)


def random_order(**changes):
    return Order(**{"name": "random", "seed": 0, "windows": WINDOWS, "batch": 8, "batches_per_epoch": 5} | changes)


def drawn(order, batches):
    return [window for number in range(batches) for window in order.batch_windows(number)]


def p_uniform(counts):
    """Return the probability that uniform draws scatter at least as much as `counts` (chi-squared)."""
    expected = sum(counts) / len(counts)
    statistic = sum((count - expected) ** 2 / expected for count in counts)
    return float(torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2), torch.tensor(statistic / 2)))


# ---------------------------------------------------------------------------- epoch


def test_an_epoch_has_every_window_once_and_is_filled_up_at_its_end():
    order = epoch_order()
    for epoch in range(3):
        numbers = drawn(order, 3 * (epoch + 1))[12 * epoch :]
        assert sorted(numbers[:10]) == list(range(10))
        assert numbers[10:] == [-1, -1]
        assert {order.epoch(3 * epoch + place) for place in range(3)} == {epoch}


def test_epochs_and_seeds_differ_in_their_order():
    orders = {tuple(drawn(epoch_order(seed=seed), 9)[start : start + 10]) for seed in range(3) for start in (0, 12, 24)}
    assert len(orders) == 9
    assert tuple(range(10)) not in orders


def test_a_batch_does_not_depend_on_the_batches_drawn_before_it():
    for made in (epoch_order, random_order):
        straight = made()
        batches = [straight.batch_windows(number) for number in range(12)]
        for number in (11, 0, 5, 4):
            assert made().batch_windows(number) == straight.batch_windows(number) == batches[number]


def test_the_order_of_one_epoch_is_in_memory_at_a_time():
    """A text of 9 billion tokens has 9 million windows of 1024, and an array of them 72 MB."""
    order = epoch_order(windows=100_000, batches_per_epoch=25_000)
    sizes = [len(pickle.dumps(order)) for epoch in range(4) if order.batch_windows(epoch * 25_000)]
    assert max(sizes) < 1.1 * min(sizes)


def test_an_order_takes_8_bytes_a_window():
    """A list of Python's numbers takes 40."""
    tracemalloc.start()
    order = epoch_order(windows=100_000, batches_per_epoch=25_000)
    assert len(order.batch_windows(0)) == 4
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 8e5 <= taken < 9e5


# ---------------------------------------------------------------------------- random


def test_random_windows_are_uniform_and_the_first_and_the_last_are_among_them():
    counts = Counter(drawn(random_order(), 1000))
    assert set(counts) == set(range(WINDOWS))
    # Below 0.001: some windows are drawn more often. Above 0.999: the counts are too even for independent draws.
    assert 0.001 < p_uniform(list(counts.values())) < 0.999


def test_random_windows_are_independent_from_one_draw_to_the_next():
    numbers = drawn(random_order(windows=5), 1000)
    for distance in (1, 8):  # within a batch, and from a batch to the next
        pairs = Counter(zip(numbers, numbers[distance:], strict=False))
        assert len(pairs) == 25
        assert 0.001 < p_uniform(list(pairs.values())) < 0.999


def test_a_seed_and_its_neighbour_have_nothing_in_common():
    """A generator seeded with seed + number would give batch 1 of seed 0 to batch 0 of seed 1."""
    first, second = random_order(seed=0, windows=10**6), random_order(seed=1, windows=10**6)
    numbers = drawn(first, 20) + drawn(second, 20)
    assert len(set(numbers)) > len(numbers) - 5


@pytest.mark.parametrize("seed", [-1, 2**40, 2**63])
def test_any_integer_is_a_seed(seed):
    assert random_order(seed=seed).batch_windows(0) != random_order(seed=0).batch_windows(0)


# ---------------------------------------------------------------------------- limit


@pytest.mark.parametrize(("made", "limit", "period"), [(epoch_order, 2, 2), (epoch_order, 7, 3), (random_order, 7, 7)])
def test_a_limit_repeats_the_first_batches_for_ever(made, limit, period):
    order = made(limit=limit)
    first = [made().batch_windows(number) for number in range(period)]
    assert [order.batch_windows(number) for number in range(3 * period)] == 3 * first
    assert [order.epoch(number) for number in (0, period - 1, period, 2 * period)] == [0, 0, 1, 2]


def test_an_order_that_does_not_exist_is_a_named_error():
    with pytest.raises(LoaderError, match="the order is 'shuffled'; expected one of epoch, random"):
        epoch_order(name="shuffled")
    with pytest.raises(LoaderError, match="limit is -1; expected 0 or more"):
        epoch_order(limit=-1)
