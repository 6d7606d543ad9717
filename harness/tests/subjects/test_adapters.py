"""A GPT is judged without an edit of its file, whatever its names and however it is built and called."""

from pathlib import Path
from types import ModuleType

import pytest
import torch

from harness.core.errors import MissingAbility, SubjectError
from harness.core.sizes import SIZES
from harness.judging.run_check import run
from harness.oracle.probe_weights import state
from harness.subjects.adapters import adapt
from harness.subjects.adapters.adapted_subject import AdaptedSubject
from harness.subjects.adapters.construction.find_constructor import find_constructor
from harness.subjects.adapters.weight_discovery.name_map import map_by_names
from harness.subjects.build import build_with_weights
from harness.subjects.forward_hooks import arranged
from harness.subjects.protocols import Caches, Checkpoints, ChoosesAttention, Generates, Subject

DEBUG = SIZES["debug"]

# In the style of a learner: keyword arguments, sizes under other names, separate projections, blocks in a Sequential, a
# norm written by hand, the head tied by assignment, logits only.
LEARNER = (
    (Path(__file__).parents[1] / "readme_gpt.py")
    .read_text(encoding="utf-8")
    .replace("nn.GELU()", 'nn.GELU("tanh")')
    .replace("class GPT(", "class MyGPT(")
)

# In the style of nanoGPT: a config dataclass beside the class, (logits, loss), the last position only without targets.
LAST_ONLY = '''
from dataclasses import dataclass, fields
from torch import nn
from gpt import GPT, GPTConfig


@dataclass
class Settings:
    block_size: int = 1024
    vocab_size: int = 50304
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0


class Nano(nn.Module):
    def __init__(self, settings):
        super().__init__()
        self.model = GPT(GPTConfig(**{f.name: getattr(settings, f.name) for f in fields(settings)}))

    def forward(self, idx, targets=None):
        logits, loss = self.model(idx, targets)
        return (logits, loss) if targets is not None else (logits[:, [-1], :], None)


def factory():
    return Nano(Settings(block_size=32, vocab_size=211, n_layer=3, n_head=4, n_embd=48))


instance = factory()
SIZES = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")
from_a_dict = lambda cfg: Nano(Settings(**{key: cfg[key] for key in SIZES}))


class Wrapper:
    """An adapter: the Subject protocol, implemented by hand."""

    name = "by hand"

    def build(self, size, *, seed=0, dtype="float32", device="cpu", **options):
        from harness.subjects.forward_call import call
        from harness.subjects.adapters.weight_discovery.name_map import map_by_names
        from harness.subjects.model import Model

        module = factory()
        return Model(module.eval(), size, call, map_by_names(module, size))
'''


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """Write the two files above into the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "learner.py").write_text(LEARNER)
    (tmp_path / "nano.py").write_text(LAST_ONLY)


STYLES = ["learner.py:MyGPT", "nano.py:Nano", "nano.py:factory", "nano.py:from_a_dict", "nano.py:Wrapper"]


@pytest.mark.parametrize("spec", STYLES)
def test_a_correct_gpt_of_another_style_raises_no_alarm(shipped, foreign, spec):
    subject = adapt(spec)
    names = [
        name
        for name, check in shipped.items()
        if check.parameters.get("size") == "debug"
        and check.suite in ("attention", "parity", "loading")
        # A norm written by hand rounds every step to 16 bits, while Hugging Face's, the unit, is fused.
        and check.parameters.get("dtype") != "float16"
    ]
    verdicts = {name: run(shipped[name], subject) for name in names}
    assert not {name: r.message for name, r in verdicts.items() if r.verdict not in ("pass", "skip")}
    assert sum(r.verdict == "pass" for r in verdicts.values()) >= 14


@pytest.mark.parametrize("spec", ["learner.py:MyGPT", "nano.py:Nano"])
def test_a_wrong_gpt_of_another_style_is_rejected_where_it_is_wrong(shipped, foreign, tmp_path, spec):
    wrong = LEARNER.replace('nn.GELU("tanh")', "nn.GELU()").replace("MyGPT", "Wrong")
    (tmp_path / "wrong.py").write_text(wrong)
    record = run(shipped["parity::debug,weights=probe,compare=blocks"], adapt("wrong.py:Wrong"))
    assert (record.verdict, record.where[0]) == ("fail", "block 0")


def test_hugging_faces_own_class_is_a_subject(shipped):
    """The oracle against itself: every block bitwise equal."""
    record = run(shipped["parity::debug,weights=probe,compare=blocks"], adapt("transformers:GPT2LMHeadModel"))
    assert record.verdict == "pass", record.message


def test_a_subject_has_only_the_abilities_that_its_class_offers(foreign):
    reference, learner = adapt("gpt:GPT"), adapt("learner.py:MyGPT")
    for ability in (Subject, ChoosesAttention, Generates, Caches, Checkpoints):
        assert isinstance(reference, ability)
    assert isinstance(learner, Subject)
    for ability in (ChoosesAttention, Generates, Caches, Checkpoints):
        assert not isinstance(learner, ability)


def test_a_missing_ability_is_a_skip_that_names_it(shipped, foreign):
    record = run(shipped["generation::seed-decides"], adapt("learner.py:MyGPT"))
    assert record.verdict == "skip"
    assert record.message == "learner.py:MyGPT has no ability 'Generates': Continues a prompt"


def test_a_setting_that_the_subject_lacks_is_a_missing_ability(foreign):
    with pytest.raises(MissingAbility, match="has no setting 'init'"):
        adapt("learner.py:MyGPT").build(DEBUG, init="kaiming")


def test_a_factory_of_one_size_is_skipped_at_the_others(shipped, foreign):
    record = run(shipped["structure::boundary-shapes,size=124M,rows=2,length=16"], adapt("nano.py:factory"))
    assert record.verdict == "skip"
    assert record.message == "nano.py:factory is built at a fixed size, which is not 124M"


def test_a_model_that_cannot_be_mapped_is_skipped_where_weights_are_needed_and_fails_one_check(
    shipped, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    flat = "nn.Parameter(torch.zeros(dim * dim)), nn.Linear(dim, dim)"
    mixed = LEARNER.replace("q_proj", "alpha").replace("nn.Linear(dim, dim), nn.Linear(dim, dim)", flat, 1)
    mixed = mixed.replace("self.alpha(x)", "nn.functional.linear(x, 2 * self.alpha.view(x.shape[-1], -1))")
    (tmp_path / "odd.py").write_text(mixed)
    subject = adapt("odd.py:MyGPT")
    assert run(shipped["structure::evaluation-changes-nothing"], subject).verdict == "pass"
    record = run(shipped["parity::debug,weights=probe,compare=logits"], subject)
    assert record.verdict == "skip"
    assert "blocks.0.att.alpha" in record.message
    record = run(shipped["loading::weight-map-is-complete,size=debug"], subject)
    assert record.verdict == "error", "a run without any comparison must not pass"
    assert "Add a subject" in record.message


def test_what_is_written_through_a_weight_map_is_read_back_under_the_published_names(foreign):
    model = build_with_weights(adapt("learner.py:MyGPT"), DEBUG, state("debug", "probe"))
    back = model.weights.read(dict(model.module.named_parameters()))
    assert all(torch.equal(back[name], tensor) for name, tensor in state("debug", "probe").items())
    q = model.module.get_parameter("blocks.1.att.k_proj.weight")
    assert torch.equal(q, state("debug", "probe")["transformer.h.1.attn.c_attn.weight"][:, 48:96].T)


def test_the_layer_of_a_square_matrix_decides_if_it_is_transposed(foreign):
    rows = {row.own: row for row in map_by_names(adapt("learner.py:MyGPT").build(DEBUG).module, DEBUG).rows}
    assert rows["blocks.0.att.out_proj.weight"].transposed
    assert not rows["tok_emb.weight"].transposed


def test_a_class_whose_settings_say_nothing_and_do_nothing_names_them():
    class Strange(torch.nn.Module):
        def __init__(self, spam, eggs):
            super().__init__()

    made = find_constructor(Strange, ModuleType("m"))
    with pytest.raises(SubjectError, match=r"no setting was found for its sizes; .* not known: eggs=\?, spam=\?"):
        AdaptedSubject("m.py:Strange", Strange, made).build(DEBUG)


def test_logits_of_the_wrong_shape_are_named(shipped):
    record = run(
        shipped["parity::debug,weights=probe,compare=logits"], adapt("harness.tests.measures.wrong_gpts:OneTokenShort")
    )
    assert record.verdict == "error"
    assert "logits have shape (2, 24, 210), expected (2, 24, 211)" in record.message


@pytest.mark.parametrize("wrong", ["ExitsTheProcess", "ChangesGlobals", "RaisesOnConstruction"])
def test_changes_of_a_subject_to_the_process_are_undone_after_the_check(shipped, wrong):
    check = shipped["parity::debug,weights=probe,compare=logits"]
    run(check, adapt(f"harness.tests.measures.wrong_gpts:{wrong}"))
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()
    assert run(check, adapt("gpt:GPT")).verdict == "pass"


def test_a_stream_is_batch_first_for_every_order_of_its_axes():
    stream = torch.rand(2, 5, 48)
    for own in (stream, stream.permute(1, 0, 2), stream.permute(0, 2, 1), stream.flatten(0, 1)):
        assert torch.equal(arranged(own, (2, 5, 48)), stream)
        assert torch.equal(arranged(stream, tuple(own.shape)), own)
    assert arranged(stream, (2, 4, 48)) is stream, (
        "a tensor of another shape is returned unchanged; the caller rejects it"
    )
