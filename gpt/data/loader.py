"""The loader: the batches of a run on one of its ranks, and the position in them."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gpt.data.order import Order
from gpt.data.windows import Windows
from gpt.errors import LoaderError


@dataclass(frozen=True, eq=False)
class Batch:
    """Windows that are trained on together. A row of -100 in `targets`, with start -1, is no window."""

    ids: Tensor
    """(B, T) of int64."""
    targets: Tensor
    """(B, T) of int64: the tokens after `ids`, -100 where there is none."""
    starts: Tensor
    """(B) of int64: the positions of the windows in the tokens, -1 where a row is no window."""
    epoch: int
    """The times that the tokens had been gone through before this batch."""
    number: int
    """The batches before this one, from the start of the run."""


class Loader(Iterator[Batch]):
    """Batches of a text's windows without end, (batch_size, length) each, on one of `ranks` processes.

    `order="epoch"` has every window once an epoch, in a new order each epoch; the last batch of an epoch is filled up
    with rows that are no window, so that all ranks have the same number of batches, all of one shape. `order="random"`
    draws the start of each window, uniformly and with replacement.

    A batch of all ranks is ranks * batch_size windows, drawn by the seed and the number of the batch (or the epoch).
    Rank r has its rows from r * batch_size on, so that the ranks together train on the batches of one process.
    `limit` repeats the first batches: 1 overfits a single one. `workers` processes prepare batches ahead; the batches
    are the same with any number of them. No global generator is read or advanced.

    Raises `LoaderError` for arguments that describe no batches, `TextTooShort` for a text shorter than a window.
    """

    def __init__(
        self,
        tokens: Tensor,
        *,
        length: int,
        batch_size: int,
        order: str,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        workers: int = 0,
        limit: int = 0,
    ) -> None:
        if batch_size < 1 or workers < 0:
            raise LoaderError(f"batch_size is {batch_size} and workers {workers}; expected at least 1 and at least 0")
        if not 0 <= rank < ranks:
            raise LoaderError(f"there is no rank {rank} of {ranks}; expected 0 to {ranks - 1}")
        self._windows = Windows(tokens, length, every="start" if order == "random" else "stride")
        batch = ranks * batch_size
        targets = len(tokens) - 1
        batches = -(-targets // length // batch)  # rounded up: the last window and the last batch may be short
        self._order = Order(order, seed, len(self._windows), batch, batches, limit)
        self._rows = slice(rank * batch_size, (rank + 1) * batch_size)
        self._workers = workers
        self._identity: dict[str, int | str] = {
            "order": order,
            "seed": seed,
            "tokens": len(tokens),
            "length": length,
            "global_batch": batch,
            "limit": limit,
        }
        self._number = 0  # of the next batch: what workers have prepared and nobody has taken does not count
        self._prepared: Iterator[tuple[Tensor, Tensor, Tensor]] | None = None

    @property
    def epoch(self) -> int:
        """The epoch of the next batch, from 0; with a limit, how often its batches were all used."""
        return self._order.epoch(self._number)

    def __next__(self) -> Batch:
        if self._prepared is None:
            self._prepared = self._prepare(self._number)
        ids, targets, starts = next(self._prepared)
        batch = Batch(ids, targets, starts, self.epoch, self._number)
        self._number += 1
        return batch

    def state_dict(self) -> dict[str, int | str]:
        """Return the position, which is the same on every rank, and what the batches depend on."""
        return {"number": self._number} | self._identity

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a saved position, with any number of workers, on any number of ranks with the same total batch.

        Raises `LoaderError` if the state is of other tokens, or of another order, seed, length, batch or limit.
        """
        for name, expected in self._identity.items():
            if state.get(name) != expected:
                raise LoaderError(
                    f"the saved position is of a loader with {name} = {state.get(name)!r}, and this one has "
                    f"{expected!r}; resume with the configuration of the run that saved it"
                )
        number = state.get("number")
        if not isinstance(number, int) or number < 0:
            raise LoaderError(f"the saved position is {number!r}; expected a number of batches, from 0")
        self._number = number
        self.close()

    def close(self) -> None:
        """Stop the workers. The next batch starts new ones, and is the batch that it would have been."""
        self._prepared = None

    def _prepare(self, number: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Return (ids, targets, starts) of the batches from `number` on."""
        order, rows = self._order, self._rows  # not self: workers end with the last reference to their iterator
        # This process draws the windows and workers only cut them: no worker can repeat another's.
        drawn = (order.batch_windows(place)[rows] for place in count(number))
        loader = DataLoader(
            _Cut(self._windows),
            batch_sampler=drawn,
            num_workers=self._workers,
            collate_fn=_unchanged,
            generator=torch.Generator(),  # without one, DataLoader draws the workers' seeds from the global generator
        )
        with _without_interrupts():
            return iter(loader)


class _Cut(Dataset[Any]):
    """The windows, cut a batch at a time: `DataLoader` asks for all items of a batch at once."""

    def __init__(self, windows: Windows) -> None:
        self._windows = windows

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        ids, targets = self._windows.batch(indices)
        starts = [self._windows.start(index) if index >= 0 else -1 for index in indices]
        return ids, targets, torch.tensor(starts, dtype=torch.int64)


def _unchanged(batch: Any) -> Any:
    return batch


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Keep Ctrl-C from the processes that are started meanwhile.

    It reaches all processes of a terminal. The training process may finish its step and save, with their batches.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
