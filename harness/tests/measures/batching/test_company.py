"""Requests in company: a right engine of any style passes, and what is said of a wrong one is true."""

import pytest

from harness.faults.catalogue import TECHNIQUES, read_catalogue
from harness.judging.run_check import run
from harness.measures.batching.plan import greedy_alone, usual_plan
from harness.measures.cached_model import cached_model
from harness.subjects.adapters import adapt

RIGHT = f"{TECHNIQUES / 'batching.py'}:GPT"
CHECKS = {
    "tokens": "batching::tokens-in-company,arrivals=in the middle",
    "together": "batching::tokens-in-company,arrivals=together",
    "logits": "batching::logits-in-company",
    "memory": "batching::unused-memory",
}


def hint_of(shipped, tmp_path, fault, check):
    (chosen,) = read_catalogue().chosen([fault])
    file = tmp_path / "my_gpt.py"
    file.write_text(chosen.source_text())
    record = run(shipped[CHECKS[check]], adapt(f"{file}:GPT"))
    assert record.verdict == "fail", record.message
    return record.details["hint"]


@pytest.mark.parametrize(
    ("fault", "check", "said"),
    [
        ("batching-positions-of-the-batch", "tokens", "the position of its newest token is 11 instead of 4"),
        ("batching-prompt-end-twice", "tokens", "the newest token that it reads is the one before its own newest"),
        (
            "batching-last-row-for-all",
            "tokens",
            "token 2 is chosen from those of a neighbour, request 1",
        ),
        ("batching-logits-of-the-padding", "tokens", "token 0 is chosen from a row that is after no request's text"),
        ("batching-one-token-too-many", "tokens", "it gets 1 more than the 7 tokens that it asked for"),
        ("batching-one-token-too-few", "tokens", "it ends 1 of 10 tokens early"),
        ("batching-token-not-moved", "together", "a neighbour's, and its own is"),
        ("batching-table-not-moved", "together", "its logits depend on the tokens of its neighbours, since request 1"),
        ("batching-page-off-by-one", "tokens", "alone it is wrong"),
        ("batching-cache-rounded", "logits", "as with keys and values of fewer bits"),
        ("batching-mask-added", "memory", "memory that no living request has written changes its tokens"),
    ],
)
def test_a_wrong_engine_is_said_to_do_what_it_does(shipped, tmp_path, fault, check, said):
    assert said in hint_of(shipped, tmp_path, fault, check)


def test_tokens_alone_do_not_show_keys_of_sixteen_bits_and_logits_do(shipped, tmp_path):
    (chosen,) = read_catalogue().chosen(["batching-cache-rounded"])
    file = tmp_path / "my_gpt.py"
    file.write_text(chosen.source_text())
    subject = adapt(f"{file}:GPT")
    assert run(shipped[CHECKS["tokens"]], subject).verdict == "pass"
    assert run(shipped[CHECKS["logits"]], subject).verdict == "fail"


def test_the_reference_reads_no_unused_memory_and_a_padded_batch_reads_it_with_weight_zero(shipped):
    found = {spec: set(run(shipped[CHECKS["memory"]], adapt(spec)).value.values()) for spec in ("gpt:GPT", RIGHT)}
    assert found["gpt:GPT"] == {"never read"}
    assert found[RIGHT] == {"never read", "read with weight 0"}


def test_an_answer_alone_is_remembered_by_its_prompt_and_may_be_longer_later():
    """A remembered answer was once returned whole: a request for fewer tokens then had too many."""
    model, plan = cached_model(adapt("gpt:GPT"), "debug", "probe", "float64"), usual_plan("debug")
    long = greedy_alone(model, plan[0].prompt, 5)
    assert greedy_alone(model, plan[0].prompt, 3) == long[:3]
    assert greedy_alone(model, plan[0].prompt, 7)[:5] == long
    assert greedy_alone(model, plan[1].prompt, 5) != long
