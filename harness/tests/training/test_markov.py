"""The Markov source: its text has the entropy that it says."""

import math

import pytest
import torch

from harness.training.markov import LETTERS, MarkovSource, random_source


def test_the_mean_negative_log_likelihood_of_a_text_is_the_entropy():
    source = random_source()
    drawn = source.draw(60_000, seed=1)
    nll = source.nll(drawn[:-1], drawn[1:])
    assert float(nll.mean()) == pytest.approx(source.entropy, abs=5 * float(nll.std()) / 60_000**0.5)
    shares = torch.bincount(drawn, minlength=len(LETTERS)) / len(drawn)
    torch.testing.assert_close(shares.double(), source.stationary, atol=0.01, rtol=0)


def test_two_symbols_have_the_entropies_of_the_closed_form():
    """Of a chain that stays with 3/4 the entropy is that of a coin of 3/4; two steps on it stays with 5/8."""
    source = MarkovSource(("a", "b"), torch.tensor([[0.75, 0.25], [0.25, 0.75]]).double())

    def coin(p):
        return -p * math.log(p) - (1 - p) * math.log(1 - p)

    assert source.entropy == pytest.approx(coin(3 / 4))
    assert source.entropy_ahead(2) == pytest.approx(coin(5 / 8))
    assert source.entropy_ahead(0) == 0
    assert source.unigram_entropy == pytest.approx(math.log(2))
    assert len({source.text(50, seed=seed) for seed in (1, 2, 1)}) == 2


def test_token_ids_are_told_by_the_stream_of_the_text():
    source = random_source()
    text = source.text(500, seed=3)
    tokens = {symbol: 7 * number % 11 + 20 for number, symbol in enumerate(source.symbols)}
    ids = torch.tensor([tokens[symbol] for symbol in text])
    numbers = source.symbol_numbers(text, [torch.arange(300), ids[-100:]])
    assert numbers == {token: source.symbols.index(symbol) for symbol, token in tokens.items()}
    targets = ids[1:].clone()
    targets[5] = -100
    nll = source.token_nll(ids[:-1], targets, numbers)
    drawn = source.draw(500, seed=3)
    expected = source.nll(drawn[:-1], drawn[1:])
    expected[5] = 0
    torch.testing.assert_close(nll, expected)
    assert source.symbol_numbers(text, []) == {ord(symbol): number for number, symbol in enumerate(source.symbols)}


def test_a_matrix_that_is_none_of_probabilities_is_refused():
    with pytest.raises(ValueError, match="expected 2 rows of 2 positive probabilities"):
        MarkovSource(("a", "b"), torch.tensor([[1.0, 0.0], [0.5, 0.5]]).double())
