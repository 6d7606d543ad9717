"""How much of one of GPT-2's dropouts a call is, by the shape of what it drops."""

import pytest
import torch
from torch.nn import functional as F

from harness.subjects.dropout_calls import DropoutCalls

ROWS, HEADS, TIME, WIDTH = 2, 4, 24, 48
IDS = torch.zeros(ROWS, TIME, dtype=torch.int64)


def attention(*heads):
    """Attend with queries of these axes before (time, head width), as a fused kernel does."""
    q, k, v = torch.zeros(3, *heads, TIME, WIDTH // HEADS).unbind()
    F.scaled_dot_product_attention(q, k, v, dropout_p=0.1)


def drop(*shape):
    F.dropout(torch.zeros(shape), 0.1)


CASES = {
    "all heads at once": (lambda: drop(ROWS, HEADS, TIME, TIME), 1),
    "heads and rows in one axis": (lambda: drop(ROWS * HEADS, TIME, TIME), 1),
    "one head": (lambda: drop(ROWS, TIME, TIME), 1 / HEADS),
    "all heads of one row": (lambda: drop(HEADS, TIME, TIME), 1 / ROWS),
    "fused": (lambda: attention(ROWS, HEADS), 1),
    "fused, one head": (lambda: attention(ROWS), 1 / HEADS),
    "the residual stream": (lambda: drop(ROWS, TIME, WIDTH), 1),
    "the residual stream, flat": (lambda: drop(ROWS * TIME, WIDTH), 1),
    "the residual stream of one row": (lambda: drop(TIME, WIDTH), 1 / ROWS),
}


@pytest.mark.parametrize(("call", "share"), CASES.values(), ids=CASES)
def test_the_shape_says_how_much_of_a_dropout_a_call_is(call, share):
    recorder = DropoutCalls()
    with recorder:
        call()
    assert [each.share(IDS, HEADS) for each in recorder.calls] == [share]
