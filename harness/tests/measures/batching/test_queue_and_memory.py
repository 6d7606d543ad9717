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


ENGINE = """
import torch
from harness.faults.specimen import GPT


class Engine:
    def __init__(self, model, max_batch_size=4):
        self.model, self.most = model.eval(), max_batch_size
        self.waiting, self.running = [], []

    def add_request(self, prompt, max_new_tokens):
        if len(prompt) + max_new_tokens > self.model.config.block_size + 1:
            raise ValueError("too long")
        request = {"prompt": list(prompt), "left": max_new_tokens, "output_ids": []}
        self.waiting.append(request)
        return request

    def cancel(self, request):
        for own in (self.waiting, self.running):
            own[:] = [each for each in own if each is not request]

    @torch.no_grad()
    def step(self):
        while self.waiting and len(self.running) < self.most:
            self.running.append(self.waiting.pop(0))
        for request in list(self.running):
            logits = self.model(torch.tensor([request["prompt"] + request["output_ids"]]))[0][0, -1]
            request["output_ids"].append(int(logits.argmax()))
            request["left"] -= 1
            if not request["left"]:
                self.running.remove(request)
"""
ADMIT = "        while self.waiting and len(self.running) < self.most:\n"


def engine(tmp_path, *changes):
    text = ENGINE
    for find, put in changes:
        assert find in text
        text = text.replace(find, put)
    file = tmp_path / "my_engine.py"
    file.write_text(text)
    return adapt(f"{file}:GPT")


def test_an_engine_that_is_wrong_for_every_request_is_not_said_to_accept_too_long_ones(shipped, tmp_path):
    """Whatever its steps raised was put down to the request that can never fit."""
    check = shipped["batching::too-long"]
    assert run(check, engine(tmp_path)).verdict == "pass"
    broken = run(check, engine(tmp_path, ('request["left"] -= 1', 'request["left"] -= nothing')))
    assert (broken.verdict, "NameError" in broken.message) == ("error", True)
    wrong = run(check, engine(tmp_path, ("logits.argmax()", "logits.argmin()")))
    assert wrong.verdict == "error"
    assert "requests that fit get other tokens than alone" in wrong.message


def test_batches_that_are_served_one_after_the_other_are_slow_and_cancel_rightly(shipped, tmp_path):
    """Nobody starts beside a neighbour there: that was put down to memory of the cancelled request."""
    check = shipped["batching::cancelled"]
    static = (ADMIT, ADMIT.replace(":\n", " and not any(each['output_ids'] for each in self.running):\n"))
    assert run(check, engine(tmp_path)).verdict == "pass"
    assert run(check, engine(tmp_path, static)).verdict == "pass"
    kept = ("for own in (self.waiting, self.running):", "for own in (self.waiting,):")
    assert run(check, engine(tmp_path, static, kept)).verdict == "fail"


def test_a_cancellation_that_changes_a_neighbour_is_seen(shipped, tmp_path):
    spoil = "        for each in self.running:\n            each['output_ids'] += [0] * (each is not request)\n"
    spoilt = ("    def cancel(self, request):\n", f"    def cancel(self, request):\n{spoil}")
    record = run(shipped["batching::cancelled"], engine(tmp_path, spoilt))
    assert record.verdict == "fail"
    assert record.value["after 1 steps"] == "its neighbour gets other tokens"


def test_a_step_that_is_a_generator_is_walked(shipped, tmp_path):
    walked = ('            request["left"] -= 1\n', '            request["left"] -= 1\n            yield request, 0\n')
    subject = engine(tmp_path, walked, ("    @torch.no_grad()\n", ""))
    record = run(shipped["batching::tokens-in-company,arrivals=together"], subject)
    assert record.verdict == "pass", record.message
