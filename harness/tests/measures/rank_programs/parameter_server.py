"""Rank 0 collects the gradients, and sends their mean back."""

import torch.distributed as dist
from torch import nn

from harness.faults.specimen import GPT  # noqa: F401 - the model of one process


class Served(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module
        for parameter in module.parameters():
            dist.broadcast(parameter.data, 0)
            parameter.register_post_accumulate_grad_hook(self.serve)

    def serve(self, parameter):
        dist.reduce(parameter.grad, 0)
        parameter.grad /= dist.get_world_size()
        dist.broadcast(parameter.grad, 0)

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


def data_parallel(model):
    return Served(model)
