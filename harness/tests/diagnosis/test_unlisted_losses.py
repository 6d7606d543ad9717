"""Losses that no table lists: the diagnosis says what they are the mean of."""

import pytest

from harness.diagnosis.searches import computation
from harness.subjects.adapters import adapt
from harness.tests.diagnosis.combined_deviations import GPT

LOSS = "F.cross_entropy(logits.flatten(0, 1), targets.flatten())"
EACH = "F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction='none').view_as(targets)"
MISTAKES = [
    (f"{EACH}[:, 4:].mean()", "leaves out positions 0 to 3 and is the mean over the others"),
    (f"({EACH} * (torch.arange(targets.shape[1]) % 2)).mean()", "and is still divided by all"),
    (f"({EACH} * torch.linspace(0.5, 1.5, targets.shape[1])).mean()", "positions count differently, by position: 0.5"),
    (f"{EACH}.mean() + 0.25", "a term of 0.25 is added"),
    ("F.cross_entropy(logits[:, :-2].flatten(0, 1), targets[:, 2:].flatten())", "predicts the target at +2"),
    (f"{EACH}.sum() / (targets.numel() - 1)", "each position counts 0.0140845, not 1/72"),
]  # fmt: skip


@pytest.mark.parametrize(("instead", "says"), MISTAKES)
def test_the_diagnosis_says_what_the_loss_counts(tmp_path, monkeypatch, instead, says):
    monkeypatch.chdir(tmp_path)
    assert GPT.count(LOSS) == 1
    (tmp_path / "odd_loss.py").write_text(GPT.replace(LOSS, instead))
    (finding,) = computation.search(adapt("odd_loss.py:GPT"))
    assert finding.where == "loss"
    assert says in finding.cause, finding
    assert finding.text.startswith("loss =")
