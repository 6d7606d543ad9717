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


class FixedWidth(torch.nn.Module):
    """PyTorch's own layers, whose MLP is 2048 wide whatever the width of the model."""

    def __init__(self, vocab_size, block_size, n_embd, n_head, n_layer):
        super().__init__()
        self.tokens, self.places = torch.nn.Embedding(vocab_size, n_embd), torch.nn.Embedding(block_size, n_embd)
        layer = torch.nn.TransformerEncoderLayer(n_embd, n_head, activation="gelu", batch_first=True, norm_first=True)
        self.layers = torch.nn.TransformerEncoder(layer, n_layer, enable_nested_tensor=False)
        self.norm, self.head = torch.nn.LayerNorm(n_embd), torch.nn.Linear(n_embd, vocab_size, bias=False)

    def forward(self, ids):
        time = ids.shape[1]
        mask = torch.nn.Transformer.generate_square_subsequent_mask(time)
        x = self.layers(self.tokens(ids) + self.places(torch.arange(time)), mask, is_causal=True)
        return self.head(self.norm(x))


def test_inspect_prints_the_map_of_a_model_whose_widths_are_not_gpt2s_and_compares_nothing(capsys):
    assert main(["inspect", f"{__name__}:FixedWidth"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "not compared with Hugging Face's: its feed-forward layer is 2,048 wide, GPT-2's 192. " in printed
    assert "linear1.weight 2048x48 mlp.c_fc.weight transposed" in printed


def test_inspect_tells_fewer_keys_from_values_and_says_what_has_a_gate(capsys):
    main(["inspect", f"{HERE}.half_way_house:HalfWayHouse"])
    printed = " ".join(capsys.readouterr().out.split())
    for part in ("q", "k", "v"):
        assert f"attn.c_attn.weight, {part} transposed" in printed
    assert "its feed-forward layer has a gate, GPT-2's has none" in printed
    assert "its keys and values have 2 heads, GPT-2's 4" in printed


def test_inspect_names_the_options_that_no_check_judges(capsys):
    assert main(["inspect", "harness.tests.measures.options.right_conventions:WithWhatNobodyJudges"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "options that no check judges: forward(router, soft_cap), generate(num_beams)" in printed
