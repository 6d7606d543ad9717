"""Every suite rejects a wrong GPT, by the check that is there for it, and names the first place that is wrong."""

import pytest

from harness.adapters import adapt
from harness.run import run

WRONG = "harness.tests.wrong_gpts:"
# (the wrong GPT, the check that must reject it, the first place that it must name or a word of its message)
REJECTED = [
    ("UntiedHead", "structure::parameter-count,size=debug,tied=true", "an untied head"),
    ("UntiedHead", "structure::head-is-tied,size=debug,after=construction", "2 storages"),
    ("TieLostOnLoad", "structure::head-is-tied,size=debug,after=load_state_dict", "2 storages"),
    ("BlocksInAList", "structure::parameter-count,size=debug,tied=true", "plain list"),
    ("BlocksInAList", "structure::nothing-left-behind", "hidden"),
    ("MaskInAnAttribute", "structure::nothing-left-behind", "my_mask"),
    ("MaskAsParameter", "structure::buffers-do-not-train", "attn.bias"),
    ("MaskAsParameter", "structure::parameter-count,size=debug,tied=true", "masks registered as parameters"),
    ("ExtraNormInTheMiddle", "structure::published-names,size=debug", "extra"),
    ("AnswersAnyLength", "structure::too-long-is-refused", "error"),
    ("DropoutInEval", "structure::evaluation-changes-nothing", "the answer, run twice"),
    ("OneTokenShort", "structure::boundary-shapes,size=debug", "(2, 24, 210)"),
    ("ResidualUnscaled", "initialisation::weight-std,size=debug", "attn.c_proj.weight"),
    ("ResidualUnscaled", "initialisation::activation-std,recipe=gpt2,stream=normal", "block 0"),
    ("BiasAtDefault", "initialisation::vectors-start-neutral,size=debug", "attn.c_attn.bias"),
    ("LayersCopied", "initialisation::layers-start-different,size=debug", "attn.c_attn.weight"),
    ("EmbeddingTooLarge", "initialisation::initial-loss,size=debug,length=32", "nats"),
    ("MaskOffByOne", "attention::no-future-leak,weights=probe", "block 0"),
    ("MaskOffByOne", "attention::no-derivative-by-the-future", "position 0"),
    ("FlashForgetsTheMask", "attention::naive-equals-flash,size=debug,compare=outputs", "block 0"),
    ("FlashForgetsTheMask", "attention::naive-equals-flash,size=debug,compare=gradients", "transformer.ln_f.weight"),
    ("MaskTransposed", "attention::every-past-position-counts", "position 1"),
    ("SeesOnlyFourBack", "attention::every-past-position-counts", "position"),
    ("MaskAfterSoftmax", "attention::attention-rows-sum-to-one", "block 0"),
    ("RowsMix", "attention::rows-do-not-mix", "block 1"),
    ("PositionsCountDown", "attention::prefix-is-independent-of-length", "embedding"),
    ("ExactGelu", "parity::debug,weights=probe,compare=logits", "logits"),
    ("ExactGelu", "parity::debug,weights=probe,compare=blocks", "block 0"),
    ("EpsilonOfBert", "parity::debug,weights=probe,compare=blocks", "block 1"),
    ("NormShared", "parity::debug,weights=probe,compare=blocks", "block 1"),
    ("SkipDetached", "parity::debug,weights=probe,compare=gradients", "transformer.h.1.mlp.c_proj.bias"),
    ("NormInHalf", "parity::half-precision,size=debug,weights=probe,tokens=random", "Hugging Face's error"),
    ("Babbles", "parity::debug,weights=probe,compare=logits", "logits"),
    ("MaskOffByOne", "parity::greedy-tokens,size=debug,prompt_length=8,new_tokens=24", "tokens"),
    ("LoaderForgetsToTranspose", "loading::loaded-model-has-parity,layout=saved", "block 1"),
    ("LoaderRoundsToHalf", "loading::checkpoint-round-trip,size=debug", "tensors changed on the way back"),
    ("LoaderTakesAnything", "loading::damaged-checkpoint-is-rejected,damage=truncated", "loaded"),
    ("LoaderTakesAnything", "loading::damaged-checkpoint-is-rejected,damage=pickle only", "loaded"),
    ("CachePositionOffByOne", "generation::cached-logits,size=debug,chunks=1+1+1+1+1+1+1+1", "position 1"),
    ("CacheMaskTopLeft", "generation::cached-logits,size=debug,chunks=5+1+3+1+1+8+1", "position 5"),
    ("CacheWrongPastTheContext", "generation::cached-tokens,size=debug,prompt_length=5,new_tokens=45", "position 32"),
    (
        "KeepsTheFirstTokens",
        "generation::greedy-by-definition,size=debug,prompt_length=30,new_tokens=12",
        "position 33",
    ),
    ("TopKPlusOne", "generation::sampling-support,top_k=5", "draws"),
    ("TemperatureTwice", "generation::sampling-distribution,temperature=2.0", "e-"),
    ("NucleusWithoutItsEdge", "generation::sampling-distribution,top_k=20,top_p=0.8,temperature=1.5", ""),
    ("SeedIgnored", "generation::seed-decides", "same seed, same tokens"),
    ("NewNumbersForNobody", "generation::sampling-distribution,temperature=1.0", "step 1"),
    ("FiltersTheFirstTokenOnly", "generation::sampling-support,top_k=5", "step 1"),
    ("GeneratesInTrainingMode", "generation::generation-changes-nothing", "the answer in training mode"),
    ("CacheKeptBetweenPrompts", "generation::cached-logits,size=debug,chunks=1+1+1+1+1+1+1+1", "position 0"),
    ("MaskOnlyInEval", "structure::training-mode-differs-by-dropout-alone", "loss"),
    ("ResidualDropoutForgotten", "structure::dropout-is-at-every-site", "-3 sites"),
    ("LossLeavesOutTokenZero", "parity::debug,weights=probe,compare=loss", "loss"),
    ("LastPositionRepeated", "parity::debug-whole-context,compare=blocks", "embedding"),
    ("MaskOfMinusFifty", "attention::no-future-leak,weights=extreme", "block 0"),
    ("LeavesEvalModeOn", "generation::generation-changes-nothing", "the training flag"),
]


@pytest.mark.parametrize(("wrong", "check", "told"), REJECTED, ids=lambda value: str(value).replace("[", "("))
def test_the_check_rejects_the_wrong_gpt_and_says_where(shipped, wrong, check, told):
    record = run(shipped[check], adapt(WRONG + wrong))
    assert record.verdict in ("fail", "error"), f"{wrong} passed {check}: {record.value}"
    assert told in f"{record.message} {record.where} {record.details.get('hint', '')}"
    if record.where and told in record.where:
        assert record.where[0] == told, "the first place in execution order comes first"


def test_every_suite_that_needs_no_weights_rejects_a_wrong_gpt(shipped):
    suites = {name.split("::")[0] for name in shipped} - {"pretrained"}
    assert suites == {check.split("::")[0] for _, check, _ in REJECTED}


NAN_MUST_NOT_PASS = [
    "attention::no-future-leak,weights=probe",
    "attention::prefix-is-independent-of-length",
    "attention::rows-do-not-mix",
    "generation::greedy-by-definition,size=debug,prompt_length=5,new_tokens=20",
    "structure::training-mode-differs-by-dropout-alone",
]


@pytest.mark.parametrize("check", NAN_MUST_NOT_PASS)
def test_a_model_that_answers_nan_passes_no_comparison(shipped, check):
    """`max(0.0, nan)` is 0.0, and once let a model of NaN through the causality checks."""
    assert run(shipped[check], adapt(WRONG + "Babbles")).verdict in ("fail", "error")


# What the fault leaves alone: a check that turned red for any difference at all would localise nothing.
LEFT_ALONE = [
    ("ExactGelu", "attention::no-future-leak,weights=probe"),
    ("EpsilonOfBert", "structure::parameter-count,size=debug,tied=true"),
    ("MaskOffByOne", "attention::rows-do-not-mix"),
    ("SkipDetached", "parity::debug,weights=probe,compare=blocks"),
    ("ResidualUnscaled", "parity::debug,weights=probe,compare=logits"),
    ("ResidualUnscaled", "initialisation::initial-loss,size=debug,length=32"),
    ("TopKPlusOne", "generation::cached-logits,size=debug,chunks=1+1+1+1+1+1+1+1"),
    ("CachePositionOffByOne", "generation::seed-decides"),
]


@pytest.mark.parametrize(("wrong", "check"), LEFT_ALONE)
def test_a_fault_fails_only_the_checks_that_it_concerns(shipped, wrong, check):
    assert run(shipped[check], adapt(WRONG + wrong)).verdict == "pass"


@pytest.mark.parametrize("control", ["MaskFilledWithTheLeast", "MaskedAndRenormalised"])
def test_an_equivalent_program_raises_no_alarm(shipped, control):
    subject = adapt(WRONG + control)
    checks = [
        check
        for name, check in shipped.items()
        if check.suite in ("attention", "parity") and check.parameters["size"] == "debug" and "looped" not in name
    ]
    alarms = [record.message for check in checks if (record := run(check, subject)).verdict != "pass"]
    assert len(checks) > 12
    assert not alarms


def test_a_dropped_bias_is_invisible_at_the_standard_start_and_plain_under_probe_weights(shipped):
    """The reason for probe weights, measured: see "Why ordinary checks miss bugs" in CONTRIBUTING.md."""
    subject = adapt(WRONG + "NormShared")
    assert run(shipped["parity::debug,weights=standard,compare=logits"], subject).verdict == "pass"
    assert run(shipped["parity::debug,weights=probe,compare=logits"], subject).verdict == "fail"
