"""The measures of batches: what is right passes, and each mistake is named."""

from dataclasses import replace

import pytest
import torch

from harness.tests.measures.training.hand_made import T, passes, recording, stream, text
from harness.training.events import Forward

TOKENS = text()
SPLIT = 3600
RANDOM = torch.randint(SPLIT - T, (400, 4), generator=torch.Generator().manual_seed(1)).tolist()


def batches(starts=RANDOM, *, tokens=TOKENS, validation=(), streams=None, settings=None, change=lambda *both: both):
    """Return a recording of training on windows that start there, and of one validation."""
    training = passes(tokens, starts, change=change)
    tested = passes(tokens, validation, phase="eval", first=len(starts) + 1, step=0)
    return recording([*(streams or [stream(tokens)]), *training, *tested], settings=settings or {})


def in_order(*, length=T, stride=T, epochs=2, shuffled=True, stop=SPLIT, rows=4):
    """Return the starts of windows side by side, in a new order each epoch, as batches."""
    starts = []
    for epoch in range(epochs):
        own = torch.arange(0, stop - 1, stride)
        order = torch.randperm(len(own), generator=torch.Generator().manual_seed(epoch * shuffled))
        starts += own[order].tolist() if shuffled else own.tolist()
    return [starts[i : i + rows] for i in range(0, len(starts), rows)]


def cut(starts, stop=SPLIT):
    """Return a `change` for windows that end with the training part: the targets beyond it are ignored."""
    todo = iter(start for batch in starts for start in batch)

    def change(ids, targets):
        for row in range(len(ids)):
            left = stop - 1 - next(todo)
            targets[row, max(left, 0) :] = -100
        return ids, targets

    return change


def epoch(**fields):
    starts = in_order(**fields)
    return batches(starts, change=cut(starts), validation=[list(range(SPLIT, 3900, T))])


# targets


def test_the_next_tokens_pass(judge):
    record = judge("data::targets-are-the-next-tokens,rehearsal=plain", plain=batches(validation=[[SPLIT, 3700]]))
    assert record.verdict == "pass", record.message
    assert record.value["validation before step 0, batch 0"] == 0


def ignore_token(ids, targets):
    return ids, targets.masked_fill(targets == TOKENS[103], -100)


def shift(by):
    def change(ids, targets):
        row = TOKENS.unfold(0, T, 1)
        starts = [int((row == own).all(1).nonzero()[0]) for own in ids]
        return ids, torch.stack([TOKENS[start + by : start + by + T] for start in starts])

    return change


MISALIGNED = {
    "offset 0": (lambda ids, targets: (ids, ids.clone()), "the inputs themselves (offset 0)"),
    "offset 2": (shift(2), "shifted twice (offset 2)"),
    "offset -1": (shift(-1), "before their inputs (offset -1)"),
    "rolled": (lambda ids, targets: (ids, ids.roll(-1, 1)), "torch.roll wraps around"),
    "another row": (lambda ids, targets: (ids, targets.roll(1, 0)), "the targets of row 0 are those of row 3"),
    "a real token is ignored": (ignore_token, f"ignores the targets that are token {TOKENS[103]}"),
    "the first target is ignored": (
        lambda ids, targets: (ids, targets.index_fill(1, torch.tensor([0]), -100)),
        "ignores the target at position 0 of every row",
    ),
    "one wrong target": (
        lambda ids, targets: (ids, targets.index_fill(1, torch.tensor([3]), 0)),
        "position 3: target 0",
    ),
}


@pytest.mark.parametrize(("change", "cause"), MISALIGNED.values(), ids=MISALIGNED)
def test_other_targets_fail_and_the_first_batch_and_the_cause_are_named(judge, change, cause):
    starts = [[100 + i for i in range(0, 40, 10)], *RANDOM[:3]]
    record = judge("data::targets-are-the-next-tokens,rehearsal=plain", plain=batches(starts, change=change))
    assert record.verdict == "fail"
    assert record.where[0] == "step 0, batch 0"
    assert cause in record.details["hint"]


def test_without_a_stream_the_row_itself_says_what_is_next(judge):
    """A program whose token stream is not recognised is judged by its rows, except for their last targets."""
    other = [stream(text(seed=9))]
    check = "data::targets-are-the-next-tokens,rehearsal=plain"
    assert judge(check, plain=batches(streams=other)).verdict == "pass"
    copies = batches(streams=other, change=lambda ids, targets: (ids, ids.clone()))
    assert "offset 0" in judge(check, plain=copies).details["hint"]


# where rows come from


def test_ids_that_wrap_in_a_small_type_are_named(judge):
    tokens = text() + 250  # up to 289
    wrapped = batches(tokens=tokens, change=lambda ids, targets: (ids % 256, targets % 256))
    record = judge("data::rows-are-of-the-text", plain=wrapped)
    assert record.verdict == "fail"
    assert "modulo 256" in record.details["hint"]
    assert judge("data::rows-are-of-the-text", plain=batches(tokens=tokens)).verdict == "pass"


def test_what_another_line_evaluates_on_a_task_of_its_own_is_no_validation(judge):
    validated = batches(validation=[[SPLIT, 3700]])
    task = passes(TOKENS % 7, [[3, 5]], phase="eval", first=900, step=0, line="train.py:90: hellaswag")
    both = replace(validated, events=(*validated.events, *task))
    record = judge("data::rows-are-of-the-text", plain=both)
    assert record.verdict == "pass"
    assert record.value == {"training": 0, "validation": 0}
    alone = replace(batches(), events=(*batches().events, *task))
    assert judge("data::rows-are-of-the-text", plain=alone).verdict == "fail"


def test_a_row_that_may_be_in_the_rest_of_a_stream_that_is_known_in_part_is_skipped(judge):
    cut = replace(stream(TOKENS[:2000]), length=4000)
    record = judge("data::rows-are-of-the-text", plain=batches(streams=[cut]))
    assert record.verdict == "skip"
    assert "of the 4,000 tokens of it the first 2,000 are recorded" in record.message
    within = [[start % 1900 for start in row] for row in RANDOM]
    wraps = batches(within, streams=[cut], change=lambda ids, targets: (ids % 32, targets % 32))
    assert judge("data::rows-are-of-the-text", plain=wraps).verdict == "fail"
    assert judge("data::rows-are-of-the-text", plain=batches(within, streams=[cut])).verdict == "pass"


def test_the_documents_of_a_line_that_makes_many_are_not_all_recorded_and_so_no_stream(judge):
    """Rows of short documents, and of those after the first eight, were called foreign to the text."""
    documents = [replace(stream(TOKENS[at : at + 100]), line="data.py:7") for at in range(0, 800, 100)]
    assert judge("data::rows-are-of-the-text", plain=batches(streams=documents)).verdict == "skip"
    assert judge("data::rows-are-of-the-text", plain=batches(streams=documents[:7])).verdict == "fail"


def test_a_program_whose_streams_were_not_seen_is_skipped(judge):
    record = judge("data::rows-are-of-the-text", plain=recording(passes(TOKENS, RANDOM[:3])))
    assert record.verdict == "skip"


def test_parts_that_share_no_token_pass(judge):
    record = judge("data::parts-share-no-token", epoch=epoch())
    assert (record.verdict, record.value) == ("pass", {"tokens in both parts": 0})


def test_a_training_part_that_is_one_token_too_long_is_found(judge):
    starts = in_order(epochs=1)
    leak = batches(starts, change=cut(starts, SPLIT + 1), validation=[list(range(SPLIT, 3900, T))])
    record = judge("data::parts-share-no-token", epoch=leak)
    assert record.value == {"tokens in both parts": 1}
    assert f"token {SPLIT} " in record.details["hint"]


def test_validation_on_the_training_part_is_found(judge):
    record = judge("data::parts-share-no-token", epoch=batches(in_order(epochs=1), validation=[[0, 8], [80, 88]]))
    assert record.verdict == "fail"
    assert "the validation rows are in the training part" in record.details["hint"]


def test_an_estimate_of_the_training_loss_is_no_leak(judge):
    """NanoGPT evaluates as many batches of the training part as of the validation part."""
    starts = in_order(epochs=1)
    both = batches(starts, change=cut(starts), validation=[[0, 8], [80, 88], [SPLIT, 3700], [3800, 3900]])
    assert judge("data::parts-share-no-token", epoch=both).verdict == "pass"
    leak = batches(starts, change=cut(starts, SPLIT + 1), validation=[[SPLIT, SPLIT + T], [SPLIT + 2 * T]])
    assert judge("data::parts-share-no-token", epoch=leak).verdict == "fail", "two halves of one validation"
    whole = batches(starts, change=cut(starts), validation=[[0, 8], [80, 88], [160, 240], [SPLIT, 3700]])
    assert judge("data::parts-share-no-token", epoch=whole).verdict == "fail", "a validation on all of the text"


def test_an_estimate_beside_a_validation_in_no_stream_that_was_seen_is_no_leak(judge):
    """A text that is encoded in two parts, of which the one for validation is too short to be taken for a stream."""
    train, held = TOKENS[:SPLIT], TOKENS[SPLIT:].flip(0)

    def evaluated(*parts):
        made = [passes(own, [starts], phase="eval", first=900 + n, step=0)[0] for n, (own, starts) in enumerate(parts)]
        return recording([stream(train), *passes(train, in_order(stop=SPLIT - T)), *made])

    estimate = evaluated((train, [0, 80, 160]), (held, [5, 50]))
    assert judge("data::parts-share-no-token", epoch=estimate).verdict == "skip"
    assert judge("data::parts-share-no-token", epoch=evaluated((train, [0, 80, 160]))).verdict == "fail"


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


def test_equal_rows_are_judged_by_their_probability(judge):
    check = "data::rows-of-a-batch-differ,rehearsal=plain"
    assert judge(check, plain=batches()).verdict == "pass"
    short = RANDOM[:50]
    once = [[*row[:3], row[0]] if number == 3 else row for number, row in enumerate(short)]
    assert judge(check, plain=batches(once)).verdict == "pass", "sampling with replacement"
    record = judge(check, plain=batches([[row[0]] * 4 for row in short]))
    assert record.verdict == "fail"
    assert "is in its batch 4 times" in record.details["hint"]


def test_ranks_with_the_same_rows_are_found(judge):
    check = "data::rows-of-a-batch-differ,rehearsal=two-ranks"
    halves = [batches([row[:2] for row in RANDOM[:20]]), batches([row[2:] for row in RANDOM[:20]])]
    assert judge(check, two_ranks=halves).verdict == "pass"
    assert judge(check, two_ranks=[halves[0], halves[0]]).verdict == "fail"


def test_a_batch_that_comes_again_is_named(judge):
    assert judge("data::batches-differ", plain=batches(RANDOM[:6])).verdict == "pass"
    record = judge("data::batches-differ", plain=batches([*RANDOM[:3], RANDOM[1]]))
    assert record.where == ("step 3",)
    assert record.details["hint"] == "step 3 has the batch of step 1"


# coverage


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
    kept, held = [s for s in starts if s % 5], [s for s in starts if not s % 5]
    twice, whole = [*shuffled(kept, seed=1), *shuffled(kept, seed=2)], TOKENS[: SPLIT + 1]
    made = batches(twice, tokens=whole, validation=[held])
    assert judge("data::epoch-coverage,rehearsal=epoch", epoch=made).verdict == "pass"
    made = batches(twice, tokens=whole, validation=[held[1:]])
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


def test_documents_of_both_parts_are_found_in_two_streams(judge):
    """The parts are packed one by one, from documents of which one is in both."""
    train, held = TOKENS[:SPLIT], torch.cat([TOKENS[SPLIT:], TOKENS[200:300]])

    def rows(tokens, starts, **fields):
        own = [tokens[start : start + 17] for start in starts]
        ids, targets = torch.stack([row[:-1] for row in own]), torch.stack([row[1:] for row in own])
        return Forward(step=0, ids=ids, targets=targets, loss=3.0, **fields)

    def recorded(*starts):
        trained = rows(train, range(0, SPLIT - 16, 16), order=1, phase="train", mode="train", used=True)
        tested = rows(held, starts, order=2, phase="eval", mode="eval", used=False)
        return recording([stream(train, "train"), replace(stream(held, "val"), order=0), trained, tested])

    assert judge("data::parts-share-no-token", epoch=recorded(3, 60)).verdict == "pass"
    assert judge("data::parts-share-no-token", epoch=recorded(3, len(held) - 60)).verdict == "fail"


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


def test_a_stream_that_is_a_part_of_another_is_no_stream_of_its_own(judge):
    """A program reads a file and cuts it: a row that was found twice would not be judged."""
    streams = [stream(TOKENS[:SPLIT]), stream(TOKENS), stream(TOKENS[SPLIT:])]
    starts = in_order()
    cuts = batches(starts, change=cut(starts), streams=streams, validation=[list(range(SPLIT, 3900, T))])
    assert judge("data::epoch-coverage,rehearsal=epoch", epoch=cuts).verdict == "pass"


# padding

LENGTHS = (3, 5, T - 4, 7, 2)


def padded(lengths, *, counted, change=lambda ids: ids):
    """Return a recording of rows of these lengths, with token 0 before and behind them; the padding may count."""
    rows = [[0, *(1 + TOKENS[:length]).tolist()] for length in lengths]
    pad = 0 if counted else -100
    ids = change(torch.tensor([row + [0] * (T - len(row)) for row in rows]))
    targets = torch.tensor([[*row[1:], 0] + [pad] * (T - len(row)) for row in rows])
    return recording(
        Forward(order=n, step=n, phase="train", ids=own[None], targets=after[None], loss=1.0, used=True)
        for n, (own, after) in enumerate(zip(ids, targets, strict=True))
    )


def test_padding_that_is_no_target_passes_and_padding_that_is_one_is_counted(judge):
    assert judge("data::padding-is-no-target", plain=padded(LENGTHS, counted=False)).verdict == "pass"
    wrong = judge("data::padding-is-no-target", plain=padded(LENGTHS, counted=True))
    assert wrong.verdict == "fail"
    assert list(wrong.value.values()) == [T - length - 1 for length in LENGTHS]
    assert wrong.details["hint"] == f"the loss counts {T - 4} of {T} targets that are padding, token 0"


def repeats_its_padding(ids):
    ids[0, 1:3] = 0
    return ids


@pytest.mark.parametrize(
    ("lengths", "change"),
    [((3, 3, 3, 3, 3), lambda ids: ids), ((3, 5), lambda ids: ids), (LENGTHS, repeats_its_padding)],
    ids=["rows of one length", "too few rows", "a token that the text repeats"],
)
def test_what_may_be_text_is_no_padding(judge, lengths, change):
    record = judge("data::padding-is-no-target", plain=padded(lengths, counted=True, change=change))
    assert record.verdict == "skip"
    assert record.message == "no rows of by hand end in padding"
