"""Model pools whose subject is a wrong GPT-2, for the tests of the arms."""

from torch import nn

from harness.bench.arms import ModelPool
from harness.bench.peers import HuggingFace
from harness.core.sizes import SIZES

DEBUG = SIZES["debug"]


def wrong(change):
    """Return a pool whose subject is Hugging Face's GPT-2 with `change` applied to each module that is built."""

    class Wrong(HuggingFace):
        def build(self, *args, **kwargs):
            model = super().build(*args, **kwargs)
            change(model.module)
            return model

    subject = Wrong("sdpa")
    subject.name = "wrong"
    return ModelPool(subject, DEBUG)


def exact_gelu(module):
    for block in module.transformer.h:
        block.mlp.act = nn.GELU()  # the exact form, where GPT-2 has the tanh


def detached(module):
    block = module.transformer.h[1]
    block.attn.register_forward_hook(lambda _, given, found: (found[0].detach(), *found[1:]))
