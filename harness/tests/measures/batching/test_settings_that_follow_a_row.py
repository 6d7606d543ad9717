"""Settings kept by row, where the rows move up when a request ends: requests get one another's temperatures."""

import pytest

from harness.judging.run_check import run
from harness.subjects.adapters import adapt

ENGINE = '''\
import torch

from gpt import GPT


class Engine:
    """Recomputes every running request in each step; each has a temperature, and no seed."""

    def __init__(self, model, max_batch_size=4):
        self.model, self.most = model.eval(), max_batch_size
        self.waiting, self.running, self.temperatures = [], [], [0.0] * max_batch_size

    def add_request(self, prompt, max_new_tokens, temperature=0.0):
        request = {"prompt": list(prompt), "left": max_new_tokens, "temperature": temperature, "output_ids": []}
        self.waiting.append(request)
        return request

    @torch.no_grad()
    def step(self):
        while self.waiting and len(self.running) < self.most:
            self.temperatures[len(self.running)] = self.waiting[0]["temperature"]
            self.running.append(self.waiting.pop(0))
        for row, request in enumerate(self.running):
            logits = self.model(torch.tensor([request["prompt"] + request["output_ids"]]))[0][0, -1]
            temperature = TEMPERATURE
            if temperature == 0:
                token = int(logits.argmax())
            else:
                token = int(torch.multinomial((logits / temperature).softmax(-1), 1))
            request["output_ids"].append(token)
            request["left"] -= 1
        self.running = [each for each in self.running if each["left"]]
'''


@pytest.mark.parametrize(
    ("temperature", "verdict"),
    [('request["temperature"]', "pass"), ("self.temperatures[row]", "fail")],
    ids=["the request's", "the row's"],
)
def test_a_greedy_request_beside_hot_ones_stays_greedy(shipped, tmp_path, temperature, verdict):
    """An engine without seeds was skipped, and at the temperatures that were tried one token had all probability."""
    file = tmp_path / "my_engine.py"
    file.write_text(ENGINE.replace("TEMPERATURE", temperature))
    record = run(shipped["batching::sampled-in-company"], adapt(f"{file}:GPT"))
    assert record.verdict == verdict, record.message
