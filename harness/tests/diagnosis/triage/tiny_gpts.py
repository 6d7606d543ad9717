"""GPTs for the triage: one whose weights are a table of pairs, and one that is trained for some seconds."""

import math

import torch
from torch.nn.functional import cross_entropy

from gpt import GPT, GPTConfig
from harness.training.markov import MarkovSource, random_source

LETTERS = "abcdefghijklmnop"  # 16, so that the embedding is large enough for the test of random matrices
SIZES = {"block_size": 16, "vocab_size": len(LETTERS), "n_layer": 1, "n_head": 2, "n_embd": 32}
CONFIG = GPTConfig(**SIZES)
SOURCE = random_source(LETTERS, seed=3)


def text(length=30_000, seed=0):
    """Return a text of the Markov source: each letter depends on the one before it."""
    return SOURCE.text(length, seed=seed)


def two_back(length=100_000, seed=0):
    """Return ids and text in which each letter depends on the one two before it: attention has to look there."""
    ids = torch.stack([SOURCE.draw(length // 2, seed=seed), SOURCE.draw(length // 2, seed=seed + 1)], 1).flatten()
    return ids, "".join(LETTERS[number] for number in ids.tolist())


def table_gpt(probabilities: torch.Tensor, *, bias: bool = True) -> GPT:
    """Return a GPT whose prediction after token i is row i of `probabilities` (V, V), whatever is before it."""
    model = GPT(GPTConfig(**SIZES, tied=False, bias=bias), seed=0)
    V, C = SIZES["vocab_size"], SIZES["n_embd"]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.zero_()
        table = torch.eye(V, C) * 10
        model.transformer["wte"].weight.copy_(table)
        normed = torch.nn.functional.layer_norm(table, (C,))  # a at the token's own channel, b at the others
        a, b = float(normed[0, 0]), float(normed[0, 1])
        head = probabilities.log().T.float() / (a - b)  # (V, V): what token i adds to each logit
        model.lm_head.weight[:, :V].copy_(head)
        model.lm_head.weight[:, V].copy_(-head.sum(1))  # takes out what the channels that are b add
    return model.eval()


def ahead(distance: int, source: MarkovSource = SOURCE) -> torch.Tensor:
    """Return the probabilities of the letter `distance` later; close to the identity for 0."""
    if distance == 0:
        V = len(source.symbols)
        return torch.full((V, V), 0.01 / V).double() + 0.99 * torch.eye(V).double()
    return torch.linalg.matrix_power(source.matrix, distance)


def train(model: GPT, ids: torch.Tensor, *, steps: int, length: int = 16, masked: bool = True) -> GPT:
    """Return the model after some steps of AdamW on windows of `length`; without the mask if it is not `masked`."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.95), weight_decay=0.1)
    for block in model.transformer["h"] if not masked else ():
        block.attn.flash = False
        block.attn.mask = torch.ones_like(block.attn.mask)
    for step in range(steps):
        starts = torch.randint(len(ids) - length - 1, (64,), generator=generator)
        window = torch.stack([ids[start : start + length + 1] for start in starts.tolist()])
        logits, _ = model(window[:, :-1])
        loss = cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = 4e-3 * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.step()
    for block in model.transformer["h"]:
        block.attn.flash = True
        block.attn.mask = torch.ones_like(block.attn.mask).tril()
    return model.eval()
