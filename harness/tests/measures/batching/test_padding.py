"""Batches that are padded: right ones pass, and of a wrong one it is said what it does with the padding."""

import pytest

from harness.diagnosis import diagnose
from harness.judging.run_check import run
from harness.subjects.adapters import adapt

CHECK = "batching::tokens-in-company,arrivals=in the middle"
CHECK_TOGETHER = "batching::tokens-in-company,arrivals=together"
ENGINE = '''
import math

import torch

from harness.faults.specimen import GPT


class Engine:
    """Recomputes every running request in each step, as one padded batch."""

    def __init__(self, model, max_batch_size=4):
        self.model, self.most = model.eval(), max_batch_size
        self.waiting, self.running = [], []

    def add_request(self, prompt, max_new_tokens):
        request = {"prompt": list(prompt), "left": max_new_tokens, "output_ids": []}
        self.waiting.append(request)
        return request

    @torch.no_grad()
    def step(self):
        started = self.waiting[: self.most - len(self.running)]
        del self.waiting[: len(started)]
        self.running += started
        for request in started:
            gap = max(len(each["prompt"]) for each in started) - len(request["prompt"])
            request["padding"] = PROMPT_PADDING
        if self.running:
            behind = [each["padding"] + each["output_ids"] if each["output_ids"] else [] for each in self.running]
            tokens = self.next_tokens([r["prompt"] + tail for r, tail in zip(self.running, behind)])
            for request, token in zip(self.running, tokens):
                request["output_ids"].append(token)
                request["left"] -= 1
            self.running = [request for request in self.running if request["left"]]

    def forward(self, ids, positions, visible):
        model, (B, T) = self.model, ids.shape
        x = model.wte(ids) + model.wpe(positions)
        for block in model.h:
            q, k, v = block.attn.c_attn(block.ln_1(x)).split(x.size(-1), dim=2)
            q, k, v = (each.view(B, T, model.config.n_head, -1).transpose(1, 2) for each in (q, k, v))
            scores = (q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))).masked_fill(~visible[:, None], -1e9)
            x = x + block.attn.c_proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, -1))
            x = x + block.mlp(block.ln_2(x))
        return model.lm_head(model.ln_f(x))

    def next_tokens(self, texts):
        longest = max(map(len, texts))
        own = torch.tensor([len(text) for text in texts])
        pads = [[PAD] * (longest - len(text)) for text in texts]
        ids = torch.tensor([PADDED for pad, text in zip(pads, texts)])
        real = REAL
        visible = torch.ones(longest, longest, dtype=torch.bool).tril() & MASK
        logits = self.forward(ids, POSITIONS, visible)
        return ROW.argmax(-1).tolist()
'''
LEFT = {
    "PROMPT_PADDING": "[]",
    "PADDED": "pad + text",
    "REAL": "torch.arange(longest) >= longest - own[:, None]",
    "MASK": "real[:, None, :]",
    "POSITIONS": "(real.long().cumsum(-1) - 1).clamp(min=0)",
    "ROW": "logits[:, -1]",
}
RIGHT = {
    "PROMPT_PADDING": "[]",
    "PADDED": "text + pad",
    "REAL": "torch.arange(longest) < own[:, None]",
    "MASK": "torch.ones(len(texts), 1, 1, dtype=torch.bool)",
    "POSITIONS": "torch.arange(longest).expand(len(texts), -1)",
    "ROW": "logits[torch.arange(len(texts)), own - 1]",
}


def engine(tmp_path, style, *, pad="50", **changes):
    """Return the subject of one style, with parts of it changed."""
    text = ENGINE.replace("[PAD]", f"[{pad}]")
    for part, code in {**style, **changes}.items():
        text = text.replace(part, code)
    file = tmp_path / "my_engine.py"
    file.write_text(text)
    return adapt(f"{file}:GPT")


@pytest.mark.parametrize("style", [LEFT, RIGHT], ids=["left", "right"])
@pytest.mark.parametrize("pad", ["0", "50"])
def test_a_padded_batch_that_is_masked_passes(shipped, tmp_path, style, pad):
    record = run(shipped[CHECK], engine(tmp_path, style, pad=pad))
    assert record.verdict == "pass", record.message


ROW_POSITIONS, NO_MASK = RIGHT["POSITIONS"], RIGHT["MASK"]


@pytest.mark.parametrize(
    ("style", "changes", "fault", "said"),
    [
        (LEFT, {"POSITIONS": ROW_POSITIONS}, "batching-padding-counted", "its positions begin at 7 instead of 0"),
        (LEFT, {"MASK": NO_MASK}, "batching-padding-not-masked", "it sees 7 tokens of padding before its own"),
        (
            LEFT,
            {"MASK": NO_MASK, "POSITIONS": "(real.long().cumsum(-1) - 1).masked_fill(~real, 1)"},
            "batching-padding-not-masked",
            "it sees 7 tokens of padding before its own",
        ),
        (
            LEFT,
            {"MASK": NO_MASK, "POSITIONS": ROW_POSITIONS},
            "batching-padding-is-text",
            "it sees 7 tokens of padding before its own, which count in its positions",
        ),
        (RIGHT, {"ROW": "logits[:, -1]"}, "batching-logits-of-the-padding", "from those after the padding behind"),
        (
            RIGHT,
            {"ROW": "logits[:, -1]", "MASK": "real[:, None, :]"},
            "batching-logits-of-the-padding",
            "from a row that is after no request's text",
        ),
        (
            RIGHT,
            {"ROW": "logits[torch.arange(len(texts)), (own - 1).clamp(max=longest - 2)]"},
            "batching-logits-too-early",
            "one token before the end of its text",
        ),
        (
            RIGHT,
            {"PROMPT_PADDING": "[50] * gap"},
            "batching-padding-is-text",
            "it sees 8 tokens of padding between its prompt and its answer",
        ),
    ],
)
def test_what_is_done_with_the_padding_is_named(shipped, tmp_path, style, changes, fault, said):
    """They were taken for pages that were freed twice, and for the row of a neighbour."""
    subject = engine(tmp_path, style, **changes)
    record = run(shipped[CHECK if "PROMPT_PADDING" not in changes else CHECK_TOGETHER], subject)
    assert record.verdict == "fail"
    assert said in " ".join(record.details["answers"].values())
    assert [finding.fault for finding in diagnose(subject, [record]).findings] == [fault]
