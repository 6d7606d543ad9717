"""No modules at all: a list of bare parameters, or one tensor for all layers, and functions over them."""

import math

import torch
from torch import nn
from torch.nn import functional as F


def attend(q, k, v, heads):
    b, t, c = q.shape
    q, k, v = (x.reshape(b, t, heads, c // heads).permute(0, 2, 1, 3) for x in (q, k, v))
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(c // heads)
    scores = scores + torch.full((t, t), -torch.inf, dtype=q.dtype).triu(1)
    return (scores.softmax(-1) @ v).permute(0, 2, 1, 3).reshape(b, t, c)


def norm(x, g, b):
    return g * (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True, correction=0) + 1e-5) + b


class Flat(nn.Module):
    """A ParameterList in the order of use; matrices are (in, out)."""

    def __init__(self, n_vocab, n_ctx, n_embd, n_head, n_layer):
        super().__init__()
        c = n_embd
        block = [(c,), (c,), (c, 3 * c), (3 * c,), (c, c), (c,), (c,), (c,), (c, 4 * c), (4 * c,), (4 * c, c), (c,)]
        shapes = [(n_vocab, c), (n_ctx, c), *(block * n_layer), (c,), (c,)]
        self.p = nn.ParameterList([nn.Parameter(torch.randn(shape) * 0.02) for shape in shapes])
        self.heads = n_head

    def forward(self, ids):
        words, places, *layers, g, b = self.p
        x = words[ids] + places[: ids.shape[1]]
        for start in range(0, len(layers), 12):
            g1, b1, w_qkv, b_qkv, w_o, b_o, g2, b2, w_up, b_up, w_down, b_down = layers[start : start + 12]
            q, k, v = (norm(x, g1, b1) @ w_qkv + b_qkv).chunk(3, dim=-1)
            x = x + (attend(q, k, v, self.heads) @ w_o + b_o)
            x = x + (F.gelu(norm(x, g2, b2) @ w_up + b_up, approximate="tanh") @ w_down + b_down)
        return norm(x, g, b) @ words.T


class OneLongRow(Flat):
    """The rows of a batch lie one after another, so that the stream is (B T, C)."""

    def forward(self, ids):
        b, t = ids.shape
        words, places, *layers, gain, bias = self.p
        x = words[ids.reshape(-1)] + places[torch.arange(t).repeat(b)]
        for start in range(0, len(layers), 12):
            g1, b1, w_qkv, b_qkv, w_o, b_o, g2, b2, w_up, b_up, w_down, b_down = layers[start : start + 12]
            q, k, v = (norm(x, g1, b1) @ w_qkv + b_qkv).view(b, t, -1).chunk(3, dim=-1)
            x = x + (attend(q, k, v, self.heads).view(b * t, -1) @ w_o + b_o)
            x = x + (F.gelu(norm(x, g2, b2) @ w_up + b_up, approximate="tanh") @ w_down + b_down)
        return (norm(x, gain, bias) @ words.T).view(b, t, -1)


class Stacked(nn.Module):
    """One tensor for all layers; queries, keys and values in one with an axis of three; matrices are (out, in)."""

    def __init__(self, vocab, context, dim, heads, layers):
        super().__init__()

        def p(*shape):
            return nn.Parameter(torch.randn(shape) * 0.02)

        self.heads = heads
        self.words, self.places = p(vocab, dim), p(context, dim)
        self.first, self.second, self.last = p(layers, 2, dim), p(layers, 2, dim), p(2, dim)
        self.three, self.three_more = p(layers, 3, dim, dim), p(layers, 3, dim)
        self.mix, self.mix_more = p(layers, dim, dim), p(layers, dim)
        self.up, self.up_more = p(layers, 4 * dim, dim), p(layers, 4 * dim)
        self.down, self.down_more = p(layers, dim, 4 * dim), p(layers, dim)

    def forward(self, ids):
        x = self.words[ids] + self.places[: ids.shape[1]]
        for i in range(len(self.first)):
            y = norm(x, *self.first[i])
            v, q, k = (F.linear(y, w, b) for w, b in zip(self.three[i], self.three_more[i], strict=True))
            x = x + F.linear(attend(q, k, v, self.heads), self.mix[i], self.mix_more[i])
            y = F.gelu(F.linear(norm(x, *self.second[i]), self.up[i], self.up_more[i]), approximate="tanh")
            x = x + F.linear(y, self.down[i], self.down_more[i])
        return norm(x, *self.last) @ self.words.T


class BiasInTheProduct(nn.Module):
    """The bias is put over the matrix, and a one before the input, so that both are one product; norms of one group."""

    def __init__(self, vocab, context, dim, heads, layers):
        super().__init__()

        def p(*shape):
            return nn.Parameter(torch.randn(shape) * 0.02)

        self.heads = heads
        self.words, self.places, self.last = p(vocab, dim), p(context, dim), p(2, dim)
        self.first, self.second = p(layers, 2, dim), p(layers, 2, dim)
        sizes = {"fused": (dim, 3 * dim), "mix": (dim, dim), "up": (dim, 4 * dim), "down": (4 * dim, dim)}
        for name, size in sizes.items():
            setattr(self, name, p(layers, *size))
            setattr(self, f"{name}_more", p(layers, size[1]))

    def affine(self, x, name, i):
        both = torch.cat([getattr(self, f"{name}_more")[i][None], getattr(self, name)[i]])
        return F.pad(x, (1, 0), value=1.0) @ both

    def normalised(self, x, gain, bias):
        return F.group_norm(x.reshape(-1, x.shape[-1]), 1, gain, bias).view_as(x)

    def forward(self, ids):
        x = self.words[ids] + self.places[: ids.shape[1]]
        for i in range(len(self.first)):
            q, k, v = self.affine(self.normalised(x, *self.first[i]), "fused", i).chunk(3, -1)
            x = x + self.affine(attend(q, k, v, self.heads), "mix", i)
            y = F.gelu(self.affine(self.normalised(x, *self.second[i]), "up", i), approximate="tanh")
            x = x + self.affine(y, "down", i)
        return self.normalised(x, *self.last) @ self.words.T
