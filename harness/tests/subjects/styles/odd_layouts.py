"""One frame and many ways to keep attention's matrices: side by side, convolved, on the left, a head at a time."""

import math

import torch
from torch import nn
from torch.nn import functional as F


def p(*shape):
    return nn.Parameter(torch.randn(shape) * 0.02)


def attend(q, k, v, heads):
    b, t, c = q.shape
    q, k, v = (z.reshape(b, t, heads, -1).transpose(1, 2) for z in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, c)


class Layer(nn.Module):
    def __init__(self, c, heads):
        super().__init__()
        self.heads = heads
        self.a, self.b = nn.LayerNorm(c), nn.LayerNorm(c)
        self.u, self.d = nn.Linear(c, 4 * c), nn.Linear(4 * c, c)
        self.make(c, heads)

    def forward(self, x):
        x = x + self.mix(self.a(x))
        return x + self.d(F.gelu(self.u(self.b(x)), approximate="tanh"))


class Joined(Layer):
    """Three matrices, put together when they are needed, and one bias for the three."""

    def make(self, c, heads):
        self.m1, self.m2, self.m3, self.n, self.o = p(c, c), p(c, c), p(c, c), p(3 * c), nn.Linear(c, c)

    def mix(self, x):
        q, k, v = F.linear(x, torch.cat([self.m2, self.m1, self.m3]), self.n).chunk(3, -1)
        return self.o(attend(q, k, v, self.heads))


class Convolved(Layer):
    """Convolutions of width one over (batch, channels, time), keys first."""

    def make(self, c, heads):
        self.i, self.o = nn.Conv1d(c, 3 * c, 1), nn.Conv1d(c, c, 1)

    def mix(self, x):
        k, q, v = self.i(x.transpose(1, 2)).transpose(1, 2).chunk(3, -1)
        return self.o(attend(q, k, v, self.heads).transpose(1, 2)).transpose(1, 2)


class OnTheLeft(Layer):
    """Columns, as in a textbook: W x. Values first."""

    def make(self, c, heads):
        self.w, self.n, self.o = p(3, c, c), p(3, c, 1), nn.Linear(c, c)

    def mix(self, x):
        v, q, k = ((w @ x.mT + n).mT for w, n in zip(self.w, self.n, strict=True))
        return self.o(attend(q, k, v, self.heads))


class BatchedHeads(Layer):
    """A product for all heads at once, and an output matrix for each, summed."""

    def make(self, c, heads):
        self.m1, self.m2, self.m3 = (p(heads, c, c // heads) for _ in range(3))
        self.n1, self.n2, self.n3 = (p(heads, 1, c // heads) for _ in range(3))
        self.o, self.r = p(heads, c // heads, c), p(c)

    def mix(self, x):
        x = x.unsqueeze(1)
        k, v, q = x @ self.m1 + self.n1, x @ self.m2 + self.n2, x @ self.m3 + self.n3
        return (F.scaled_dot_product_attention(q, k, v, is_causal=True) @ self.o).sum(1) + self.r


class HeadsApart(Layer):
    """Every head has three layers of its own, and one for the way out."""

    def make(self, c, heads):
        d = c // heads
        self.s = nn.ModuleList([nn.ModuleList([nn.Linear(c, d) for _ in range(3)]) for _ in range(heads)])
        self.o = nn.ModuleList([nn.Linear(d, c, bias=False) for _ in range(heads)])
        self.r = p(c)

    def mix(self, x):
        t, mixed = x.shape[1], self.r
        future = torch.ones(t, t, dtype=torch.bool).triu(1)
        for (k, q, v), o in zip(self.s, self.o, strict=True):
            scores = q(x) @ k(x).mT / math.sqrt(q.out_features)
            mixed = mixed + o(scores.masked_fill(future, -math.inf).softmax(-1) @ v(x))
        return mixed


class TimeFirst(Layer):
    """(time, batch, channels) inside, as torch's recurrent layers have it, and a fused projection a head at a time."""

    def make(self, c, heads):
        self.i, self.o = nn.Linear(c, 3 * c), nn.Linear(c, c)

    def mix(self, x):
        y = self.i(x.transpose(0, 1).contiguous())  # (T, B, 3C)
        q, k, v = (z.flatten(2).transpose(0, 1) for z in y.unflatten(2, (self.heads, 3, -1)).unbind(3))
        return self.o(attend(q, k, v, self.heads).transpose(0, 1)).transpose(0, 1)


class KeysAndValues(Layer):
    """Keys and values in one projection, head by head."""

    def make(self, c, heads):
        self.i, self.j, self.o = nn.Linear(c, 2 * c), nn.Linear(c, c), nn.Linear(c, c)

    def mix(self, x):
        k, v = self.i(x).unflatten(2, (self.heads, 2, -1)).unbind(3)
        return self.o(attend(self.j(x), k.flatten(2), v.flatten(2), self.heads))


class Frame(nn.Module):
    """Everything in one Sequential, and the words as a product with one-hot rows."""

    layer = Joined

    def __init__(self, vocab_size, n_ctx, d_model, n_layers, n_heads):
        super().__init__()
        self.words, self.places = p(vocab_size, d_model), p(n_ctx, d_model)
        layers = [self.layer(d_model, n_heads) for _ in range(n_layers)]
        self.net = nn.Sequential(nn.Identity(), *layers, nn.LayerNorm(d_model))

    def forward(self, ids):
        x = F.one_hot(ids, len(self.words)).to(self.words.dtype) @ self.words + self.places[: ids.shape[1]]
        return self.net(x) @ self.words.T


class JoinedGPT(Frame):
    layer = Joined


class ConvolvedGPT(Frame):
    layer = Convolved


class OnTheLeftGPT(Frame):
    layer = OnTheLeft


class BatchedHeadsGPT(Frame):
    layer = BatchedHeads


class HeadsApartGPT(Frame):
    layer = HeadsApart


class TimeFirstGPT(Frame):
    layer = TimeFirst


class KeysAndValuesGPT(Frame):
    layer = KeysAndValues
