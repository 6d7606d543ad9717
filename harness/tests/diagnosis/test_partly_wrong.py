"""What is wrong in some places only: masks by token and by position, heads, channels, rows; the words say which."""

import pytest
import torch

from harness.core.sizes import SIZES
from harness.diagnosis.searches import computation
from harness.diagnosis.searches.forward import where
from harness.oracle.formula import visible
from harness.oracle.tokens import batch
from harness.subjects.adapters import adapt
from harness.tests.diagnosis.combined_deviations import GPT
from harness.tests.diagnosis.test_diagnosis import FUNCTIONAL

# One fused kernel, whose mask the model makes once and gives to each block.
FUSED = GPT.replace("def forward(self, x):\n        rows", "def forward(self, x, seen):\n        rows", 1)
START, END = FUSED.index("        scores = q @ k.mT\n"), FUSED.index("        return self.output(mixed)")
FUSED = (
    FUSED[:START]
    + "        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2)\n"
    + FUSED[END:]
)
for find, put in (
    ("def forward(self, x):\n        x = x + self.attention(self.norm_1(x))",
     "def forward(self, x, seen):\n        x = x + self.attention(self.norm_1(x), seen)"),
    ("            x = block(x)\n", "            x = block(x, seen)\n"),
    ("        for block in self.blocks:\n            x = ",
     "        time = ids.shape[1]\n        seen = torch.ones(time, time, dtype=torch.bool).tril()[None, None]\n"
     "        for block in self.blocks:\n            x = "),
):  # fmt: skip
    assert FUSED.count(find) == 1, find
    FUSED = FUSED.replace(find, put)
TRIL = ".tril()[None, None]"
BACK = "(torch.arange(time)[:, None] - torch.arange(time))"
GELU = 'F.gelu(self.wide(x), approximate="tanh")'

# (the text, the text that changes, what is there instead, the place, words of the cause)
MISTAKES = [
    pytest.param(FUSED, TRIL, f"{TRIL} & ((ids != 0)[:, None, None] | torch.eye(time, dtype=torch.bool))",
                 "h.*.attn.mask", "hides the keys whose token is 0 from other positions", id="padding"),
    pytest.param(FUSED, TRIL, f"{TRIL} & ({BACK} % 7 != 3)",
                 "h.*.attn.mask", "hides the keys that are 3, 10, 17 ... (3 modulo 7) back", id="stride"),
    pytest.param(FUSED, TRIL, f"{TRIL} & ({BACK} < 9)", "h.*.attn.mask", "9", id="window"),
    pytest.param(FUSED, TRIL, f"{TRIL} & (({BACK} < 6) | (torch.arange(4) % 2 == 0)[None, :, None, None])",
                 "h.*.attn.mask", "in heads 1, 3 only", id="heads' window"),
    pytest.param(FUNCTIONAL, "/ math.sqrt(q.shape[-1])", "/ torch.tensor([12, 12, 144, 12]).view(4, 1, 1).sqrt()",
                 "h.*.attn.scale", "only at head 2", id="head's scale"),
    pytest.param(FUNCTIONAL, 'F.gelu(h, approximate="tanh")',
                 'torch.where(torch.arange(h.shape[-1]) < 100, F.gelu(h, approximate="tanh"), h)',
                 "h.*.mlp.activation", "only at channels from 100 on", id="channels"),
    pytest.param(GPT, "x = x + self.feed_forward(self.norm_2(x))",
                 "y = self.feed_forward(self.norm_2(x))\n"
                 "        x = x + torch.cat((y[:, :-1], 2 * y[:, -1:]), 1)",
                 "h.*.residual.mlp", "only at position 31", id="last position"),
    pytest.param(FUSED, "x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))",
                 "x = self.tokens(ids) + self.places(torch.arange(ids.shape[1])) * (ids != 210)[..., None]",
                 "embedding", "token 210", id="token's position"),
    pytest.param(GPT, GELU, f"torch.cat(({GELU}[:1], torch.tanh(self.wide(x[1:]))))",
                 "h.*.mlp.activation", "row 1", id="rows"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "find", "put", "place", "said"), MISTAKES)
def test_the_words_say_where_it_is_wrong(tmp_path, monkeypatch, text, find, put, place, said):
    monkeypatch.chdir(tmp_path)
    assert text.count(find) == 1
    (tmp_path / "partly.py").write_text(text.replace(find, put))
    (finding,) = computation.search(adapt(f"partly.py:{'Tiny' if 'class Tiny' in text else 'GPT'}"))
    assert finding.where == place, finding
    assert said in f"{finding.cause}; {finding.evidence}"
    assert finding.source.startswith("partly.py:")


def test_of_the_right_fused_gpt_nothing_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "partly.py").write_text(FUSED)
    assert computation.search(adapt("partly.py:GPT")) == []


def pattern(*shape, **parts):
    """Return a pattern that is true in the given parts of the axes a0, a1, ..."""
    found = torch.zeros(shape, dtype=torch.bool)
    found[tuple(parts.get(f"a{axis}", slice(None)) for axis in range(len(shape)))] = True
    return found


IDS, _ = batch(SIZES["debug"], "random", rows=2, length=8)


@pytest.mark.parametrize(
    ("differs", "options", "words"),
    [
        (pattern(2, 8, 48, a1=slice(5, None)), {}, "positions from 5 on"),
        (pattern(2, 8, 48, a2=slice(12, 24)), {"head_width": 12}, "the channels of head 1"),
        (pattern(2, 4, 8, 8, a1=[1, 3]), {"scores": True}, "heads 1 (1 modulo 2), 3"),
        (pattern(2, 4, 8, 8, a2=0), {"scores": True}, "query 0"),
        ((IDS == 0)[..., None].expand(2, 8, 48), {}, "positions at token 0"),
        (pattern(2, 8, 48), {}, ""),
        (torch.rand(2, 8, 48, generator=torch.Generator().manual_seed(0)) < 0.5, {}, ""),
    ],
)
def test_a_pattern_in_words(differs, options, words):
    found = where.in_words(differs, IDS, **options)
    assert found == words or words.split(" (")[0] in found
    assert bool(found) == bool(words)


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (visible(8, 8).expand(2, 4, 8, 8), ""),
        (torch.ones(8, 8, dtype=torch.bool).tril(2).expand(2, 4, 8, 8), "shows the keys that are 1 to 2 ahead"),
        ((visible(8, 8) & (torch.arange(8) != 3)).expand(2, 4, 8, 8), "hides the keys at position 3"),
        (torch.ones(2, 4, 8, 8, dtype=torch.bool), "shows every later key"),
    ],
)
def test_a_mask_in_words(seen, words):
    found = where.mask_in_words(seen, IDS)
    assert words in found
    assert bool(found) == bool(words)
