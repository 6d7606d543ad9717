"""Every kind of work: each arm gives the answer, a wrong GPT gets no time, and each arm does what its name says."""

import pytest
import torch
from torch import nn

from harness.bench.arms import ModelPool, arm_specs, work_kinds, work_of
from harness.bench.arms.workloads import attention, training
from harness.bench.arms.workloads.generation import cached_positions, uncached_positions
from harness.bench.arms.workloads.training import adamw, with_allocated_state
from harness.bench.memory import peak_bytes
from harness.bench.peers import HuggingFace
from harness.bench.serving import Timeline
from harness.bench.witness import violated_claim, witness
from harness.bench.work import Work
from harness.core.errors import MissingAbility, MissingResource
from harness.core.sizes import SIZES
from harness.subjects.adapters import adapt
from harness.tests.bench.arms.test_model_pool import deviation
from harness.tests.bench.arms.wrong_gpts import detached, exact_gelu, wrong

DEBUG = SIZES["debug"]


@pytest.fixture(scope="module")
def pool():
    return ModelPool(HuggingFace("sdpa"), DEBUG)


POINTS = {
    "forward": {"tokens": 24},
    "decode": {"context": 12},
    "generate": {"prompt": 10, "new_tokens": 6},
    "speculate": {"lookahead": 3, "prompt": 8, "new_tokens": 12, "damping": 60},
    "training-step": {"tokens": 16, "batch": 4},
    "loss": {"tokens": 16},
    "backward": {"tokens": 16},
    "optimizer": {"tokens": 16},
    "weight-update": {"tokens": 16},
    "attention": {"tokens": 64},
    "attention-layer": {"tokens": 64},
    "expert-layer": {"tokens": 16},
    "serve": {"requests": 4, "slots": 2},
    "build": {},
    "load": {},
    "tokenize": {},
}


def verify_arms(pool, work, arms):
    """Return the verification of each arm; the first is the control."""
    chosen = {name: arm_specs()[name] for name in arms}
    verify = work_kinds()[work].make_verifier(pool, arms[0], chosen, **POINTS[work])
    return {name: verify(name, work_of(pool, work, name, **POINTS[work])) for name in arms}


@pytest.mark.parametrize(
    ("work", "arms"),
    [
        ("forward", ("fp32", "bf16", "bf16-autocast", "hf-eager")),
        ("decode", ("cached", "bf16")),
        ("generate", ("uncached", "cached", "hf-eager")),
        ("speculate", ("alone", "draft-model", "hf-assisted")),
        ("training-step", ("one-batch", "accumulated", "checkpointed", "bf16-autocast", "hf-eager")),
        ("loss", ("subject", "hf-eager")),
        ("backward", ("subject", "hf-eager")),
        ("optimizer", ("fused", "foreach", "for-loop")),
        ("weight-update", ("fp32", "bf16", "bf16-autocast")),
        ("attention", ("naive", "looped", "flash", "sdpa-math")),
        ("build", ("subject", "hf-eager")),
        ("load", ("subject", "hf-eager")),
    ],
)
def test_every_arm_of_a_right_gpt_gives_the_answer(pool, work, arms):
    verifications = verify_arms(pool, work, arms)
    assert {name: verification.verdict for name, verification in verifications.items()} == dict.fromkeys(
        arms, "pass"
    ), verifications


SAMPLED = [
    ("forward", ("fp32", "bf16", "hf-eager")),
    ("decode", ("cached", "bf16", "int8")),
    ("generate", ("cached", "uncached", "int8", "hf-eager")),
    ("speculate", ("alone", "draft-model", "hf-assisted")),
    ("attention", ("naive", "looped", "flash", "sdpa-math")),
    ("attention-layer", ("naive", "flash")),
    ("expert-layer", ("dense-active", "experts")),
    ("serve", ("static", "continuous")),
]


def samples_of(pool, work, arms, *, call=lambda work: work.call):
    """Return the verdict on what each arm returns for the third input, as if it was timed."""
    chosen, point = {name: arm_specs()[name] for name in arms}, POINTS[work]
    verify = work_kinds()[work].make_verifier(pool, arms[0], chosen, **point)
    found = {}
    for name in arms:
        built = work_of(pool, work, name, **point)
        assert verify(name, built).verdict == "pass"
        timed = call(built)
        if built.use_input:
            built.use_input(3)
        built.prepare()
        found[name] = verify.verify_sample(name, built, built.sample(timed(), 3))
    return found


@pytest.fixture(scope="module")
def reference_pool():
    return ModelPool(adapt("gpt:GPT"), DEBUG)


@pytest.mark.parametrize(("work", "arms"), SAMPLED)
def test_what_a_right_arm_returns_while_it_is_timed_is_right(reference_pool, work, arms):
    found = samples_of(reference_pool, work, arms)
    assert {name: verification.verdict for name, verification in found.items()} == dict.fromkeys(arms, "pass"), found


def remembered(built):
    """Return a call that returns what its first call has returned, whatever the input is now."""
    first = built.call()
    return lambda: (built.call(), first)[1]


@pytest.mark.parametrize(
    ("work", "arms"), [each for each in SAMPLED if each[0] not in ("speculate", "expert-layer", "serve")]
)
def test_an_arm_that_returns_an_earlier_answer_while_it_is_timed_gets_no_time(reference_pool, work, arms):
    found = samples_of(reference_pool, work, arms[:1], call=remembered)
    assert found[arms[0]].verdict == "fail", found


def nearly(built):
    """Return a call whose output is off by more than rounding."""

    def call():
        output = built.call()
        if isinstance(output, Timeline):
            output.tokens[0][-1] ^= 1
            return output
        return (
            output ^ (torch.arange(output.shape[-1]) == output.shape[-1] - 1)
            if output.dtype == torch.int64
            else output * 1.001
        )

    return call


@pytest.mark.parametrize(("work", "arms"), SAMPLED)
def test_an_arm_that_is_wrong_only_while_it_is_timed_gets_no_time(reference_pool, work, arms):
    found = samples_of(reference_pool, work, arms[:1], call=nearly)
    assert found[arms[0]].verdict == "fail", found


def test_float64s_answer_is_computed_once_for_what_is_decoded_and_for_what_is_timed():
    pool = ModelPool(HuggingFace("sdpa"), DEBUG)
    verify = work_kinds()["decode"].make_verifier(pool, "cached", {"cached": arm_specs()["cached"]}, context=12)
    passes = []
    pool.oracle().module.register_forward_hook(lambda *_: passes.append(1))
    decoding = work_of(pool, "decode", "cached", context=12)
    assert verify("cached", decoding).verdict == "pass"
    assert verify.verify_sample("cached", decoding, decoding.sample(decoding.call(), 1)).verdict == "pass"
    assert len(passes) == 1


def test_attention_in_float64_is_the_formula_at_every_position():
    inputs = attention.attention_inputs(tokens=attention.QUERIES_AT_ONCE + 40, heads=2, head_width=4).double()
    torch.testing.assert_close(attention._exact(inputs), attention._attention("naive", inputs)())


def test_all_arms_load_one_checkpoint(monkeypatch):
    saved, save = [], HuggingFace.save_checkpoint
    monkeypatch.setattr(HuggingFace, "save_checkpoint", lambda *given: (saved.append(given), save(*given)))
    pool = ModelPool(HuggingFace("sdpa"), DEBUG)
    assert [work_of(pool, "load", arm).call().shape for arm in ("subject", "hf-eager")] == [
        (1, 16, DEBUG.vocab_size)
    ] * 2
    assert len(saved) == 1


def test_a_text_in_paragraphs_has_the_tokens_of_the_whole(pool):
    try:
        verifications = verify_arms(pool, "tokenize", ("one-piece", "paragraphs"))
    except MissingResource as missing:
        pytest.skip(str(missing))
    assert {verification.verdict for verification in verifications.values()} == {"pass"}


@pytest.mark.parametrize("work", ["forward", "decode", "training-step"])
def test_a_wrong_gelu_gets_no_time_for_any_work(work):
    arm = "cached" if work == "decode" else "subject"
    assert verify_arms(wrong(exact_gelu), work, (arm,))[arm].verdict == "fail"


@pytest.mark.parametrize("work", ["training-step", "backward", "loss", "optimizer"])
def test_a_gradient_that_is_cut_off_gets_no_time_though_the_logits_are_right(work):
    assert verify_arms(wrong(detached), "forward", ("subject",))["subject"].verdict == "pass"
    arm = "fused" if work == "optimizer" else "subject"
    assert verify_arms(wrong(detached), work, (arm,))[arm].verdict == "fail"


def test_decoding_continues_at_the_end_of_the_window(pool):
    step = work_of(pool, "decode", "cached", context=20)
    step.prepare()
    for _ in range(30):
        assert step.call().shape == (1, 1, DEBUG.vocab_size)


def test_a_training_step_changes_the_weights_and_its_answer_starts_from_the_same_weights(pool):
    step = work_of(pool, "training-step", "subject", tokens=16)
    first = step.answer()
    for _ in range(3):
        step.call()
    assert torch.equal(step.answer(), first)
    model = pool.model(arm_specs()["subject"])
    assert all(parameter.grad is None for parameter in model.module.parameters())


def test_checkpointing_leaves_the_blocks_as_they_were_and_stores_less(pool):
    peaks = {}
    for arm in ("stored", "checkpointed"):
        peaks[arm] = peak_bytes(work_of(pool, "training-step", arm, tokens=32, batch=4).call)["profiler"]
    assert peaks["checkpointed"] < peaks["stored"]
    blocks = pool.model(arm_specs()["checkpointed"]).module.transformer.h
    assert not any("forward" in vars(block) for block in blocks)


def test_an_optimizer_with_allocated_state_has_moved_nothing(pool):
    """Otherwise the measured step allocates two numbers a parameter, and hides the memory that checkpointing saves."""
    model = pool.model(arm_specs()["fp32"])
    before = [parameter.detach().clone() for parameter in model.module.parameters()]
    optimizer = with_allocated_state(adamw(model), model)
    assert all(torch.equal(old, new) for old, new in zip(before, model.module.parameters(), strict=True))
    assert len(optimizer.state) == len(before)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(6e-4)
    assert all(parameter.grad is None for parameter in model.module.parameters())


def test_the_step_that_is_verified_is_the_timed_optimizers(pool, monkeypatch):
    """A wrong rate of its own shows, where a step of another optimizer by the recipe would hide it."""
    first = work_of(pool, "training-step", "subject", tokens=16).answer()
    monkeypatch.setitem(training.ADAMW, "lr", 0.06)
    mistaken = work_of(pool, "training-step", "subject", tokens=16)
    monkeypatch.undo()
    assert not torch.equal(mistaken.answer(), first)


def test_bf16_without_masters_loses_updates_and_float32_none(pool):
    lost = {arm: work_of(pool, "weight-update", arm, tokens=16).extras() for arm in ("fp32", "bf16", "bf16-autocast")}
    assert lost["fp32"]["lost_at_last_rate"] < 0.01
    assert lost["bf16-autocast"]["lost_at_last_rate"] < 0.01
    assert lost["bf16"]["lost_at_last_rate"] > 10 * lost["bf16"]["lost_at_peak_rate"] / 3 > 0.01


def test_the_lessons_positions_are_those_of_the_closed_forms():
    assert (uncached_positions(10, 100), cached_positions(10, 100)) == (5950, 109)
    assert (uncached_positions(10, 1000), cached_positions(10, 1000)) == (509_500, 1009)


def test_a_cache_has_the_bytes_of_its_closed_form(pool):
    extras = work_of(pool, "decode", "cached", context=16).extras()
    assert extras["cache_closed_form_bytes"] == 2 * DEBUG.layers * 16 * DEBUG.width * 4
    assert extras["cache_bytes"] == extras["cache_closed_form_bytes"], "transformers' own cache grows with its contents"


@pytest.mark.parametrize("arm", ["naive", "looped", "flash", "sdpa-math"])
def test_attention_ran_as_its_arms_claim(pool, arm):
    seen = witness(work_of(pool, "attention", arm, tokens=64).call)
    claims = arm_specs()[arm].claims
    assert violated_claim(seen, claims=claims) is None
    other = "formula" if claims["attention"] != "formula" else "flash"
    assert violated_claim(seen, claims={"attention": other}) is not None


def test_a_subject_without_a_choice_of_caches_says_how_to_offer_one(pool):
    with pytest.raises(MissingAbility, match="growing=True"):
        work_of(pool, "decode", "growing", context=12).prepare()


# With declared deviations.


def untied(module):
    module.lm_head.weight = nn.Parameter(module.lm_head.weight.detach().clone())


@pytest.mark.parametrize(("change", "verdict"), [(untied, "pass"), (exact_gelu, "fail")])
def test_a_build_has_the_parameters_that_the_declaration_makes(change, verdict):
    subject = wrong(change).subject
    pool = ModelPool(subject, DEBUG, deviations=[deviation("untied-head")])
    verify = work_kinds()["build"].make_verifier(pool, "subject", {"subject": arm_specs()["subject"]})
    counted = sum(parameter.numel() for parameter in subject.build(DEBUG).module.parameters())
    assert verify("subject", Work(call=lambda: None, answer=lambda: counted, tokens=0)).verdict == verdict
