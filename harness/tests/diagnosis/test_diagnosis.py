"""The diagnosis: the first fault, its cause, the line to look at, and a script that shows it."""

import subprocess
import sys

import pytest
import torch

from harness.core.sizes import SIZES
from harness.diagnosis import diagnose
from harness.oracle import noise_verdict
from harness.oracle.formula import Formula
from harness.oracle.hugging_face import oracle
from harness.oracle.probe_weights import state
from harness.oracle.tokens import batch
from harness.subjects.adapters import adapt

DEBUG = SIZES["debug"]

# A GPT in an unusual style: no modules for its components, weights with meaningless names, one function for all.
FUNCTIONAL = """
import math
import torch
import torch.nn as nn
import torch.nn.functional as F


def norm(x, g, b):
    return F.layer_norm(x, x.shape[-1:], g, b, 1e-5)


class Tiny(nn.Module):
    def __init__(self, n_vocab, n_ctx, n_embd, n_head, n_layer):
        super().__init__()
        self.n_head = n_head
        make = lambda *shape, std=0.02: nn.Parameter(torch.randn(*shape) * std)
        self.wte, self.wpe = make(n_vocab, n_embd), make(n_ctx, n_embd)
        self.layers = nn.ModuleList()
        for _ in range(n_layer):
            block = nn.ParameterDict(dict(
                ln1_g=torch.ones(n_embd), ln1_b=torch.zeros(n_embd),
                qkv_w=make(n_embd, 3 * n_embd), qkv_b=torch.zeros(3 * n_embd),
                proj_w=make(n_embd, n_embd, std=0.02 / math.sqrt(2 * n_layer)), proj_b=torch.zeros(n_embd),
                ln2_g=torch.ones(n_embd), ln2_b=torch.zeros(n_embd),
                up_w=make(n_embd, 4 * n_embd), up_b=torch.zeros(4 * n_embd),
                down_w=make(4 * n_embd, n_embd, std=0.02 / math.sqrt(2 * n_layer)), down_b=torch.zeros(n_embd)))
            self.layers.append(block)
        self.lnf_g, self.lnf_b = nn.Parameter(torch.ones(n_embd)), nn.Parameter(torch.zeros(n_embd))

    def attend(self, x, p):
        B, T, C = x.shape
        parts = (x @ p["qkv_w"] + p["qkv_b"]).chunk(3, -1)
        q, k, v = [part.view(B, T, self.n_head, -1).transpose(1, 2) for part in parts]
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        scores = scores + torch.full((T, T), float("-inf")).triu(1)
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, C)
        return y @ p["proj_w"] + p["proj_b"]

    def forward(self, ids):
        x = self.wte[ids] + self.wpe[: ids.shape[1]]
        for p in self.layers:
            x = x + self.attend(norm(x, p["ln1_g"], p["ln1_b"]), p)
            h = norm(x, p["ln2_g"], p["ln2_b"]) @ p["up_w"] + p["up_b"]
            x = x + F.gelu(h, approximate="tanh") @ p["down_w"] + p["down_b"]
        return norm(x, self.lnf_g, self.lnf_b) @ self.wte.T
"""


@pytest.fixture
def functional(tmp_path, monkeypatch):
    """Return a function that writes the functional GPT with some of its text replaced, and diagnoses it."""
    monkeypatch.chdir(tmp_path)

    def diagnosed(*changes):
        text = FUNCTIONAL
        for found, put in changes:
            assert text.count(found) == 1, found
            text = text.replace(found, put)
        (tmp_path / "tiny.py").write_text(text)
        return diagnose(adapt("tiny.py:Tiny"))

    return diagnosed


def test_the_formula_is_gpt2():
    """Every other test relies on it. The taps are compared with the outputs of Hugging Face's blocks and head."""
    weights = {name: tensor.double() for name, tensor in state("debug", "probe").items()}
    ids, _ = batch(DEBUG, "random", rows=2, length=DEBUG.context)
    formula = Formula(DEBUG, weights)
    logits = formula(ids)
    model = oracle(DEBUG, state("debug", "probe"), "float64")
    with torch.no_grad(), model.block_outputs() as blocks:
        expected = model.logits(ids)
    assert noise_verdict.distance(logits, expected) < 1e-12
    assert all(
        noise_verdict.distance(formula.taps[f"h.{n}"], blocks[f"block {n}"]) < 1e-12 for n in range(DEBUG.layers)
    )


def test_a_correct_gpt_of_any_style_has_no_findings(functional):
    assert functional().findings == ()
    assert diagnose(adapt("gpt:GPT")).findings == ()


# (changes of text, the place, the fault's id, a word of the line to look at)
FAULTS = [
    ([('F.gelu(h, approximate="tanh")', "F.gelu(h)")], "h.*.mlp.activation", "gelu-erf-for-tanh", "F.gelu"),
    ([("/ math.sqrt(q.shape[-1])", "/ math.sqrt(C)")], "h.*.attn.scale", "scale-by-d-model", "scores"),
    ([(".triu(1)", ".triu(2)")], "h.*.attn.mask", "mask-allows-next", "scores"),
    ([("1e-5", "1e-6")], "h.*.ln_1", "ln-eps-wrong", "F.layer_norm"),
    ([("self.wpe[: ids.shape[1]]", "self.wpe[: ids.shape[1]].flip(0)")], "embedding.position", "pos-reversed", "wpe"),
    ([("return norm(x, self.lnf_g, self.lnf_b) @", "return x @")], "ln_f", "final-ln-missing", "self.wte.T"),
    ([("x = x + self.attend", "x = x.detach() + self.attend")], "h.*.residual.attn", "residual-detached", "detach"),
    (
        [("(scores.softmax(-1)", "(scores.half().softmax(-1).to(v.dtype)")],
        "h.*.attn.softmax", "softmax-low-precision", ".half",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "where", "fault", "line"), FAULTS, ids=[row[2] for row in FAULTS])
def test_a_fault_in_an_unusual_style_is_placed_and_named_with_its_line(functional, changes, where, fault, line):
    first = functional(*changes).findings[0]
    assert (first.where, fault in (first.fault, *first.alike)) == (where, True), first
    assert line in first.text
    assert not line or first.source.startswith("tiny.py:")


def test_several_faults_are_reported_in_execution_order(functional):
    found = functional(
        ("self.wpe[: ids.shape[1]]", "self.wpe[: ids.shape[1]].flip(0)"),
        ("/ math.sqrt(q.shape[-1])", "* 1.0"),
        ('F.gelu(h, approximate="tanh")', "F.relu(h)"),
        ("return norm(x, self.lnf_g, self.lnf_b) @", "return x @"),
    )
    assert [finding.fault for finding in found.findings] == [
        "pos-reversed",
        "scale-missing",
        "mlp-relu",
        "final-ln-missing",
    ]


def test_a_fault_that_no_variant_matches_is_placed(functional):
    """The activation is the sine of a GELU whose input is scaled by its own standard deviation."""
    found = functional(('F.gelu(h, approximate="tanh")', 'F.gelu(h * h.std(), approximate="tanh").sin()'))
    first = found.findings[0]
    assert (first.where, first.fault) == ("h.0.mlp.activation", "")
    assert "everything before it agrees" in first.evidence
    assert "F.gelu" in first.text


def test_a_constant_that_no_variant_has_is_fitted(functional):
    first = functional(("1e-5", "3.7e-4")).findings[0]
    assert (first.fault, first.cause.split(";")[0]) == ("ln-eps-too-large", "ln_1's epsilon is 0.00037, not 1e-5")
    first = functional(("/ math.sqrt(q.shape[-1])", "* 0.2345")).findings[0]
    assert "0.2345" in first.cause


def test_the_reproduction_runs_without_the_harness(functional, tmp_path):
    import base64

    found = functional(('F.gelu(h, approximate="tanh")', "F.gelu(h)"))
    script = tmp_path / "elsewhere" / "reproduce.py"
    script.parent.mkdir()
    script.write_text(found.reproduction)
    script.with_suffix(".safetensors").write_bytes(base64.b64decode(found.data))
    assert "harness" not in found.reproduction.replace("without the harness", "")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=True)
    assert "the logits differ by 0.00" in done.stdout


def test_a_subject_that_cannot_be_built_is_a_finding_with_its_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text(
        FUNCTIONAL.replace("super().__init__()", "super().__init__(); raise KeyError('x')")
    )
    first = diagnose(adapt("broken.py:Tiny")).findings[0]
    assert first.cause == "building or calling it fails: KeyError: 'x'"
    assert first.source == "broken.py:14"
