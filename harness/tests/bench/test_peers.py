"""The peers have the weights and the answers of the oracle, and a missing one gives the reason."""

import importlib.util
import inspect
import subprocess
import sys

import pytest
import torch

from harness.bench.peers import PEERS, CTranslate2, HuggingFace, NanoGPT, peer, rounded_to_int8
from harness.core.errors import HarnessError, MissingAbility, MissingResource
from harness.core.sizes import SIZES
from harness.oracle.hugging_face import oracle
from harness.oracle.probe_weights import state
from harness.oracle.tokens import batch
from harness.subjects.protocols import Caches, Generates, Subject
from harness.subjects.weight_map import published_shapes
from harness.tests.subjects.styles import dataclass_config

DEBUG = SIZES["debug"]
NEW = 18
IDS = batch(DEBUG, "random", rows=3, length=8)[0]
NOT_INSTALLED = "CTranslate2 is not installed: pip install '.[peers]'"
needs_ctranslate2 = pytest.mark.skipif(importlib.util.find_spec("ctranslate2") is None, reason=NOT_INSTALLED)


def probe():
    return state("debug", "probe")


def oracle_logits(ids, weights=None):
    with torch.no_grad():
        return oracle(DEBUG, weights or probe(), "float64").logits(ids)


def greedy(ids, new, weights=None):
    """Return the continuation by definition: each token the likeliest, in float64 and without a cache."""
    for _ in range(new):
        ids = torch.cat((ids, oracle_logits(ids, weights)[:, -1:].argmax(-1)), dim=1)
    return ids


def error(answer, expected):
    return float((answer.double() - expected).norm() / expected.norm())


def always_the_first_token():
    """Return weights with which token 0 is the likeliest after every prompt."""
    weights = {name: tensor.clone() for name, tensor in probe().items()}
    weights["transformer.ln_f.weight"].zero_()
    weights["transformer.ln_f.bias"].copy_(weights["transformer.wte.weight"][0])
    return weights


@pytest.fixture
def nanogpt_path(tmp_path):
    """A model.py as nanoGPT's is: the exact GELU, as a module."""
    source = inspect.getsource(dataclass_config)
    for right, instead in (
        ("F.gelu(", 'self.mlp["gelu"]('),
        (', approximate="tanh")', ")"),
        ('"c_fc": nn.Linear(', '"gelu": nn.GELU(), "c_fc": nn.Linear('),
    ):
        assert right in source
        source = source.replace(right, instead)
    (tmp_path / "model.py").write_text(source)
    return tmp_path


@pytest.fixture(params=["hf-sdpa", "hf-eager", "hf-static", "ctranslate2", "nanogpt"])
def made(request, nanogpt_path):
    if request.param == "hf-static":
        return HuggingFace("sdpa", cache="static")
    if request.param == "ctranslate2" and importlib.util.find_spec("ctranslate2") is None:
        pytest.skip(NOT_INSTALLED)
    return peer(request.param, nanogpt=nanogpt_path)


def test_every_peer_gives_gpt2s_logits_but_for_rounding(made):
    with torch.no_grad():
        answer = made.build(DEBUG).logits(IDS)
    assert error(answer, oracle_logits(IDS)) < 2e-6


def test_every_peer_continues_greedily(made):
    use_cache = not isinstance(made, NanoGPT)
    answer = made.generate(made.build(DEBUG), IDS, NEW, temperature=0.0, use_cache=use_cache)
    assert torch.equal(answer, greedy(IDS, NEW))
    assert len(answer[:, 8:].unique()) > 3  # or any constant would do


def test_every_peer_is_a_subject_that_generates(made):
    assert isinstance(made, Subject)
    assert isinstance(made, Generates)
    assert isinstance(made, Caches) == isinstance(made, HuggingFace)


def test_an_option_that_a_peer_does_not_have_is_a_missing_ability(made):
    with pytest.raises(MissingAbility, match="without options"):
        made.build(DEBUG, attention="naive")


def test_generation_never_ends_early_on_any_token(made):
    """An end token that is on by default, or kept down by a least length, shows on a model that only says token 0."""
    model = made.build(DEBUG).load(always_the_first_token())
    answer = made.generate(model, IDS, NEW, temperature=0.0)
    assert torch.equal(answer[:, 8:], torch.zeros(3, NEW, dtype=torch.int64))


def test_weights_loaded_after_the_build_are_the_ones_in_use(made):
    other = {name: tensor.flip(0) for name, tensor in probe().items()}
    with torch.no_grad():
        answer = made.build(DEBUG).load(other).logits(IDS)
    assert error(answer, oracle_logits(IDS, other)) < 2e-6


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_hugging_face_generates_with_its_cache_and_without(cache):
    subject = HuggingFace("sdpa", cache=cache)
    model, seen = subject.build(DEBUG), []
    model.module.transformer.wte.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    for use_cache, positions in ((True, 8 + NEW - 1), (False, sum(range(8, 8 + NEW)))):
        seen.clear()
        assert torch.equal(subject.generate(model, IDS, NEW, temperature=0.0, use_cache=use_cache), greedy(IDS, NEW))
        assert sum(seen) == positions


@pytest.mark.parametrize(("cache", "kind"), [("dynamic", "DynamicCache"), ("static", "StaticCache")])
def test_hugging_face_generates_with_the_kind_of_cache_that_its_name_says(cache, kind):
    subject = HuggingFace("sdpa", cache=cache)
    model, seen = subject.build(DEBUG), set()

    def watch(module, arguments, keywords):
        seen.add(type(keywords["past_key_values"]).__name__)

    model.module.transformer.register_forward_pre_hook(watch, with_kwargs=True)
    subject.generate(model, IDS, NEW, temperature=0.0)
    assert seen == {kind} == {type(subject.new_cache(model, 3)).__name__}


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_hugging_face_steps_give_the_logits_of_one_pass(cache):
    subject = HuggingFace("sdpa", cache=cache)
    model = subject.build(DEBUG)
    past = subject.new_cache(model, 3)
    with torch.no_grad():
        answer = torch.cat([subject.step(model, part, past) for part in IDS.split([5, 1, 2], dim=1)], dim=1)
    assert error(answer, oracle_logits(IDS)) < 2e-6


def test_a_peer_does_not_write_into_the_shared_weights():
    model = HuggingFace("sdpa").build(DEBUG)
    with torch.no_grad():
        model.module.transformer.wte.weight.zero_()
    assert probe()["transformer.wte.weight"].abs().sum() > 0


def test_an_unknown_peer_is_an_error_with_the_nearest_name():
    with pytest.raises(HarnessError, match="no peer is called 'hf-spda'; did you mean 'hf-sdpa'"):
        peer("hf-spda")


def test_importing_the_peers_imports_no_package_of_theirs():
    code = "import harness.bench.peers, sys; print([m for m in ('transformers', 'ctranslate2') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_a_package_that_is_not_installed_is_a_missing_resource(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in [name for name in PEERS if name.startswith("ctranslate2")]:
        with pytest.raises(MissingResource, match=r"CTranslate2 is not installed: pip install 'gpt-harness\[peers\]'"):
            peer(name)


def test_a_package_without_its_compiled_part_is_a_missing_resource(monkeypatch):
    """It imports all the same, and is missed by name only where it is used."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "ctranslate2._ext", None)
    with pytest.raises(MissingResource, match="CTranslate2 does not import"):
        peer("ctranslate2").build(DEBUG)


@needs_ctranslate2
def test_ctranslate2_returns_the_logits_that_it_chose_from():
    subject = CTranslate2()
    continued, logits = subject.generate_with_logits(subject.build(DEBUG), IDS, NEW)
    assert torch.equal(continued, greedy(IDS, NEW))
    assert error(logits, oracle_logits(continued[:, :-1])[:, -NEW:]) < 2e-6


@needs_ctranslate2
def test_ctranslate2_in_int8_is_as_far_off_as_eight_bits_make_it():
    """Weights and inputs are rounded to as many steps, so that together they are off by some sqrt(2) of one alone."""
    subject = CTranslate2("int8")
    weights_alone = error(oracle_logits(IDS, rounded_to_int8(probe())), oracle_logits(IDS))
    assert weights_alone > 1e-3
    assert 1 < error(subject.build(DEBUG).logits(IDS), oracle_logits(IDS)) / weights_alone < 3


def test_rounding_to_int8_leaves_255_values_a_row_of_matrices_and_vectors_as_they_are():
    for name, tensor in rounded_to_int8(probe()).items():
        exact = probe()[name]
        if len(published_shapes(DEBUG)[name]) < 2 or "wpe" in name:
            assert torch.equal(tensor, exact)
            continue
        rows, before = (tensor, exact) if "wte" in name else (tensor.mT, exact.mT)
        step = before.abs().amax(1, keepdim=True) / 127
        assert ((rows - before).abs() <= 0.501 * step).all()
        assert ((rows / step).round() - rows / step).abs().max() < 1e-3
        assert not torch.equal(tensor, exact)


@needs_ctranslate2
def test_ctranslate2_has_the_threads_that_torch_has(monkeypatch):
    model = CTranslate2().build(DEBUG)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    with pytest.raises(HarnessError, match="and torch has 77 now"):
        model.logits(IDS)


@needs_ctranslate2
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 1.0}, "only generates greedily"),
        ({"temperature": 0.0, "use_cache": False}, "without its cache"),
    ],
)
def test_settings_that_ctranslate2_does_not_support_are_a_missing_ability(settings, message):
    subject = CTranslate2()
    with pytest.raises(MissingAbility, match=message):
        subject.generate(subject.build(DEBUG), IDS, 2, **settings)


def test_no_peer_but_nanogpt_goes_beyond_the_context(made):
    model = made.build(DEBUG)
    if isinstance(made, NanoGPT):
        assert made.generate(model, IDS, DEBUG.context, temperature=0.0).shape == (3, 8 + DEBUG.context)
        return
    with pytest.raises(MissingAbility, match="does not slide its window"):
        made.generate(model, IDS, DEBUG.context, temperature=0.0)


@needs_ctranslate2
def test_a_type_that_the_device_lacks_is_a_missing_resource(monkeypatch):
    import ctranslate2

    monkeypatch.setattr(ctranslate2, "get_supported_compute_types", lambda *device: {"float32", "int8"})
    with pytest.raises(MissingResource, match="CTranslate2 has no bfloat16 on this cpu; it has float32, int8"):
        peer("ctranslate2-bfloat16").build(DEBUG)


@needs_ctranslate2
def test_ctranslate2_takes_no_other_dtype_than_its_name_says():
    with pytest.raises(MissingAbility, match="from float32 weights and without options, got float64"):
        CTranslate2().build(DEBUG, dtype="float64")


def test_nanogpt_as_it_is_published_is_not_gpt2(nanogpt_path):
    with torch.no_grad():
        answer = NanoGPT(nanogpt_path, tanh_gelu=False).build(DEBUG).logits(IDS)
    assert error(answer, oracle_logits(IDS)) > 1e-5


def test_nanogpt_keeps_no_cache(nanogpt_path):
    subject = NanoGPT(nanogpt_path)
    with pytest.raises(MissingAbility, match="it has none"):
        subject.generate(subject.build(DEBUG), IDS, 2, temperature=0.0, use_cache=True)


def test_nanogpt_computes_one_pass_a_token_and_none_in_vain(nanogpt_path):
    """At temperature 0 it divides by zero, so that a first try would be thrown away."""
    subject, passes = NanoGPT(nanogpt_path), []
    model = subject.build(DEBUG)
    model.module.register_forward_hook(lambda *_: passes.append(1))
    subject.generate(model, IDS, NEW, temperature=0.0)
    assert len(passes) == NEW


def test_nanogpt_is_found_by_its_file_and_by_the_variable(nanogpt_path, monkeypatch):
    monkeypatch.setenv("GPT_HARNESS_NANOGPT", str(nanogpt_path))
    for subject in (NanoGPT(nanogpt_path / "model.py"), peer("nanogpt")):
        assert subject.build(DEBUG).size == DEBUG


def test_nanogpt_without_a_path_is_a_missing_resource_and_a_wrong_path_a_mistake(monkeypatch, tmp_path):
    monkeypatch.delenv("GPT_HARNESS_NANOGPT", raising=False)
    with pytest.raises(MissingResource, match="name a copy of it with --nanogpt PATH, or in GPT_HARNESS_NANOGPT"):
        peer("nanogpt")
    with pytest.raises(HarnessError, match=r"expected nanoGPT's folder, or its model\.py"):
        peer("nanogpt", nanogpt=tmp_path / "nowhere")
