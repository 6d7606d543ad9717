"""Validation: the mean loss over the same windows each time, which leaves no trace in the training."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from gpt.data import Windows
from gpt.generate import evaluating
from gpt.network import Network
from gpt.token_ids import IGNORED
from gpt.training.ranks import Ranks


@torch.no_grad()
def validation_loss(
    model: Network,
    windows: Windows,
    *,
    batches: int,
    batch_size: int,
    ranks: Ranks,
    autocast: Callable[[], AbstractContextManager[object]],
) -> float:
    """Return the cross entropy per token in nats, over `batches` batches of windows, or all windows for 0.

    As in training, a batch is `batch_size` windows on each rank. All ranks return the same number. Each target counts
    once: the mean over batches would give the tokens of a short last window more weight. No random number is drawn.
    """
    chosen = spread(len(windows), batches * batch_size * ranks.size)[ranks.rank :: ranks.size]
    total = torch.zeros(2, dtype=torch.float64, device=ranks.device)  # the sum of the losses, and of the targets
    with evaluating(model):
        for first in range(0, len(chosen), batch_size):
            ids, targets = windows.batch(chosen[first : first + batch_size])  # (B, T) each
            count = int((targets != IGNORED).sum())
            with autocast():
                _, loss = model(ids.to(ranks.device), targets.to(ranks.device))
            total += torch.stack([loss.double() * count, loss.new_tensor(count, dtype=torch.float64)])
    loss_sum, count_sum = ranks.sum(total).tolist()
    return float(loss_sum / count_sum)


def spread(available: int, wanted: int) -> list[int]:
    """Return `wanted` of the numbers from 0 to `available` - 1, evenly spaced; all of them for 0 or too many."""
    if not 0 < wanted < available:
        return list(range(available))
    return [number * available // wanted for number in range(wanted)]
