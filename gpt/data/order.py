"""The order of a run: which windows are in its batch number n, as a pure function of the seed and n."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpt.errors import LoaderError

ORDERS = ("epoch", "random")


@dataclass(frozen=True)
class Order:
    """The batches of all ranks together. A batch is a row of window numbers, with -1 where it has no window.

    "epoch": every window once an epoch, in a new order each epoch. The last batch of an epoch is filled up with -1.
    "random": each window of a batch is drawn from all of them, uniformly and with replacement.

    Raises `LoaderError` for values that describe no batches.
    """

    name: str
    """"epoch" or "random"."""
    seed: int
    windows: int
    """The windows to draw from."""
    batch: int
    """The windows of a batch, on all ranks together."""
    batches_per_epoch: int
    """The batches of an epoch; in "random" order, those that have as many targets as the text."""
    limit: int = 0
    """Repeat the first `limit` batches for ever; 0 has no limit."""
    _permutations: dict[int, np.ndarray[Any, np.dtype[np.int64]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if self.name not in ORDERS:
            raise LoaderError(f"the order is {self.name!r}; expected one of {', '.join(ORDERS)}")
        if self.limit < 0:
            raise LoaderError(f"limit is {self.limit}; expected 0 or more batches")

    @property
    def period(self) -> int:
        """The batches after which an epoch ends, or the repeated batches begin again."""
        if self.limit and self.name == "random":
            return self.limit
        return min(self.limit or self.batches_per_epoch, self.batches_per_epoch)

    def epoch(self, number: int) -> int:
        """Return the epoch, from 0, of a batch."""
        return number // self.period

    def batch_windows(self, number: int) -> list[int]:
        """Return the windows of batch `number`, from 0: `batch` numbers, -1 for those that the text has not."""
        if self.limit:
            number %= self.period
        if self.name == "random":
            drawn: list[int] = self._generator(number).integers(self.windows, size=self.batch).tolist()
            return drawn
        epoch, place = divmod(number, self.batches_per_epoch)
        found = self._permutation(epoch)[place * self.batch : (place + 1) * self.batch]
        return [*found.tolist(), *[-1] * (self.batch - len(found))]

    def _permutation(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        if epoch not in self._permutations:
            self._permutations.clear()  # one epoch at a time: a large text has millions of windows
            self._permutations[epoch] = self._generator(epoch).permutation(self.windows)
        return self._permutations[epoch]

    def _generator(self, number: int) -> np.random.Generator:
        """Return the generator of an epoch or of a random batch.

        Philox has a key of 128 bits (Salmon et al. 2011), so that no two pairs of seed and number share a stream.
        torch's generator on a CPU uses 32 bits of its seed.
        """
        return np.random.Generator(np.random.Philox(key=np.array([self.seed % 2**64, number], np.uint64)))
