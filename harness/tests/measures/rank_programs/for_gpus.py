"""nanoGPT's way: DistributedDataParallel for the GPU of the rank."""

import torch
from torch.nn.parallel import DistributedDataParallel as DDP  # noqa: N817 - its usual name

from harness.faults.specimen import GPT  # noqa: F401 - the model of one process


def setup_ddp(model, rank):
    model = model.to(f"cuda:{rank}" if torch.cuda.is_available() else "cpu")
    return DDP(model, device_ids=[rank])
