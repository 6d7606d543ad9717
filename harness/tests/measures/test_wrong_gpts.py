"""Wrong GPTs that the kill matrix does not contain: other attentions, samplers without visible probabilities, NaN."""

import pytest

from harness.faults.catalogue import read_catalogue
from harness.judging.run_check import run
from harness.subjects.adapters import adapt

WRONG = "harness.tests.measures.wrong_gpts:"
SAMPLING = "generation::sampling-distribution,"
# (the wrong GPT, the check that must reject it, the first place that it must name)
REJECTED = [
    ("FlashForgetsTheMask", "attention::naive-equals-flash,size=debug,compare=outputs", "block 0"),
    ("FlashForgetsTheMask", "attention::naive-equals-flash,size=debug,compare=gradients", "transformer.ln_f.weight"),
    ("LoopedHeadLost", "attention::looped-equals-batched,size=debug,compare=outputs", "block 0"),
    ("NaiveCacheMaskTopLeft", "generation::cached-logits,size=debug,chunks=6+1+3,attention=naive", "position 6"),
    ("OneTokenShort", "structure::boundary-shapes,size=debug", "(2, 24, 210)"),
    ("DrawsByInversionTemperatureTwice", f"{SAMPLING}temperature=2.0", "step 0"),
    ("DrawsByInversionTopKPlusOne", f"{SAMPLING}top_k=5", "step 0"),
]


@pytest.mark.parametrize(("wrong", "check", "place"), REJECTED, ids=lambda value: str(value).replace("[", "("))
def test_the_check_rejects_the_wrong_gpt_and_names_the_place(shipped, wrong, check, place):
    record = run(shipped[check], adapt(WRONG + wrong))
    assert record.verdict in ("fail", "error"), f"{wrong} passed {check}: {record.value}"
    assert place in f"{record.message} {record.where}"
    if record.where:
        assert record.where[0] == place, "the first place in execution order comes first"


@pytest.mark.parametrize("settings", ["temperature=1.0", "temperature=2.0", "top_k=5", "top_p=0.5", "prompt_length=31"])
def test_a_correct_sampler_without_visible_probabilities_passes_by_its_draws(shipped, settings):
    record = run(shipped[SAMPLING + settings], adapt(f"{WRONG}DrawsByInversion"))
    assert record.verdict == "pass", record.message
    assert "draws" in record.details["seen"]


NAN_MUST_NOT_PASS = [
    "attention::no-future-leak,weights=probe",
    "attention::prefix-is-independent-of-length",
    "attention::rows-do-not-mix",
    "generation::greedy-by-definition,size=debug,prompt_length=5,new_tokens=12",
    "loss::loss-by-definition,case=plain",
    "parity::debug,weights=probe,compare=logits",
    "precision::autocast",
    "structure::training-mode-differs-by-dropout-alone",
]


@pytest.mark.parametrize("check", NAN_MUST_NOT_PASS)
def test_a_model_that_returns_nan_passes_no_comparison(shipped, check):
    """`max(0.0, nan)` is 0.0, which once let a model that returns NaN pass the causality checks."""
    assert run(shipped[check], adapt(f"{WRONG}Babbles")).verdict in ("fail", "error")


# Checks that must pass for a fault: a check that failed for any difference would not localise anything.
UNAFFECTED = [
    ("gelu-erf-for-tanh", "attention::no-future-leak,weights=probe"),
    ("ln-eps-wrong", "structure::parameter-count,size=debug,tied=true"),
    ("mask-allows-next", "attention::rows-do-not-mix"),
    ("residual-detached", "parity::debug,weights=probe,compare=blocks"),
    ("init-residual-scale-missing", "parity::debug,weights=probe,compare=logits"),
    ("init-residual-scale-missing", "initialisation::initial-loss,size=debug,length=32"),
    ("gen-topk-off-by-one", "generation::cached-logits,size=debug,chunks=1+1+1+1+1+1+1+1"),
    ("kv-pos-off-by-one", "generation::seed-decides"),
    # The reason for probe weights, measured: see "Why probe weights" in CONTRIBUTING.md.
    ("ln-shared-in-block", "parity::debug,weights=standard,compare=logits"),
]


@pytest.mark.parametrize(("fault", "check"), UNAFFECTED)
def test_a_fault_passes_the_checks_that_it_does_not_affect(shipped, tmp_path, fault, check):
    (chosen,) = read_catalogue().chosen([fault])
    file = tmp_path / "my_gpt.py"
    file.write_text(chosen.source_text())
    assert run(shipped[check], adapt(f"{file}:GPT")).verdict == "pass"


def test_a_window_that_stands_still_beyond_two_contexts_fails_in_long_texts_alone(shipped, tmp_path):
    (fault,) = read_catalogue().chosen(["gen-window-stands-still"])
    file = tmp_path / "my_gpt.py"
    file.write_text(fault.source_text())
    verdicts = {
        name: run(check, adapt(f"{file}:GPT")).verdict for name, check in shipped.items() if name.startswith(SAMPLING)
    }
    long = {f"{SAMPLING}prompt_length=1,new_tokens=95,cache=on", f"{SAMPLING}prompt_length=32,new_tokens=64,cache=off"}
    assert {name for name, verdict in verdicts.items() if verdict == "fail"} == long
