"""A small GPT trained by functions under `main()`: shards of tokens on disk, AdamW, clipping and schedule by hand.

It imports neither the harness nor `gpt`. Its settings are the entries of one dict.
"""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

SETTINGS = {
    "text_file": "input.txt",
    "val_ratio": 0.1,
    "shard_length": 500,  # tokens
    "depth": 2,
    "num_heads": 2,
    "width": 32,
    "context": 16,
    "drop_rate": 0.0,
    "device_batch_size": 4,
    "grad_accum_steps": 1,
    "num_iterations": 20,
    "overfit": 0,  # train on the first N batches again and again; 0 trains on all of the text
    "learning_rate": 1e-3,
    "final_lr": 1e-4,
    "warmup_iters": 2,
    "lr_decay_iters": 20,
    "wd": 0.1,
    "adam_beta1": 0.9,
    "adam_beta2": 0.95,
    "adam_eps": 1e-8,
    "max_norm": 1.0,
    "autocast": False,
    "val_loss_every": 5,
    "checkpoint_every": 0,  # 0: never
    "run_dir": "run",
    "resume": False,
    "random_seed": 1337,
}


class Layer(nn.Module):
    def __init__(self, s):
        super().__init__()
        C = s["width"]
        self.heads, self.drop_rate = s["num_heads"], s["drop_rate"]
        self.ln_attn, self.ln_mlp = nn.LayerNorm(C), nn.LayerNorm(C)
        self.qkv, self.out = nn.Linear(C, 3 * C, bias=False), nn.Linear(C, C, bias=False)
        self.fc, self.fc_out = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.qkv(self.ln_attn(x)).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, C)
        x = x + F.dropout(self.out(y), self.drop_rate, self.training)
        return x + F.dropout(self.fc_out(F.gelu(self.fc(self.ln_mlp(x)))), self.drop_rate, self.training)


class Transformer(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.wte = nn.Embedding(256, s["width"])
        self.wpe = nn.Embedding(s["context"], s["width"])
        self.layers = nn.ModuleList(Layer(s) for _ in range(s["depth"]))
        self.ln = nn.LayerNorm(s["width"])
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, ids):
        x = self.wte(ids) + self.wpe.weight[: ids.size(1)]
        for layer in self.layers:
            x = layer(x)
        return F.linear(self.ln(x), self.wte.weight)  # the embedding is the head, too


class AdamW(torch.optim.Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    def __init__(self, groups, lr, betas, eps):
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["step"] = 0
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
                state["step"] += 1
                p.mul_(1 - group["lr"] * group["weight_decay"])
                m = state["exp_avg"].mul_(b1).add_(p.grad, alpha=1 - b1)
                v = state["exp_avg_sq"].mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
                m_hat = m / (1 - b1 ** state["step"])
                v_hat = v / (1 - b2 ** state["step"])
                p.sub_(group["lr"] * m_hat / (v_hat.sqrt() + group["eps"]))


def make_optimizer(model, s):
    named = dict(model.named_parameters())
    groups = [
        {"params": [p for n, p in named.items() if p.dim() > 1], "weight_decay": s["wd"]},
        {"params": [p for n, p in named.items() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return AdamW(groups, s["learning_rate"], (s["adam_beta1"], s["adam_beta2"]), s["adam_eps"])


def write_shards(s):
    """Write the tokens of both parts in shards. The first token of a shard is the last target of the one before."""
    tokens = np.frombuffer(Path(s["text_file"]).read_bytes(), dtype=np.uint8).astype(np.uint16)
    split, length = int(len(tokens) * (1 - s["val_ratio"])), s["shard_length"]
    folder = Path(s["run_dir"]) / "shards"
    folder.mkdir(parents=True, exist_ok=True)
    for part, own in (("train", tokens[:split]), ("val", tokens[split:])):
        for number, start in enumerate(range(0, len(own) - 1, length)):
            np.save(folder / f"{part}_{number:04d}.npy", own[start : start + length + 1])
    return folder


def read_windows(path, T):
    """Return the ids and targets (N, T) of a shard. The last window is padded, and the loss ignores the padding."""
    tokens = torch.from_numpy(np.load(path).astype(np.int64))
    count = math.ceil((len(tokens) - 1) / T)
    x, y = torch.zeros(count * T, dtype=torch.long), torch.full((count * T,), -100)
    x[: len(tokens) - 1], y[: len(tokens) - 1] = tokens[:-1], tokens[1:]
    return x.view(count, T), y.view(count, T)


def training_windows(folder, s, position):
    """Yield windows for ever, shard by shard, in a new order of shards and windows each epoch, from a position on."""
    shards = sorted(folder.glob("train_*.npy"))
    while True:
        rng = np.random.default_rng((s["random_seed"], position["epoch"]))
        order = rng.permutation(len(shards))
        for number, shard in enumerate(order):
            x, y = read_windows(shards[shard], s["context"])
            rows = rng.permutation(len(x))
            if number < position["shard"]:
                continue
            for row in rows[position["row"] :]:
                position["row"] += 1
                yield x[row], y[row]
            position["shard"], position["row"] = number + 1, 0
        position["epoch"], position["shard"] = position["epoch"] + 1, 0


def training_batches(folder, s, position):
    """Yield batches (ids, targets), each (B, T)."""
    windows = training_windows(folder, s, position)
    first = []
    while True:
        rows = [next(windows) for _ in range(s["device_batch_size"])]
        first.append(tuple(torch.stack(part) for part in zip(*rows, strict=True)))
        while s["overfit"] and len(first) >= s["overfit"]:
            yield from first
        yield first.pop()


def lr_at(step, s):
    if step < s["warmup_iters"]:
        return s["learning_rate"] * (step + 1) / s["warmup_iters"]
    if step >= s["lr_decay_iters"]:
        return s["final_lr"]
    left = (s["lr_decay_iters"] - step) / (s["lr_decay_iters"] - s["warmup_iters"])
    return s["final_lr"] + (s["learning_rate"] - s["final_lr"]) * left


def clip(params, limit):
    """Scale the gradients so that their norm over all parameters is at most the limit; return the norm before."""
    norm = torch.stack([p.grad.norm() for p in params]).norm()
    scale = limit / (norm + 1e-6)
    if scale < 1:
        for p in params:
            p.grad.mul_(scale)
    return norm.item()


def summed_loss(model, x, y, s):
    with torch.autocast("cpu", torch.bfloat16, enabled=s["autocast"]):
        logits = model(x)
    return F.cross_entropy(logits.float().view(-1, 256), y.view(-1), ignore_index=-100, reduction="sum")


@torch.no_grad()
def evaluate(model, folder, s):
    model.eval()
    total, count, B = 0.0, 0, s["device_batch_size"]
    for shard in sorted(folder.glob("val_*.npy")):
        x, y = read_windows(shard, s["context"])
        for start in range(0, len(x), B):
            total += summed_loss(model, x[start : start + B], y[start : start + B], s).item()
            count += int((y[start : start + B] != -100).sum())
    model.train()
    return total / count


def main():
    s = SETTINGS
    torch.manual_seed(s["random_seed"])
    folder = write_shards(s)
    model = Transformer(s)
    params = list(model.parameters())
    optimizer = make_optimizer(model, s)
    position, first_step = {"epoch": 0, "shard": 0, "row": 0}, 0
    saved = Path(s["run_dir"]) / "state.pt"
    if s["resume"]:
        state = torch.load(saved, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        position, first_step = state["position"], state["step"]
        torch.set_rng_state(state["rng"])
    batches = training_batches(folder, s, position)
    for step in range(first_step, s["num_iterations"]):
        if s["val_loss_every"] and step % s["val_loss_every"] == 0:
            print(f"step {step} | val loss {evaluate(model, folder, s):.4f}")
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step, s)
        micro_batches = [next(batches) for _ in range(s["grad_accum_steps"])]
        count = sum(int((y != -100).sum()) for _, y in micro_batches)
        step_loss = 0.0
        optimizer.zero_grad()
        for x, y in micro_batches:
            loss = summed_loss(model, x, y, s) / count
            loss.backward()
            step_loss += loss.item()
        norm = clip(params, s["max_norm"])
        optimizer.step()
        print(f"step {step} | loss {step_loss:.5f} | lr {lr_at(step, s):.3e} | norm {norm:.4f} | {count} targets")
        if s["checkpoint_every"] and (step + 1) % s["checkpoint_every"] == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
            torch.save(state | {"position": position, "step": step + 1}, saved)


if __name__ == "__main__":
    main()
