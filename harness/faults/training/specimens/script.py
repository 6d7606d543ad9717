"""A small GPT trained on the bytes of a text, as a plain script whose settings are the constants below.

It imports neither the harness nor `gpt`.
"""

import math
import os

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

# data
data_file = "input.txt"
val_fraction = 0.1
sampling = "random"  # "random": windows that start anywhere; "epoch": windows side by side, in a new order each epoch
overfit_batches = 0  # train on the first N batches again and again; 0 trains on all of the text
# model
n_layer = 2
n_head = 2
n_embd = 32
block_size = 16
dropout = 0.0
# batch
batch_size = 4
gradient_accumulation_steps = 1
max_iters = 20
# optimizer
learning_rate = 1e-3
min_lr = 1e-4
warmup_iters = 2
lr_decay_iters = 0  # 0: max_iters
weight_decay = 0.1
beta1 = 0.9
beta2 = 0.95
grad_clip = 1.0
# along the way
eval_interval = 5  # 0: never
eval_iters = 0  # batches of a validation; 0: the whole validation part
checkpoint_interval = 0  # 0: never
out_dir = "out"
resume = False
seed = 1337

vocab_size = 256
decay_iters = lr_decay_iters or max_iters
rank = int(os.environ.get("RANK", 0))
world_size = int(os.environ.get("WORLD_SIZE", 1))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(n_embd, 3 * n_embd)
        self.out = nn.Linear(n_embd, n_embd)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, n_head, C // n_head).permute(2, 0, 3, 1, 4)  # each (B, H, T, D)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1 = nn.LayerNorm(n_embd)
        self.attn = Attention()
        self.ln_2 = nn.LayerNorm(n_embd)
        self.mlp = nn.Sequential(nn.Linear(n_embd, 4 * n_embd), nn.GELU(), nn.Linear(4 * n_embd, n_embd))
        self.drop = nn.Dropout(dropout)

    def forward(self, x):
        x = x + self.drop(self.attn(self.ln_1(x)))
        return x + self.drop(self.mlp(self.ln_2(x)))


class TinyGPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(vocab_size, n_embd)
        self.wpe = nn.Embedding(block_size, n_embd)
        self.blocks = nn.ModuleList([Block() for _ in range(n_layer)])
        self.ln_f = nn.LayerNorm(n_embd)
        self.head = nn.Linear(n_embd, vocab_size, bias=False)
        self.head.weight = self.wte.weight
        for name, p in self.named_parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, ids):
        x = self.wte(ids) + self.wpe(torch.arange(ids.size(1)))
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln_f(x))  # (B, T, V)


data = np.memmap(data_file, dtype=np.uint8, mode="r")
split = int(len(data) * (1 - val_fraction))
train_data = data[:split]
val_data = data[split:]
train_starts = range(0, len(train_data) - 1, block_size)
val_starts = range(0, len(val_data) - 1, block_size)


def windows(part, starts):
    """Return ids and targets (B, T). A window that is short at the end is padded, and its loss ignores the padding."""
    x = torch.zeros(len(starts), block_size, dtype=torch.long)
    y = torch.full((len(starts), block_size), -100)
    for row, start in enumerate(starts):
        chunk = torch.from_numpy(part[start : start + block_size + 1].astype(np.int64))
        x[row, : len(chunk) - 1] = chunk[:-1]
        y[row, : len(chunk) - 1] = chunk[1:]
    return x, y


def epoch_order(epoch):
    generator = torch.Generator().manual_seed(seed + epoch)
    return torch.randperm(len(train_starts), generator=generator).tolist()


def draw_starts(number):
    """Return the starts of a batch for all ranks; every rank draws the same ones."""
    count = batch_size * world_size
    if sampling == "random":
        return torch.randint(len(train_data) - block_size, (count,)).tolist()
    starts = []
    for i in range(number * count, (number + 1) * count):
        epoch, place = divmod(i, len(train_starts))
        starts.append(train_starts[epoch_order(epoch)[place]])
    return starts


first_batches = {}


def get_batch(number):
    """Return this rank's part of the batch with this number."""
    if overfit_batches:
        number = number % overfit_batches
        if number not in first_batches:
            first_batches[number] = draw_starts(number)
        starts = first_batches[number]
    else:
        starts = draw_starts(number)
    mine = starts[rank * batch_size : (rank + 1) * batch_size]
    return windows(train_data, mine)


def get_lr(it):
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    if it >= decay_iters:
        return min_lr
    ratio = (it - warmup_iters) / (decay_iters - warmup_iters)
    return min_lr + 0.5 * (1 + math.cos(math.pi * ratio)) * (learning_rate - min_lr)


def sum_of_losses(logits, y):
    return F.cross_entropy(logits.view(-1, vocab_size), y.view(-1), ignore_index=-100, reduction="sum")


@torch.no_grad()
def estimate_loss():
    """Return the mean loss over the targets of the validation windows, the same ones each time."""
    model.eval()
    starts = list(val_starts)
    batches = [starts[i : i + batch_size] for i in range(0, len(starts), batch_size)]
    total, count = 0.0, 0
    for batch in batches[: eval_iters or None]:
        x, y = windows(val_data, batch)
        total += sum_of_losses(model(x), y).item()
        count += int((y != -100).sum())
    model.train()
    return total / count


def save_checkpoint():
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "iter": it + 1,
        "best_val_loss": best_val_loss,
        "rng": torch.get_rng_state(),
    }
    os.makedirs(out_dir, exist_ok=True)
    path = os.path.join(out_dir, "ckpt.pt")
    torch.save(state, path + ".part")
    os.replace(path + ".part", path)
    print(f"saved {path}")


torch.manual_seed(seed)
if world_size > 1:
    dist.init_process_group("gloo")
model = TinyGPT()
model.train()
matrices = [p for p in model.parameters() if p.dim() >= 2]
vectors = [p for p in model.parameters() if p.dim() < 2]
groups = [
    {"params": matrices, "weight_decay": weight_decay},
    {"params": vectors, "weight_decay": 0.0},
]
optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(beta1, beta2))
first_iter = 0
best_val_loss = float("inf")
if resume:
    checkpoint = torch.load(os.path.join(out_dir, "ckpt.pt"), weights_only=True)
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    first_iter = checkpoint["iter"]
    best_val_loss = checkpoint["best_val_loss"]
    torch.set_rng_state(checkpoint["rng"])

for it in range(first_iter, max_iters):
    if eval_interval and it % eval_interval == 0:
        val_loss = estimate_loss()
        if val_loss < best_val_loss:
            best_val_loss = val_loss
            os.makedirs(out_dir, exist_ok=True)
            torch.save(model.state_dict(), os.path.join(out_dir, "best.pt"))
        print(f"step {it}: val loss {val_loss:.4f}")
    lr = get_lr(it)
    for group in optimizer.param_groups:
        group["lr"] = lr
    numbers = range(it * gradient_accumulation_steps, (it + 1) * gradient_accumulation_steps)
    batches = [get_batch(number) for number in numbers]
    count = sum((y != -100).sum() for _, y in batches)
    if world_size > 1:
        dist.all_reduce(count)
    step_loss = torch.zeros(())
    for x, y in batches:
        loss = sum_of_losses(model(x), y) / count
        loss.backward()
        step_loss += loss.detach()
    if world_size > 1:
        dist.all_reduce(step_loss)
        for p in model.parameters():
            dist.all_reduce(p.grad)
    norm = nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    print(f"iter {it}: loss {step_loss.item():.4f}, lr {lr:.6f}, norm {norm.item():.4f}")
    if checkpoint_interval and (it + 1) % checkpoint_interval == 0 and rank == 0:
        save_checkpoint()
