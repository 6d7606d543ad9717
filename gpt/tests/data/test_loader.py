"""The loader: every token once an epoch, on any number of ranks and workers, from any position."""

import gc
import json
import math
import multiprocessing
import os
import random
import signal

import numpy as np
import pytest
import torch

from gpt.data import Loader
from gpt.errors import LoaderError, TextTooShort

TOKENS = torch.arange(1000, 1100)  # a token is 1000 + its position
ORDERS = ["epoch", "random"]


def loader(tokens=TOKENS, **changes):
    return Loader(tokens, **{"length": 7, "batch_size": 4, "order": "epoch", "seed": 3} | changes)


def take(made, count):
    return [next(made) for _ in range(count)]


def same(one, other):
    return (one.epoch, one.number) == (other.epoch, other.number) and all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in ("ids", "targets", "starts")
    )


def counted(batches):
    """Return the positions of all targets, in their order."""
    targets = torch.cat([batch.targets.flatten() for batch in batches])
    return (targets[targets != -100] - 1000).tolist()


# ---------------------------------------------------------------------------- batches


@pytest.mark.parametrize("order", ORDERS)
def test_a_batch_has_the_tokens_at_its_starts_and_the_next_ones_as_targets(order):
    for batch in take(loader(order=order), 12):
        assert batch.ids.shape == batch.targets.shape == (4, 7)
        assert batch.ids.dtype == batch.targets.dtype == batch.starts.dtype == torch.int64
        positions = batch.starts[:, None] + torch.arange(7)
        there = batch.targets != -100
        assert torch.equal(batch.ids[there], 1000 + positions[there])
        assert torch.equal(batch.targets[there], 1001 + positions[there])
        assert not batch.ids[~there].any()


@pytest.mark.parametrize("count", [100, 99, 93, 92, 8])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 50])
def test_every_token_but_the_first_is_a_target_exactly_once_an_epoch(count, batch_size):
    """With 100 tokens the last window has one target, with 99 it is full; 14 windows do not divide into batches."""
    made = loader(TOKENS[:count], batch_size=batch_size)
    batches = math.ceil(math.ceil((count - 1) / 7) / batch_size)
    epochs = [counted(take(made, batches)) for _ in range(3)]
    for targets in epochs:
        assert sorted(targets) == list(range(1, count))
    if count > 8:
        assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_the_epoch_and_the_number_of_a_batch_are_counted():
    made = loader()  # 15 windows, 4 batches an epoch
    assert [(batch.epoch, batch.number) for batch in take(made, 9)] == [(n // 4, n) for n in range(9)]
    assert made.epoch == 2


def test_the_last_batch_of_an_epoch_is_filled_up_with_rows_that_are_no_window():
    *_, last = take(loader(), 4)
    assert last.starts[3] == -1
    assert last.targets[3].tolist() == [-100] * 7
    assert (last.starts[:3] >= 0).all()


def test_random_windows_are_full_and_reach_both_ends():
    batches = take(loader(order="random"), 300)
    starts = torch.cat([batch.starts for batch in batches])
    assert (int(starts.min()), int(starts.max())) == (0, 92)
    assert all((batch.targets != -100).all() for batch in batches)
    assert batches[3].epoch == 0
    assert batches[4].epoch == 1  # 4 * 28 targets are more than the text has


@pytest.mark.parametrize("order", ORDERS)
def test_a_seed_repeats_its_batches_and_another_has_others(order):
    first, again, other = (take(loader(order=order, seed=seed), 6) for seed in (3, 3, 4))
    assert all(map(same, first, again))
    assert not any(torch.equal(one.ids, another.ids) for one, another in zip(first, other, strict=True))


@pytest.mark.parametrize("order", ORDERS)
def test_a_limit_trains_on_the_first_batches_again_and_again(order):
    batches, first = take(loader(order=order, limit=2), 6), take(loader(order=order), 2)
    for place, batch in enumerate(batches):
        assert torch.equal(batch.ids, first[place % 2].ids)
    assert [batch.epoch for batch in batches] == [0, 0, 1, 1, 2, 2]


# ---------------------------------------------------------------------------- ranks


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("ranks", [2, 3])
def test_the_ranks_together_have_the_batches_of_one_process(order, ranks):
    """15 windows: on 3 ranks of 2, the last batch of an epoch leaves nothing for the third one."""
    single = take(loader(order=order, batch_size=2 * ranks), 9)
    each = [take(loader(order=order, batch_size=2, rank=rank, ranks=ranks), 9) for rank in range(ranks)]
    for expected, *parts in zip(single, *each, strict=True):
        for name in ("ids", "targets", "starts"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(expected, name))
        assert {(part.epoch, part.number) for part in parts} == {(expected.epoch, expected.number)}
        assert {part.ids.shape for part in parts} == {(2, 7)}


def test_ranks_with_workers_have_no_token_twice():
    made = [loader(batch_size=2, rank=rank, ranks=2, workers=2) for rank in range(2)]
    targets = [counted(take(one, 4)) for one in made]  # 15 windows, 4 batches an epoch
    assert sorted(targets[0] + targets[1]) == list(range(1, 100))


# ---------------------------------------------------------------------------- workers


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("workers", [1, 2])
def test_the_batches_are_the_same_with_any_number_of_workers(order, workers):
    assert all(map(same, take(loader(order=order), 9), take(loader(order=order, workers=workers), 9)))


@pytest.mark.parametrize("workers", [0, 2])
def test_no_global_generator_is_advanced(workers):
    """DataLoader draws the seeds of its workers from torch's global generator unless it has one of its own."""

    def states():
        return [torch.get_rng_state().tolist(), str(random.getstate()), str(np.random.get_state())]

    before = states()
    made = loader(workers=workers)
    take(made, 5)
    made.load_state_dict(made.state_dict())
    take(made, 1)
    assert states() == before


@pytest.mark.parametrize("workers", [0, 2])
def test_no_global_generator_is_read(workers):
    torch.manual_seed(1)
    first = take(loader(order="random", workers=workers), 3)
    torch.manual_seed(2)
    assert all(map(same, first, take(loader(order="random", workers=workers), 3)))


@pytest.mark.parametrize("end", ["close", "last reference"])
def test_workers_end_with_their_loader(end):
    gc.collect()
    before = set(multiprocessing.active_children())
    made = loader(workers=2)
    take(made, 2)
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    gc.disable()  # so that a cycle of references does not go unnoticed
    try:
        if end == "close":
            made.close()
        else:
            del made
        assert not workers & set(multiprocessing.active_children())
    finally:
        gc.enable()


def test_workers_outlive_ctrl_c_so_that_a_run_can_finish_its_step():
    before, handler = set(multiprocessing.active_children()), signal.getsignal(signal.SIGINT)
    made, straight = loader(workers=2), take(loader(), 20)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a command in the background ignores it
    try:
        found = take(made, 1)
    finally:
        signal.signal(signal.SIGINT, handler)
    for worker in set(multiprocessing.active_children()) - before:
        os.kill(worker.pid, signal.SIGINT)
    assert all(map(same, straight, found + take(made, 19)))


def test_a_closed_loader_continues_where_it_was():
    made, straight = loader(workers=1), take(loader(), 6)
    found = take(made, 3)
    made.close()
    assert all(map(same, straight, found + take(made, 3)))


# ---------------------------------------------------------------------------- position


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("workers", "later"), [(0, 0), (2, 2), (2, 0), (0, 1)])
@pytest.mark.parametrize("done", [0, 3, 6])
def test_a_restored_loader_gives_the_batches_that_would_have_come(order, workers, later, done):
    """6 is in the middle of the second epoch; workers are up to 4 batches ahead, which nobody has trained on."""
    stopped = loader(order=order, workers=workers)
    take(stopped, done)
    state = json.loads(json.dumps(stopped.state_dict()))
    assert state["number"] == done
    restored = loader(order=order, workers=later)
    take(restored, 2)  # its own prepared batches are dropped
    restored.load_state_dict(state)
    assert restored.epoch == done // 4
    assert all(map(same, take(loader(order=order), done + 6)[done:], take(restored, 6)))


def test_the_position_is_the_same_on_all_ranks_and_fits_another_number_of_them():
    ranks = [loader(batch_size=2, rank=rank, ranks=2) for rank in range(2)]
    for rank in ranks:
        take(rank, 3)
    assert ranks[0].state_dict() == ranks[1].state_dict()
    one = loader(batch_size=4)
    one.load_state_dict(ranks[0].state_dict())
    assert same(next(one), take(loader(batch_size=4), 4)[3])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 4}, "seed = 3, and this one has 4"),
        ({"order": "random"}, "order = 'epoch', and this one has 'random'"),
        ({"length": 8}, "length = 7"),
        ({"batch_size": 5}, "global_batch = 4"),
        ({"ranks": 2}, "global_batch = 4, and this one has 8"),
        ({"limit": 1}, "limit = 0"),
        ({"tokens": TOKENS[:-1]}, "tokens = 100, and this one has 99"),
    ],
)
def test_a_position_of_other_batches_is_a_named_error_and_changes_nothing(changes, named):
    made = loader(**changes)
    take(made, 1)
    with pytest.raises(LoaderError, match=named):
        made.load_state_dict(loader().state_dict())
    assert made.state_dict()["number"] == 1


@pytest.mark.parametrize("number", [-1, None, 1.5, "3"])
def test_a_position_that_does_not_exist_is_a_named_error(number):
    with pytest.raises(LoaderError, match="expected a number of batches, from 0"):
        loader().load_state_dict(loader().state_dict() | {"number": number})


# ---------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("order", ORDERS)
def test_a_text_shorter_than_a_window_is_a_named_error(order):
    assert len(next(loader(TOKENS[:8], order=order)).ids) == 4
    with pytest.raises(TextTooShort, match="has 7 tokens, and a window of 7 with its targets needs 8"):
        loader(TOKENS[:7], order=order)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0 and workers 0; expected at least 1 and at least 0"),
        ({"workers": -1}, "workers -1"),
        ({"rank": 2, "ranks": 2}, "there is no rank 2 of 2; expected 0 to 1"),
        ({"rank": -1}, "there is no rank -1 of 1"),
        ({"order": "shuffled"}, "the order is 'shuffled'"),
        ({"limit": -1}, "limit is -1"),
    ],
)
def test_arguments_that_describe_no_batches_are_named_errors(changes, message):
    with pytest.raises(LoaderError, match=message):
        loader(**changes)
