"""The part of a batch that one rank computes."""

from torch import Tensor

from gpt.errors import ParallelError


def share_of_rank(batch: Tensor, *, rank: int, world_size: int) -> Tensor:
    """Return this rank's rows of a global batch: (B, ...) -> (B / n, ...). Together the ranks have each row once.

    Data parallel and fully sharded ranks take their shares; tensor parallel ranks all compute the whole batch.

    Raises `ParallelError` for a batch whose rows the ranks cannot share evenly: a mean over them would be wrong.
    """
    if not 0 <= rank < world_size:
        raise ParallelError(f"rank={rank} of world_size={world_size}; expected 0 to {world_size - 1}")
    if len(batch) % world_size:
        below = len(batch) // world_size * world_size
        raise ParallelError(
            f"{len(batch)} rows are no multiple of world_size={world_size}; give {below} or {below + world_size}"
        )
    rows = len(batch) // world_size
    return batch[rank * rows : (rank + 1) * rows]
