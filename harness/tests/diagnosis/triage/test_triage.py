"""The triage names the one fault of a GPT that generates nonsense, and none of a right one."""

import pytest
import torch
from safetensors.torch import save_file

from gpt import GPT
from harness.core.errors import HarnessError
from harness.diagnosis.triage import read_checkpoint, triage
from harness.subjects.adapters import adapt
from harness.tests.diagnosis.triage.tiny_gpts import (
    CONFIG,
    LETTERS,
    SIZES,
    SOURCE,
    ahead,
    table_gpt,
    text,
    train,
    two_back,
)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "pairs.txt"
    path.write_text(text())
    return path


@pytest.fixture(scope="module")
def lagged(tmp_path_factory):
    """Return the text in which letters depend on the one two before, and its ids."""
    ids, contents = two_back()
    path = tmp_path_factory.mktemp("text") / "lagged.txt"
    path.write_text(contents)
    return path, ids


@pytest.fixture(scope="module")
def trained(lagged):
    return train(GPT(CONFIG, seed=0), lagged[1], steps=300).state_dict()


@pytest.fixture
def triaged(tmp_path):
    def run(weights, text_file, *, subject="gpt:GPT", settings=SIZES, **options):
        path = tmp_path / "checkpoint.pt"
        torch.save({"model": weights, "model_args": settings}, path)
        found = triage(read_checkpoint(str(path)), adapt(str(subject)), text=str(text_file), **options)
        return [each.cause for each in found.causes], {each.cause: each for each in found.evidence}

    return run


def subject_file(folder, body):
    path = folder / "mine.py"
    path.write_text(f"import torch\nfrom gpt import GPT as Right\n\n\nclass Mine(Right):\n{body}")
    return f"{path}:Mine"


def test_a_right_gpt_has_no_cause(triaged, trained, lagged):
    causes, evidence = triaged(trained, lagged[0])
    assert causes == []
    expected = "the loss that this size reaches after as many tokens"
    # The letters have no likeness, so that their embedding may look like random numbers.
    assert {cause for cause, each in evidence.items() if each.verdict != "right"} - {"weights at initialisation"} == {
        expected
    }
    assert {each.verdict for each in evidence.values()} == {"right", "undecided"}


def test_a_right_table_of_pairs_has_no_cause(triaged, pairs):
    causes, evidence = triaged(table_gpt(ahead(1)).state_dict(), pairs)
    assert causes == []
    assert evidence["shifted targets"].verdict == evidence["sampler"].verdict == "right"


@pytest.mark.parametrize(("distance", "says"), [(0, "the targets were not shifted"), (2, "shifted twice")])
def test_shifted_targets_are_named_by_the_offset_with_the_lowest_loss(triaged, pairs, distance, says):
    causes, evidence = triaged(table_gpt(ahead(distance)).state_dict(), pairs)
    assert causes == ["shifted targets"]
    assert says in evidence["shifted targets"].says


def test_a_part_of_the_weights_at_initialisation_is_named(triaged, trained, lagged):
    fresh = GPT(CONFIG, seed=1).state_dict()
    causes, evidence = triaged({n: fresh[n] if ".mlp." in n else t for n, t in trained.items()}, lagged[0])
    assert causes == ["weights at initialisation"]
    assert "2 of 4 matrices in the blocks" in evidence["weights at initialisation"].says


def test_weights_without_any_training_are_named(triaged, lagged):
    causes, evidence = triaged(GPT(CONFIG, seed=1).state_dict(), lagged[0])
    assert causes == ["weights at initialisation"]
    assert "nothing of a training" in evidence["weights at initialisation"].says
    assert evidence["undertrained"].verdict == "follows"


def test_weights_that_are_not_finite_are_named(triaged, trained, lagged):
    broken = {**trained, "transformer.ln_f.weight": trained["transformer.ln_f.weight"] * float("nan")}
    assert triaged(broken, lagged[0])[0] == ["weights not finite"]


def test_parameters_that_no_key_sets_are_named(triaged, trained, lagged):
    renamed = {name.replace(".mlp.", ".ffn."): tensor for name, tensor in trained.items()}
    causes, evidence = triaged(renamed, lagged[0])
    assert causes == ["weights not loaded"]
    assert "4 parameters are in no tensor" in evidence["weights not loaded"].says
    assert "4 tensors of the checkpoint match no parameter" in evidence["weights not loaded"].says


def test_names_of_a_wrapped_model_are_a_cause_if_there_is_no_other(triaged, trained, lagged, pairs):
    causes, evidence = triaged({f"_orig_mod.{name}": tensor for name, tensor in trained.items()}, lagged[0])
    assert causes == ["names of the weights"]
    assert evidence["weights not loaded"].verdict == "right"
    shifted = {f"_orig_mod.{name}": tensor for name, tensor in table_gpt(ahead(2)).state_dict().items()}
    assert triaged(shifted, pairs)[0] == ["shifted targets"]


def test_a_square_weight_that_is_transposed_is_named(triaged, trained, lagged):
    turned = {name: tensor.T if name.endswith("attn.c_proj.weight") else tensor for name, tensor in trained.items()}
    causes, _ = triaged({name: tensor.contiguous() for name, tensor in turned.items()}, lagged[0])
    assert causes == ["transposed weights"]


def test_weights_in_the_published_orientation_are_loaded_right(triaged, trained, lagged):
    turned = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")
    published = {name: t.T.contiguous() if name.endswith(turned) else t for name, t in trained.items()}
    causes, evidence = triaged(published, lagged[0])
    assert causes == []
    assert "published orientation" in evidence["weights not loaded"].says


def test_ids_beyond_the_embedding_are_named(triaged, trained, lagged):
    causes, evidence = triaged(trained, lagged[0], vocabulary="bytes")
    assert causes == ["ids of the text"]
    assert evidence["ids of the text"].value == ord(LETTERS[-1])
    assert evidence["undertrained"].verdict == "undecided"


def test_another_numbering_of_the_tokens_is_named(triaged, pairs):
    order = torch.randperm(len(LETTERS), generator=torch.Generator().manual_seed(1))
    causes, evidence = triaged(table_gpt(ahead(1)[order][:, order]).state_dict(), pairs)
    assert causes == ["vocabulary or text"]
    assert "under other ids" in evidence["vocabulary or text"].says
    assert evidence["undertrained"].verdict == "follows"


def test_training_that_ended_too_early_is_named(triaged, pairs):
    blurred = 0.3 * ahead(1) + 0.7 * SOURCE.stationary
    causes, evidence = triaged(table_gpt(blurred).state_dict(), pairs)
    assert causes == ["undertrained"]
    assert "less than a table of pairs" in evidence["undertrained"].says
    nothing = 0.2 * SOURCE.stationary + 0.8 * torch.full_like(ahead(1), 1 / len(LETTERS))
    causes, evidence = triaged(table_gpt(nothing).state_dict(), pairs)
    assert causes == ["undertrained"]
    assert "no more than the frequencies" in evidence["undertrained"].says
    assert evidence["vocabulary or text"].verdict == "right"


def test_more_than_pairs_and_less_than_triples_is_undertrained_if_the_text_is_alike(triaged, lagged):
    some = train(GPT(CONFIG, seed=0), lagged[1], steps=110).state_dict()
    causes, evidence = triaged(some, lagged[0])
    assert causes == ["undertrained"]
    assert evidence["undertrained"].verdict == "possible"


def test_frequencies_alone_are_undertrained_where_only_triples_know_more(triaged, lagged):
    causes, evidence = triaged(train(GPT(CONFIG, seed=0), lagged[1], steps=20).state_dict(), lagged[0])
    assert causes == ["undertrained"]
    assert evidence["undertrained"].verdict == "wrong"
    assert "no more than the frequencies" in evidence["undertrained"].says


def test_a_text_of_which_nothing_but_frequencies_can_be_known_needs_no_more(triaged, tmp_path):
    drawn = torch.multinomial(SOURCE.stationary, 30_000, True, generator=torch.Generator().manual_seed(0)).tolist()
    (tmp_path / "independent.txt").write_text("".join(LETTERS[number] for number in drawn))
    weights = table_gpt(SOURCE.stationary.expand(len(LETTERS), -1)).state_dict()
    causes, evidence = triaged(weights, tmp_path / "independent.txt")
    assert causes == []
    assert evidence["undertrained"].verdict == "right"


def test_a_training_without_the_mask_is_named(triaged, lagged):
    causes, evidence = triaged(train(GPT(CONFIG, seed=0), lagged[1], steps=300, masked=False).state_dict(), lagged[0])
    assert causes == ["looked ahead in training"]
    assert evidence["sees the future"].verdict == "right"


def test_a_gpt_without_the_mask_is_named(triaged, trained, lagged, tmp_path):
    body = """    def __init__(self, config, **options):
        super().__init__(config, **options)
        for block in self.blocks:
            block.attn.flash = False
            block.attn.mask = torch.ones_like(block.attn.mask)
"""
    causes, evidence = triaged(trained, lagged[0], subject=subject_file(tmp_path, body))
    assert causes == ["sees the future"]
    assert evidence["looked ahead in training"].verdict == "undecided"


def test_other_masks_are_tried_on_other_activations_and_without_biases(triaged, trained, pairs, lagged, tmp_path):
    body = """    def __init__(self, config, **options):
        super().__init__(config, **options)
        for block in self.blocks:
            block.mlp.gelu = torch.nn.ReLU()
"""
    _, evidence = triaged(trained, lagged[0], subject=subject_file(tmp_path, body))
    assert evidence["looked ahead in training"].verdict == "right"
    causes, evidence = triaged(table_gpt(ahead(1), bias=False).state_dict(), pairs)
    assert causes == []
    assert evidence["looked ahead in training"].verdict == "right"


def test_positions_beyond_the_training_are_named_with_where_they_begin(triaged, lagged):
    causes, evidence = triaged(train(GPT(CONFIG, seed=0), lagged[1], steps=300, length=8).state_dict(), lagged[0])
    assert causes == ["positions beyond the training"]
    assert "from position 8 on" in evidence["positions beyond the training"].says
    assert evidence["undertrained"].verdict == "right"  # of the positions before


SAMPLERS = {
    "a temperature of 0.7": ("logits[:, -1] / 0.7", "more probable"),
    "a temperature of 1.5": ("logits[:, -1] / 1.5", "less probable"),
    "the logits of the position before": ("logits[:, -2]", "another position"),
}


@pytest.mark.parametrize(("logits", "says"), SAMPLERS.values(), ids=SAMPLERS)
def test_a_wrong_sampler_is_named(triaged, trained, lagged, tmp_path, logits, says):
    body = f"""    @torch.no_grad()
    def generate(self, ids, max_new_tokens, temperature=1.0):
        for _ in range(max_new_tokens):
            logits, _ = self(ids)
            if temperature == 0:
                token = logits[:, -1].argmax(-1, keepdim=True)
            else:
                token = torch.multinomial(({logits} / temperature).softmax(-1), 1)
            ids = torch.cat((ids, token), dim=1)
        return ids
"""
    causes, evidence = triaged(trained, lagged[0], subject=subject_file(tmp_path, body))
    assert causes == ["sampler"]
    assert says in evidence["sampler"].says
    assert evidence["greedy"].verdict == "right"


def test_a_greedy_choice_that_is_not_the_largest_is_named(triaged, trained, lagged, tmp_path):
    body = """    def generate(self, ids, max_new_tokens, temperature=1.0, **options):
        if temperature:
            return super().generate(ids, max_new_tokens, temperature=temperature, **options)
        for _ in range(max_new_tokens):
            ids = torch.cat((ids, self(ids)[0][:, -1].topk(2).indices[:, 1:]), dim=1)
        return ids
"""
    causes, _ = triaged(trained, lagged[0], subject=subject_file(tmp_path, body))
    assert causes == ["greedy"]


CACHE = """    def forward(self, idx, targets=None, *, cache=None, last_only=False):
        if cache is not None and cache.length:
            wpe = self.transformer["wpe"].weight.data
            kept = wpe.clone()
            wpe[cache.length] = kept[0]  # the position starts at 0 again
            answer = super().forward(idx, targets, cache=cache, last_only=last_only)
            wpe.copy_(kept)
            return answer
        return super().forward(idx, targets, cache=cache, last_only=last_only)
"""


def test_a_wrong_cache_is_named_and_what_is_sampled_with_it_follows(triaged, trained, lagged, tmp_path):
    causes, evidence = triaged(trained, lagged[0], subject=subject_file(tmp_path, CACHE))
    assert causes == ["cache"]
    assert "from position 4 on" in evidence["cache"].says
    assert evidence["sampler"].verdict == "follows"
    assert "without the cache" in evidence["sampler"].says


def test_two_causes_that_do_not_explain_each_other_are_both_named(triaged, pairs, tmp_path):
    subject = subject_file(tmp_path, CACHE.replace("kept[0]", "kept[0] + 1"))
    weights = table_gpt(ahead(2)).state_dict()
    weights["transformer.wpe.weight"] += 0.01 * torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    assert triaged(weights, pairs, subject=subject)[0] == ["shifted targets", "cache"]


def test_what_needs_a_text_is_not_decided_without_one(trained, tmp_path):
    save_file(trained | {"lm_head.weight": trained["lm_head.weight"].clone()}, tmp_path / "a.safetensors")
    (tmp_path / "short.txt").write_text(LETTERS)
    with pytest.raises(HarnessError, match="--heads N"):
        triage(read_checkpoint(str(tmp_path / "a.safetensors")), adapt("gpt:GPT"))
    stored = read_checkpoint(str(tmp_path / "a.safetensors"))
    found = triage(stored, adapt("gpt:GPT"), text=str(tmp_path / "short.txt"), heads=2)
    left = {each.cause for each in found.evidence if each.verdict == "undecided"}
    assert {"undertrained", "shifted targets", "vocabulary or text"} <= left
    assert not left & {"cache", "sampler", "greedy", "sees the future"}


def test_a_checkpoint_of_another_gpt_asks_for_its_subject(trained, tmp_path):
    torch.save({"model_args": SIZES, "model": {f"a.{n}.x": t for n, t in trained.items()}}, tmp_path / "a.pt")
    with pytest.raises(HarnessError, match="name the GPT that was trained with --subject"):
        triage(read_checkpoint(str(tmp_path / "a.pt")), adapt("gpt:GPT"), named=False)
