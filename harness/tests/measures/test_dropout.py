"""Training mode with dropout on: right programs of every arrangement pass, and the words for the others are true."""

import pytest

from harness.core.errors import MissingAbility
from harness.diagnosis.searches import computation, dropout
from harness.faults.catalogue import SPECIMEN
from harness.judging.run_check import run
from harness.measures.dropout.masks import AS_GPT2, dropout_by_mode, dropout_dependence, dropout_masks, dropout_sites
from harness.measures.dropout.parity import dropout_parity
from harness.subjects.adapters import adapt
from harness.tests.subjects.altered_styles import STYLES

EMBEDDING = "x = self.drop(x)"
WEIGHTS = "weights = self.attn_dropout(weights)"
MLP = "return self.dropout(projected)"
P = "self.dropout.p"


@pytest.fixture
def subject(tmp_path):
    """Return a function from changes of the specimen's text to the subject."""

    def changed(*changes):
        text = SPECIMEN.read_text()
        for find, put in changes:
            assert text.count(find) == 1, find
            text = text.replace(find, put)
        (tmp_path / "mine.py").write_text(text)
        return adapt(f"{tmp_path / 'mine.py'}:GPT")

    return changed


def verdicts(shipped, subject):
    """Return the verdict of every check of the suite that does not pass, with its message."""
    records = {name: run(check, subject) for name, check in shipped.items() if check.suite == "dropout"}
    return {name: f"{r.verdict}: {r.message}" for name, r in records.items() if r.verdict != "pass"}


TRAINING = "if self.training else projected"
BY_HAND = {
    "rand": f"return projected * (torch.rand(projected.shape) >= {P}) / (1 - {P}) {TRAINING}",
    "bernoulli": f"return projected * torch.empty_like(projected).bernoulli_(1 - {P}) / (1 - {P}) {TRAINING}",
    "where": f"return torch.where(torch.rand_like(projected) < {P}, 0.0, projected / (1 - {P})) {TRAINING}",
    "native": f"return torch.native_dropout(projected, {P}, self.training)[0]",
}


@pytest.mark.parametrize("way", BY_HAND.values(), ids=BY_HAND)
def test_a_dropout_by_hand_is_right(subject, shipped, way):
    assert verdicts(shipped, subject((MLP, way))) == {}


RIGHT = {
    "one head a call": (
        WEIGHTS,
        "weights = torch.stack([self.attn_dropout(weights[:, h]) for h in range(self.n_head)], 1)",
    ),
    "flattened heads": (WEIGHTS, "weights = self.attn_dropout(weights.flatten(0, 1)).view(weights.shape)"),
    "powers before they are divided by their sum": (
        WEIGHTS,
        "powers = (scores - scores.amax(-1, keepdim=True)).exp()\n"
        "        weights = self.attn_dropout(powers) / powers.sum(-1, keepdim=True)",
    ),
    "one row a call": (MLP, "return torch.stack([self.dropout(row) for row in projected])"),
    "time first": (MLP, "return self.dropout(projected.transpose(0, 1).contiguous()).transpose(0, 1)"),
    "eight digits of the GELU": (
        'hidden = F.gelu(hidden, approximate="tanh")',
        "hidden = 0.5 * hidden * (1 + torch.tanh(0.79788456 * (hidden + 0.044715 * hidden**3)))",
    ),
    "recomputed in the backward pass": (
        "transformed = self.mlp(normed)",
        "transformed = torch.utils.checkpoint.checkpoint(self.mlp, normed, use_reentrant=False)",
    ),
    "seeded elsewhere": (MLP, "with torch.random.fork_rng():\n            return self.dropout(projected)"),
}


@pytest.mark.parametrize("change", RIGHT.values(), ids=RIGHT)
def test_a_right_program_of_another_style_passes(subject, shipped, change):
    extra = (
        [("from torch import nn", "import torch.utils.checkpoint\nfrom torch import nn")]
        if "checkpoint" in change[1]
        else []
    )
    assert verdicts(shipped, subject(change, *extra)) == {}


OTHER_PLACES = {
    "mlp.activation": ("projected = self.c_proj(hidden)", "projected = self.c_proj(self.dropout(hidden))"),
    "attn.split.v": ("S = k.size(2)", "v = self.attn_dropout(v)\n        S = k.size(2)"),
    "embedding.token": (
        "x = tokens_embedded + positions_embedded",
        "x = self.drop(tokens_embedded) + positions_embedded",
    ),
    "embedding.position": (
        "x = tokens_embedded + positions_embedded",
        "x = tokens_embedded + self.drop(positions_embedded)",
    ),
    "ln_2": ("normed = self.ln_2(x)", "normed = self.mlp.dropout(self.ln_2(x))"),
}


@pytest.mark.parametrize(("place", "change"), OTHER_PLACES.items(), ids=OTHER_PLACES)
def test_another_arrangement_is_a_deviation_and_no_wrong_computation(subject, shipped, place, change):
    found = verdicts(shipped, subject(change))
    assert list(found) == ["dropout::at-every-site"]
    assert f"{place}: a dropout that GPT-2 does not have" in found["dropout::at-every-site"]


def test_a_missing_site_is_named(subject):
    reading = dropout_sites(subject((EMBEDDING, "pass")), size="debug")
    assert {place for place, how in reading.value.items() if how != AS_GPT2} == {"embedding"}
    assert "deviation: no dropout at embedding" in reading.details["hint"]


def test_a_gpt_with_another_activation_is_not_told_that_dropouts_are_missing(subject):
    """Behind the wrong activation nothing is what GPT-2 computes; how many dropouts there are shows all the same."""
    reading = dropout_sites(subject(('F.gelu(hidden, approximate="tanh")', "F.relu(hidden)")), size="debug")
    assert set(reading.value.values()) == {AS_GPT2}


def test_random_numbers_that_are_no_mask_are_a_skip_that_names_them(subject):
    noisy = subject((EMBEDDING, "x = x + 0.1 * torch.randn_like(x) if self.training else x"))
    with pytest.raises(MissingAbility, match=r"randn_like \(3, 24, 48\) at .*mine.py:\d+"):
        dropout_parity(noisy, size="debug", compare="logits")


def test_a_layer_that_is_left_out_by_chance_is_a_skip_that_names_the_generator(subject):
    sometimes = subject(
        ("import math\n", "import math\nimport random\n"),
        ("return x + transformed", "return x if self.training and random.random() < 0.5 else x + transformed"),
    )
    with pytest.raises(MissingAbility, match="Python's random"):
        dropout_parity(sometimes, size="debug", compare="logits")


def test_a_generator_that_no_seed_resets_is_a_skip(subject):
    own = subject(
        ("class Attention(", "DRAWS = torch.Generator().manual_seed(5)\n\n\nclass Attention("),
        (MLP, f"keep = torch.rand(projected.shape, generator=DRAWS) >= {P}\n"
              f"        return projected * keep / (1 - {P}) if self.training else projected"),
    )  # fmt: skip
    with pytest.raises(MissingAbility, match="after the same seeds"):
        dropout_parity(own, size="debug", compare="logits")


def test_nothing_but_the_gradient_may_be_wrong(subject):
    through = subject((MLP, "return projected + (self.dropout(projected) - projected).detach()"))
    values = [dropout_parity(through, size="debug", compare=each).value for each in ("logits", "loss", "gradients")]
    assert ["different" in value.values() for value in values] == [False, False, True]


def test_the_rate_is_that_of_what_is_dropped(subject):
    half = subject(
        ("self.attn_dropout = nn.Dropout(config.dropout)", "self.attn_dropout = nn.Dropout(config.dropout / 2)")
    )
    rates = dropout_masks(half, size="debug", of="rate", rate=0.1).value
    assert rates == pytest.approx({"embedding": 0.1, "attn.softmax": 0.05, "attn.c_proj": 0.1, "mlp.c_proj": 0.1})


def test_whole_keys_that_are_dropped_share_a_mask(subject):
    keys = subject((WEIGHTS, "weights = weights * self.attn_dropout(torch.ones_like(weights[:, :, :1]))"))
    found = dropout_dependence(keys, size="debug").value
    assert {kind for kind, shared in found.items() if shared} == {"queries"}


def test_a_mode_that_turns_dropout_off_for_ever_is_seen_although_a_model_is_built_in_eval_mode(subject):
    off = subject((
        "    def new_cache(self, batch_size):",
        "    def train(self, mode=True):\n"
        "        for part in self.modules():\n"
        "            if isinstance(part, nn.Dropout) and not mode:\n"
        "                part.p = 0.0\n"
        "        return super().train(mode)\n\n"
        "    def new_cache(self, batch_size):",
    ))  # fmt: skip
    assert dropout_by_mode(off, size="debug").value["missing after an evaluation"] > 0


def test_a_sampler_that_draws_by_a_random_number_a_row_drops_nothing(subject):
    """The product of two numbers, one a row, was taken for the smaller of them, and a multiple of the other."""
    by_inversion = subject(
        (
            "    return torch.multinomial(probabilities, num_samples=1, generator=generator)",
            "    cumulated = probabilities.cumsum(-1)\n"
            "    drawn = torch.rand(len(probabilities), 1) * cumulated[:, -1:]\n"
            "    return (cumulated > drawn).long().argmax(-1, keepdim=True)",
        ),
        ("            if temperature == 0:", "            if temperature < 0:"),
    )
    assert dropout_by_mode(by_inversion, size="debug").value["in generate"] == 0


def test_what_is_wrong_with_dropout_alone_is_named_with_its_line(subject):
    unmasked = (
        "if not (self.training and self.attn_dropout.p):\n            scores = scores.masked_fill(~visible, -math.inf)"
    )
    (finding,) = computation.search(subject(("scores = scores.masked_fill(~visible, -math.inf)", unmasked)))
    assert (finding.where, finding.fault) == ("h.*.attn.mask", "mask-only-without-dropout")
    assert finding.cause == "in training mode with dropout on: there is no causal mask"
    assert "mine.py" in finding.source


def test_of_a_right_program_nothing_is_said(subject):
    assert dropout.search(subject()) == []


@pytest.mark.parametrize(
    "style", ["dataclass_config:GPT", "attribute_bag:GPT", "dict_config:GPTModel", "frameworks:Ours"]
)
def test_a_style_with_dropout_passes(style, shipped):
    assert verdicts(shipped, adapt(f"{STYLES}.{style}")) == {}


def test_dropout_of_hugging_face_is_that_of_the_formula(shipped):
    assert verdicts(shipped, adapt("transformers:GPT2LMHeadModel")) == {}
