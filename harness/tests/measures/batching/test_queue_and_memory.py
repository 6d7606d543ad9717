"""Who waits, what a cancellation leaves behind, and what memory is kept."""

import pytest

from harness.faults.catalogue import read_catalogue
from harness.judging.run_check import run
from harness.subjects.adapters import adapt


@pytest.mark.parametrize(
    ("fault", "check", "said"),
    [
        ("batching-shortest-first", "no-starvation", "13 that came later have tokens"),
        ("batching-overtaken", "no-starvation", "13 that came later have tokens"),
        ("batching-cancelled-keeps-blocks", "cancelled", "starts only when its neighbour has ended"),
        ("batching-cancelled-still-waits", "cancelled", "the cancelled request gets more tokens"),
        ("batching-ended-keeps-blocks", "memory-returns", "requests that no longer start"),
        ("batching-keeps-logits", "memory-returns", "bytes more"),
        ("batching-too-long-waits", "too-long", "the request behind it does not get its tokens"),
        ("batching-stop-ends-all", "stop-in-company", "it ends before its stop token"),
        ("batching-stop-ignored", "stop-in-company", "it goes on after its stop token"),
    ],
)
def test_a_wrong_engine_fails_the_check_that_is_there_for_it(shipped, tmp_path, fault, check, said):
    (chosen,) = read_catalogue().chosen([fault])
    file = tmp_path / "my_gpt.py"
    file.write_text(chosen.source_text())
    record = run(shipped[f"batching::{check}"], adapt(f"{file}:GPT"))
    assert record.verdict == "fail"
    assert said in record.details["hint"]
