"""The shipped ledger: quick claims are found as it says, and a wrong figure or a wrong finding turns each red."""

import dataclasses

import pytest

from harness.core import resources
from harness.judging.run_check import run
from harness.judging.runner import make_runner
from harness.oracle.deviations import read as read_deviations
from harness.subjects.adapters import adapt
from harness.suites.claim import FINDINGS
from harness.tests.oracle.declared_examples import write
from harness.tests.oracle.test_deviations import CHANGES

# Of the claims that are measured here, those that take less than a second together with the others.
QUICK = (
    "parameters", "parameters-untied", "tying-saves", "looped-equals-batched", "looped-equals-batched-in-gradients",
    "uniform-guess", "tokens-of-a-sentence", "examples-of-a-sentence", "clipped-to-one",
    "clipping-keeps-the-direction", "bfloat16-exponent", "bfloat16-mantissa", "one-plus-a-little-in-bfloat16",
    "one-plus-a-little-in-float16", "one-plus-a-little-in-float32", "updates-lost-without-masters",
    "updates-lost-at-a-small-rate", "no-updates-lost-with-masters", "positions-uncached", "positions-cached",
    "cache-saves-55x", "flash-equals-naive", "transfers-of-an-addition", "operations-of-a-product",
    "transfers-of-a-product", "chinchilla-and-gopher", "doubling-compute", "halving-the-loss", "conv1d-orientation",
    "four-matrices-transposed", "a-square-matrix-fails-silently", "entries-of-the-state-dict", "distinct-parameters",
    "tying-in-action",
)  # fmt: skip
# Claims of which "allclose" is the figure: there is no number to state wrongly.
ALLCLOSE = ("looped-equals-batched", "looped-equals-batched-in-gradients", "flash-equals-naive")
DECIDING = {"holds": "claimed", "holds with a correction": "corrected"}


@pytest.fixture(scope="module")
def subject():
    """Return the reference."""
    return adapt("gpt:GPT", own=False)


def altered(check, **changes):
    """Return the check of the claim with changes."""
    claim = dataclasses.replace(check.claim, **changes)
    return dataclasses.replace(check, claim=claim, expected=claim.expected)


def wrong_figure(expected):
    """Return the expectation with another figure than the measured one."""
    ((kind, value),) = expected.items()
    if kind == "close_to":
        return {kind: {**value, "value": 3 * value["value"]}}
    if kind == "between":
        return {kind: [end + 10 for end in value]}
    if kind in ("at_most", "at_least"):
        return {kind: -1.0 if kind == "at_most" else 1e9}
    return {kind: f"{value}?" if isinstance(value, str) else value + 1}


@pytest.mark.parametrize("name", QUICK)
def test_a_claim_is_found_as_the_ledger_says_and_not_with_another_figure_or_another_finding(shipped, subject, name):
    check = shipped[f"claims::{name}"]
    record = run(check, subject)
    if record.verdict == "skip":
        pytest.skip(record.message)
    assert (record.verdict, record.value) == ("pass", check.claim.finding)
    other = next(finding for finding in FINDINGS if finding != check.claim.finding)
    assert run(altered(check, finding=other), subject).verdict == "fail"
    if name not in ALLCLOSE:
        key = DECIDING[check.claim.finding]
        assert run(altered(check, **{key: wrong_figure(getattr(check.claim, key))}), subject).verdict == "fail"


def test_every_claim_has_a_lesson_words_and_a_finding_and_is_in_no_kill_matrix(shipped):
    from harness.faults.matrix import SUITES_NOT_RUN

    claims = [check for check in shipped.values() if check.suite == "claims"]
    assert all(check.claim is not None for check in claims)
    assert len(claims) > 45
    assert "claims" in SUITES_NOT_RUN
    assert {check.claim.lesson for check in claims} == {"building", "pretraining", "scaling", "weights"}


def test_the_ledger_says_what_the_lessons_got_wrong(shipped):
    """The corrections that readers look for."""
    findings = {check.name: check.claim.finding for check in shipped.values() if check.suite == "claims"}
    assert findings["initial-loss"] == "holds with a correction"
    assert findings["growth-with-default-init"] == "holds for another setting"
    assert findings["positions-uncached"] == "holds with a correction"
    assert findings["logits-allclose-when-they-are-large"] == "does not hold"


class Changed:
    """The reference with some of its methods replaced: `Changed(subject, build=...)`."""

    def __init__(self, subject, **methods):
        self._subject = subject
        self.__dict__.update(methods)

    def __getattr__(self, name):
        return getattr(self._subject, name)


def test_a_generation_that_ignores_its_cache_saves_nothing(shipped, subject):
    def generate(model, ids, new_tokens, *, use_cache=None, **options):
        return subject.generate(model, ids, new_tokens, use_cache=False, **options)

    wrong = Changed(subject, generate=generate)
    assert run(shipped["claims::cache-saves-55x"], wrong).value == "does not hold"
    assert run(shipped["claims::positions-cached"], wrong).verdict == "fail"
    assert run(shipped["claims::positions-uncached"], wrong).verdict == "pass"


def test_a_generation_whose_calls_cannot_be_seen_is_a_skip(shipped, subject):
    def generate(model, ids, new_tokens, **options):
        return subject.generate(model, ids, 1, **options)

    record = run(shipped["claims::positions-cached"], Changed(subject, generate=generate))
    assert record.verdict == "skip"
    assert record.message.endswith(
        "cannot be counted: its generation of 100 tokens calls the model 1 times from outside"
    )


def test_a_subject_that_never_ties_saves_nothing_by_tying(shipped, subject):
    def build(size, *, tied=True, **options):
        return subject.build(size, tied=False, **options)

    wrong = Changed(subject, build=build)
    assert run(shipped["claims::tying-saves"], wrong).value == "does not hold"
    assert run(shipped["claims::parameters"], wrong).verdict == "fail"


def test_a_cache_in_another_type_has_other_bytes(subject):
    from harness.bench.costs import cache_bytes
    from harness.core.sizes import SIZES
    from harness.measures.claims.memory import cache_allocation

    model = subject.build(SIZES["debug"])
    wide = Changed(subject, new_cache=lambda _, rows: subject.new_cache(model, rows), step=subject.step)
    right = cache_bytes(SIZES["debug"], tokens=SIZES["debug"].context, batch=3)
    assert cache_allocation(subject, size="debug", rows=3).value == right
    assert cache_allocation(wide, size="debug", rows=3).value == 2 * right


def test_another_initialisation_moves_the_first_loss_the_projections_and_the_stream(subject):
    from harness.core.sizes import SIZES
    from harness.measures.claims.start import effect_of_residual_scaling, first_loss, residual_projection_std
    from harness.oracle.closed_forms import initial_loss

    unscaled = Changed(subject, build=lambda size, **o: subject.build(size, **{**o, "init": "unscaled"}))
    wide = Changed(subject, build=lambda size, **o: subject.build(size, **{**o, "init": "pytorch"}))
    stds = [
        next(iter(residual_projection_std(each, size="debug").value.values())) for each in (subject, unscaled, wide)
    ]
    assert stds[0] == pytest.approx(0.02 / 6**0.5, rel=0.05)
    assert stds[1] == pytest.approx(0.02, rel=0.05)
    losses = [first_loss(each, size="debug", length=32).value for each in (subject, unscaled, wide)]
    assert losses[0] == pytest.approx(initial_loss(SIZES["debug"]), abs=0.05)
    assert losses[1] == pytest.approx(losses[0], abs=0.05), "the first loss is blind to the residual scaling"
    assert losses[2] > losses[0] + 1
    # Both recipes are the same one, so nothing is found where the reference shows a difference.
    assert effect_of_residual_scaling(unscaled, size="debug").value["residual stream"] == pytest.approx(1.0)
    assert effect_of_residual_scaling(subject, size="debug").value["residual stream"] != pytest.approx(1.0, rel=1e-3)


def test_logits_that_are_off_need_a_larger_tolerance(subject):
    from harness.measures.claims.checkpoint import tolerance_needed

    def build(size, **options):
        model = subject.build(size, **options)
        calling = model.calling
        model.calling = lambda module, ids, targets: (calling(module, ids, None)[0] + 1e-3, None)
        return model

    assert tolerance_needed(subject, size="debug", weights="standard").value < 1e-5
    wrong = tolerance_needed(Changed(subject, build=build), size="debug", weights="standard").value
    assert wrong == pytest.approx(1e-3, rel=0.1)


def test_tiles_of_the_online_softmax_and_the_scores_have_the_closed_forms_bytes(subject):
    from harness.measures.claims.memory import attention_matrix, row_statistics

    assert attention_matrix(subject, tokens=256, heads=3).value == 256**2 * 3 * 2
    assert attention_matrix(subject, tokens=256, heads=3, dtype="float32").value == 256**2 * 3 * 4
    statistics = row_statistics(subject, tokens=256, heads=3)
    assert statistics.value == {"max and sum": 256 * 3 * 8, "logsumexp": 256 * 3 * 4}
    assert statistics.details["largest difference"] < 1e-6, "the tiles compute attention"


def test_the_examples_of_a_sentence_are_those_of_the_data_set(shipped, subject, monkeypatch):
    check = shipped["claims::examples-of-a-sentence"]
    record = run(check, subject)
    if record.verdict == "skip":
        pytest.skip(record.message)
    assert record.details["readings"][0]["details"]["targets"] == [3797, 3332, 319, 262, 2603]
    monkeypatch.setattr(resources, "WINDOWS_SOURCE", f"{__name__}:Unshifted")
    assert run(check, subject).value == "does not hold"


class Unshifted(list):
    """A data set that forgets the offset of one position: each token is its own target."""

    def __init__(self, tokens, length, *, every):
        super().__init__([(tokens, tokens)])


def test_a_subject_of_another_style_is_skipped_where_a_claim_is_about_linear_layers(shipped):
    styles = "harness.tests.subjects.styles"
    for style in ("conv1d:LMHead", "odd_layouts:HeadsApartGPT"):
        record = run(shipped["claims::a-square-matrix-fails-silently"], adapt(f"{styles}.{style}"))
        assert record.verdict == "skip"
        assert "one nn.Linear for each matrix" in record.message


def test_a_subject_that_declares_to_be_another_model_fails_the_claims_about_gpt2_as_declared(shipped, tmp_path):
    path = tmp_path / "d.toml"
    path.write_text("[[deviation]]\nwhat = 'untied-head'\nreason = 'on purpose'\n")
    runner = make_runner(write(tmp_path, (CHANGES["untied-head"],)), deviations=read_deviations(path))
    record = runner.run(shipped["claims::parameters"])
    assert (record.verdict, record.value, record.declared) == (
        "fail",
        "does not hold",
        "untied head: on purpose",
    )
