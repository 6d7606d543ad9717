"""The tables of a text against a source whose entropy is known, and as distributions."""

import pytest
import torch

from harness.diagnosis.triage.text_tokens import ORDERS, Text, table_losses
from harness.tests.diagnosis.triage.tiny_gpts import LETTERS, SOURCE

V = len(LETTERS)


@pytest.fixture(scope="module")
def text():
    ids = SOURCE.draw(20_000, seed=0)
    return Text("markov", "characters", ids[:18_000], ids[18_000:])


def test_a_table_of_pairs_reaches_the_entropy_of_a_markov_source(text):
    windows = text.last[: 2000 // 20 * 20].view(-1, 20)
    losses = {order: float(loss.mean()) for order, loss in table_losses(text, V, windows, 3, 16).items()}
    assert losses[1] == pytest.approx(SOURCE.unigram_entropy, abs=0.1)
    assert losses[2] == pytest.approx(SOURCE.entropy, abs=0.1)
    assert losses[2] < losses[3] < losses[4] < losses[1]  # more context says no more, and is seen less often


def test_each_table_is_a_distribution_also_after_what_was_never_seen():
    """Of a text without the last letter: the context with it is unknown to every table."""
    text = Text("short", "characters", SOURCE.draw(300, seed=0) % (V - 1), torch.empty(0))
    contexts = torch.tensor([[0, 1, 2], [V - 1, 0, 1], [0, 0, V - 1]])
    windows = torch.cat((contexts.repeat_interleave(V, 0), torch.arange(V).repeat(3)[:, None]), dim=1)  # (3V, 4)
    for loss in table_losses(text, V, windows, 2, 1).values():
        torch.testing.assert_close((-loss).exp().view(3, V).sum(1), torch.ones(3).double())


def test_the_keys_of_the_longest_table_fit_64_bits():
    assert 50_304 ** max(ORDERS) < 2**63
