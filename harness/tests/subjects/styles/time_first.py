"""(time, batch, channels) from the embeddings to the head, as torch's recurrent layers have it."""

import torch
from torch import nn


class Mixing(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.take, self.give = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):  # (T, B, C)
        time, batch, width = x.shape
        q, k, v = (y.reshape(time, batch * self.heads, -1).transpose(0, 1) for y in self.take(x).chunk(3, -1))
        scores = q @ k.transpose(1, 2) / (width // self.heads) ** 0.5
        scores = scores + torch.full_like(scores[0], float("-inf")).triu(1)
        return self.give((scores.softmax(-1) @ v).transpose(0, 1).reshape(time, batch, width))


class Layer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.calm, self.mixing, self.calm_again = nn.LayerNorm(width), Mixing(width, heads), nn.LayerNorm(width)
        self.thinking = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))

    def forward(self, x):
        x = x + self.mixing(self.calm(x))
        return x + self.thinking(self.calm_again(x))


class Recurrent(nn.Module):
    def __init__(self, vocab_size, context_length, width, heads, layers):
        super().__init__()
        self.words, self.places = nn.Embedding(vocab_size, width), nn.Embedding(context_length, width)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.last = nn.LayerNorm(width)

    def forward(self, ids):
        x = self.words(ids.T) + self.places(torch.arange(ids.shape[1]))[:, None]
        for layer in self.layers:
            x = layer(x)
        return (self.last(x) @ self.words.weight.T).transpose(0, 1)
