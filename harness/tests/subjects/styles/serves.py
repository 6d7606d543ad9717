"""Engines of continuous batching in other styles, around one that computes each request alone. None is fast."""

from dataclasses import dataclass, field

import torch

from harness.faults.specimen import GPT as GPT


@dataclass
class SamplingParams:
    temperature: float = 1.0
    max_tokens: int = 16


class _Alone:
    """Each step gives each running request the next greedy token of a full forward pass."""

    def __init__(self, model):
        self.model = model
        self.texts = {}
        self.left = {}

    def next_tokens(self):
        made = {}
        for number in [number for number, left in self.left.items() if left]:
            text = self.texts[number]
            made[number] = int(self.model(torch.tensor([text]))[0][0, -1].argmax())
            text.append(made[number])
            self.left[number] -= 1
        return made


class LLMEngine(_Alone):
    """Settings in an object, prompts as tensors, and a step that returns finished answers and a count."""

    def __init__(self, model, max_num_seqs=4, **kwargs):
        super().__init__(model)
        self.lengths = {}

    def add_request(self, prompt: torch.Tensor, sampling_params: SamplingParams):
        number = len(self.texts)
        self.texts[number] = prompt.tolist()
        self.lengths[number] = len(prompt)
        self.left[number] = sampling_params.max_tokens
        return number

    def is_finished(self):
        return not any(self.left.values())

    @torch.no_grad()
    def step(self):
        made = self.next_tokens()
        done = [(number, self.texts[number][self.lengths[number] :]) for number in made if not self.left[number]]
        return done, len(made)


@dataclass
class Request:
    rid: int
    prompt_ids: list
    max_new_tokens: int
    output_ids: list = field(default_factory=list)


class Scheduler(_Alone):
    """A request is an object that the caller makes, and that the tokens are appended to. Idle, it may not step."""

    def add(self, request: Request):
        self.texts[request.rid] = list(request.prompt_ids)
        self.left[request.rid] = request.max_new_tokens
        self.requests = {**getattr(self, "requests", {}), request.rid: request}

    @torch.no_grad()
    def tick(self):
        assert any(self.left.values()), "nothing to do"
        for number, token in self.next_tokens().items():
            self.requests[number].output_ids.append(token)
