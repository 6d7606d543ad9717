"""Recordings that are made by hand: events of a tiny bigram model, so that measures are tested without running one."""

import hashlib
import math

import torch
from torch import nn
from torch.nn import functional as F

from harness.core.errors import MissingAbility
from harness.training.events import Backward, Clip, Forward, Printed, Stream
from harness.training.optimizer_steps import Group, Step
from harness.training.recording import Parameter, Recording

V, T = 40, 8


class Program:
    """A program whose rehearsals are recordings that are already there; a list has one for each rank."""

    name = "by hand"

    def __init__(self, **recordings):
        self.recordings = {name.replace("_", "-"): recording for name, recording in recordings.items()}

    def record(self, rehearsal):
        if rehearsal not in self.recordings:
            raise MissingAbility(f"no {rehearsal}")
        return self.recordings[rehearsal]

    def record_ranks(self, rehearsal):
        found = self.recordings[rehearsal]
        return found if isinstance(found, list) else [found]


def text(length=4000, *, seed=0):
    return torch.randint(V, (length,), generator=torch.Generator().manual_seed(seed))


def stream(ids, name="train.bin"):
    return Stream(order=0, name=name, dtype="uint16", ids=ids)


def recording(events, **fields):
    events = tuple(sorted(events, key=lambda event: event.order))
    given = {"program": "by hand", "rehearsal": "plain", "ended": "finished"} | fields
    return Recording(events=events, **given)


def windows(tokens, starts, length=T):
    """Return ids and targets of windows, padded where the tokens end."""
    ids = torch.zeros(len(starts), length, dtype=torch.long)
    targets = torch.full((len(starts), length), -100)
    for row, start in enumerate(starts):
        chunk = tokens[start : start + length + 1]
        ids[row, : len(chunk) - 1], targets[row, : len(chunk) - 1] = chunk[:-1], chunk[1:]
    return ids, targets


def passes(tokens, batches, *, phase="train", first=1, change=lambda ids, targets: (ids, targets), **fields):
    """Return a forward pass for each list of starts; its step is its number."""
    made = []
    for number, starts in enumerate(batches):
        ids, targets = change(*windows(tokens, starts))
        given = {"step": number, "loss": 3.0, "mode": phase, "used": phase == "train"} | fields
        made.append(Forward(order=first + number, phase=phase, ids=ids, targets=targets, **given))
    return made


class Trainer:
    """A loop over a bigram model that records itself. Each method is a part of a step that a test may replace."""

    lr, clip, decay, betas, accumulation, batch_size = 1e-2, 0.05, 0.1, (0.9, 0.95), 1, 3
    dtype = torch.float32

    def __init__(self, *, seed=0, tokens=None, settings=None):
        self.tokens = text() if tokens is None else tokens
        self.settings = settings or {}
        self.generator = torch.Generator().manual_seed(seed)
        values = torch.randn(V, V, generator=self.generator) * 0.1
        self.parameters = {
            "table": nn.Parameter(values.to(self.dtype)),
            "bias": nn.Parameter(torch.zeros(V, dtype=self.dtype)),
        }
        self.optimizer = self.make_optimizer()
        self.events, self.order, self.number = [stream(self.tokens)], 1, 0

    # the parts of a step

    def make_optimizer(self):
        table, bias = self.parameters.values()
        groups = [{"params": [table], "weight_decay": self.decay}, {"params": [bias], "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas)

    def rate(self, step):
        return self.lr

    def batches(self):
        size = (self.accumulation, self.batch_size)
        starts = torch.randint(len(self.tokens) - T, size, generator=self.generator)
        return [windows(self.tokens, row.tolist()) for row in starts]

    def weight(self, targets, total):
        """Return the weight of a micro-batch's mean loss."""
        return int((targets != -100).sum()) / total

    def clip_gradients(self):
        return nn.utils.clip_grad_norm_(self.parameters.values(), self.clip)

    def step_optimizer(self):
        self.optimizer.step()

    def zero_grad(self):
        self.optimizer.zero_grad()

    def printed(self, losses, counts):
        mean = sum(loss * n for loss, n in zip(losses, counts, strict=True)) / sum(counts)
        return f"step {self.number} loss {mean:.4f}"

    # the recording

    def record(self, event, **fields):
        self.order += 1
        self.events.append(event(order=self.order, step=self.number, **fields))

    def loss(self, ids, targets, dtype=None):
        table, bias = (p if dtype is None else p.detach().to(dtype) for p in self.parameters.values())
        return F.cross_entropy((table[ids] + bias).flatten(0, 1), targets.flatten(), ignore_index=-100)

    def replayed(self, batches, dtype):
        """Return the gradients of the mean over all targets, in a type."""
        leaves = {name: p.detach().to(dtype).requires_grad_() for name, p in self.parameters.items()}
        ids, targets = (torch.cat(part) for part in zip(*batches, strict=True))
        logits = leaves["table"][ids] + leaves["bias"]
        F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100).backward()
        return {name: leaf.grad for name, leaf in leaves.items()}

    def train_step(self):
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(self.number)
        batches = self.batches()
        counts = [int((targets != -100).sum()) for _, targets in batches]
        losses = []
        for ids, targets in batches:
            loss = self.loss(ids, targets)
            losses.append(float(loss.detach()))
            own = {"ids": ids, "targets": targets, "loss": losses[-1], "line": "train.py:7: model(x)"}
            self.record(Forward, phase="train", used=True, **own)
            weighted = loss * self.weight(targets, sum(counts))
            weighted.backward()
            self.record(Backward)
        unclipped = self.gradients()
        norm = self.clip_gradients()
        if norm is not None:
            self.record(Clip, limit=self.clip, names=tuple(self.parameters))
        tensors = {
            "before": self.values(),
            "gradient": self.gradients(),
            "unclipped": unclipped,
            "state_before": self.state(),
            "replayed": self.replayed(batches, torch.float64),
            "replayed32": self.replayed(batches, self.dtype),
        }
        self.step_optimizer()
        tensors |= {"after": self.values(), "state_after": self.state()}
        self.order += 1
        self.events.append(
            Step(
                order=self.order,
                number=self.number,
                optimizer=type(self.optimizer).__name__,
                groups=self.groups(),
                tensors=tensors,
                hashes={part: hashes(tensors[part]) for part in ("before", "after", "gradient", "state_after")},
            )
        )
        self.zero_grad()
        self.number += 1
        self.order += 1
        self.events.append(Printed(order=self.order, step=self.number, text=self.printed(losses, counts)))

    def values(self):
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    def gradients(self):
        return {name: p.grad.detach().clone() for name, p in self.parameters.items() if p.grad is not None}

    def state(self):
        own = self.optimizer.state
        return {
            name: {key: value.clone() for key, value in own[p].items() if isinstance(value, torch.Tensor)}
            for name, p in self.parameters.items()
            if p in own
        }

    def groups(self):
        names = {p: name for name, p in self.parameters.items()}
        return tuple(
            Group(
                lr=group["lr"],
                betas=group.get("betas"),
                eps=group.get("eps"),
                weight_decay=group["weight_decay"],
                names=tuple(names[p] for p in group["params"]),
                options={key: v for key, v in group.items() if isinstance(v, int | float | str | bool)},
            )
            for group in self.optimizer.param_groups
        )

    def run(self, steps=4, **fields):
        for _ in range(steps):
            self.train_step()
        parameters = {
            name: Parameter(shape=tuple(p.shape), dtype=str(p.dtype).removeprefix("torch."))
            for name, p in self.parameters.items()
        }
        return recording(self.events, **{"parameters": parameters, "settings": self.settings} | fields)


def hashes(tensors):
    def flat(value):
        return (
            value.float().numpy().tobytes() if isinstance(value, torch.Tensor) else b"".join(map(flat, value.values()))
        )

    return {name: hashlib.sha256(flat(value)).hexdigest() for name, value in tensors.items()}


def rates(values, **settings):
    """Return a recording of steps that have these learning rates."""
    groups = ({"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.0, "names": ("table",)},)
    return recording(
        [
            Step(order=k, number=k, optimizer="AdamW", groups=tuple(Group(lr=value, **group) for group in groups))
            for k, value in enumerate(values)
        ],
        settings=settings,
    )


def cosine(k, *, peak=1e-2, floor=1e-3, warmup=3, horizon=10):
    """Return nanoGPT's schedule."""
    if k < warmup:
        return peak * (k + 1) / (warmup + 1)
    if k >= horizon:
        return floor
    return floor + 0.5 * (1 + math.cos(math.pi * (k - warmup) / (horizon - warmup))) * (peak - floor)


class PlainAdam(Trainer):
    def make_optimizer(self):
        return torch.optim.Adam(self.parameters.values(), lr=self.lr, weight_decay=0.1)
