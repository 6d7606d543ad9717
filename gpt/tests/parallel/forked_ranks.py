"""Ranks for tests: forked processes that talk through gloo, and write what they found."""

import os
import tempfile
import traceback
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # here, and not in each rank, where sharding imports it
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh


def on_ranks(ranks: int, function, *arguments) -> list[Any]:
    """Return what `function(rank, mesh, *arguments)` returns on each rank."""
    with tempfile.TemporaryDirectory() as folder:
        children = [_forked(rank, ranks, folder, function, arguments) for rank in range(ranks)]
        for child in children:
            os.waitpid(child, 0)
        return [torch.load(Path(folder, f"{rank}.pt"), weights_only=True) for rank in range(ranks)]


def _forked(rank, ranks, folder, function, arguments) -> int:
    child = os.fork()
    if child:
        return child
    try:
        torch.set_num_threads(1)
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
        found = function(rank, init_device_mesh("cpu", (ranks,)), *arguments)
        torch.save(found, Path(folder, f"{rank}.pt"))
        dist.barrier()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)
