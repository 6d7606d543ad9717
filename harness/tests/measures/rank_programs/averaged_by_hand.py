"""Replicas whose gradients a function averages, as PyTorch's tutorial "Writing distributed applications" has it."""

import torch.distributed as dist
from torch.distributed import init_process_group

from harness.faults.specimen import GPT  # noqa: F401 - the model of one process


def setup():
    init_process_group("gloo")


def to_ddp(model):
    setup()
    for parameter in model.parameters():
        dist.broadcast(parameter.data, 0)
    return model


def average_gradients(model):
    size = float(dist.get_world_size())
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad.data, op=dist.ReduceOp.SUM)
        parameter.grad.data /= size
