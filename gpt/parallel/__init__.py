"""Training on several processes (ranks): data parallel, fully sharded and tensor parallel, and what goes with each."""

from gpt.parallel.batches import share_of_rank
from gpt.parallel.checkpoint import load_checkpoint, save_checkpoint
from gpt.parallel.data import data_parallel
from gpt.parallel.gradients import accumulate_gradients, clip_gradients
from gpt.parallel.randomness import seed_ranks
from gpt.parallel.sharded import fully_sharded
from gpt.parallel.tensor import tensor_parallel
from gpt.parallel.weights import full_state_dict

__all__ = [
    "accumulate_gradients",
    "clip_gradients",
    "data_parallel",
    "full_state_dict",
    "fully_sharded",
    "load_checkpoint",
    "save_checkpoint",
    "seed_ranks",
    "share_of_rank",
    "tensor_parallel",
]
