"""Nothing false is said: each statement of a diagnosis, tried on a program of which it is not true."""

import base64
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from harness.diagnosis import diagnose
from harness.diagnosis.failed_checks import findings_from
from harness.diagnosis.observation import Observation, varies
from harness.diagnosis.recorders import Step
from harness.diagnosis.searches import computation, dropout, initialisation, structure, tying
from harness.oracle.declared import compared_with
from harness.subjects.adapters import adapt
from harness.suites.check import Check
from harness.suites.record import Record
from harness.tests.diagnosis.combined_deviations import DEVIATIONS, GPT

BLOCK_INIT = "        self.attention, self.feed_forward = Attention(s), FeedForward(s)\n"
OWN_LINEAR = """
class Linear(nn.Linear):
    def forward(self, x):
        return x @ self.weight.T


class Attention("""
FUSED_ATTENTION = """
class Attention(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.all = nn.MultiheadAttention(s.n_embd, s.n_head, batch_first=True)

    def forward(self, x):
        hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return self.all(x, x, x, attn_mask=hidden, need_weights=False)[0]


class Unused("""
FRAMEWORK_START = DEVIATIONS["framework start"].changes
DRAW = 'p.data.normal_(0, 0.02 / math.sqrt(2 * s.n_layer) if "output" in name or "narrow" in name else 0.02)'


@pytest.fixture
def subject(tmp_path, monkeypatch):
    """Return a function that writes the GPT with some of its text replaced, and adapts it."""
    monkeypatch.chdir(tmp_path)

    def adapted(*changes):
        text = GPT
        for find, put in changes:
            assert text.count(find) == 1, find
            text = text.replace(find, put)
        (tmp_path / "changed.py").write_text(text)
        return adapt("changed.py:GPT")

    return adapted


def said_by(search, subject):
    """Return the sentences of a search, and the ids, as one text."""
    return "\n".join(f"{each.fault}: {each.cause}; {each.evidence}" for each in search(subject))


def test_of_the_right_gpt_nothing_is_said(subject):
    found = diagnose(subject())
    assert (found.findings, found.trouble) == ((), "")


# A statement; the search that makes it; changes after which it is false; what is said instead ("" for nothing).
FALSE_OF = [
    pytest.param("padded", structure.search, [
        ("nn.Linear(s.n_embd, 4 * s.n_embd)", "nn.Linear(s.n_embd, 216)"),
        ("nn.Linear(4 * s.n_embd, s.n_embd)", "nn.Linear(216, s.n_embd)"),
    ], "216 hidden channels", id="a wide MLP is no padded vocabulary"),
    pytest.param("no block is run", computation.search, [
        ("nn.Linear(s.n_embd, 4 * s.n_embd)", "nn.Linear(s.n_embd, 2 * s.n_embd, bias=False)"),
        ("nn.Linear(4 * s.n_embd, s.n_embd)", "nn.Linear(2 * s.n_embd, s.n_embd)"),
        *DEVIATIONS["relu"].changes,
    ], "mlp-relu", id="a bias that is missing is as wide as its layer"),
    pytest.param("±10", computation.search, [
        ("scores = scores / math.sqrt(width // self.heads)",
         "scores = (scores / math.sqrt(width // self.heads)).clamp(-20.0, 20.0)"),
    ], "±20", id="a bound is not the first one that fits on some weights"),
    pytest.param("all matrices", initialisation.search, [
        ("\nclass Attention(", FUSED_ATTENTION), *FRAMEWORK_START,
    ], "every matrix starts as PyTorch's layers start", id="PyTorch's own attention starts by a rule of its own"),
    pytest.param("all matrices", initialisation.search, [
        (DRAW, "p.data.normal_(0, 0.01 if p.shape[0] > 200 else 0.05)"),
    ], "0.01", id="matrices with several standard deviations"),
    pytest.param("uniform numbers, not", initialisation.search, [
        (DRAW, "p.data.zero_() if 'output' in name or 'narrow' in name else p.data.normal_(0, 0.02)"),
    ], "start at zero", id="zeros are no uniform numbers"),
    pytest.param("uniform numbers, not", initialisation.search, [
        (DRAW, "nn.init.trunc_normal_(p.data, 0, 0.037, -0.037, 0.037).div_("
               "math.sqrt(2 * s.n_layer) if 'output' in name or 'narrow' in name else 1)"),
    ], "no normal numbers", id="truncated numbers are no uniform ones"),
    pytest.param("as nn.Embedding", initialisation.search, [
        (DRAW, f"p.data.uniform_(-1.7320508, 1.7320508) if 'places' in name else {DRAW}"),
    ], "with a standard deviation of 1", id="uniform numbers of variance 1 are not nn.Embedding's"),
    pytest.param("asked for", dropout.search, [
        ("return self.output(mixed)", "return F.dropout(self.output(mixed), 0.3, self.training)"),
    ], "", id="no rate was asked for where none can be set"),
    pytest.param("the model has no biases", structure.search, list(DEVIATIONS["no linear biases"].changes),
                 "no bias in attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj", id="the norms have biases"),
    pytest.param("mask", structure.search, [
        ("        self.output = nn.Linear(s.n_embd, s.n_embd)",
         "        self.output = nn.Linear(s.n_embd, s.n_embd)\n"
         "        self.near = nn.Parameter(torch.randn(s.block_size, s.block_size) * 0.02)"),
        ("        scores = q @ k.mT\n", "        scores = q @ k.mT + self.near[:time, :time]\n"),
    ], "parameter-added", id="a table of relative positions is no mask"),
    pytest.param("is not used", structure.search, [
        (BLOCK_INIT, BLOCK_INIT + "        self.gain = nn.Parameter(torch.ones(1))\n"),
        ("x = x + self.attention(self.norm_1(x))", "x = x + self.gain * self.attention(self.norm_1(x))"),
    ], "parameter-added", id="a parameter that is used"),
    pytest.param("shared", structure.search, [
        ("        for name, p in self.named_parameters():",
         "        self.again = nn.Sequential(*self.blocks)\n        for name, p in self.named_parameters():"),
    ], "", id="blocks under a second name"),
    pytest.param("ReLU6", computation.search, list(DEVIATIONS["relu"].changes), "ReLU, where", id="ReLU6 ends at 6"),
    pytest.param("ReLU,", computation.search, [
        ('F.gelu(self.wide(x), approximate="tanh")', "F.relu6(self.wide(x))"),
    ], "ReLU6, where", id="ReLU does not end at 6"),
    pytest.param("own matrix", tying.search, [], "", id="a tied head"),
]  # fmt: skip


@pytest.mark.parametrize(("statement", "search", "changes", "instead"), FALSE_OF)
def test_a_statement_is_not_made_of_a_program_of_which_it_is_false(subject, statement, search, changes, instead):
    text = said_by(search, subject(*changes))
    assert statement not in text
    assert instead in text
    assert instead or not text


def test_layers_that_are_one_module_are_shared(subject):
    changed = subject(("nn.ModuleList(Block(s) for _ in range(s.n_layer))", "nn.ModuleList([Block(s)] * s.n_layer)"))
    assert "blocks-share-one-module" in said_by(structure.search, changed)


def test_a_softmax_of_the_logits_says_nothing_of_the_loss(subject):
    """The loss is computed from the logits before the softmax: it is right."""
    found = diagnose(subject(*DEVIATIONS["probabilities"].changes)).findings
    assert [(each.where, each.fault) for each in found] == [("head", "logits-softmax")]


def test_the_line_of_a_missing_last_norm_is_where_the_head_is_called(subject):
    changed = subject(
        ("\nclass Attention(", OWN_LINEAR),
        ("self.head = nn.Linear(s.n_embd", "self.head = Linear(s.n_embd"),
        ("self.head(self.last_norm(x))", "self.head(x)"),
    )
    (found,) = computation.search(changed)
    assert (found.fault, found.text) == ("final-ln-missing", "logits = self.head(x)")


def test_a_head_bias_is_one_finding(subject):
    changes = [
        ("nn.Linear(s.n_embd, s.vocab_size, bias=False)", "nn.Linear(s.n_embd, s.vocab_size)"),
        ("        self.head.weight = self.tokens.weight\n", ""),
        ('elif name.endswith("bias"):', 'elif name.endswith("bias") and "head" not in name:'),
    ]
    found = [each.fault for each in diagnose(subject(*changes)).findings]
    assert found.count("head-has-bias") == 1
    assert set(found) == {"head-has-bias", "head-untied", "init-bias-nonzero"}


def test_where_nothing_fits_the_place_is_one_finding_and_what_comes_after_is_still_named(subject):
    changes = [
        ('self.narrow(F.gelu(self.wide(x), approximate="tanh"))', "self.narrow((self.wide(x) * 1.3).sin().tanh())"),
        ("self.head(self.last_norm(x))", "self.head(x)"),
    ]
    found = diagnose(subject(*changes)).findings
    assert [(each.where, each.fault) for each in found] == [("h.0.mlp.activation", ""), ("ln_f", "final-ln-missing")]
    assert "everything before it agrees with GPT-2" in found[0].evidence
    assert "the same in layers 1, 2" in found[0].evidence


def test_a_difference_behind_another_wiring_that_nothing_explains_is_no_crash(subject):
    """It was once `ValueError: 'h.0.residual.attn' is not in list`."""
    changes = [
        ("x = x + self.attention(self.norm_1(x))", "x = (x + self.attention(x).sin()).tanh()"),
        ("x = x + self.feed_forward(self.norm_2(x))", "x = self.norm_2(self.feed_forward(x)) * x"),
    ]
    found = diagnose(subject(*changes))
    assert found.trouble == ""
    assert found.findings[0].cause == "no known variant matches"


def test_zeros_are_no_evidence():
    zeros = torch.zeros(2, 3)
    observed = Observation([Step("mul", zeros.double(), torch.float64, None)], torch.zeros(1, 2, 3).double())
    assert observed.find(zeros.double()) is None
    assert not varies(torch.full((3,), 0.1))
    assert not varies(torch.empty(0))
    assert varies(torch.tensor([0.0, 1.0]))


def test_a_check_that_raised_says_nothing_of_its_measure():
    """A check of the memory that broke was once reported as "memory grows from call to call"."""
    check = Check("behaviour", "growth", "growth", {"size": "debug", "of": "tensors"}, (), {"at_most": 0}, "", "")
    raised = Record(check, "it", "error", "RuntimeError: something else", 0.0)
    grown = Record(check, "it", "fail", "4096 bytes a pass, expected at most 0", 0.0, value=4096.0)
    assert findings_from([raised]) == []
    assert [each.fault for each in findings_from([grown])] == ["keeps-activations"]


def test_an_error_in_float64_alone_is_reported_as_one(subject):
    changed = subject(("scores = q @ k.mT", "scores = q @ k.mT; assert scores.dtype != torch.float64, 'odd'"))
    (found,) = diagnose(changed).findings
    assert found.cause.startswith("in float64, as the diagnosis runs it, it fails: AssertionError: odd")


@pytest.mark.parametrize("init", [True, False], ids=["with __init__.py", "without __init__.py"])
def test_the_reproduction_of_a_package_runs_from_any_folder(tmp_path, monkeypatch, init):
    folder = tmp_path / "project" / f"lab_{init}" / "nets"
    folder.mkdir(parents=True)
    for package in (folder.parent, folder) if init else ():
        (package / "__init__.py").write_text("")
    text = DEVIATIONS["relu"].apply(GPT)
    start, rest = text.split("class Attention", 1)
    (folder / "settings.py").write_text(start)
    (folder / "network.py").write_text(
        f"import math\nimport torch\nimport torch.nn.functional as F\nfrom torch import nn\n"
        f"from .settings import Settings\n\n\nclass Attention{rest}"
    )
    monkeypatch.chdir(tmp_path)
    found = diagnose(adapt(f"project/lab_{init}/nets/network.py:GPT"))
    script = tmp_path / "elsewhere" / "reproduce.py"
    script.parent.mkdir()
    script.write_text(found.reproduction)
    script.with_suffix(".safetensors").write_bytes(base64.b64decode(found.data))
    command = [sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd="/", check=False)
    assert "the logits differ by 0." in done.stdout, done.stderr


@pytest.mark.parametrize("name", ["my-gpt", "class"])
def test_the_reproduction_of_a_file_whose_name_is_no_word_of_python_runs(tmp_path, name):
    """`from my-gpt import GPT` was a SyntaxError."""
    (tmp_path / f"{name}.py").write_text(DEVIATIONS["relu"].apply(GPT))
    found = diagnose(adapt(f"{tmp_path}/{name}.py:GPT"))
    script = tmp_path / "reproduce.py"
    script.write_text(found.reproduction)
    script.with_suffix(".safetensors").write_bytes(base64.b64decode(found.data))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False)
    assert "the logits differ by 0." in done.stdout, done.stderr


def test_a_norm_that_is_declared_absent_is_not_missing(subject):
    without = subject(
        ("        self.last_norm = nn.LayerNorm(s.n_embd)\n", ""), ("self.head(self.last_norm(x))", "self.head(x)")
    )
    assert "ln_f has neither gain nor bias" in said_by(structure.search, without)
    with compared_with(SimpleNamespace(absent=frozenset(("ln_f.weight", "ln_f.bias")))):
        assert "ln_f" not in said_by(structure.search, without)
