"""`pytest benchmarks/`: its judges refuse wrong arms, its rows are the measured times, its options do as they say."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import arms
from benchmarks.replay import CLOCK, UnverifiedError, refuse, replay
from benchmarks.show import peaks
from benchmarks.truth import Closeness, MatrixProducts, SameTokens, float32_bound, relative_error
from benchmarks.workshop import HuggingFace, Workshop
from harness.compare import Work
from harness.memory import peak_bytes
from harness.size import SIZES
from harness.tokens import batch

ROOT = Path(__file__).parents[2]
DEBUG = SIZES["debug"]
MIB = 2**20


# The judges.


def work(answer):
    return Work(call=lambda: None, answer=lambda: answer, tokens=1)


def closeness(truth, **options):
    return Closeness(lambda: work(truth), control="control", bound=1e-5, **options)


def test_an_arm_as_near_to_the_truth_as_the_control_passes_and_a_farther_one_fails():
    truth = torch.randn(2, 8, 50, dtype=torch.float64)
    judge = closeness(truth)
    assert judge("control", work(truth * (1 + 1e-6))).verdict == "pass"
    assert judge("arm", work(truth * (1 - 3e-6))).verdict == "pass"
    wrong = judge("arm", work(truth * (1 + 8e-4)))
    assert wrong.verdict == "fail"
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
    options = {"coarse": lambda: work(truth * 1.005), "dtypes": {"bf16": torch.bfloat16}}
    product = torch.ones(2, 2, dtype=torch.bfloat16)

    def computing(answer):
        return Work(call=lambda: None, answer=lambda: (product @ product, answer)[1], tokens=1)

    judge = closeness(truth, **options)
    judge("control", work(truth))
    assert judge("bf16", computing(truth * 1.01)).verdict == "pass"
    assert judge("bf16", computing(truth * 1.03)).verdict == "fail"
    assert "no type" in judge("bf16", work(truth * 1.01)).message, "right, but not by a product in bf16"


def test_the_truth_is_computed_once_and_then_let_go():
    events = []

    def truth():
        events.append("truth")
        return work(torch.ones(1, 1, 1, dtype=torch.float64))

    judge = Closeness(truth, control="control", bound=1e-5, release=lambda: events.append("release"))
    judge("control", work(torch.ones(1, 1, 1)))
    judge("arm", work(torch.ones(1, 1, 1)))
    assert events == ["truth", "release"]


def generated(ids, logits, positions):
    return work(arms.Generated(torch.tensor([ids]), logits, positions))


def tokens_judge(logits):
    return SameTokens(lambda ids: work(logits), control="uncached", bound=1e-5, positions={"uncached": 7, "cached": 4})


def test_generation_is_judged_by_tokens_by_logits_and_by_the_positions_it_counted():
    truth = torch.randn(1, 4, 50, dtype=torch.float64)  # 3 of the prompt, 2 new: the last 2 rows chose them
    near = truth[:, -2:] * (1 + 1e-6)
    judge = tokens_judge(truth)
    found = judge("uncached", generated([1, 2, 3, 4, 5], near, 7))
    assert found.verdict == "pass"
    assert found.witness == {"positions": 7, "positions_closed_form": 7}
    assert judge("cached", generated([1, 2, 3, 4, 5], near, 4)).verdict == "pass"
    assert "token 4 differs" in judge("cached", generated([1, 2, 3, 4, 6], near, 4)).message
    assert "does not do what its name says" in judge("cached", generated([1, 2, 3, 4, 5], near, 7)).message
    assert judge("cached", generated([1, 2, 3, 4, 5], near * 1.001, 4)).verdict == "fail", "right tokens by luck"


def test_a_generation_that_cannot_be_watched_says_so():
    judge = tokens_judge(torch.zeros(1, 4, 50))
    message = judge("uncached", generated([1, 2, 3, 4, 5], None, None)).message
    assert "could not be seen" in message
    assert "could not be counted" in message


def test_the_relative_error_is_a_root_mean_square_over_any_number_of_rows():
    truth = torch.randn(3, 100, 7, dtype=torch.float64)
    noise = torch.randn_like(truth)
    expected = float(0.01 * noise.norm() / truth.norm())
    assert relative_error(truth + 0.01 * noise, truth) == pytest.approx(expected)


def test_matrix_products_are_counted_by_the_type_they_run_in():
    layer = nn.Linear(8, 8)
    with MatrixProducts() as products, torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(4, 8))
    assert products.share(torch.bfloat16) == 1.0
    with MatrixProducts() as products:
        layer(torch.randn(4, 8))
    assert products.share(torch.bfloat16) == 0.0


# The arms, on Hugging Face's GPT-2 at the debug size.


@pytest.fixture(scope="module")
def workshop():
    return Workshop(HuggingFace("sdpa"), DEBUG, "cpu")


def test_the_cached_steps_of_decoding_answer_as_one_pass_does(workshop):
    ids, _ = batch(DEBUG, "random", rows=2, length=30)
    step = arms.decode(workshop.subject, workshop.model(), ids, prompt=12)
    whole = arms.decoded_at_once(workshop.model(dtype="float64"), ids, prompt=12)
    assert relative_error(step.answer(), whole.answer()) < float32_bound(DEBUG)


def test_decoding_goes_on_at_the_end_of_the_sequence(workshop):
    ids, _ = batch(DEBUG, "random", rows=1, length=14)
    step = arms.decode(workshop.subject, workshop.model(), ids, prompt=12)
    step.prepare()
    for _ in range(5):
        assert step.call().shape == (1, 1, DEBUG.vocab_size)


def test_a_training_step_changes_the_weights_and_its_answer_begins_anew(workshop):
    ids, targets = batch(DEBUG, "random", rows=2, length=16)
    model = workshop.model()
    step = arms.training_step(workshop, model, ids, targets)
    before, first = arms.forward(model, ids).answer(), step.answer()
    assert relative_error(first, before.double()) > 1e-3
    for _ in range(3):
        step.call()
    assert torch.equal(step.answer(), first)
    assert all(parameter.grad is None for parameter in model.module.parameters())


def test_weights_rounded_to_bf16_are_values_that_bf16_holds(workshop):
    model = workshop.model(dtype="float64", stored_in=torch.bfloat16)
    assert all(torch.equal(p, p.bfloat16().double()) for p in model.module.parameters())


def test_twins_are_models_of_their_own_with_equal_weights(workshop):
    one, two = workshop.model(), workshop.model(copy=1)
    assert one is workshop.model()
    assert one.module is not two.module
    ids, _ = batch(DEBUG, "random", rows=1, length=8)
    assert torch.equal(one.logits(ids), two.logits(ids))


def test_eager_and_sdpa_pass_and_a_wrong_gelu_does_not(workshop):
    ids, _ = batch(DEBUG, "random", rows=1, length=32)
    eager = HuggingFace("eager")
    judge = Closeness(
        lambda: arms.forward(workshop.model(eager, dtype="float64"), ids), control="sdpa", bound=float32_bound(DEBUG)
    )
    assert judge("sdpa", arms.forward(workshop.model(), ids)).verdict == "pass"
    assert judge("eager", arms.forward(workshop.model(eager), ids)).verdict == "pass"
    wrong = workshop.model(copy=2)
    for block in wrong.module.transformer.h:
        block.mlp.act = nn.GELU()  # the exact form, where GPT-2 has the tanh
    assert judge("wrong", arms.forward(wrong, ids)).verdict == "fail"


def test_the_lessons_positions_are_those_of_the_closed_forms():
    assert (arms.uncached_positions(10, 100), arms.cached_positions(10, 100)) == (5950, 109)
    assert (arms.uncached_positions(10, 1000), arms.cached_positions(10, 1000)) == (509_500, 1009)


@pytest.mark.parametrize("tokens", [64, 200, 1024])
@pytest.mark.parametrize("kind", ["naive", "flash"])
def test_attentions_closed_form_is_the_allocators_figure(kind, tokens):
    sizes = {"tokens": tokens, "heads": 12, "head_width": 64}
    counted = peak_bytes(arms.attention_call(kind, **sizes, dtype="float32", device="cpu"))["profiler"]
    expected = arms.attention_bytes(kind, **sizes, threads=torch.get_num_threads())
    assert counted == pytest.approx(expected, rel=0.01)


def test_ledgers_that_disagree_are_shown_side_by_side():
    assert peaks({"profiler": 99 * MIB, "closed form": 99 * MIB, "child process": 98 * MIB}) == "peak 99.00 MiB"
    told = peaks({"profiler": 99 * MIB, "closed form": 50 * MIB})
    assert told == "peak 99.00 MiB (closed form says 50.00)"


# Replaying.


class FakeBenchmark:
    """Does with a target what pytest-benchmark's pedantic mode does."""

    def __init__(self):
        self.rounds, self.extra_info, self.has_error = [], {}, False

    def pedantic(self, target, setup=lambda: None, rounds=1, iterations=1):
        for _ in range(rounds):
            setup()
            start = CLOCK()
            target()
            self.rounds.append(CLOCK() - start)


def test_a_replayed_round_lasts_exactly_what_was_measured():
    seconds = [0.1, 0.2, 0.3, 1e-7, 1e3]
    benchmark = FakeBenchmark()
    replay(benchmark, seconds, {"tokens_per_second": 3.0})
    assert benchmark.rounds == seconds
    assert benchmark.extra_info == {"tokens_per_second": 3.0}


def test_a_refused_arm_leaves_no_round():
    benchmark = FakeBenchmark()
    with pytest.raises(UnverifiedError, match="wrong"):
        refuse(benchmark, "wrong")
    assert benchmark.rounds == []


# The whole, at the debug size.


@pytest.fixture
def run_benchmarks(pytester):
    """`pytest benchmarks/...` at the debug size, inside this process; gives the exit status and what was printed."""

    def run(*arguments):
        arguments = [str(ROOT / word) if str(word).startswith("benchmarks/") else word for word in arguments]
        result = pytester.runpytest_inprocess(
            *("-p", "no:cacheprovider", "--size", "debug", "--quick", "--budget", "1"),
            *("--reports", "reports", "--benchmark-storage", "storage", "-c", ROOT / "pyproject.toml"),
            *arguments,
            no_reraise_ctrlc=True,
        )
        return result.ret, result.stdout.str() + result.stderr.str()

    return run


def records(folder):
    rows = []
    for path in sorted((folder / "reports" / "records").glob("bench-*.jsonl")):
        rows += map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return rows


def comparisons(folder):
    return {(row["comparison"], row["metric"]): row for row in records(folder) if row["kind"] == "comparison"}


def test_rows_are_the_recorded_block_minima_and_can_be_saved_and_compared(run_benchmarks, pytester):
    status, told = run_benchmarks(
        *("benchmarks/test_precision.py", "-k", "decode", "--benchmark-autosave", "--benchmark-json=out.json")
    )
    assert status == 0, told
    recorded = {arm["arm"]: arm for arm in comparisons(pytester.path)["precision", "decode"]["arms"]}
    assert set(recorded) == {"fp32", "bf16", "bf16-autocast", "fp32-again"}
    saved = json.loads((pytester.path / "out.json").read_text())["benchmarks"]
    assert {row["params"]["arm"] for row in saved} == set(recorded)
    for row in saved:
        arm = recorded[row["params"]["arm"]]
        assert row["stats"]["data"] == arm["seconds"], "to the last bit"
        assert row["stats"]["median"] == arm["median_seconds"]
        assert row["extra_info"]["tokens_per_second"] == arm["tokens_per_second"]
        assert row["extra_info"]["verified"] == arm["verified"]["message"]
    assert len(list((pytester.path / "storage").rglob("*.json"))) == 1

    # The second run asks for one arm: its control and, for want of another A/A pair, its twin are measured with it.
    status, told = run_benchmarks(
        *("benchmarks/test_precision.py", "-k", "decode and bf16 and not autocast", "--benchmark-compare")
    )
    assert status == 0, told
    assert "NOW" in told
    assert "1 pairs of identical arms" in told
    measured = comparisons(pytester.path)["precision", "decode"]["arms"]
    assert [arm["arm"] for arm in measured] == ["fp32", "bf16", "fp32-again"]


WRONG = '''
from gpt import GPT, GPTConfig

class Wrong(GPT):
    """Flash attention scales its scores otherwise, bf16 is computed in float32, and the cache is never used."""

    def __init__(self, config: GPTConfig, *, seed=None, device=None):
        super().__init__(config, seed=seed, device=device)
        for block in self.transformer["h"]:
            right = block.attn.attend_flash
            block.attn.attend_flash = lambda q, k, v, right=right: right(1.1 * q, k, v)

    def to(self, dtype):
        return self if str(dtype) == "torch.bfloat16" else super().to(dtype)

    def generate(self, idx, max_new_tokens, *, temperature=1.0, use_cache=True):
        return super().generate(idx, max_new_tokens, temperature=temperature, use_cache=False)
'''


def test_wrong_arms_turn_red_and_have_no_time_anywhere(run_benchmarks, pytester):
    subject = pytester.makepyfile(mine=WRONG)
    status, told = run_benchmarks(
        *("benchmarks/", "--subject", f"{subject}:Wrong", "--benchmark-json=out.json"),
        *("-k", "test_model or generate or (precision and decode and not autocast)"),
    )
    assert status == 1, told
    found = comparisons(pytester.path)
    for comparison, metric, arm, why in (
        ("attention", "model forward", "flash", "is rounding"),
        ("precision", "decode", "bf16", "its matrix products ran in float32"),
        ("generation", "generate", "cached", "does not do what its name says"),
    ):
        row = next(row for row in found[comparison, metric]["arms"] if row["arm"] == arm)
        assert row["verified"]["verdict"] == "fail"
        assert why in row["verified"]["message"]
        assert row["seconds"] is row["median_seconds"] is row["tokens_per_second"] is None
    shown = {row["params"]["arm"] for row in json.loads((pytester.path / "out.json").read_text())["benchmarks"]}
    assert shown == {"naive", "fp32", "fp32-again", "uncached"}
    assert told.count("unverified, so no time is shown") >= 3


def test_under_xdist_every_arm_is_skipped_with_the_reason(run_benchmarks, pytester):
    pytest.importorskip("xdist")
    status, told = run_benchmarks("benchmarks/test_generation.py", "-n", "1", "-rs")
    assert status == 0, told
    assert "off under xdist" in told
    assert not records(pytester.path)


def test_with_benchmarking_switched_off_nothing_is_measured(run_benchmarks, pytester):
    status, told = run_benchmarks("benchmarks/test_generation.py", "--benchmark-disable", "-rs")
    assert status == 0, told
    assert "--benchmark-disable" in told
    assert not records(pytester.path)


INTERRUPTED = '''
from gpt import GPT, GPTConfig

class Interrupted(GPT):
    """As if Ctrl-C was pressed during the second comparison."""

    def __init__(self, config: GPTConfig, *, seed=None, device=None):
        super().__init__(config, seed=seed, device=device)

    def generate(self, idx, max_new_tokens, *, temperature=1.0, use_cache=True):
        raise KeyboardInterrupt
'''


def test_ctrl_c_keeps_the_comparisons_that_are_done(run_benchmarks, pytester):
    subject = pytester.makepyfile(mine=INTERRUPTED)
    status, told = run_benchmarks(
        *("benchmarks/test_attention.py", "benchmarks/test_generation.py"),
        *("--subject", f"{subject}:Interrupted", "-k", "test_model or generate"),
    )
    assert status == pytest.ExitCode.INTERRUPTED, told
    assert set(comparisons(pytester.path)) == {("attention", "model forward")}
    assert records(pytester.path)[-1]["complete"] is False


def test_a_subject_without_an_ability_is_a_skip_that_names_it(run_benchmarks, pytester):
    subject = pytester.makepyfile(
        mine="""
        from gpt import GPT, GPTConfig

        class Silent(GPT):
            generate = None

            def __init__(self, config: GPTConfig, *, seed=None, device=None):
                super().__init__(config, seed=seed, device=device)
        """
    )
    status, told = run_benchmarks("benchmarks/test_generation.py", "--subject", f"{subject}:Silent", "-rs")
    assert status == 0, told
    assert "has no ability 'Generates'" in told


@pytest.mark.parametrize(
    ("option", "told"),
    [
        (("--budget", "-3"), "argument --budget"),
        (("--device", "toaster"), "--device toaster"),
        (("--size", "125M"), "invalid choice"),
    ],
)
def test_a_wrong_option_is_one_clear_line(run_benchmarks, option, told):
    status, output = run_benchmarks("benchmarks/", "--collect-only", *option)
    assert status == pytest.ExitCode.USAGE_ERROR
    assert told in output
    assert "Traceback" not in output
