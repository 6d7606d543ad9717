"""Random numbers of the ranks."""

import torch

from gpt.training.randomness import derived_seed


def seed_ranks(seed: int, *, data_rank: int) -> None:
    """Seed torch's global generator for dropout: differently on each data rank, equally on the ranks of one batch.

    Data parallel and fully sharded ranks have different rows, and so need different masks: give the rank. Tensor
    parallel ranks compute the same rows, and their residual streams must stay equal: give 0 to all. Their heads have
    masks of their own nevertheless, see `tensor_parallel`.
    """
    torch.manual_seed(derived_seed(seed, "dropout", data_rank))
