"""Speculative decoding in the styles that people write it, as functions beside the specimen; each is right.

`STYLES` are texts that follow the specimen's file of speculation: they call its `run` or its parts.
"""

BEGINNING = """
import torch
from harness.faults.techniques import speculation as right
from harness.faults.specimen import GPT
"""

STYLES = {
    # feifeibear/LLMSpeculativeSampling: the draft first, max_len counts new tokens, the last round is not cut.
    "prefix, approx_model, target_model": """
def speculative_sampling(prefix, approx_model, target_model, max_len, gamma=4, temperature=1, top_k=0, top_p=0,
                         verbose=False, random_seed=None):
    return right.speculative_generate(target_model, approx_model, prefix, max_len, gamma, temperature,
                                      top_k or None, top_p or None, random_seed)[0]
""",
    # romsto/Speculative-Decoding: the new tokens alone, with a share of acceptance; a token that ends the text.
    "new tokens alone": """
@torch.no_grad()
def speculative_decoding(input_ids, drafter, target, min_len=20, gamma=5, temperature=1, top_k=0, top_p=0,
                         end_token_id=1, debug=False):
    ids, n = right.speculative_generate(target, drafter, input_ids, min_len, gamma, temperature, top_k or None,
                                        top_p or None)
    new = ids[:, input_ids.size(1):]
    if end_token_id in new:
        new = new[:, : int((new == end_token_id).nonzero()[0, 1])]
    return new, 0.5
""",
    "lists of tokens": """
from dataclasses import dataclass

@dataclass
class Result:
    tokens: list
    accepted: int

def speculative_generate(target: GPT, draft: GPT, prompt: list[int], max_new: int, k: int = 4, temperature=1.0):
    ids, n = right.speculative_generate(target, draft, torch.tensor([prompt]), max_new, k, temperature)
    return Result(ids[0].tolist(), n)
""",
    "a class": """
class SpeculativeDecoder:
    def __init__(self, target_model, draft_model, num_speculative_tokens=4):
        self.target_model, self.draft_model, self.k = target_model, draft_model, num_speculative_tokens

    def generate(self, input_ids, max_new_tokens, temperature=1.0, top_k=None):
        ids, n = right.speculative_generate(self.target_model, self.draft_model, input_ids, max_new_tokens, self.k,
                                            temperature, top_k)
        return {"sequences": ids, "accepted": n}
""",
    "greedy only": """
def speculative_decode(model, draft_model, idx, n_tokens, lookahead=4):
    return right.speculative_generate(model, draft_model, idx, n_tokens, lookahead, 0.0)[0]
""",
    "the length of the whole": """
def speculative_generate(model, draft_model, idx, max_length, gamma=4, do_sample=False, temperature=1.0):
    new = max(0, max_length - idx.size(1))
    return right.speculative_generate(model, draft_model, idx, new, gamma, temperature if do_sample else 0.0)[0]
""",
    "top-k 1 for greedy": """
def assisted_generate(large_model, assistant_model, tokens, steps, temperature=1.0, top_k=50):
    if temperature <= 0:
        raise ValueError("temperature must be positive")
    return right.speculative_generate(large_model, assistant_model, tokens, steps, 3, temperature, top_k)[0]
""",
}
