"""Windows: inputs, and the same positions one token on."""

import pickle

import pytest
import torch

from gpt import ConfigError, TextError, TokenError
from gpt.data import Windows, vocabulary
from gpt.errors import TextTooShort

TOKENS = torch.arange(100, 150)


def test_six_tokens_are_five_examples_of_a_token_and_the_next(gpt2_at_hand):
    ids = vocabulary("gpt2", "").encode("The cat sat on the mat")
    one = Windows(ids, 1, every="start")
    assert [(int(x), int(y)) for x, y in one] == [(464, 3797), (3797, 3332), (3332, 319), (319, 262), (262, 2603)]
    (both,) = Windows(ids, 5, every="stride")
    assert [row.tolist() for row in both] == [[464, 3797, 3332, 319, 262], [3797, 3332, 319, 262, 2603]]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.uint16, torch.uint32])
@pytest.mark.parametrize("every", ["stride", "start"])
def test_the_targets_are_the_tokens_that_follow_in_any_type(every, dtype):
    for ids, targets in Windows(TOKENS.to(dtype), 7, every=every):
        assert ids.dtype == targets.dtype == torch.int64
        assert torch.equal(targets, ids + 1)


@pytest.mark.parametrize(("count", "windows"), [(8, 1), (9, 2), (10, 2), (14, 2), (15, 2), (16, 3)])
def test_windows_side_by_side_have_every_target_once(count, windows):
    made = Windows(TOKENS[:count], 7, every="stride")
    assert len(made) == windows
    rows = list(made)
    targets = torch.cat([row for _, row in rows])
    assert targets[targets != -100].tolist() == TOKENS[1:count].tolist()
    for index, (ids, target) in enumerate(rows):
        assert made.start(index) == index * 7
        assert ids.shape == target.shape == (7,)
        assert torch.equal(ids[target != -100] + 1, target[target != -100])


def test_the_last_window_side_by_side_is_filled_up():
    *_, (ids, targets) = Windows(TOKENS[:10], 7, every="stride")
    assert ids.tolist() == [107, 108, 0, 0, 0, 0, 0]
    assert targets.tolist() == [108, 109, -100, -100, -100, -100, -100]


def test_a_full_window_is_at_every_start_that_has_one():
    made = Windows(TOKENS, 7, every="start")
    assert [int(ids[0]) for ids, _ in made] == list(range(100, 143))
    assert int(made[len(made) - 1][1][-1]) == 149  # the last token is a target
    assert [made.start(index) for index in (0, 42)] == [0, 42]


@pytest.mark.parametrize("every", ["stride", "start"])
def test_windows_cut_at_once_are_the_windows_one_by_one(every):
    made = Windows(TOKENS[:25], 7, every=every)
    indices = [len(made) - 1, 0, 2, 0]
    ids, targets = made.batch(indices)
    for row, index in enumerate(indices):
        assert torch.equal(ids[row], made[index][0])
        assert torch.equal(targets[row], made[index][1])


def test_no_window_is_a_row_without_targets():
    for every in ("stride", "start"):
        ids, targets = Windows(TOKENS, 7, every=every).batch([1, -1])
        assert ids[1].tolist() == [0] * 7
        assert targets[1].tolist() == [-100] * 7
        assert (targets[0] != -100).all()


def test_windows_are_counted_from_the_end_as_in_a_list():
    made = Windows(TOKENS, 7, every="start")
    assert torch.equal(made[-1][0], made[42][0])
    for outside in (43, -44):
        with pytest.raises(IndexError, match=f"no window {outside}; there are 43"):
            made[outside]


def test_a_window_can_be_written_to_and_the_tokens_stay():
    tokens = TOKENS.clone()
    ids, targets = Windows(tokens, 7, every="stride")[0]
    ids[:], targets[:] = -1, -1
    assert torch.equal(tokens, TOKENS)


def test_windows_can_be_sent_to_another_process():
    made = Windows(TOKENS.to(torch.uint16), 7, every="stride")
    assert torch.equal(pickle.loads(pickle.dumps(made))[3][0], made[3][0])


@pytest.mark.parametrize("every", ["stride", "start"])
def test_a_text_shorter_than_a_window_is_a_named_error(every):
    assert len(Windows(TOKENS[:8], 7, every=every)) == 1
    with pytest.raises(TextTooShort, match="has 7 tokens, and a window of 7 with its targets needs 8") as caught:
        Windows(TOKENS[:7], 7, every=every)
    assert isinstance(caught.value, TextError)


def test_windows_that_do_not_exist_are_named_errors():
    with pytest.raises(ConfigError, match="expected 'stride' or 'start'"):
        Windows(TOKENS, 7, every="token")
    with pytest.raises(ConfigError, match="expected a length of at least 1"):
        Windows(TOKENS, 0, every="start")
    for tokens in (TOKENS[None], TOKENS.float(), TOKENS > 0):
        with pytest.raises(TokenError, match="expected 1-D integers"):
            Windows(tokens, 7, every="start")
