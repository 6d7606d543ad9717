"""The load of the experts in a step: how evenly the routers spread its tokens, over all micro-batches and ranks."""

from collections.abc import Sequence

import torch

from gpt.experts import Routing
from gpt.training.ranks import Ranks


class ExpertLoad:
    """The choices of each expert and the balance loss, added up over the micro-batches of a step."""

    def __init__(self) -> None:
        self.counts: torch.Tensor | None = None  # (L, E)
        self.dropped = 0
        self.balance = 0.0

    def add(self, routings: Sequence[Routing], balance: torch.Tensor, share: float) -> None:
        """Add a micro-batch: one routing for each layer, and its balance loss, which has a share of the step's."""
        counts = torch.stack([routing.counts for routing in routings])
        self.counts = counts if self.counts is None else self.counts + counts
        self.dropped += sum(int(routing.dropped) for routing in routings)
        self.balance += share * float(balance.detach())

    def summed(self, ranks: Ranks) -> tuple[float | None, list[list[float]] | None, float | None]:
        """Return the balance loss, the share of the choices of each layer's experts, and the share that was dropped.

        They are those of all ranks; each is None if there are no experts.
        """
        if self.counts is None:
            return None, None, None
        counts = ranks.sum(self.counts.double())
        lost, balance = ranks.sum(counts.new_tensor([self.dropped, self.balance])).tolist()
        shares = counts / counts.sum(dim=1, keepdim=True)
        return balance, [[round(share, 5) for share in layer] for layer in shares.tolist()], lost / float(counts.sum())
