"""Changes of the text of a specimen, a right training program, which make other programs of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.faults.catalogue import is_counted_only

SPECIMENS = Path(__file__).with_name("specimens")
SCRIPT = SPECIMENS / "script.py"
TRAINER_CLASS = SPECIMENS / "trainer_class.py"
FUNCTIONS = SPECIMENS / "functions.py"
EPOCHS = SPECIMENS / "epochs.py"
Change = tuple[str, str]  # a text that a specimen has exactly once, and its replacement


@dataclass(frozen=True)
class Trainer:
    """One change of a specimen.

    Attributes:
        id: Its name; that of `FAULTS.md`'s catalogue where it is one of these.
        what: What is wrong, as a sentence.
        source: Who reported it.
        change: What is replaced.
        red: The checks that must turn red, by `suite::id`: all those that do on the rehearsals they need.
        hint: What the hint of one of them must say; empty if none of them gives a hint.
        rehearsals: Of a control: those whose checks must all pass.
        by_lot: It was added after the diagnosis was written, and half of such ones, by lot, are only counted.
        specimen: The file of the program that it changes.
    """

    id: str
    what: str
    source: str
    change: tuple[Change, ...]
    red: tuple[str, ...] = ()
    hint: str = ""
    rehearsals: tuple[str, ...] = ()
    by_lot: bool = False
    specimen: Path = SCRIPT

    @property
    def group(self) -> str:
        """ "training", or "training-counted": nobody is shown which of these were missed."""
        return "training-counted" if self.by_lot and is_counted_only(self.id) else "training"

    def source_text(self) -> str:
        """Return the specimen's text with the change. Raises AssertionError if a text to replace is not there once."""
        text = self.specimen.read_text(encoding="utf-8")
        for find, put in self.change:
            assert text.count(find) == 1, f"{self.id}: {find!r} is {text.count(find)} times in {self.specimen.name}"
            text = text.replace(find, put)
        return text


# Lines of `script.py` that several changes replace.
CHUNK = "chunk = torch.from_numpy(part[start : start + block_size + 1].astype(np.int64))"
SHORT_CHUNK = CHUNK.replace("block_size + 1]", "block_size - start % 5]")
LOSS = "loss = sum_of_losses(model(x), y) / count"
CLIP = "norm = nn.utils.clip_grad_norm_(model.parameters(), grad_clip)"
ZERO_GRAD = "    optimizer.zero_grad(set_to_none=True)\n"
ADAMW = "optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(beta1, beta2))"
GROUPS = "matrices = [p for p in model.parameters() if p.dim() >= 2]"
SET_RATE = "    lr = get_lr(it)\n"
WARMUP = "return learning_rate * (it + 1) / (warmup_iters + 1)"
LAST_RATE = "    if it >= decay_iters:\n        return min_lr\n"

# Muon for the blocks' matrices beside AdamW, as two optimizers in one that has their groups.
MUON = """class Muon(torch.optim.Optimizer):
    def __init__(self, params, lr, weight_decay, momentum=0.95, iterations=5):
        defaults = dict(lr=lr, weight_decay=weight_decay, momentum=momentum, iterations=iterations)
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                m.lerp_(p.grad, 1 - group["momentum"])
                update = torch.lerp(p.grad, m, group["momentum"]).bfloat16()
                update = orthogonal(update, group["iterations"]).to(p.dtype)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * max(1, p.size(0) / p.size(1)) ** 0.5)


def orthogonal(x, iterations):
    if tall := x.size(0) > x.size(1):
        x = x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        a = x @ x.T
        x = 3.4445 * x + (2.0315 * a @ a - 4.775 * a) @ x
    return x.T if tall else x


class TinyGPT(nn.Module):
"""
MUON_GROUPS = """blocks = [p for p in model.blocks.parameters() if p.dim() == 2]
groups[0]["params"] = [model.wte.weight, model.wpe.weight]
optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(beta1, beta2))
muon = Muon(blocks, lr=learning_rate, weight_decay=weight_decay)
"""
STEP = "    optimizer.step()\n    optimizer.zero_grad(set_to_none=True)\n"
SAVED = '"optimizer": optimizer.state_dict(),'
LOADED = '    optimizer.load_state_dict(checkpoint["optimizer"])\n'
WITH_MUON = (
    ("class TinyGPT(nn.Module):\n", MUON),
    (f"{ADAMW}\n", MUON_GROUPS),
    ("in optimizer.param_groups:\n", "in optimizer.param_groups + muon.param_groups:\n"),
    (STEP, "    optimizer.step()\n    muon.step()\n    model.zero_grad()\n"),
    (SAVED, SAVED + '\n        "muon": muon.state_dict(),'),
    (LOADED, LOADED + '    muon.load_state_dict(checkpoint["muon"])\n'),
)
