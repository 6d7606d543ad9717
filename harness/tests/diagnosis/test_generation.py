"""Mistakes of `generate` that no table lists: the diagnosis says what it reads, and what it draws from."""

import pytest

from harness.diagnosis.searches.generation import search
from harness.faults.catalogue import SPECIMEN
from harness.subjects.adapters import adapt

WITHOUT_CACHE = ("if use_cache and idx.size(1) <= self.config.block_size:", "if False:")
WINDOW = "window = idx[:, -self.config.block_size :]"
C = "self.config.block_size"
LAST = "last = logits[:, -1]"
APPENDED = "idx = torch.cat([idx, chosen], dim=1)"
DRAW = "return torch.multinomial(probabilities, num_samples=1, generator=generator)"
SOFTMAX = "probabilities = logits.softmax(dim=-1)"
KTH = "kth = logits.topk(k).values[:, -1:]"
# (the text, what is there instead, the fault's id, words of the cause)
MISTAKES = [
    (
        WINDOW,
        f"window = idx if idx.size(1) < {C} else idx[:, -({C} - 1) :]",
        "gen-crop-one-too-short",
        "of 32 tokens, with a context of 32, it reads only the last 31, not the last 32",
    ),
    (WINDOW, "window = idx[:, -10:]", "", "of 30 tokens, with a context of 32, it reads only the last 10"),
    (WINDOW, f"{WINDOW}[:, :5]", "", "of 6 tokens it reads 1 to 5, not 1 to 6"),
    (WINDOW, f"{WINDOW}[:, 1:]", "", "of 5 tokens, with a context of 32, it reads only the last 4, not the last 5"),
    (LAST, "last = logits[:, 4]", "", "the logits of token 5 of 6, not of the last"),
    (LAST, "last = logits.mean(1)", "", "the mean of the logits over all positions"),
    (LAST, "last = logits[:1, -1].expand(len(idx), -1)", "", "the logits of row 0, in every row"),
    (LAST, "last = logits[:, -1].roll(1, 0)", "", "the logits of the row before it"),
    (APPENDED, "idx = torch.cat([chosen, idx], dim=1)", "", "new tokens are put before the prompt"),
    (APPENDED, "idx = torch.cat([idx, chosen.roll(1, 0)], dim=1)", "", "drawn for the row before it is appended"),
    ("last.argmax(", "last.argmin(", "", "at temperature 0 the least likely token is taken"),
    (SOFTMAX, "probabilities = logits.softmax(dim=0)", "", "a softmax over the rows, not over the vocabulary"),
    (SOFTMAX, "probabilities = logits.softmax(dim=-1) ** 2", "", "temperature 1: logits are multiplied by 2, not by 1"),
    (
        "logits = logits / temperature",
        "logits = logits / (1 + temperature)",
        "",
        "logits are multiplied by 0.5, not by",
    ),
    (DRAW, f"probabilities[:, 7] = 0\n    {DRAW}", "", "token 7 cannot be drawn"),
    (KTH, "kth = logits.topk(k).values[:, :1]", "", "top_k 5: tokens of rank 1 can be drawn, not 1 to 5"),
    (
        KTH,
        f"{KTH}\n        return torch.multinomial(logits.topk(k).values.softmax(-1), 1)",
        "",
        "top_k 5: the rank among the 5 likeliest is appended",
    ),
    ("logits < kth", "logits <= kth", "gen-topk-one-too-few", "k - 1 tokens can be drawn"),
    (
        "torch.zeros_like(probabilities).scatter(-1, order, ordered)",
        "probabilities.masked_fill(ordered == 0, 0)",
        "",
        "the nucleus is the first tokens of the vocabulary, as many as the likeliest would be",
    ),
]


@pytest.fixture
def findings(tmp_path):
    def of(*changes):
        text = SPECIMEN.read_text(encoding="utf-8")
        for find, put in (WITHOUT_CACHE, *changes):
            assert text.count(find) == 1, find
            text = text.replace(find, put)
        (tmp_path / "mine.py").write_text(text, encoding="utf-8")
        return search(adapt(f"{tmp_path / 'mine.py'}:GPT"))

    return of


@pytest.mark.parametrize(("find", "put", "fault", "says"), MISTAKES, ids=[row[3][:40] for row in MISTAKES])
def test_what_is_computed_instead_is_said(findings, find, put, fault, says):
    (found,) = findings((find, put))
    assert says in found.cause
    assert found.fault == fault


def test_nothing_is_found_in_a_right_program_without_and_with_the_cache(findings):
    assert findings() == []
    assert search(adapt(f"{SPECIMEN}:GPT")) == []


def test_the_line_that_calls_the_model_is_named(findings):
    (found,) = findings((WINDOW, "window = idx[:, -10:]"))
    assert found.text == "logits, _ = self(window)"
