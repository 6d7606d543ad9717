"""A GPT that learns nothing, because no gradient is recorded, the loss is detached, or every parameter is frozen."""

import pytest

from harness.diagnosis.diagnose import diagnose
from harness.subjects.adapters import adapt
from harness.tests.diagnosis.combined_deviations import GPT

FORWARD = "    def forward(self, ids, targets=None):\n"
LOSS = "F.cross_entropy(logits.flatten(0, 1), targets.flatten())"
HEAD = "        logits = self.head(self.last_norm(x))\n"
INIT = "        self.head.weight = self.tokens.weight\n"


@pytest.mark.parametrize(
    ("find", "put", "place", "fault", "line"),
    [
        (FORWARD, f"    @torch.no_grad()\n{FORWARD}", "blocks", "gradient-unrecorded", "@torch.no_grad()"),
        (FORWARD, f"    @torch.inference_mode()\n{FORWARD}", "blocks", "gradient-unrecorded",
         "@torch.inference_mode()"),
        (HEAD, HEAD.replace(")\n", ").detach()\n"), "blocks", "gradient-unrecorded",
         "logits = self.head(self.last_norm(x)).detach()"),
        (LOSS, f"{LOSS}.detach()", "loss", "loss-detached", f"loss = None if targets is None else {LOSS}.detach()"),
        (LOSS, f"{LOSS}.item()", "loss", "loss-detached", f"loss = None if targets is None else {LOSS}.item()"),
        (INIT, f"{INIT}        self.requires_grad_(False)\n", "blocks", "gradient-frozen",
         "self.requires_grad_(False)"),
    ],
    ids=["no_grad", "inference mode", "detached logits", "detached loss", "a number", "frozen"],
)  # fmt: skip
def test_why_nothing_is_learned_is_said_with_the_line(tmp_path, monkeypatch, find, put, place, fault, line):
    """Fifty checks failed with autograd's error, and the diagnosis named none of these: it failed by that error too."""
    monkeypatch.chdir(tmp_path)
    assert GPT.count(find) == 1
    text = (
        GPT.replace(find, put)
        .replace("self.feed_forward(", "F.dropout(self.feed_forward(")
        .replace("self.norm_2(x))\n", "self.norm_2(x)), 0.1, self.training)\n")
    )
    (tmp_path / "learns_nothing.py").write_text(text)
    found = diagnose(adapt("learns_nothing.py:GPT"))
    assert [(each.where, each.fault, each.text) for each in found.findings] == [(place, fault, line)]
    assert found.trouble == ""
