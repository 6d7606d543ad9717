"""A right program for several ranks, written by hand: hooks that average, Megatron's layers, a checkpoint by rank 0."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from harness.faults.specimen import GPT  # noqa: F401 - the model of one process

IGNORE = -100


# ---------------------------------------------------------------------------- data parallel


class Averaged(nn.Module):
    """A replica whose gradients are averaged over the ranks as soon as each is ready."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.sync = True
        for parameter in model.parameters():
            dist.broadcast(parameter.data, src=0)
            parameter.register_post_accumulate_grad_hook(self.average)

    def average(self, parameter):
        """Replace a gradient by its mean over the ranks."""
        if self.sync:
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()

    def forward(self, idx, targets=None):
        """Call the model."""
        return self.model(idx, targets)


def to_ddp(model):
    """Return the model as a replica on each rank."""
    return Averaged(model)


# ---------------------------------------------------------------------------- fully sharded


def apply_fsdp(model, mesh):
    """Shard every block, and the rest as one group."""
    for parameter in model.parameters():
        dist.broadcast(parameter.data, src=0)
    for block in model.h:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


# ---------------------------------------------------------------------------- tensor parallel


class CopyToRanks(torch.autograd.Function):
    """The same value on each rank; its gradient is the sum over the ranks (Megatron's f)."""

    @staticmethod
    def forward(ctx, x):
        """Return x."""
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        """Sum the gradient over the ranks."""
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad


class SumOfRanks(torch.autograd.Function):
    """The sum over the ranks; its gradient is the same on each (Megatron's g)."""

    @staticmethod
    def forward(ctx, x):
        """Sum x over the ranks."""
        x = x.contiguous().clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, grad):
        """Return the gradient."""
        return grad


class ColumnLinear(nn.Module):
    """A linear layer of which each rank has some output channels; `groups` of them are split alike."""

    def __init__(self, linear, rank, size, groups=1):
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(part_of(linear.weight.data, rank, size, 0, groups))
        self.bias = nn.Parameter(part_of(linear.bias.data, rank, size, 0, groups))

    def forward(self, x):
        """(..., in) -> (..., out / n)."""
        return F.linear(CopyToRanks.apply(x), self.weight, self.bias)

    def whole(self):
        """Return the weight and the bias of the whole layer."""
        return {"weight": joined(self.weight, 0, self.groups), "bias": joined(self.bias, 0, self.groups)}


class RowLinear(nn.Module):
    """A linear layer of which each rank has some input channels; the bias is added to the sum."""

    def __init__(self, linear, rank, size):
        super().__init__()
        self.weight = nn.Parameter(part_of(linear.weight.data, rank, size, 1, 1))
        self.bias = nn.Parameter(linear.bias.data.clone())

    def forward(self, x):
        """(..., in / n) -> (..., out)."""
        partial = F.linear(x, self.weight)
        total = SumOfRanks.apply(partial)
        return total + self.bias

    def whole(self):
        """Return the weight and the bias of the whole layer."""
        return {"weight": joined(self.weight, 1, 1), "bias": self.bias.data}


def part_of(tensor, rank, size, dim, groups):
    """Return a rank's part of a tensor along dim, of each group of it."""
    pieces = [group.chunk(size, dim)[rank] for group in tensor.chunk(groups, dim)]
    return torch.cat(pieces, dim).clone()


def joined(part, dim, groups):
    """Return the whole tensor of the parts of all ranks."""
    parts = [torch.empty_like(part.data) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, part.data.contiguous())
    by_group = zip(*(each.chunk(groups, dim) for each in parts), strict=True)
    return torch.cat([torch.cat(group, dim) for group in by_group], dim)


class HeadsOfARank(nn.Module):
    """The attention of some heads."""

    def __init__(self, attn, rank, size):
        super().__init__()
        self.n_head = attn.n_head // size
        self.mask = attn.mask
        self.c_attn = ColumnLinear(attn.c_attn, rank, size, groups=3)
        self.c_proj = RowLinear(attn.c_proj, rank, size)
        self.attn_dropout = attn.attn_dropout
        self.resid_dropout = attn.resid_dropout

    def forward(self, x, cache=None, attention_mask=None):
        """(B, T, C) -> (B, T, C)."""
        B, T, _ = x.shape
        q, k, v = (each.view(B, T, self.n_head, -1).transpose(1, 2) for each in self.c_attn(x).chunk(3, dim=-1))
        scores = q @ k.transpose(-2, -1) / k.size(-1) ** 0.5
        scores = scores.masked_fill(~self.mask[:T, :T], float("-inf"))
        mixed = self.attn_dropout(scores.softmax(dim=-1)) @ v
        return self.resid_dropout(self.c_proj(mixed.transpose(1, 2).reshape(B, T, -1)))


def apply_tp(model, rank, world_size):
    """Split the heads and the hidden channels of each block over the ranks."""
    for parameter in model.parameters():
        dist.broadcast(parameter.data, src=0)
    for block in model.h:
        block.attn = HeadsOfARank(block.attn, rank, world_size)
        block.mlp.c_fc = ColumnLinear(block.mlp.c_fc, rank, world_size)
        block.mlp.c_proj = RowLinear(block.mlp.c_proj, rank, world_size)
    return model


# ---------------------------------------------------------------------------- training


def is_split(model):
    """Return True if the ranks compute the same rows."""
    return any(isinstance(module, ColumnLinear) for module in model.modules())


def forward_backward(model, batches):
    """Leave the gradient of the mean over all targets of the micro-batches and ranks; return that mean."""
    ranks = 1 if is_split(model) else dist.get_world_size()
    total = torch.tensor(sum(float((y != IGNORE).sum()) for _, y in batches))
    if ranks > 1:
        dist.all_reduce(total)
    mean = torch.zeros((), dtype=torch.float64)
    for number, (x, y) in enumerate(batches):
        last = number == len(batches) - 1
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(last)
        else:
            model.sync = last
        _, loss = model(x, y)
        weight = float((y != IGNORE).sum()) / total.item()
        (loss * weight * ranks).backward()
        mean += loss.item() * weight
    if ranks > 1:
        dist.all_reduce(mean)
    return mean.item()


def parts_of_gradients(model):
    """Return the gradients of which a rank has a part, and those that it has whole."""
    split, whole = [], []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            one = isinstance(module, ColumnLinear) or (isinstance(module, RowLinear) and name == "weight")
            (split if one or isinstance(parameter, DTensor) else whole).append(parameter)
    split = [p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad for p in split]
    return split, list({id(p): p.grad for p in whole}.values())


def clip_grad_norm(model, max_norm):
    """Scale the gradients to a global norm of at most max_norm, and return the norm."""
    split, whole = parts_of_gradients(model)
    split = list({each.data_ptr(): each for each in split}.values())  # a tied one comes once
    square = sum((each.double().square().sum() for each in split), torch.zeros((), dtype=torch.float64))
    if split:
        dist.all_reduce(square)
    square = square + sum(each.double().square().sum() for each in whole)
    norm = square.sqrt()
    factor = (max_norm / (norm + 1e-6)).clamp(max=1.0).item()
    for each in split:
        each.mul_(factor)
    for each in whole:
        each.mul_(factor)
    return norm


def set_seed(seed, data_rank):
    """Seed dropout: one stream for each part of the batch."""
    torch.manual_seed(seed * 1000 + data_rank)


def shard_batch(x, rank, world_size):
    """Return every n-th row."""
    return x[rank::world_size]


# ---------------------------------------------------------------------------- weights and checkpoints


def gather_state_dict(model):
    """Return the weights of one process, on each rank."""
    model = model.model if isinstance(model, Averaged) else model
    state = {}
    for name, tensor in model.state_dict().items():
        state[name] = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    for name, module in model.named_modules():
        if isinstance(module, ColumnLinear | RowLinear):
            for key, tensor in module.whole().items():
                state[f"{name}.{key}"] = tensor
    return state


def save_checkpoint(model, path):
    """Gather the weights, and have rank 0 write them."""
    state = gather_state_dict(model)
    if dist.get_rank() == 0:
        torch.save(state, path)
    dist.barrier()


def load_checkpoint(model, path):
    """Read the weights of one process, and take this rank's parts."""
    model = model.model if isinstance(model, Averaged) else model
    state = torch.load(path, weights_only=True)
    rank, size = dist.get_rank(), dist.get_world_size()
    for name, module in model.named_modules():
        if isinstance(module, ColumnLinear):
            for key in (f"{name}.weight", f"{name}.bias"):
                state[key] = part_of(state[key], rank, size, 0, module.groups)
        if isinstance(module, RowLinear):
            state[f"{name}.weight"] = part_of(state[f"{name}.weight"], rank, size, 1, 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            value = state[name]
            if isinstance(parameter, DTensor):
                start = -(-value.shape[0] // size) * rank
                local = parameter.to_local()
                value = value[start : start + local.shape[0]]
                local.copy_(value)
            else:
                parameter.copy_(value)
