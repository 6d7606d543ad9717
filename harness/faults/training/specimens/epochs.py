"""A small GPT trained for some epochs over documents: validation, the best weights and a checkpoint after each epoch.

It imports neither the harness nor `gpt`. It computes in float16 under autocast, with a loss scale.
"""

import argparse
import copy
import math
import os

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

parser = argparse.ArgumentParser()
parser.add_argument("--data", default="input.txt")
parser.add_argument("--save-dir", default="out")
parser.add_argument("--val-documents", type=int, default=100)
parser.add_argument("--layers", type=int, default=2)
parser.add_argument("--heads", type=int, default=2)
parser.add_argument("--width", type=int, default=32)
parser.add_argument("--context", type=int, default=16)
parser.add_argument("--dropout", type=float, default=0.1)
parser.add_argument("--batch-size", type=int, default=4)
parser.add_argument("--accum", type=int, default=1)
parser.add_argument("--workers", type=int, default=2)
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--lr", type=float, default=1e-3)
parser.add_argument("--min-lr", type=float, default=1e-4)
parser.add_argument("--warmup", type=int, default=10)
parser.add_argument("--weight-decay", type=float, default=0.1)
parser.add_argument("--smoothing", type=float, default=0.1)
parser.add_argument("--clip", type=float, default=1.0)
parser.add_argument("--precision", choices=["float32", "float16"], default="float16")
parser.add_argument("--log-every", type=int, default=10)
parser.add_argument("--eval-batches", type=int, default=100)
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--resume", action="store_true", help="go on from SAVE_DIR/last.pt")


class Text:
    """The documents of a text, parted by blank lines, as ids; each ends with a token of its own."""

    def __init__(self, path, val_documents):
        with open(path, encoding="utf-8") as file:
            documents = [document for document in file.read().split("\n\n") if document]
        characters = sorted(set("".join(documents)))
        self.vocab_size = len(characters) + 1
        ids = {character: number for number, character in enumerate(characters)}
        encoded = [[*(ids[character] for character in document), len(characters)] for document in documents]
        self.train = torch.tensor([token for document in encoded[:-val_documents] for token in document])
        self.val = torch.tensor([token for document in encoded[-val_documents:] for token in document])


class Windows(IterableDataset):
    """Windows side by side, shuffled in each epoch; each worker gives its own share of them."""

    def __init__(self, tokens, length, seed):
        self.tokens, self.length, self.seed, self.epoch = tokens, length, seed, 0

    def __len__(self):
        return (len(self.tokens) - 1) // self.length

    def __iter__(self):
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(self.seed + self.epoch))
        info = get_worker_info()
        own = order if info is None else order[info.id :: info.num_workers]
        for number in own.tolist():
            start = number * self.length
            yield self.tokens[start : start + self.length], self.tokens[start + 1 : start + self.length + 1]


class Attention(nn.Module):
    def __init__(self, width, heads, dropout):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / math.sqrt(k.size(-1))
        later = torch.ones(T, T, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(later, -math.inf).softmax(dim=-1)
        return self.dropout(self.out((weights @ v).transpose(1, 2).reshape(B, T, C)))


class Block(nn.Module):
    def __init__(self, width, heads, dropout):
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )

    def forward(self, x):
        x = x + self.attention(self.norm_1(x))
        return x + self.mlp(self.norm_2(x))


class GPT(nn.Module):
    def __init__(self, args, vocab_size):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab_size, args.width), nn.Embedding(args.context, args.width)
        self.blocks = nn.ModuleList(Block(args.width, args.heads, args.dropout) for _ in range(args.layers))
        self.norm, self.head = nn.LayerNorm(args.width), nn.Linear(args.width, vocab_size, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, ids):
        x = self.tokens(ids) + self.positions(torch.arange(ids.size(1)))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def loss_of(model, x, y, args, smoothing=0.0):
    with torch.autocast("cpu", torch.float16, enabled=args.precision == "float16"):
        logits = model(x)
    return F.cross_entropy(logits.float().flatten(0, 1), y.flatten(), label_smoothing=smoothing)


def factor_of(args, total):
    """Return the share of the peak at each step: a warm-up, then a cosine to the minimum."""
    least = args.min_lr / args.lr

    def factor(step):
        if step < args.warmup:
            return (step + 1) / args.warmup
        progress = min(1.0, (step - args.warmup) / max(1, total - args.warmup))
        return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def train_epoch(model, loader, optimizer, scheduler, scaler, args, step):
    model.train()
    printed, since = 0.0, 0
    micro_batches = list(loader)
    for first in range(0, len(micro_batches), args.accum):
        group = micro_batches[first : first + args.accum]
        rows = sum(len(x) for x, _ in group)
        for x, y in group:
            loss = loss_of(model, x, y, args, args.smoothing) * len(x) / rows
            scaler.scale(loss).backward()
            printed += loss.item()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        rate = scheduler.get_last_lr()[0]
        scheduler.step()
        step, since = step + 1, since + 1
        if step % args.log_every == 0:
            print(f"step {step}: loss {printed / since:.4f}, lr {rate:.6f}")
            printed, since = 0.0, 0
    return step


@torch.no_grad()
def validate(model, tokens, args):
    model.eval()
    T, total, count = args.context, 0.0, 0
    usable = (len(tokens) - 1) // T * T
    x, y = tokens[:usable].view(-1, T), tokens[1 : usable + 1].view(-1, T)
    for number, (ids, targets) in enumerate(zip(x.split(args.batch_size), y.split(args.batch_size), strict=True)):
        if number == args.eval_batches:
            break
        total += loss_of(model, ids, targets, args).item() * targets.numel()
        count += targets.numel()
    return total / count


def main(args):
    torch.manual_seed(args.seed)
    text = Text(args.data, args.val_documents)
    windows = Windows(text.train, args.context, args.seed)
    loader = DataLoader(windows, args.batch_size, num_workers=args.workers, generator=torch.Generator())
    model = GPT(args, text.vocab_size)
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": args.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95))
    batches = sum(1 for _ in loader)
    scheduler = LambdaLR(optimizer, factor_of(args, args.epochs * math.ceil(batches / args.accum)))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=args.precision == "float16")
    epoch, step, best, best_weights = 0, 0, math.inf, None
    last = os.path.join(args.save_dir, "last.pt")
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler}
    if args.resume:
        state = torch.load(last, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        epoch, step, best, best_weights = (state[name] for name in ("epoch", "step", "best", "best_weights"))
        torch.set_rng_state(state["rng"])
    os.makedirs(args.save_dir, exist_ok=True)
    while epoch < args.epochs:
        windows.epoch = epoch
        step = train_epoch(model, loader, optimizer, scheduler, scaler, args, step)
        loss = validate(model, text.val, args)
        print(f"step {step}: val loss {loss:.4f}")
        if loss < best:
            best, best_weights = loss, copy.deepcopy(model.state_dict())
        epoch += 1
        state = {name: part.state_dict() for name, part in parts.items()}
        state |= {"epoch": epoch, "step": step, "best": best, "best_weights": best_weights}
        torch.save(state | {"rng": torch.get_rng_state()}, last)
    torch.save(best_weights, os.path.join(args.save_dir, "best.pt"))


if __name__ == "__main__":
    main(parser.parse_args())
