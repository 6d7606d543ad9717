"""A small GPT trained by a `Trainer`: a dataclass of settings, a Dataset, a sampler, LambdaLR, hooks and an average.

It imports neither the harness nor `gpt`. The weights that are validated are an exponential moving average.
"""

import argparse
import copy
import dataclasses
import math
import os

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset, Sampler


@dataclasses.dataclass
class TrainConfig:
    data_path: str = "input.txt"
    val_fraction: float = 0.1
    n_layers: int = 2
    n_heads: int = 2
    d_model: int = 32
    seq_len: int = 16
    dropout: float = 0.0
    batch_size: int = 4
    accum_steps: int = 1
    num_workers: int = 0
    max_steps: int = 20
    peak_lr: float = 1e-3
    min_lr: float = 1e-4
    warmup_steps: int = 2
    decay_steps: int = 0  # 0: max_steps
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    max_grad_norm: float = 1.0
    ema_decay: float = 0.9
    eval_every: int = 5  # 0: never
    save_every: int = 0  # 0: never
    output_dir: str = "out"
    resume_from: str = ""  # the path of a checkpoint
    seed: int = 1337


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_heads = config.n_heads
        self.norm_1, self.norm_2 = nn.LayerNorm(config.d_model), nn.LayerNorm(config.d_model)
        self.query, self.key = nn.Linear(config.d_model, config.d_model), nn.Linear(config.d_model, config.d_model)
        self.value, self.proj = nn.Linear(config.d_model, config.d_model), nn.Linear(config.d_model, config.d_model)
        self.up, self.down = (
            nn.Linear(config.d_model, 4 * config.d_model),
            nn.Linear(4 * config.d_model, config.d_model),
        )
        self.dropout = nn.Dropout(config.dropout)
        mask = torch.ones(config.seq_len, config.seq_len).tril().bool()
        self.register_buffer("mask", mask, persistent=False)

    def attend(self, x):
        B, T, C = x.shape
        q, k, v = (f(x).view(B, T, self.n_heads, -1).transpose(1, 2) for f in (self.query, self.key, self.value))
        scores = q @ k.transpose(-2, -1) / math.sqrt(k.size(-1))  # (B, H, T, T)
        weights = scores.masked_fill(~self.mask[:T, :T], float("-inf")).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(B, T, C))

    def forward(self, x):
        x = x + self.dropout(self.attend(self.norm_1(x)))
        return x + self.dropout(self.down(F.gelu(self.up(self.norm_2(x)))))


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.tokens = nn.Embedding(256, config.d_model)
        self.positions = nn.Embedding(config.seq_len, config.d_model)
        self.blocks = nn.Sequential(*(Block(config) for _ in range(config.n_layers)))
        self.norm = nn.LayerNorm(config.d_model)
        self.head = nn.Linear(config.d_model, 256, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, ids):
        x = self.tokens(ids) + self.positions(torch.arange(ids.size(1)))
        return self.head(self.norm(self.blocks(x)))


class Windows(Dataset):
    """Ids and targets side by side; the last window is padded, and the loss ignores the padding."""

    def __init__(self, tokens, length):
        self.tokens, self.length = tokens, length

    def __len__(self):
        return math.ceil((len(self.tokens) - 1) / self.length)

    def __getitem__(self, number):
        start = number * self.length
        x = torch.zeros(self.length, dtype=torch.long)
        y = torch.full((self.length,), -100)
        chunk = self.tokens[start : start + self.length + 1]
        x[: len(chunk) - 1], y[: len(chunk) - 1] = chunk[:-1], chunk[1:]
        return x, y


class EpochSampler(Sampler):
    """Each window once an epoch, in an order that follows from the seed and the epoch."""

    def __init__(self, size, seed):
        self.size, self.seed, self.epoch, self.skip = size, seed, 0, 0

    def set_epoch(self, epoch, skip=0):
        self.epoch, self.skip = epoch, skip

    def __iter__(self):
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(torch.randperm(self.size, generator=generator).tolist()[self.skip :])

    def __len__(self):
        return self.size - self.skip


class Trainer:
    def __init__(self, config):
        torch.manual_seed(config.seed)
        self.config = config
        tokens = torch.from_numpy(np.fromfile(config.data_path, dtype=np.uint8).astype(np.int64))
        split = int(len(tokens) * (1 - config.val_fraction))
        train_set = Windows(tokens[:split], config.seq_len)
        val_set = Windows(tokens[split:], config.seq_len)
        self.sampler = EpochSampler(len(train_set), config.seed)
        self.train_loader = self.loader(train_set, sampler=self.sampler)
        self.val_loader = self.loader(val_set)
        self.model = GPT(config)
        self.ema = copy.deepcopy(self.model).eval()
        decay = [p for p in self.model.parameters() if p.dim() >= 2]
        no_decay = [p for p in self.model.parameters() if p.dim() < 2]
        groups = [{"params": decay, "weight_decay": config.weight_decay}, {"params": no_decay, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.peak_lr, betas=(config.beta1, config.beta2))
        self.scheduler = LambdaLR(self.optimizer, self.lr_factor)
        self.step, self.epoch, self.seen, self.best = 0, 0, 0, math.inf
        self.hooks = [self.log, self.validate, self.save]
        if config.resume_from:
            self.resume(config.resume_from)

    def loader(self, dataset, sampler=None):
        """Return a loader with a generator of its own: to begin an epoch it draws a number."""
        options = {"num_workers": self.config.num_workers, "generator": torch.Generator()}
        return DataLoader(dataset, batch_size=self.config.batch_size, sampler=sampler, **options)

    def lr_factor(self, step):
        config, least = self.config, self.config.min_lr / self.config.peak_lr
        end = config.decay_steps or config.max_steps
        if step < config.warmup_steps:
            return (step + 1) / (config.warmup_steps + 1)
        progress = min(1.0, (step - config.warmup_steps) / (end - config.warmup_steps))
        return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * progress))

    def batches(self):
        while True:
            self.sampler.set_epoch(self.epoch, skip=self.seen)
            for x, y in self.train_loader:
                self.seen += len(x)
                yield x, y
            self.epoch, self.seen = self.epoch + 1, 0

    def sum_of_losses(self, model, x, y):
        return F.cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=-100, reduction="sum")

    def train_step(self, micro_batches):
        count = sum((y != -100).sum() for _, y in micro_batches)
        self.loss, self.lr = 0.0, self.scheduler.get_last_lr()[0]
        for x, y in micro_batches:
            loss = self.sum_of_losses(self.model, x, y) / count
            loss.backward()
            self.loss += loss.item()
        self.norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        self.update_ema()
        self.step += 1

    @torch.no_grad()
    def update_ema(self):
        for average, p in zip(self.ema.parameters(), self.model.parameters(), strict=True):
            average.lerp_(p, 1 - self.config.ema_decay)

    def train(self):
        self.model.train()
        batches = self.batches()
        while self.step < self.config.max_steps:
            self.train_step([next(batches) for _ in range(self.config.accum_steps)])
            for hook in self.hooks:
                hook()

    def log(self):
        print(f"step {self.step}: loss {self.loss:.4f}, lr {self.lr:.6f}, norm {self.norm.item():.4f}")

    @torch.no_grad()
    def validate(self):
        if not self.config.eval_every or self.step % self.config.eval_every:
            return
        total, count = 0.0, 0
        for x, y in self.val_loader:
            total += self.sum_of_losses(self.ema, x, y).item()
            count += int((y != -100).sum())
        self.best = min(self.best, total / count)
        print(f"step {self.step}: val loss {total / count:.4f}, best {self.best:.4f}")

    def save(self):
        if not self.config.save_every or self.step % self.config.save_every:
            return
        state = {part: getattr(self, part).state_dict() for part in ("model", "ema", "optimizer", "scheduler")}
        state |= {name: getattr(self, name) for name in ("step", "epoch", "seen", "best")}
        os.makedirs(self.config.output_dir, exist_ok=True)
        path = os.path.join(self.config.output_dir, f"step_{self.step}.pt")
        torch.save(state | {"rng": torch.get_rng_state()}, path)

    def resume(self, path):
        state = torch.load(path, weights_only=True)
        for part in ("model", "ema", "optimizer", "scheduler"):
            getattr(self, part).load_state_dict(state[part])
        for name in ("step", "epoch", "seen", "best"):
            setattr(self, name, state[name])
        torch.set_rng_state(state["rng"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for field in dataclasses.fields(TrainConfig):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    Trainer(TrainConfig(**vars(parser.parse_args()))).train()
