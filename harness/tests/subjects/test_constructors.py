"""How a subject is found and built: constructors, files, checkpoint directories."""

import inspect
import sys

import pytest
import torch

from harness.core.errors import SubjectError
from harness.core.sizes import SIZES
from harness.judging.run_check import run
from harness.subjects.adapters import adapt
from harness.subjects.protocols import Caches
from harness.tests.subjects.altered_styles import STYLES as HERE

DEBUG = SIZES["debug"]


class ByLetters(torch.nn.Module):
    def __init__(self, V, T, L, H, C):
        super().__init__()


class NeedsARouter(torch.nn.Module):
    def __init__(self, vocab_size, n_embd, n_layer, n_head, block_size, router):
        super().__init__()
        self.route = router(n_embd)


class HiddenIsTheWidth(torch.nn.Module):
    def __init__(self, vocab_size, n_layers, n_heads, hidden_dim, context_len, expansion=2):
        super().__init__()
        self.got = (hidden_dim, context_len, expansion)


class HiddenIsInside(HiddenIsTheWidth):
    def __init__(self, vocab_size, n_layers, n_heads, d_model, hidden_dim, context_len):
        super().__init__(vocab_size, n_layers, n_heads, hidden_dim, context_len)


class NeedsARouterToRun(torch.nn.Module):
    def __init__(self, vocab_size, n_embd, n_layer):
        super().__init__()
        self.one = torch.nn.Linear(1, 1)

    def forward(self, idx, router):
        return router.route(idx)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ByLetters", r"no setting was found for its sizes; known: none; not known: C=\?, H=\?, L=\?, T=\?, V=\?"),
        ("NeedsARouter", r"no value is known for 'router', which has no default: TypeError"),
    ],
)
def test_a_constructor_that_cannot_be_guessed_is_one_line_that_names_its_settings(name, message):
    with pytest.raises(SubjectError, match=message) as error:
        adapt(f"{__name__}:{name}").build(DEBUG)
    assert "\n" not in str(error.value)


def test_a_forward_that_needs_another_argument_names_it(shipped):
    model = adapt(f"{__name__}:NeedsARouterToRun").build(DEBUG)
    with pytest.raises(SubjectError, match=r"forward\(idx, router\) needs 'router'"):
        model.logits(torch.zeros(1, 2, dtype=torch.int64))


def test_hidden_means_the_width_unless_another_setting_does():
    assert adapt(f"{__name__}:HiddenIsTheWidth").constructor.build(DEBUG).got == (48, 32, 4)
    assert adapt(f"{__name__}:HiddenIsInside").constructor.build(DEBUG).got == (192, 32, 2)


def test_a_users_gpt_py_takes_precedence_and_the_shipped_one_still_loads(tmp_path, monkeypatch):
    source = inspect.getsource(sys.modules[adapt(f"{HERE}.dataclass_config:GPT").target.__module__])
    (tmp_path / "gpt.py").write_text(source)
    (tmp_path / "mine.py").write_text("from gpt import GPT as Base, Shape\n\n\nclass Mine(Base):\n    pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "gpt"}
    try:
        for spec in ("gpt.py:GPT", "mine.py:Mine", "gpt:GPT"):
            assert not isinstance(adapt(spec), Caches)
            assert adapt(spec).build(DEBUG).weights.gaps == ""
        assert isinstance(adapt("gpt:GPT", own=False), Caches)
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "gpt"]:
            del sys.modules[name]
        sys.modules.update(before)


def test_a_checkpoint_directory_is_a_subject_and_loads_no_code(shipped, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=211, n_positions=32, n_embd=48, n_layer=3, n_head=4, activation_function="gelu")
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    record = run(shipped["parity::debug,weights=probe,compare=blocks"], adapt(f"hf:{tmp_path}"))
    assert (record.verdict, record.where[0]) == ("fail", "block 0"), "its config names the exact GELU"
    with pytest.raises(SubjectError, match=r"config\.json is not a file"):
        adapt(f"hf:{tmp_path / 'nowhere'}")
