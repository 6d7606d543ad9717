"""The measures of batches: what is right passes, and each mistake is named."""

from dataclasses import replace

import pytest
import torch

from harness.tests.measures.training.hand_made import T, passes, recording, stream, text
from harness.tests.measures.training.made_batches import RANDOM, SPLIT, TOKENS, batches, cut, epoch, in_order
from harness.training.events import Forward

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
    train, validated = TOKENS[:SPLIT], TOKENS[SPLIT:].flip(0)

    def evaluated(*parts):
        made = [passes(own, [starts], phase="eval", first=900 + n, step=0)[0] for n, (own, starts) in enumerate(parts)]
        return recording([stream(train), *passes(train, in_order(stop=SPLIT - T)), *made])

    estimate = evaluated((train, [0, 80, 160]), (validated, [5, 50]))
    assert judge("data::parts-share-no-token", epoch=estimate).verdict == "skip"
    assert judge("data::parts-share-no-token", epoch=evaluated((train, [0, 80, 160]))).verdict == "fail"


def test_documents_of_both_parts_are_found_in_two_streams(judge):
    """The parts are packed one by one, from documents of which one is in both."""
    train, validated = TOKENS[:SPLIT], torch.cat([TOKENS[SPLIT:], TOKENS[200:300]])

    def rows(tokens, starts, **fields):
        own = [tokens[start : start + 17] for start in starts]
        ids, targets = torch.stack([row[:-1] for row in own]), torch.stack([row[1:] for row in own])
        return Forward(step=0, ids=ids, targets=targets, loss=3.0, **fields)

    def recorded(*starts):
        trained = rows(train, range(0, SPLIT - 16, 16), order=1, phase="train", mode="train", used=True)
        tested = rows(validated, starts, order=2, phase="eval", mode="eval", used=False)
        return recording([stream(train, "train"), replace(stream(validated, "val"), order=0), trained, tested])

    assert judge("data::parts-share-no-token", epoch=recorded(3, 60)).verdict == "pass"
    assert judge("data::parts-share-no-token", epoch=recorded(3, len(validated) - 60)).verdict == "fail"


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
