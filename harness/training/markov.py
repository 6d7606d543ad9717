"""A text from a Markov source: its entropy is known exactly, so that a loss below it proves a look at the answers.

A program that predicts the next token of fresh text without seeing it saves t nats against the source's own
probabilities with a probability of at most e^-t, whatever it has learned (a martingale; Ville 1939).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

LETTERS = "\nabcdefg"  # the line break, because programs often begin a sample with one
CONCENTRATION = 0.35  # of the Dirichlet distribution of the rows: some 1.2 nats of the ln 8 = 2.08 remain


@dataclass(frozen=True)
class MarkovSource:
    """A source that draws each symbol given the one before it. Its chain is irreducible and starts stationary.

    Raises `ValueError` unless `matrix` has a row of positive probabilities for each symbol.
    """

    symbols: tuple[str, ...]
    matrix: Tensor
    """float64 (S, S): row i has the probabilities of what follows symbol i."""

    def __post_init__(self) -> None:
        size = len(self.symbols)
        sums = self.matrix.sum(1) if self.matrix.shape == (size, size) else torch.zeros(1)
        if not torch.allclose(sums, torch.ones_like(sums)) or bool((self.matrix <= 0).any()):
            raise ValueError(f"expected {size} rows of {size} positive probabilities that sum to 1")

    @cached_property
    def stationary(self) -> Tensor:
        """Return the share of each symbol in a long text, float64 (S,): the left eigenvector of eigenvalue 1."""
        size = len(self.symbols)
        equations = torch.cat([self.matrix.T - torch.eye(size).double(), torch.ones(1, size).double()])
        right = torch.cat([torch.zeros(size), torch.ones(1)]).double()
        solution: Tensor = torch.linalg.lstsq(equations, right[:, None]).solution
        return solution[:, 0]

    @property
    def entropy(self) -> float:
        """Return the entropy of a symbol given the ones before it, in nats."""
        return self.entropy_ahead(1)

    def entropy_ahead(self, distance: int) -> float:
        """Return the entropy of the symbol `distance` later given the symbols up to now, in nats; 0 for distance 0.

        It is where the loss of a model settles whose targets are that far ahead. Targets that are `distance` before
        the input's last symbol are in the input, and have no entropy.
        """
        if distance <= 0:
            return 0.0
        ahead = torch.linalg.matrix_power(self.matrix, distance)
        return float(-(self.stationary[:, None] * ahead * ahead.log()).sum())

    @property
    def unigram_entropy(self) -> float:
        """Return the entropy of a symbol when nothing before it is known, in nats."""
        return float(-(self.stationary * self.stationary.log()).sum())

    def draw(self, length: int, *, seed: int) -> Tensor:
        """Return `length` symbols as numbers, int64 (length,)."""
        generator = torch.Generator().manual_seed(seed)
        uniform = torch.rand(length, generator=generator, dtype=torch.float64).tolist()
        first = self.stationary.cumsum(0).tolist()
        rows = self.matrix.cumsum(1).tolist()
        drawn: list[int] = []
        cumulative, last = first, len(self.symbols) - 1  # the sum of a row may be rounded to less than 1
        for value in uniform:
            drawn.append(min(bisect_right(cumulative, value), last))
            cumulative = rows[drawn[-1]]
        return torch.tensor(drawn, dtype=torch.int64)

    def text(self, length: int, *, seed: int) -> str:
        """Return a text of `length` symbols."""
        return "".join(self.symbols[number] for number in self.draw(length, seed=seed).tolist())

    def nll(self, before: Tensor, symbols: Tensor) -> Tensor:
        """Return the true negative log-likelihood of symbols given those just before them, in nats, as float64.

        Both are symbols' numbers, of one shape.
        """
        return -self.matrix.log()[before, symbols]

    def token_nll(self, ids: Tensor, targets: Tensor, numbers: Mapping[int, int]) -> Tensor:
        """Return `nll` of token ids, given by `numbers` the symbol of each id (`symbol_numbers`).

        `ids` and `targets` have one shape; a target that is negative (ignored) has 0.
        """
        size = 1 + max(max(numbers), int(ids.max()), int(targets.max()))
        table = torch.full((size,), -1, dtype=torch.int64)
        table[list(numbers)] = torch.tensor(list(numbers.values()))
        counted = targets >= 0
        return torch.where(counted, self.nll(table[ids], table[targets.clamp(min=0)]), 0.0)

    def symbol_numbers(self, text: str, streams: list[Tensor]) -> dict[int, int]:
        """Return the number of the symbol that each token id stands for, from the token streams of this text.

        A stream is one token for each symbol, of the text or of a part of it at its beginning or end. Without such a
        stream the ids are taken to be the symbols' code points, as those of bytes are.
        """
        drawn = self._numbers(text)
        for stream in sorted(streams, key=len, reverse=True):
            for part in (drawn[: len(stream)], drawn[-len(stream) :]):
                if len(stream) != len(part) or len(part) < len(self.symbols):
                    continue
                pairs = set(zip(stream.tolist(), part.tolist(), strict=True))
                if len({token for token, _ in pairs}) == len(pairs) == len({number for _, number in pairs}):
                    return dict(pairs)
        return {ord(symbol[-1]): number for number, symbol in enumerate(self.symbols)}

    def _numbers(self, text: str) -> Tensor:
        """Return a text of the source as symbols' numbers. The symbols have one length."""
        length = len(self.symbols[0])
        number = {symbol: i for i, symbol in enumerate(self.symbols)}
        return torch.tensor([number[text[i : i + length]] for i in range(0, len(text), length)])


def random_source(symbols: str = LETTERS, *, seed: int = 0, concentration: float = CONCENTRATION) -> MarkovSource:
    """Return a source whose rows are drawn from a Dirichlet distribution, and mixed with 2% of the uniform one."""
    size = len(symbols)
    generator = torch.Generator().manual_seed(seed)
    # Gamma(shape < 1) by Marsaglia and Tsang's boost would be exact; exponentials to a power are as good a matrix.
    raw = -torch.rand(size, size, generator=generator, dtype=torch.float64).log()
    raw = raw ** (1 / concentration)
    matrix = 0.98 * raw / raw.sum(1, keepdim=True) + 0.02 / size
    return MarkovSource(tuple(symbols), matrix)
