"""The measures of which part of a text a loader gives: each target once an epoch, or starts that are uniform."""

import pytest
import torch

from harness.tests.measures.training.hand_made import T
from harness.tests.measures.training.made_batches import RANDOM, SPLIT, TOKENS, batches, cut, epoch, in_order


def without_the_last(starts, rows=4):
    """Return the batches of each epoch without the incomplete one."""
    flat = [start for batch in starts for start in batch]
    windows = len(set(flat))
    epochs = [flat[i : i + windows] for i in range(0, len(flat), windows)]
    kept = [start for own in epochs for start in own[: windows - windows % rows]]
    return [kept[i : i + rows] for i in range(0, len(kept), rows)]


def test_a_loader_that_drops_the_last_batch_of_each_shuffled_epoch_leaves_out_nothing_for_good(judge):
    """DataLoader(shuffle=True, drop_last=True) of LLMs-from-scratch."""
    starts = without_the_last(in_order(epochs=4))
    record = judge(
        "data::epoch-coverage,rehearsal=epoch", epoch=batches(starts, validation=[list(range(SPLIT, 3900, T))])
    )
    assert record.verdict == "skip"
    assert "leaves out the last, incomplete batch of each epoch (drop_last)" in record.message
    same = without_the_last(in_order(epochs=4, shuffled=False))
    record = judge(
        "data::epoch-coverage,rehearsal=epoch", epoch=batches(same, validation=[list(range(SPLIT, 3900, T))])
    )
    assert record.verdict == "fail", "in the order of the text it is always the tail"


@pytest.mark.parametrize("fields", [{}, {"shuffled": False}, {"rows": 7}], ids=["shuffled", "in order", "ragged"])
def test_a_loader_that_gives_every_target_once_passes(judge, fields):
    record = judge("data::epoch-coverage,rehearsal=epoch", epoch=epoch(**fields))
    assert record.verdict == "pass", record.message


def test_a_stride_that_is_one_too_long_leaves_out_targets(judge):
    starts = in_order(stride=T + 1)
    record = judge(
        "data::epoch-coverage,rehearsal=epoch", epoch=batches(starts, change=cut(starts), validation=[[SPLIT, 3700]])
    )
    assert record.where[0] == "epoch 0: targets left out"
    assert "leaves out target" in record.details["hint"]


def test_a_dropped_tail_is_named_in_each_epoch_and_nothing_else(judge):
    """An epoch was thought to be as long as the training part: windows of the next one were said to come again."""
    starts = in_order(stop=SPLIT - 40, epochs=3)
    record = judge("data::epoch-coverage,rehearsal=epoch", epoch=batches(starts, validation=[[SPLIT, 3700]]))
    assert record.verdict == "fail"
    assert record.details["hint"].count("leaves out the tail of the training part") == 3
    assert [record.value[f"epoch {number}: targets given again"] for number in range(3)] == [0, 0, 0]


def test_workers_that_repeat_one_another_are_found(judge):
    starts = [[start for start in row for _ in range(2)] for row in in_order(epochs=1)]
    record = judge("data::epoch-coverage,rehearsal=epoch", epoch=batches(starts, validation=[[SPLIT, 3700]]))
    assert record.value["epoch 0: targets given again"] > 1000


def shuffled(starts, *, seed, rows=4):
    """Return these starts in batches, in a shuffled order."""
    order = torch.randperm(len(starts), generator=torch.Generator().manual_seed(seed)).tolist()
    return [[starts[i] for i in order[at : at + rows]] for at in range(0, len(order), rows)]


def test_a_loader_that_cuts_the_text_at_other_places_in_each_epoch_passes(judge):
    epochs = [shuffled(range(offset, SPLIT - T, T), seed=offset) for offset in (5, 2, 7)]
    made = batches([batch for own in epochs for batch in own], validation=[[SPLIT, 3700]])
    assert judge("data::epoch-coverage,rehearsal=epoch", epoch=made).verdict == "pass"
    epochs = [shuffled(range(5, SPLIT - T, T), seed=seed) for seed in (1, 2, 3)]
    made = batches([batch for own in epochs for batch in own], validation=[[SPLIT, 3700]])
    record = judge("data::epoch-coverage,rehearsal=epoch", epoch=made)
    assert record.value["epoch 0: targets left out"] >= 5, "the same place in each epoch: its first tokens are lost"


def test_windows_that_are_validated_on_are_not_left_out(judge):
    """torch.utils.data.random_split of windows side by side."""
    starts = list(range(0, SPLIT, T))
    kept, validated = [s for s in starts if s % 5], [s for s in starts if not s % 5]
    twice, whole = [*shuffled(kept, seed=1), *shuffled(kept, seed=2)], TOKENS[: SPLIT + 1]
    made = batches(twice, tokens=whole, validation=[validated])
    assert judge("data::epoch-coverage,rehearsal=epoch", epoch=made).verdict == "pass"
    made = batches(twice, tokens=whole, validation=[validated[1:]])
    assert judge("data::epoch-coverage,rehearsal=epoch", epoch=made).value["epoch 0: targets left out"] == T


def test_two_workers_may_begin_a_pass_one_apart_and_not_read_the_same(judge):
    starts = list(range(0, SPLIT - T, T))
    once = [*shuffled(starts, seed=1), *shuffled(starts, seed=2)]
    n = len(once) // 2
    apart = [*once[: n - 1], once[n], once[n - 1], *once[n + 1 :]]
    alone = batches(once, validation=[[SPLIT, 3700]])
    settings = {"workers": 2}
    check = "data::epoch-coverage,rehearsal=workers"
    read = batches(apart, validation=[[SPLIT, 3700]], settings=settings)
    assert judge(check, epoch=alone, workers=read).verdict == "pass"
    twice = [batch for pair in zip(shuffled(starts, seed=1), shuffled(starts, seed=2), strict=True) for batch in pair]
    record = judge(check, epoch=alone, workers=batches(twice, validation=[[SPLIT, 3700]], settings=settings))
    assert record.verdict == "fail"
    assert record.details["hint"].startswith("read by 2 workers, ")


def test_the_first_token_of_a_document_may_be_no_target(judge):
    """Documents are packed, and the loss leaves out what follows the token that ends one."""
    end = int(TOKENS[20])

    def between(ids, targets):
        return ids, targets.masked_fill(ids == end, -100)

    made = batches(in_order(epochs=2), change=between, validation=[[SPLIT, 3700]])
    for check in ("data::targets-are-the-next-tokens,rehearsal=epoch", "data::epoch-coverage,rehearsal=epoch"):
        assert judge(check, epoch=made).verdict == "pass"

    def some(ids, targets):
        return ids, targets.masked_fill((ids == end) & (targets % 2 == 0), -100)

    made = batches(in_order(epochs=2), change=some, validation=[[SPLIT, 3700]])
    assert judge("data::targets-are-the-next-tokens,rehearsal=epoch", epoch=made).verdict == "fail"


def test_the_same_shuffled_order_each_epoch_is_found(judge):
    one = in_order(epochs=1)
    starts = one + one
    record = judge(
        "data::epoch-coverage,rehearsal=epoch", epoch=batches(starts, change=cut(starts), validation=[[SPLIT, 3700]])
    )
    assert record.where == ("epochs in the order of the first",)
    assert record.details["hint"] == "epoch 1 has the shuffled order of epoch 0"


def test_random_windows_are_judged_by_their_starts_and_not_by_epochs(judge):
    record = judge("data::epoch-coverage,rehearsal=epoch", epoch=batches(validation=[[SPLIT, 3700]]))
    assert record.verdict == "skip"
    assert "at random" in record.message
    assert judge("data::starts-are-uniform", starts=batches(validation=[[SPLIT, 3700]])).verdict == "pass"
    record = judge("data::starts-are-uniform", starts=epoch())
    assert (record.verdict, "side by side" in record.message) == ("skip", True)


def test_short_windows_side_by_side_are_not_at_random(judge):
    """Shards whose length is no multiple of the window end in short ones: the starts are closer than a window."""
    starts = [start for shard in range(0, SPLIT - 50, 50) for start in range(shard, shard + 50, T)]
    order = torch.randperm(len(starts), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [[starts[i] for i in order[at : at + 5]] for at in range(0, len(order), 5)]
    ends = iter(T - (start % 50 + T - 50 if start % 50 + T > 50 else 0) for row in rows for start in row)

    def change(ids, targets):
        for row in range(len(ids)):
            targets[row, next(ends) :] = -100
        return ids, targets

    record = judge("data::starts-are-uniform", starts=batches(rows, change=change, validation=[[SPLIT, 3700]]))
    assert (record.verdict, "side by side" in record.message) == ("skip", True)


@pytest.mark.parametrize("share", [0.5, 0.9], ids=str)
def test_a_loader_that_never_reaches_the_end_of_the_text_is_found(judge, share):
    starts = [[int(start * share) for start in row] for row in RANDOM]
    record = judge("data::starts-are-uniform", starts=batches(starts, validation=[[SPLIT, 3700]]))
    assert record.verdict == "fail"
    assert "possible ones" in record.details["hint"]
