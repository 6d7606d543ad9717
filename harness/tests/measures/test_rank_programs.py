"""Programs for several ranks that people write in other styles pass; with one thing changed they fail."""

from pathlib import Path

import pytest

from harness.judging.run_check import run
from harness.subjects.adapters import adapt

PROGRAMS = Path(__file__).with_name("rank_programs")
# The program, its kind, a change that makes it wrong, and the check that must say so.
STYLES = [
    ("averaged_by_hand", "data", ("        parameter.grad.data /= size\n", ""), "gradients"),
    ("asynchronous_hooks", "data", ("            parameter.grad /= dist.get_world_size()\n", ""), "gradients"),
    ("for_gpus", "data", ("    return DDP(model, device_ids=[rank])\n", "    return model\n"), "gradients"),
    ("parameter_server", "data", ("        dist.broadcast(parameter.grad, 0)\n", ""), "ranks-stay-equal"),
    ("split_by_plan", "tensor", ("        block.attn.n_head //= tp_mesh.size()\n", ""), "logits"),
]


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kind, _, _ in STYLES])
def test_a_right_program_in_another_style_passes(shipped, name, kind):
    subject = adapt(f"{PROGRAMS / name}.py:GPT")
    records = [run(check, subject) for key, check in shipped.items() if key.startswith("parallel::") and kind in key]
    wrong = [f"{record.check.name}: {record.message}" for record in records if record.verdict not in ("pass", "skip")]
    assert not wrong
    assert {"logits", "gradients"} <= {
        record.check.name.split(",")[0] for record in records if record.verdict == "pass"
    }


@pytest.mark.parametrize(("name", "kind", "change", "check"), STYLES, ids=[name for name, *_ in STYLES])
def test_the_program_with_one_thing_wrong_fails(shipped, tmp_path, name, kind, change, check):
    text = (PROGRAMS / f"{name}.py").read_text()
    assert text.count(change[0]) == 1
    (tmp_path / "wrong.py").write_text(text.replace(*change))
    record = run(shipped[f"parallel::{check},kind={kind}"], adapt(f"{tmp_path / 'wrong.py'}:GPT"))
    assert record.verdict == "fail", record.message


def test_bytes_that_a_plan_sends_twice_are_seen_though_its_projections_are_apart(shipped, tmp_path):
    """The closed form of separate matrices has more sums than that of a fused one, and no room for others."""
    text = (PROGRAMS / "split_by_plan.py").read_text()
    old = "        x = x + self.attn(self.ln_1(x))\n"
    assert text.count(old) == 1
    again = old + "        if dist.is_initialized():\n            dist.all_reduce(x.detach().clone())\n"
    (tmp_path / "wrong.py").write_text(
        text.replace(old, again).replace("import torch\n", "import torch\nimport torch.distributed as dist\n", 1)
    )
    key = next(key for key in shipped if key.startswith("parallel::bytes-by-ring") and "tensor" in key)
    assert run(shipped[key], adapt(f"{tmp_path / 'wrong.py'}:GPT")).verdict == "fail"
