"""Right GPTs whose options follow other conventions than the specimen's: each is one that people use."""

import torch
from torch.nn import functional as F

from harness.tests.subjects.styles.calls import Base
from harness.tests.subjects.styles.generates import Plain


class OnePositionsForAllRows(Base):
    """Takes positions (T,)."""

    def forward(self, ids, pos=None):
        assert pos is None or pos.ndim == 1
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]) if pos is None else pos)
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln_f(x))


class LastAlone(Base):
    """Returns the last position, without its axis, unless it is asked for more."""

    def forward(self, ids, last_only=True):
        logits = self.logits(ids)
        return logits[:, -1] if last_only else logits


class SmoothsOverTheOthers(Base):
    """Divides what is smoothed among the other tokens, as tensor2tensor does."""

    def forward(self, ids, targets=None, label_smoothing=0.0):
        logits = self.logits(ids)
        if targets is None:
            return logits, None
        log_p = logits.flatten(0, 1).log_softmax(-1)
        V = log_p.shape[-1]
        aim = torch.full_like(log_p, label_smoothing / (V - 1)).scatter(1, targets.reshape(-1, 1), 1 - label_smoothing)
        return logits, -(aim * log_p).sum(-1).mean()


class CutsOffTheStopToken(Plain):
    """Returns a list of rows, each without its stop token."""

    @torch.no_grad()
    def generate(self, ids, max_new_tokens, temperature=1.0, stop_tokens=()):
        rows = []
        for row in ids:
            text = row[None]
            for _ in range(max_new_tokens):
                chosen = self.next(text, temperature)
                if int(chosen) in stop_tokens:
                    break
                text = torch.cat([text, chosen], 1)
            rows.append(text[0])
        return rows


class StopsOneRowOnly(Plain):
    """Refuses a batch with a stop token, as `if next == eos` does."""

    @torch.no_grad()
    def generate(self, ids, max_new_tokens, temperature=1.0, eos_token_id=None):
        for _ in range(max_new_tokens):
            ids = torch.cat([ids, self.next(ids, temperature)], 1)
            if eos_token_id is not None and ids[:, -1] == eos_token_id:
                break
        return ids


class SequencesInTurn(Plain):
    @torch.no_grad()
    def generate(self, ids, num_samples=1, max_new_tokens=20, temperature=1.0):
        ids = ids.repeat(num_samples, 1)
        for _ in range(max_new_tokens):
            ids = torch.cat([ids, self.next(ids, temperature)], 1)
        return ids


class SequencesOfEachPrompt(SequencesInTurn):
    """Returns a list for each prompt, of ids as Python's integers."""

    def generate(self, ids, max_new_tokens, num_return_sequences=1):
        return [super(SequencesOfEachPrompt, self).generate(row[None], num_return_sequences, max_new_tokens).tolist()
                for row in ids]  # fmt: skip


class MeanOrNone(Base):
    """Has two reductions of three."""

    def forward(self, ids, targets=None, reduction="mean"):
        logits = self.logits(ids)
        if targets is None:
            return logits, None
        if reduction not in ("mean", "none"):
            raise ValueError(f"reduction {reduction!r}")
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)
        return logits, losses.view(targets.shape) if reduction == "none" else losses


class PenalisesWhatIsNew(Plain):
    """The prompt does not count. Filters that most texts want are on by default."""

    @torch.no_grad()
    def generate(self, ids, max_new_tokens, temperature=1.0, top_k=50, frequency_penalty=0.3, presence_penalty=0.0):
        start = ids.shape[1]
        for _ in range(max_new_tokens):
            logits = self(ids[:, -self.wpe.num_embeddings :])[:, -1]
            counts = F.one_hot(ids[:, start:], logits.shape[-1]).sum(1)
            logits = logits - frequency_penalty * counts - presence_penalty * (counts > 0)
            if temperature == 0:
                chosen = logits.argmax(-1, keepdim=True)
            else:
                kept = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
                p = (logits / temperature).masked_fill(logits < kept, -torch.inf).softmax(-1)
                chosen = torch.multinomial(p, 1)
            ids = torch.cat([ids, chosen], 1)
        return ids


class DrawsByInversion(Plain):
    """Samples without torch.multinomial."""

    @torch.no_grad()
    def generate(self, ids, max_new_tokens, min_p=0.0):
        for _ in range(max_new_tokens):
            p = self(ids[:, -self.wpe.num_embeddings :])[:, -1].softmax(-1)
            p = p.masked_fill(p < min_p * p.max(-1, keepdim=True).values, 0.0)
            below = p.cumsum(-1)
            drawn = torch.rand(len(p), 1) * below[:, -1:]
            ids = torch.cat([ids, (below > drawn).long().argmax(-1, keepdim=True)], 1)
        return ids


class WithWhatNobodyJudges(Plain):
    def forward(self, ids, router=None, soft_cap=None):
        return self.logits(ids)

    @torch.no_grad()
    def generate(self, ids, max_new_tokens, temperature=1.0, num_beams=1):
        for _ in range(max_new_tokens):
            ids = torch.cat([ids, self.next(ids, temperature)], 1)
        return ids
