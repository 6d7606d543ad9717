"""`gpt-harness inspect`: the report on one subject."""

import json

import torch

from harness.cli import main
from harness.tests.subjects.altered_styles import STYLES as HERE


class NeedsARouter(torch.nn.Module):
    def __init__(self, vocab_size, n_embd, n_layer):
        super().__init__()
        self.one = torch.nn.Linear(1, 1)

    def forward(self, idx, router):
        return router.route(idx)


def test_inspect_prints_what_was_understood_and_how_each_row_is_known(capsys):
    assert main(["inspect", f"{HERE}.greek:Phi"]) == 0
    printed = capsys.readouterr().out
    assert "depth=3, embedding_size=48, heads=4, seq_length=32, vocab=211" in printed
    assert "omega_{1..3}.delta" in printed
    assert "proved: with probe weights the logits are Hugging Face's" in printed
    assert "Caches: looked for" in printed
    assert main(["inspect", "--json", f"{HERE}.dict_config:GPTModel"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["abilities"] == {"Generates": "generate_text_simple(model, idx, max_new_tokens, context_size)"}
    assert {row["by"] for row in found["weights"]} == {"name"}


def test_inspect_says_at_which_step_it_ended_and_what_to_write(capsys):
    assert main(["inspect", f"{__name__}:NeedsARouter"]) == 1
    printed = capsys.readouterr().out
    assert "failed    to call it: forward(idx, router) needs 'router'" in printed
    assert "class Mine:" in printed
