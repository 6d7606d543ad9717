"""One right GPT-2 that continues a prompt: of ids or of text, with the count anywhere, with caches of the caller."""

import torch
from torch.nn import functional as F

from harness.tests.subjects.styles.calls import Base


def choose(logits, temperature):
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    return torch.multinomial((logits / temperature).softmax(-1), 1)


class Plain(Base):
    def forward(self, ids):
        return self.logits(ids)

    def next(self, ids, temperature):
        return choose(self(ids[:, -self.wpe.num_embeddings :])[:, -1], temperature)


class CountLast(Plain):
    @torch.no_grad()
    def generate(self, prompt, temperature=1.0, stop_token=None, n_new=20):
        for _ in range(n_new):
            prompt = torch.cat([prompt, self.next(prompt, temperature)], 1)
        return prompt


class TotalLength(Plain):
    """`max_length` counts the prompt, as Hugging Face's does."""

    @torch.no_grad()
    def generate(self, ids, max_length=50, temperature=1.0):
        while ids.shape[1] < max_length:
            ids = torch.cat([ids, self.next(ids, temperature)], 1)
        return ids


class LengthOfWhatIsNew(Plain):
    @torch.no_grad()
    def generate(self, ids, length, temperature=1.0):
        for _ in range(length):
            ids = torch.cat([ids, self.next(ids, temperature)], 1)
        return ids


class OneSequence(Plain):
    """A list of ids in, a list of the new ones out."""

    def forward(self, ids):
        assert ids.ndim == 1
        return self.logits(ids)

    @torch.no_grad()
    def generate(self, ids, count, temperature=1.0):
        new = []
        for _ in range(count):
            logits = self(torch.cat([ids, torch.tensor(new, dtype=ids.dtype)])[-self.wpe.num_embeddings :])[-1]
            new.append(int(choose(logits, temperature)))
        return new


class TextPrompt(Plain):
    def generate(self, prompt: str, max_new_tokens=20):
        raise AssertionError("not called: the harness has no text for it")


class Encodes(Plain):
    """Nothing but its body says that the prompt is text."""

    def generate(self, prompt, length=20, vocabulary=None):
        return self.next(torch.tensor([vocabulary.encode(prompt)]), length)


class NeedsTokenizer(Plain):
    def generate(self, ids, tokenizer, length=20):
        return tokenizer.decode(ids)


class Decodes(Plain):
    def generate(self, ids, length=20, codec=None):
        for _ in range(length):
            ids = torch.cat([ids, self.next(ids, 1.0)], 1)
        return codec.decode(ids[0].tolist())


class TextOrIds(Plain):
    """Takes both: it is called with ids."""

    @torch.no_grad()
    def generate(self, prompt, length=20, temperature=1.0, codec=None):
        if isinstance(prompt, str):
            prompt = torch.tensor([codec.encode(prompt)])
        for _ in range(length):
            prompt = torch.cat([prompt, self.next(prompt, temperature)], 1)
        return prompt


class CachesOfTheCaller(Base):
    """Keys and values are put into the list that the caller makes; there is no default."""

    def forward(self, ids, use_cache=False, kv_caches=None):
        past = 0 if kv_caches[0] is None else kv_caches[0][0].shape[2]
        x = self.wte(ids) + self.wpe(torch.arange(past, past + ids.shape[1]))
        for layer, block in enumerate(self.blocks):
            x = self.block(block, x, layer, use_cache, kv_caches)
        return self.head(self.ln_f(x))

    def block(self, block, x, layer, use_cache, kv_caches):
        heads = [y.unflatten(-1, (block.heads, -1)).transpose(1, 2) for y in block.c_attn(block.ln_1(x)).chunk(3, -1)]
        q, k, v = heads
        if kv_caches[layer] is not None:
            k, v = (torch.cat([old, new], 2) for old, new in zip(kv_caches[layer], (k, v), strict=True))
        if use_cache:
            kv_caches[layer] = k, v
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        x = x + block.c_proj(y.transpose(1, 2).flatten(2))
        return x + block.shrink(F.gelu(block.grow(block.ln_2(x)), approximate="tanh"))


class CachesNothing(Base):
    """The list is needed, and nothing is put into it."""

    def forward(self, ids, use_cache=False, kv_caches=None):
        for layer in range(len(self.blocks)):
            kv_caches[layer] = None
        return self.logits(ids)
