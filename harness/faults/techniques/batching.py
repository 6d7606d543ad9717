"""A right engine of continuous batching: rows of tensors, block tables, padded batches. `batching.toml` changes it."""

import math
from collections import deque

import torch

from harness.faults.specimen import GPT, sample

__all__ = ["GPT", "LLMEngine"]


class Sequence:
    """One request and what it has got so far."""

    def __init__(self, number, prompt, max_tokens, settings, stop):
        self.number = number
        self.prompt = prompt
        self.max_tokens = max_tokens
        self.temperature, self.top_k, self.top_p, self.generator = settings
        self.stop = stop
        self.output = []
        self.blocks = []

    def is_done(self):
        """Return True if it has its last token."""
        return len(self.output) >= self.max_tokens or self.output[-1] in self.stop


class LLMEngine:
    """Keeps its running sequences in the first rows of its tensors: lengths, latest tokens, block tables."""

    def __init__(self, model, num_blocks=64, block_size=8, max_num_seqs=4):
        config = model.config
        weight = model.wte.weight
        self.model = model
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.max_num_seqs = max_num_seqs
        self.heads, self.head_width = config.n_head, config.n_embd // config.n_head
        shape = (config.n_layer, num_blocks * block_size, self.heads, self.head_width)
        self.keys = weight.new_zeros(shape)
        self.values = weight.new_zeros(shape)
        self.free = deque(range(num_blocks))
        self.waiting = deque()
        self.rows = []  # the running sequences, by row
        self.lengths = torch.zeros(max_num_seqs, dtype=torch.int64, device=weight.device)  # cached tokens
        self.latest = torch.zeros(max_num_seqs, dtype=torch.int64, device=weight.device)
        width = config.block_size // block_size + 2
        self.tables = torch.zeros(max_num_seqs, width, dtype=torch.int64, device=weight.device)
        self.count = 0

    def add_request(
        self, prompt_token_ids, max_tokens, temperature=0.0, top_k=None, top_p=None, seed=None, stop_token_ids=()
    ):
        """Queue a request and return its number."""
        generator = None if seed is None else torch.Generator(self.tables.device).manual_seed(seed)
        settings = (temperature, top_k, top_p, generator)
        sequence = Sequence(self.count, list(prompt_token_ids), max_tokens, settings, stop_token_ids)
        if len(sequence.prompt) + max_tokens - 1 > self.model.config.block_size:
            raise ValueError("longer than the context")
        if self.blocks_of(sequence) > self.num_blocks:
            raise ValueError("longer than the memory")
        self.count += 1
        self.waiting.append(sequence)
        return sequence.number

    def abort(self, number):
        """End a request."""
        for sequence in list(self.waiting):
            if sequence.number == number:
                self.waiting.remove(sequence)
        for row, sequence in enumerate(self.rows):
            if sequence.number == number:
                self.leave(row)
                break

    def blocks_of(self, sequence):
        """Return how many blocks a sequence needs."""
        tokens = len(sequence.prompt) + sequence.max_tokens
        return math.ceil(tokens / self.block_size)

    def admit(self):
        """Start sequences while there is room; return how many."""
        started = 0
        while self.waiting and len(self.rows) < self.max_num_seqs:
            if self.blocks_of(self.waiting[0]) > len(self.free):
                break
            sequence = self.waiting.popleft()
            sequence.blocks = [self.free.popleft() for _ in range(self.blocks_of(sequence))]
            row = len(self.rows)
            self.rows.append(sequence)
            self.tables[row] = 0
            self.tables[row, : len(sequence.blocks)] = torch.tensor(sequence.blocks, device=self.tables.device)
            self.lengths[row] = 0
            started += 1
        return started

    def leave(self, row):
        """Free a row: the last one moves into its place."""
        self.free.extend(self.rows[row].blocks)
        last = len(self.rows) - 1
        self.rows[row] = self.rows[last]
        self.lengths[row] = self.lengths[last]
        self.latest[row] = self.latest[last]
        self.tables[row] = self.tables[last]
        self.rows.pop()

    @torch.no_grad()
    def step(self):
        """Decode one token of each running sequence, read the prompts of new ones, and return (number, token) pairs."""
        running = len(self.rows)
        started = self.admit()
        made = []
        if running:
            made += self.choose(range(running), self.decode(running))
        if started:
            made += self.choose(range(running, running + started), self.prefill(running, started))
        for row in reversed(range(len(self.rows))):
            if self.rows[row].is_done():
                self.leave(row)
        return made

    def decode(self, running):
        """Return the logits (B, V) after the latest token of each of the first rows."""
        ids = self.latest[:running, None]
        positions = self.lengths[:running, None]
        logits = self.forward(ids, positions, torch.ones_like(ids, dtype=torch.bool), self.tables[:running])
        self.lengths[:running] += 1
        return logits[:, -1]

    def prefill(self, first, started):
        """Return the logits (B, V) after the prompts of the rows that have started, padded at the right."""
        device = self.tables.device
        prompts = [self.rows[row].prompt for row in range(first, first + started)]
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        longest = int(lengths.max())
        ids = torch.zeros(started, longest, dtype=torch.int64, device=device)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt, device=device)
        positions = torch.arange(longest, device=device).expand(started, longest)
        valid = positions < lengths[:, None]
        logits = self.forward(ids, positions, valid, self.tables[first : first + started])
        self.lengths[first : first + started] = lengths
        return logits[torch.arange(started, device=device), lengths - 1]

    def forward(self, ids, positions, valid, tables):
        """Return the logits (B, T, V); keys and values of valid tokens go to the blocks of their row."""
        model, size = self.model, self.block_size
        B, T = ids.shape
        places = positions
        x = model.wte(ids) + model.wpe(places)
        written = tables.gather(1, positions // size) * size + positions % size  # (B, T)
        key_positions = torch.arange(int(positions.max()) + 1, device=ids.device)  # (S)
        read = tables[:, key_positions // size] * size + key_positions % size  # (B, S)
        visible = key_positions <= positions[:, :, None]  # (B, T, S)
        for layer, block in enumerate(model.h):
            q, k, v = block.attn.c_attn(block.ln_1(x)).split(x.size(-1), dim=2)
            q, k, v = (each.view(B, T, self.heads, self.head_width) for each in (q, k, v))
            self.keys[layer, written[valid]] = k[valid]
            self.values[layer, written[valid]] = v[valid]
            keys = self.keys[layer, read].transpose(1, 2)  # (B, S, H, D) -> (B, H, S, D)
            values = self.values[layer, read].transpose(1, 2)
            scores = q.transpose(1, 2) @ keys.transpose(-2, -1) / math.sqrt(self.head_width)
            scores = scores.masked_fill(~visible[:, None], -math.inf)
            mixed = scores.softmax(dim=-1) @ values  # (B, H, T, D)
            x = x + block.attn.c_proj(mixed.transpose(1, 2).reshape(B, T, -1))
            x = x + block.mlp(block.ln_2(x))
        return model.lm_head(model.ln_f(x))

    def choose(self, rows, logits):
        """Choose the next token of each row from the logits (B, V), and return (number, token) pairs."""
        made = []
        for row, own in zip(rows, logits, strict=True):
            sequence = self.rows[row]
            if sequence.temperature == 0:
                token = int(own.argmax())
            else:
                chosen = sample(own[None], sequence.temperature, sequence.top_k, sequence.top_p, sequence.generator)
                token = int(chosen)
            self.latest[row] = token
            sequence.output.append(token)
            made.append((sequence.number, token))
        return made
