"""GPT-2 without nn.Module: functions over parameters in dicts and lists, and classes of one's own."""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional as F


def normal(*shape, std=0.02):
    return torch.randn(shape) * std


def initial(n_vocab, n_ctx, n_embd, n_layer):
    """Nested dicts, the blocks in a list, and the token embedding under two keys."""
    small = 0.02 / math.sqrt(2 * n_layer)

    def dense(a, b, std=0.02):
        return {"w": normal(a, b, std=std), "b": torch.zeros(b)}

    def norm():
        return {"g": torch.ones(n_embd), "b": torch.zeros(n_embd)}

    def block():
        attention = {"c_attn": dense(n_embd, 3 * n_embd), "c_proj": dense(n_embd, n_embd, small)}
        mlp = {"c_fc": dense(n_embd, 4 * n_embd), "c_proj": dense(4 * n_embd, n_embd, small)}
        return {"attn": attention, "ln_1": norm(), "ln_2": norm(), "mlp": mlp}

    blocks = [block() for _ in range(n_layer)]
    wte, wpe = normal(n_vocab, n_embd), normal(n_ctx, n_embd)
    return {"wte": wte, "wpe": wpe, "blocks": blocks, "ln_f": norm(), "unembed": wte}


def norm(x, g, b):
    return F.layer_norm(x, x.shape[-1:], g, b)


def dense(x, w, b):
    return x @ w + b


def attend(x, c_attn, c_proj, heads):
    time = x.shape[-2]
    q, k, v = (y.unflatten(-1, (heads, -1)).transpose(-3, -2) for y in dense(x, **c_attn).chunk(3, -1))
    scores = q @ k.mT / math.sqrt(q.shape[-1]) + torch.full((time, time), -math.inf, device=x.device).triu(1)
    return dense((scores.softmax(-1) @ v).transpose(-3, -2).flatten(-2), **c_proj)


def layer(x, attn, ln_1, ln_2, mlp, heads):
    x = x + attend(norm(x, **ln_1), **attn, heads=heads)
    return x + dense(F.gelu(dense(norm(x, **ln_2), **mlp["c_fc"]), approximate="tanh"), **mlp["c_proj"])


def over_params(params, ids, n_head):
    x = params["wte"][ids] + params["wpe"][: ids.shape[-1]]
    for block in params["blocks"]:
        x = layer(x, **block, heads=n_head)
    return norm(x, **params["ln_f"]) @ params["unembed"].T


def entry_by_entry(inputs, wte, wpe, blocks, ln_f, unembed, n_head):
    """One sequence, whose entries are taken one by one, as in a script of sixty lines."""
    x = wte[inputs] + wpe[range(len(inputs))]
    for block in blocks:
        x = layer(x, **block, heads=n_head)
    return norm(x, **ln_f) @ unembed.T


@dataclass
class Shape:
    vocab_size: int = 50257
    block_size: int = 1024
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768


class Dense:
    def __init__(self, a, b):
        self.weight, self.bias = normal(a, b).requires_grad_(), torch.zeros(b, requires_grad=True)

    def __call__(self, x):
        return x @ self.weight + self.bias


class Norm:
    def __init__(self, width):
        self.gain, self.shift = torch.ones(width, requires_grad=True), torch.zeros(width, requires_grad=True)

    def __call__(self, x):
        return F.layer_norm(x, self.gain.shape, self.gain, self.shift)


class Block:
    def __init__(self, shape):
        self.heads, width = shape.n_head, shape.n_embd
        self.ln1, self.ln2 = Norm(width), Norm(width)
        self.layers = {"qkv": Dense(width, 3 * width), "out": Dense(width, width)}
        self.up, self.down = Dense(width, 4 * width), Dense(4 * width, width)
        self.mask = torch.full((shape.block_size, shape.block_size), -math.inf).triu(1)

    def __call__(self, x):
        qkv = self.layers["qkv"](self.ln1(x)).chunk(3, -1)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in qkv)
        scores = q @ k.mT / math.sqrt(q.shape[-1]) + self.mask[: x.shape[1], : x.shape[1]]
        x = x + self.layers["out"]((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.ln2(x)), approximate="tanh"))


class FromScratch:
    """Tensors with gradients in objects, dicts and lists; its own generate."""

    def __init__(self, shape: Shape):
        self.shape = shape
        self.words = normal(shape.vocab_size, shape.n_embd).requires_grad_()
        self.places = normal(shape.block_size, shape.n_embd).requires_grad_()
        self.blocks = [Block(shape) for _ in range(shape.n_layer)]
        self.last = Norm(shape.n_embd)

    def __call__(self, ids, targets=None):
        x = self.words[ids] + self.places[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = self.last(x) @ self.words.T
        loss = None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return logits, loss

    def generate(self, ids, max_length, temperature=1.0):
        """The length is that of the answer."""
        while ids.shape[1] < max_length:
            logits = self(ids[:, -self.shape.block_size :])[0][:, -1]
            if temperature == 0:
                token = logits.argmax(-1, keepdim=True)
            else:
                token = torch.multinomial((logits / temperature).softmax(-1), 1)
            ids = torch.cat([ids, token], dim=1)
        return ids
