"""The arms that are compared: judges refuse wrong ones, each does what it is called, declarations are read."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from harness.bench.arms import ArmSpec, ModelPool, arm_specs, read_comparisons, training, work_kinds, work_of
from harness.bench.arms.arm_ceilings import ArmCeilings
from harness.bench.arms.comparison_file import read_file
from harness.bench.arms.derived_metrics import derived, holding
from harness.bench.arms.generation import cached_positions, uncached_positions
from harness.bench.arms.models import tensor_bytes
from harness.bench.arms.training import adamw, begun
from harness.bench.arms.truth import Closeness, Generated, SameTokens, float32_bound, relative_error
from harness.bench.comparison import Work
from harness.bench.memory import peak_bytes
from harness.bench.peers import HuggingFace
from harness.bench.witness import refusal, witness
from harness.core.errors import MissingAbility, MissingResource, SuiteError
from harness.core.sizes import SIZES
from harness.measures.arms import arm_error
from harness.oracle.deviations import Deviation

ROOT = Path(__file__).parents[3]
DEBUG = SIZES["debug"]


# The judges.


def work(answer):
    return Work(call=lambda: None, answer=lambda: answer, tokens=1)


def closeness(truth, **options):
    return Closeness(lambda: truth, control="control", bound=1e-5, **options)


def test_an_arm_as_near_to_the_truth_as_the_control_passes_and_a_farther_one_fails():
    truth = torch.randn(2, 8, 50, dtype=torch.float64)
    judge = closeness(truth)
    assert judge("control", work(truth * (1 + 1e-6))).verdict == "pass"
    assert judge("arm", work(truth * (1 - 3e-6))).verdict == "pass"
    wrong = judge("arm", work(truth * (1 + 8e-4)))
    assert wrong.verdict == "fail"
    assert wrong.error == pytest.approx(8e-4)
    assert "8.0e-04" in wrong.message


@pytest.mark.parametrize("answer", [torch.full((2, 8, 50), torch.nan), torch.zeros(2, 8, 49), torch.zeros(2, 8, 50)])
def test_nan_a_wrong_shape_and_nothing_at_all_are_no_answers(answer):
    judge = closeness(torch.randn(2, 8, 50, dtype=torch.float64))
    assert judge("control", work(answer)).verdict == "fail"


def test_a_control_that_is_farther_than_float32_allows_fails():
    truth = torch.randn(2, 8, 50, dtype=torch.float64)
    assert closeness(truth)("control", work(truth * (1 + 1e-3))).verdict == "fail"


def test_a_coarse_arm_is_held_to_what_rounding_the_weights_makes():
    truth = torch.randn(2, 8, 50, dtype=torch.float64)
    judge = closeness(truth, coarse=lambda dtype: truth * 1.005, dtypes={"bf16": torch.bfloat16})
    judge("control", work(truth))
    assert judge("bf16", work(truth * 1.01)).verdict == "pass"
    assert judge("bf16", work(truth * 1.03)).verdict == "fail"


def test_the_truth_is_computed_once():
    calls = []

    def truth():
        calls.append("truth")
        return torch.ones(1, 1, 1, dtype=torch.float64)

    judge = Closeness(truth, control="control", bound=1e-5)
    judge("control", work(torch.ones(1, 1, 1)))
    judge("arm", work(torch.ones(1, 1, 1)))
    assert calls == ["truth"]


def generated(ids, logits, positions):
    return work(Generated(torch.tensor([ids]), logits, positions))


def greedy_truth():
    """Float64 logits of 4 positions under which 4 and 5 are the best tokens after the third and fourth."""
    truth = torch.randn(1, 4, 50, dtype=torch.float64)
    truth[0, 2, 4] = truth[0, 3, 5] = 9.0
    return truth


def tokens_judge(logits):
    counts = {"uncached": 7, "cached": 4}
    return SameTokens(lambda ids: logits, control="uncached", bound=1e-5, positions=counts, new_tokens=2)


def test_generation_is_judged_by_tokens_by_logits_and_by_the_positions_it_counted():
    truth = greedy_truth()  # 3 of the prompt, 2 new: the last 2 rows chose them
    near = truth[:, -2:] * (1 + 1e-6)
    judge = tokens_judge(truth)
    found = judge("uncached", generated([1, 2, 3, 4, 5], near, 7))
    assert found.verdict == "pass"
    assert found.witness == {"positions": 7, "positions_closed_form": 7}
    assert judge("cached", generated([1, 2, 3, 4, 5], near, 4)).verdict == "pass"
    assert "token 4 differs" in judge("cached", generated([1, 2, 3, 4, 6], near, 4)).message
    assert "does not do what its name says" in judge("cached", generated([1, 2, 3, 4, 5], near, 7)).message
    assert judge("cached", generated([1, 2, 3, 4, 5], near * 1.001, 4)).verdict == "fail", "right tokens by luck"


def test_a_control_that_does_not_choose_the_best_token_fails():
    """The second best of right logits: nothing but the truth's own logits can tell."""
    truth = greedy_truth()
    found = tokens_judge(truth)("uncached", generated([1, 2, 3, 4, 6], truth[:, -2:], 7))
    assert found.verdict == "fail"
    assert "not the best one" in found.message


def test_a_generation_that_cannot_be_watched_says_so():
    judge = tokens_judge(greedy_truth())
    message = judge("uncached", generated([1, 2, 3, 4, 5], None, None)).message
    assert "could not be seen" in message
    assert "could not be counted" in message


def test_the_relative_error_is_a_root_mean_square_over_any_number_of_rows():
    truth = torch.randn(3, 100, 7, dtype=torch.float64)
    noise = torch.randn_like(truth)
    expected = float(0.01 * noise.norm() / truth.norm())
    assert relative_error(truth + 0.01 * noise, truth) == pytest.approx(expected)


# The arms, on Hugging Face's GPT-2 at the debug size.


@pytest.fixture(scope="module")
def pool():
    return ModelPool(HuggingFace("sdpa"), DEBUG)


POINTS = {
    "forward": {"tokens": 24},
    "decode": {"context": 12},
    "generate": {"prompt": 10, "new_tokens": 6},
    "training-step": {"tokens": 16, "batch": 4},
    "loss": {"tokens": 16},
    "backward": {"tokens": 16},
    "optimizer": {"tokens": 16},
    "weight-update": {"tokens": 16},
    "attention": {"tokens": 64},
    "build": {},
    "load": {},
    "tokenize": {},
}


def judged(pool, work, arms):
    """Each arm's finding, the first being the control."""
    chosen = {name: arm_specs()[name] for name in arms}
    judge = work_kinds()[work].judge(pool, arms[0], chosen, **POINTS[work])
    return {name: judge(name, work_of(pool, work, name, **POINTS[work])) for name in arms}


@pytest.mark.parametrize(
    ("work", "arms"),
    [
        ("forward", ("fp32", "bf16", "bf16-autocast", "hf-eager")),
        ("decode", ("cached", "bf16")),
        ("generate", ("uncached", "cached", "hf-eager")),
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
    findings = judged(pool, work, arms)
    assert {name: finding.verdict for name, finding in findings.items()} == dict.fromkeys(arms, "pass"), findings


def test_a_text_in_paragraphs_has_the_tokens_of_the_whole(pool):
    try:
        findings = judged(pool, "tokenize", ("one-piece", "paragraphs"))
    except MissingResource as missing:
        pytest.skip(str(missing))
    assert {finding.verdict for finding in findings.values()} == {"pass"}


def wrong(change):
    """Hugging Face's GPT-2 with `change` made to each module that is built."""

    class Wrong(HuggingFace):
        def build(self, *args, **kwargs):
            model = super().build(*args, **kwargs)
            change(model.module)
            return model

    subject = Wrong("sdpa")
    subject.name = "wrong"
    return ModelPool(subject, DEBUG)


def exact_gelu(module):
    for block in module.transformer.h:
        block.mlp.act = nn.GELU()  # the exact form, where GPT-2 has the tanh


def detached(module):
    block = module.transformer.h[1]
    block.attn.register_forward_hook(lambda _, given, found: (found[0].detach(), *found[1:]))


@pytest.mark.parametrize("work", ["forward", "decode", "training-step"])
def test_a_wrong_gelu_gets_no_time_for_any_work(work):
    arm = "cached" if work == "decode" else "subject"
    assert judged(wrong(exact_gelu), work, (arm,))[arm].verdict == "fail"


@pytest.mark.parametrize("work", ["training-step", "backward", "loss", "optimizer"])
def test_a_gradient_that_is_cut_off_gets_no_time_though_the_logits_are_right(work):
    assert judged(wrong(detached), "forward", ("subject",))["subject"].verdict == "pass"
    arm = "fused" if work == "optimizer" else "subject"
    assert judged(wrong(detached), work, (arm,))[arm].verdict == "fail"


def test_decoding_goes_on_at_the_end_of_the_window(pool):
    step = work_of(pool, "decode", "cached", context=20)
    step.prepare()
    for _ in range(30):
        assert step.call().shape == (1, 1, DEBUG.vocab_size)


def test_a_training_step_changes_the_weights_and_its_answer_begins_anew(pool):
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


def test_an_optimizer_that_has_begun_has_its_state_and_has_moved_nothing(pool):
    """Its two numbers a parameter were allocated in the step that was weighed, and hid what checkpointing saves."""
    model = pool.model(arm_specs()["fp32"])
    before = [parameter.detach().clone() for parameter in model.module.parameters()]
    optimizer = begun(adamw(model), model)
    assert all(torch.equal(old, new) for old, new in zip(before, model.module.parameters(), strict=True))
    assert len(optimizer.state) == len(before)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(6e-4)
    assert all(parameter.grad is None for parameter in model.module.parameters())


def test_the_step_that_is_judged_is_the_timed_optimizers(pool, monkeypatch):
    """A wrong rate of its own shows, where a step of another optimizer by the recipe would hide it."""
    first = work_of(pool, "training-step", "subject", tokens=16).answer()
    monkeypatch.setitem(training.ADAMW, "lr", 0.06)
    mistaken = work_of(pool, "training-step", "subject", tokens=16)
    monkeypatch.undo()
    assert not torch.equal(mistaken.answer(), first)


def test_weights_rounded_to_bf16_are_values_that_bf16_holds(pool):
    model = pool.truth(stored_in=torch.bfloat16)
    assert all(torch.equal(p, p.bfloat16().double()) for p in model.module.parameters())


def test_twins_are_models_of_their_own_with_equal_weights(pool):
    one, two = (pool.model(arm_specs()["fp32"], copy) for copy in (0, 1))
    assert one is pool.model(arm_specs()["fp32"])
    assert one.module is not two.module
    ids, _ = pool.ids(rows=1, length=8)
    assert torch.equal(one.logits(ids), two.logits(ids))


def test_bf16_without_masters_loses_updates_and_float32_none(pool):
    lost = {arm: work_of(pool, "weight-update", arm, tokens=16).extras() for arm in ("fp32", "bf16", "bf16-autocast")}
    assert lost["fp32"]["lost_at_last_rate"] < 0.01
    assert lost["bf16-autocast"]["lost_at_last_rate"] < 0.01
    assert lost["bf16"]["lost_at_last_rate"] > 10 * lost["bf16"]["lost_at_peak_rate"] / 3 > 0.01


def test_the_lessons_positions_are_those_of_the_closed_forms():
    assert (uncached_positions(10, 100), cached_positions(10, 100)) == (5950, 109)
    assert (uncached_positions(10, 1000), cached_positions(10, 1000)) == (509_500, 1009)


def test_a_cache_holds_what_its_closed_form_says(pool):
    extras = work_of(pool, "decode", "cached", context=16).extras()
    assert extras["held_cache_bytes"] == 2 * DEBUG.layers * 16 * DEBUG.width * 4
    assert extras["cache_bytes"] == extras["held_cache_bytes"], "transformers' own cache grows with what it holds"


def test_a_storage_that_is_seen_twice_is_counted_once():
    kept = torch.zeros(100)

    class Holder:
        def __init__(self):
            self.parts = {"keys": [kept, kept[:50]], "other": (torch.zeros(25),)}
            self.again = self

    assert tensor_bytes(Holder()) == 500


@pytest.mark.parametrize("arm", ["naive", "looped", "flash", "sdpa-math"])
def test_attention_ran_as_its_arms_claim(pool, arm):
    seen = witness(work_of(pool, "attention", arm, tokens=64).call)
    claims = arm_specs()[arm].claims
    assert refusal(seen, claims=claims) is None
    other = "formula" if claims["attention"] != "formula" else "flash"
    assert refusal(seen, claims={"attention": other}) is not None


def test_an_arm_of_another_device_is_missing_by_name(pool):
    with pytest.raises(MissingResource, match=r"fp16.*exists on cuda, and this is cpu"):
        pool.who(arm_specs()["fp16"])


def test_a_subject_without_a_choice_of_caches_says_how_to_offer_one(pool):
    with pytest.raises(MissingAbility, match="growing=True"):
        work_of(pool, "decode", "growing", context=12).prepare()


# Under declared deviations.


def deviation(what):
    return Deviation(what=what, checks=(), reason="on purpose", file="mine.deviations.toml", line=1)


def untied(module):
    module.lm_head.weight = nn.Parameter(module.lm_head.weight.detach().clone())


def test_a_peer_that_computes_plain_gpt2_is_left_out_by_name():
    pool = ModelPool(HuggingFace("sdpa"), DEBUG, deviations=[deviation("exact-gelu")])
    with pytest.raises(MissingResource, match=r"hf-sdpa .* computes GPT-2 without what is declared: exact GELU"):
        pool.who(arm_specs()["hf-sdpa"])


def test_a_declaration_that_changes_no_model_leaves_the_peers_in():
    by_checks = Deviation(what="", checks=("training::*",), reason="r", file="mine.deviations.toml", line=1)
    assert ModelPool(HuggingFace("sdpa"), DEBUG, deviations=[by_checks]).who(arm_specs()["hf-sdpa"])


@pytest.mark.parametrize(("change", "verdict"), [(untied, "pass"), (exact_gelu, "fail")])
def test_a_build_has_the_parameters_that_the_declaration_makes(change, verdict):
    subject = wrong(change).subject
    pool = ModelPool(subject, DEBUG, deviations=[deviation("untied-head")])
    judge = work_kinds()["build"].judge(pool, "subject", {"subject": arm_specs()["subject"]})
    counted = sum(parameter.numel() for parameter in subject.build(DEBUG).module.parameters())
    assert judge("subject", Work(call=lambda: None, answer=lambda: counted, tokens=0)).verdict == verdict


# The measure that a verification has of the arms.


def error_of(subject, **asked):
    return arm_error(subject, size="debug", **asked).value


def test_the_error_of_a_right_arm_is_within_what_rounding_allows():
    found = error_of(HuggingFace("sdpa"), work="forward", control="fp32", arm="bf16")
    assert 0 < found["fp32"] <= 1
    assert 0 < found["bf16"] <= 1


def test_the_error_of_a_wrong_gelu_is_beyond_what_rounding_allows():
    found = error_of(wrong(exact_gelu).subject, work="forward", control="fp32", arm="bf16")
    assert found["fp32"] > 10, found


def test_a_cache_that_is_not_used_is_all_wrong():
    class Uncached(HuggingFace):
        def generate(self, *args, use_cache, **options):
            return super().generate(*args, use_cache=False, **options)

    found = error_of(Uncached("sdpa"), work="generate", control="uncached", arm="cached")
    assert found["cached"] == math.inf
    assert found["uncached"] <= 1


# Under the ceilings.


def test_little_work_is_not_held_under_the_bandwidth_of_memory():
    ceilings = ArmCeilings("cpu", DEBUG)
    small = Work(call=lambda: None, answer=lambda: None, tokens=1, flops=1e6, moved_bytes=1e6)
    names = ceilings.build([small])
    assert not [name for name in names if name.startswith("read")]
    large = Work(call=lambda: None, answer=lambda: None, tokens=1, flops=1e6, moved_bytes=200 * 2**20)
    again = ceilings.build([large])
    assert "read 256 MiB" in again
    assert all(again[name] is work for name, work in names.items()), "what stands is not built anew"


def test_an_arm_is_placed_by_what_bounds_it():
    ceilings = ArmCeilings("cpu", DEBUG)
    moving = Work(call=lambda: None, answer=lambda: None, tokens=1, flops=1.0, moved_bytes=128 * 2**20)
    names = ceilings.build([moving])
    seconds = {name: [1e-2] * 6 for name in names}
    found = ceilings.under(moving, [2e-2] * 6, seconds)
    assert (found["regime"], found["name"]) == ("bandwidth", "read 128 MiB")
    assert found["fraction"] == pytest.approx(0.5)
    assert not found["impossible"]
    assert ceilings.under(moving, [0.5e-2] * 6, seconds)["impossible"]


# The declarations.


def test_every_comparison_of_the_project_is_read_and_has_arms_that_exist():
    declared = read_comparisons(ROOT / "benchmarks")
    assert {d.suite for d in declared} == {
        *("attention", "compile", "generation", "peers", "precision", "startup", "training"),
    }
    for one in declared:
        assert one.arms[0] == one.control
        assert all(isinstance(arm_specs()[arm], ArmSpec) for arm in one.arms)
        assert one.work in work_kinds()


HEAD = '[suite]\ntitle = "t"\nabout = "a"\n'
GOOD = 'name = "n"\nwork = "forward"\narms = ["fp32"]\naxis = "tokens"\npoints = [8]\nwhy = "w"\n'


@pytest.mark.parametrize(
    ("line", "becomes", "told"),
    [
        ('work = "forward"', 'work = "foward"', "unknown work 'foward'; did you mean 'forward'"),
        ('["fp32"]', '["fp23"]', "unknown arm 'fp23'; did you mean 'fp32'"),
        ('axis = "tokens"', 'axis = "token"', "unknown parameter of forward 'token'; did you mean 'tokens'"),
        ("points = [8]", "points = []", "expected counts along tokens"),
        ("points = [8]", 'points = ["8"]', "expected counts along tokens"),
        ('why = "w"', 'why = ""', "needs a why"),
        ('name = "n"', 'name = "n"\nwieght = 2', "unknown key 'wieght'; did you mean 'weight'"),
        ('arms = ["fp32"]', "arms = []", "arms: expected a list"),
    ],
)
def test_what_is_not_understood_is_an_error_with_its_line(tmp_path, line, becomes, told):
    path = tmp_path / "mine.toml"
    path.write_text(f"{HEAD}\n[[comparison]]\n{GOOD.replace(line, becomes)}")
    with pytest.raises(SuiteError, match=r"mine\.toml:5: ") as caught:
        read_file(path)
    assert told in str(caught.value)


def test_a_comparison_in_single_brackets_is_an_error_with_its_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(f"{HEAD}\n[comparison]\n{GOOD}")
    with pytest.raises(SuiteError, match=r"mine\.toml:1: .*\[\[comparison\]\]"):
        read_file(path)


def test_no_points_with_quick_leave_a_comparison_out():
    """An empty list became the whole context once: the longest point of all, with --quick."""
    declared = {d.label: d for d in read_comparisons(ROOT / "benchmarks")}
    assert declared["training backward"].fitting(DEBUG, quick=True) == ()
    assert declared["peers generate"].fitting(DEBUG, quick=True) == ()


def test_a_point_beyond_the_context_becomes_the_longest_that_fits():
    declared = {d.label: d for d in read_comparisons(ROOT / "benchmarks")}
    assert declared["peers forward"].fitting(DEBUG, quick=False) == (DEBUG.context,)
    assert declared["attention forward"].fitting(DEBUG, quick=False)[-1] == 4096, "attention alone has no context"
    assert max(declared["generation decode"].fitting(DEBUG, quick=False)) <= DEBUG.context - 8


# What figures come to together.


def rows(exponent, *, closed=2.0, high=0.45):
    found = []
    for point in (128, 256, 512, 1024):
        arm = {
            "arm": "naive", "seconds": [1e-6 * point**2.0] * 6, "flops": point**2.0,
            "peak_memory_bytes": point**exponent, "ledgers": {"closed form": point**closed},
        }  # fmt: skip
        ratio = {"arm": "flash", "ratio": 0.4, "low": 0.3, "high": high}
        found.append({"point": point, "arms": [arm, {**arm, "arm": "flash"}], "ratios": [ratio]})
    return found


def test_an_exponent_is_held_to_that_of_the_closed_form():
    declared = next(d for d in read_comparisons(ROOT / "benchmarks") if d.label == "attention forward")
    held = {row["what"]: row for row in holding(declared, rows(2.0))}
    assert held["exponent of memory over tokens"]["verdict"] == "pass"
    assert held["exponent of memory over tokens"]["found"] == pytest.approx(2.0)
    assert held["exponent of time over tokens"]["verdict"] == "pass"
    held = {row["what"]: row for row in holding(declared, rows(1.0))}
    assert held["exponent of memory over tokens"]["verdict"] == "fail"


def test_memory_and_ratios_are_held_to_what_was_declared():
    declared = next(d for d in read_comparisons(ROOT / "benchmarks") if d.label == "attention forward")

    def held(rows):
        return {(row["arm"], row["what"].split()[0]): row for row in holding(declared, rows)}

    right = held(rows(2.0))
    assert right["naive", "peak"]["verdict"] == "pass"
    assert right["flash", "time"]["verdict"] == "pass"
    assert held(rows(2.0, closed=2.01))["naive", "peak"]["verdict"] == "fail"
    assert held(rows(2.0, high=0.6))["flash", "time"]["verdict"] == "unresolved"


def test_utilisation_and_break_even_come_from_the_row():
    arm = {"median_seconds": 2.0, "computes": "float32"}
    row = {
        "control": "eager",
        "ceilings": [{"name": "gemm float32 c_fc", "computes": "float32", "rate": 100.0}],
        "arms": [
            {"arm": "eager", **arm, "extras": {"model_flops": 50.0}},
            {"arm": "compiled", **arm, "median_seconds": 1.5, "extras": {"first_call_seconds": 10.0}},
            {"arm": "slower", **arm, "median_seconds": 2.5, "extras": {"first_call_seconds": 10.0}},
        ],
    }
    derived(row)
    assert row["arms"][0]["extras"]["mfu"] == pytest.approx(0.25)
    assert row["arms"][1]["extras"]["break_even_calls"] == 20
    assert "break_even_calls" not in row["arms"][2]["extras"]


def test_float32s_bound_grows_with_the_depth():
    assert float32_bound(SIZES["124M"]) > float32_bound(DEBUG)
    assert math.isfinite(float32_bound(DEBUG))
