"""What ranks cost by closed form: worked out by hand for small numbers."""

import pytest

from harness.core.sizes import Size
from harness.oracle.rank_costs import sent_bytes, stored_elements

SIZE = Size("tiny", vocab_size=5, context=8, layers=2, heads=2, width=4)


@pytest.mark.parametrize(
    ("kind", "ranks", "expected"),
    [
        ("data", 2, 400),  # 2 · 1/2 of 100 elements of 4 bytes
        ("data", 4, 600),  # 2 · 3/4
        ("sharded", 2, 600),  # gathered twice and scattered once: 3 · 1/2
        ("tensor", 2, 4 * 2 * 6 * 4 * 4),  # 4 sums a layer, 2 layers, 6 positions of 4 channels of 4 bytes
        ("data", 1, 0),
    ],
)
def test_the_bytes_of_a_step(kind, ranks, expected):
    assert sent_bytes(kind, SIZE, ranks=ranks, elements=100, positions=6, element_bytes=4) == expected


def test_tensor_parallel_ranks_sum_the_gradient_of_each_split_matrix_and_gather_a_split_vocabulary():
    given = {"ranks": 2, "elements": 100, "positions": 6, "element_bytes": 4}
    one_sum = 6 * 4 * 4  # 2 · 1/2 of 6 positions of 4 channels of 4 bytes
    assert sent_bytes("tensor", SIZE, column_matrices=4, **given) == 2 * 6 * one_sum  # 2 layers
    logits = 6 * 5 * 4 / 2
    assert sent_bytes("tensor", SIZE, is_vocabulary_split=True, **given) == (2 * 4 + 2) * one_sum + logits


def test_micro_batches_cost_a_sharded_rank_two_gathers_each():
    given = {"ranks": 2, "elements": 100, "positions": 6, "element_bytes": 4}
    one, two = (sent_bytes("sharded", SIZE, micro_batches=count, **given) for count in (1, 2))
    assert (one, two) == (600, 1000)


def test_the_elements_of_the_largest_rank():
    shapes = [(5, 4), (3,)]
    assert stored_elements("data", SIZE, ranks=2, shapes=shapes) == 23
    assert stored_elements("sharded", SIZE, ranks=2, shapes=shapes) == 3 * 4 + 2  # uneven rows: the first has more
    layer = 3 * 16 + 12 + 16 + 64 + 16 + 64
    assert stored_elements("tensor", SIZE, ranks=2, shapes=[(2, layer), (10,)]) == layer + 10
