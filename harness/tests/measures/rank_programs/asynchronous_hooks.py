"""A replica that sends each gradient when it is ready, and has a method that waits, as in Stanford's CS336."""

import torch.distributed as dist
from torch import nn

from harness.faults.specimen import GPT  # noqa: F401 - the model of one process


class Replica(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module
        self.handles = []
        for parameter in module.parameters():
            dist.broadcast(parameter.data, 0)
            parameter.register_post_accumulate_grad_hook(self.send)

    def send(self, parameter):
        self.handles.append((dist.all_reduce(parameter.grad, async_op=True), parameter))

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)

    def finish_gradient_synchronization(self):
        for handle, parameter in self.handles:
            handle.wait()
            parameter.grad /= dist.get_world_size()
        self.handles.clear()


def wrap_ddp(model):
    return Replica(model)
