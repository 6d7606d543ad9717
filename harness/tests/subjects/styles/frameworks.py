"""A subclass of transformers' own, and a wrapper that holds the model as a training framework's module does."""

from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from harness.tests.subjects.styles.dataclass_config import GPT, Shape


class Ours(GPT2LMHeadModel):
    """Hugging Face's class with a method of ours."""

    def __init__(self, config: GPT2Config):
        super().__init__(config)

    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


class Lightning(nn.Module):
    """The model is one attribute, the optimiser's settings stand beside the sizes."""

    def __init__(self, vocab_size, block_size, n_layer, n_head, n_embd, dropout=0.1, learning_rate=6e-4):
        super().__init__()
        self.model = GPT(Shape(block_size, vocab_size, n_layer, n_head, n_embd, dropout, bias=True))
        self.learning_rate = learning_rate

    def forward(self, x, y=None):
        logits, loss = self.model(x, y)
        return logits if loss is None else {"loss": loss, "logits": logits}
