"""One right GPT-2 whose ids have an unusual name, or that cannot be called without targets."""

import torch
from torch import nn

from harness.tests.subjects.styles.calls import Base, cross_entropy


class IdsCalledTgt(Base):
    """The first parameter has the ids, under a word that also means targets."""

    def forward(self, tgt, tgt_padding_mask=None, last=False):
        x = self.stream(tgt)
        return self.head(x[:, -1:] if last else x)


class IdsCalledY(Base):
    def forward(self, y, start_pos=0):
        return self.logits(y)


class RaisesWithoutTargets(Base):
    """The logits are flattened beside the loss."""

    def forward(self, ids, targets=None):
        if targets is None:
            raise ValueError("pass targets")
        logits = self.logits(ids)
        return logits.flatten(0, 1), cross_entropy(logits, targets)


class RaisesWithoutWanted(Base):
    """The targets have a name of their own."""

    def forward(self, ids, wanted=None):
        return self.logits(ids), cross_entropy(self.logits(ids), wanted.long())


class RaisesUnlessSampling(Base):
    """Without targets a flag must say so, and with targets only whole windows are taken."""

    def forward(self, ids, targets=None, sampling=False):
        logits = self.logits(ids)
        if sampling:
            return logits, None
        assert ids.numel() % self.wpe.num_embeddings == 0, "whole windows only"
        return logits, cross_entropy(logits, targets)


class NormedEmbeddings(Base):
    """The embeddings have a norm of their own, which GPT-2 does not have."""

    def __init__(self, vocab_size, n_ctx, n_layer, n_head, n_embd):
        super().__init__(vocab_size, n_ctx, n_layer, n_head, n_embd)
        self.first = nn.LayerNorm(n_embd)

    def forward(self, tgt):
        x = self.first(self.wte(tgt) + self.wpe(torch.arange(tgt.shape[-1])))
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln_f(x))
