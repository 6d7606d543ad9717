"""The recorder: what it sees of a training script, and that it changes nothing."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.optim import Optimizer

from harness.tests.training.tiny import HEAD, record, script
from harness.training.child import run as run_module
from harness.training.child.passes import Passes
from harness.training.child.recorder import Recorder
from harness.training.child.request import Request
from harness.training.child_processes import ENVIRONMENT
from harness.training.events import IGNORED, NotRecorded
from harness.training.recording_files import RecordingWriter

HAND_CLIP = """\
norm = torch.sqrt(sum(p.grad.pow(2).sum() for p in model.parameters()))
for p in model.parameters():
    {clip}
"""


# ---------------------------------------------------------------------------- the run is not changed


def test_a_recorded_and_an_unrecorded_run_end_in_the_same_bytes(tmp_path):
    """All that a recorder could disturb is in it: dropout, three random generators, clipping and validation."""
    text = script(
        before_step="nn.utils.clip_grad_norm_(model.parameters(), 0.1)",
        after_step="with torch.no_grad(): loss_of(*batch())\ntorch.save(model.state_dict(), 'weights.pt')\n"
        "torch.save([np.random.rand(), random.random(), torch.rand(1)], 'drawn.pt')",
        replaced=[("dropout = 0.0", "dropout = 0.3"), ("steps = 3", "steps = 6")],
    ).replace("torch.manual_seed(0)", "import random\nrandom.seed(0)\nnp.random.seed(0)\ntorch.manual_seed(0)")
    plain, recorded = tmp_path / "plain", tmp_path / "recorded"
    for folder in (plain, recorded):
        folder.mkdir()
        (folder / "train.py").write_text(text)
    environment = {**os.environ, **ENVIRONMENT}
    with subprocess.Popen([sys.executable, "train.py"], cwd=plain, env=environment) as unrecorded:
        recording = record(recorded, text)
        assert unrecorded.wait(100) == 0
    assert len(recording.steps) == 6
    assert recording.steps[5].replayed
    for name in ("weights.pt", "drawn.pt"):
        assert (plain / name).read_bytes() == (recorded / name).read_bytes(), name


def test_everything_that_the_recorder_replaces_is_restored_after_it(tmp_path):
    owners = (torch, torch.autograd, torch.nn.utils, torch.nn.utils.clip_grad, torch.distributed, np, Optimizer)
    before = [dict(vars(owner)) for owner in owners] + [dict(vars(np.memmap)), sys.stdout, torch.get_rng_state()]
    recorder = Recorder(Request(folder=str(tmp_path), program="none"), RecordingWriter(tmp_path))
    with run_module.recording(recorder, Passes(recorder)):
        assert np.fromfile is not before[5]["fromfile"]
        model = torch.nn.Linear(2, 1)
        model(torch.ones(2)).backward()
        torch.optim.SGD(model.parameters()).step()
    model(torch.ones(2)).backward()
    torch.optim.SGD(model.parameters()).step()
    after = [dict(vars(owner)) for owner in owners] + [dict(vars(np.memmap)), sys.stdout]
    assert before[:-1] == after
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == 4, "events after the end"


def test_workers_and_other_threads_of_the_program_are_not_recorded(tmp_path):
    """A worker that inherits the seams would write its own passes between those of the program."""
    recording = record(
        tmp_path,
        script(
            after_step="from threading import Thread\n"
            "def beside():\n    loss_of(*batch())\n    torch.optim.SGD([nn.Parameter(torch.ones(1))]).step()\n"
            "thread = Thread(target=beside)\nthread.start()\nthread.join()\n"
            "if os.fork() == 0:\n    loss_of(*batch())\n    print('from the worker')\n    os._exit(0)\nos.wait()"
        ).replace("import numpy as np", "import os\nimport numpy as np"),
    )
    assert [(forward.order, forward.step) for forward in recording.forwards()] == [
        (event.order, number) for number, event in enumerate(recording.forwards("train"))
    ]
    assert len(recording.forwards()) == len(recording.steps) == 3
    assert recording.printed == []


# ---------------------------------------------------------------------------- passes


def test_a_pass_has_its_ids_targets_and_loss_and_ignored_targets_are_marked(tmp_path):
    recording = record(
        tmp_path,
        script(
            replaced=[
                (
                    "return F.cross_entropy(model(x).view(-1, 11), y.reshape(-1))",
                    "y = y.clone()\n    y[0, 2:] = 7\n    print(x.tolist())\n    "
                    "loss = F.cross_entropy(model(x).view(-1, 11), y.reshape(-1), reduction='sum', ignore_index=7,"
                    " label_smoothing=0.1)\n"
                    "    print(loss.item())\n    return loss",
                )
            ]
        ),
    )
    printed = [line.text for line in recording.printed]
    for number, forward in enumerate(recording.forwards("train")):
        assert str(forward.ids.tolist()) == printed[2 * number]
        assert forward.loss == float(printed[2 * number + 1]) == forward.total_loss
        assert (forward.reduction, forward.label_smoothing) == ("sum", 0.1)
        assert forward.targets[0, 2:].tolist() == [IGNORED, IGNORED]
        assert forward.counted == int((forward.targets != IGNORED).sum()) <= 6
        assert forward.used
        assert ": loss = F.cross_entropy(model(x)" in forward.line


def test_validation_is_told_from_training_and_shows_the_modules_flags(tmp_path):
    recording = record(
        tmp_path,
        script(
            after_step="with torch.no_grad():\n    model.eval()\n    loss_of(*batch())\n    model.hidden.train()\n"
            "    loss_of(*batch())\n    model.train()"
        ),
    )
    assert [(each.phase, each.mode, each.step, each.used) for each in recording.forwards()][:3] == [
        ("train", "train", 0, True),
        ("eval", "eval", 1, False),
        ("eval", "mixed", 1, False),
    ]


def test_a_call_of_the_model_that_fails_and_is_caught_does_not_hide_the_passes_after_it(tmp_path):
    recording = record(tmp_path, script(before_step="try: model(torch.full((1, 4), 99))\nexcept IndexError: pass"))
    assert [forward.has_loss for forward in recording.forwards()] == [True, False, True, False, True, False]


@pytest.mark.parametrize("first", [True, False])
def test_a_pass_that_is_not_differentiated_is_not_used(tmp_path, first):
    """An extra pass for the log must not count as a micro-batch, before the others or after them."""
    extra = [("loss = loss_of", "logged = loss_of(*batch())\n        loss = loss_of")] if first else []
    text = script(before_step="pass" if first else "logged = loss_of(*batch())", replaced=extra)
    recording = record(tmp_path, text)
    passes = [each for each in recording.forwards("train") if each.step == 1]
    assert [each.used for each in passes] == ([False, True] if first else [True, False])
    assert recording.forwards_of(1) == passes[first:][:1]
    for name, gradient in recording.steps[1].gradient.items():
        torch.testing.assert_close(gradient.double(), recording.steps[1].replayed[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("micro_batches", [3, 30])
def test_a_loss_that_is_summed_over_passes_uses_each_of_them(tmp_path, micro_batches):
    """With one backward pass for all of them."""
    summed = [("loss = loss_of", "loss = (loss if _ else 0) + loss_of"), ("        loss.backward()\n", "")]
    text = script(before_step="loss.backward()", replaced=summed)
    recording = record(tmp_path, text.replace("micro_batches = 1", f"micro_batches = {micro_batches}"))
    assert [len(recording.forwards_of(step)) for step in range(3)] == [micro_batches] * 3


def test_a_pass_whose_gradient_is_set_to_zero_before_the_loop_is_no_micro_batch(tmp_path):
    """Programs try the model once, as llm.c's does to write tensors; a zero_grad in the loop is a mistake instead."""
    tried = [
        ("for step in range(steps):", "loss_of(*batch()).backward()\noptimizer.zero_grad()\nfor step in range(steps):")
    ]
    recording = record(tmp_path, script(replaced=tried))
    assert sum(forward.used for forward in recording.forwards()) == 4
    assert [len(recording.forwards_of(step)) for step in range(3)] == [1, 1, 1]
    for name, gradient in recording.steps[0].gradient.items():
        torch.testing.assert_close(gradient.double(), recording.steps[0].replayed[name], rtol=1e-4, atol=1e-7)
    each = [
        ("micro_batches = 1", "micro_batches = 2"),
        ("        loss = loss_of", "        optimizer.zero_grad()\n        loss = loss_of"),
    ]
    recording = record(tmp_path, script(replaced=each))
    assert [len(recording.forwards_of(step)) for step in range(3)] == [2, 2, 2]


def test_a_step_that_is_given_a_closure_has_the_batch_and_the_gradient_of_its_closure(tmp_path):
    """As Lightning's steps are."""
    closure = [
        (
            "    for _ in range(micro_batches):\n        loss = loss_of(*batch()) / micro_batches\n"
            "        loss.backward()\n",
            "",
        ),
        (
            "    optimizer.step()\n    optimizer.zero_grad()",
            "    def closure():\n        loss = loss_of(*batch())\n        optimizer.zero_grad()\n"
            "        loss.backward()\n        return loss\n    optimizer.step(closure)",
        ),
    ]
    plain, recording = record(tmp_path, script()), record(tmp_path, script(replaced=closure))
    assert [len(recording.forwards_of(step)) for step in range(3)] == [1, 1, 1]
    for one, other in zip(plain.steps, recording.steps, strict=True):
        for part in ("before", "gradient", "after"):
            assert dict(one.hashes[part]) == dict(other.hashes[part]), part


# ---------------------------------------------------------------------------- steps


def test_a_step_has_everything_before_and_after_it_under_the_models_names(tmp_path):
    recording = record(tmp_path, script())
    assert list(recording.parameters) == ["wte.weight", "hidden.weight", "hidden.bias", "head.weight"]
    assert recording.parameters["head.weight"].alias_of == "wte.weight"
    first, second, third = recording.steps
    assert first.state_before == {}
    assert set(second.before) == {"wte.weight", "hidden.weight", "hidden.bias"} == set(second.groups[0].names)
    for name in second.before:
        assert torch.equal(first.after[name], second.before[name])
        assert not torch.equal(second.after[name], second.before[name])
        assert torch.equal(second.state_after[name]["exp_avg"], third.state_before[name]["exp_avg"])
        assert second.hashes["after"][name] == third.hashes["before"][name] != second.hashes["before"][name]
    assert int(third.state_before["wte.weight"]["step"]) == 2
    assert (first.groups[0].lr, first.groups[0].betas, first.optimizer) == (0.01, (0.9, 0.999), "AdamW")
    assert first.line.endswith(": optimizer.step()")


@pytest.mark.parametrize(
    "clips", ["nn.utils.clip_grad_norm_(model.parameters(), 0.1)", HAND_CLIP.format(clip="p.grad.mul_(0.1 / norm)")]
)
def test_a_parameter_in_no_group_is_recorded_too(tmp_path, clips):
    """Its gradient counts in the norm of clipping, and that it never moves is to be seen."""
    forgets = ("AdamW(model.parameters()", "AdamW([model.hidden.weight, model.wte.weight]")
    step = record(tmp_path, script(before_step=clips, replaced=[forgets])).steps[0]
    assert step.groups[0].names == ("hidden.weight", "wte.weight")
    assert torch.equal(step.before["hidden.bias"], step.after["hidden.bias"])
    assert float(step.unclipped["hidden.bias"].norm()) > float(step.gradient["hidden.bias"].norm()) > 0
    assert "hidden.bias" in step.replayed
    assert "hidden.bias" not in step.state_after


def test_the_replayed_gradient_is_that_of_the_mean_over_all_targets_with_the_same_dropout(tmp_path):
    recording = record(
        tmp_path, script(replaced=[("dropout = 0.0", "dropout = 0.3"), ("micro_batches = 1", "micro_batches = 3")])
    )
    for step in recording.steps:
        for name, gradient in step.gradient.items():
            assert step.replayed[name].dtype == torch.float64
            torch.testing.assert_close(gradient.double(), step.replayed[name], rtol=1e-4, atol=1e-7)
            torch.testing.assert_close(gradient, step.replayed32[name], rtol=1e-4, atol=1e-7)


def test_a_part_that_is_computed_again_in_the_backward_pass_is_no_pass_of_its_own(tmp_path):
    """Gradient checkpointing calls modules again, and leaves them by an exception once it has what it needs."""
    again = "torch.utils.checkpoint.checkpoint(self.middle, ids, use_reentrant=False)"
    text = script(
        replaced=[
            ("self.head(torch.tanh(self.hidden(self.drop(self.wte(ids)))))", f"self.head({again})"),
            ("self.head.weight =", "self.middle = nn.Sequential(self.wte, self.hidden)\n        self.head.weight ="),
            ("import torch\n", "import torch\nimport torch.utils.checkpoint\n"),
            ("loss.backward()", "torch.autograd.backward(loss)"),
        ]
    )
    recording = record(tmp_path, text)
    assert [forward.step for forward in recording.forwards()] == [0, 1, 2]
    assert all(forward.used for forward in recording.forwards())
    assert recording.steps[2].replayed


def test_a_model_that_cannot_be_called_again_has_no_replayed_gradient_and_says_why(tmp_path):
    wears_out = "self.calls = getattr(self, 'calls', 0) + 1\n        assert self.calls < 4, 'worn out'\n        "
    text = script(replaced=[("return self.head(", f"{wears_out}return self.head(")])
    recording = record(tmp_path, text)
    with pytest.raises(NotRecorded, match=r"AssertionError: worn out"):
        recording.steps[0].replayed  # noqa: B018 - it raises


def test_a_batch_that_no_longer_has_its_loss_has_no_replayed_gradient(tmp_path):
    """Without this the gradient of something else would be taken for the right one."""
    drifts = ("return self.head(", "self.calls = getattr(self, 'calls', 0) + 1\n        return self.calls * self.head(")
    recording = record(tmp_path, script(replaced=[drifts]))
    with pytest.raises(NotRecorded, match=r"a batch of step 0 has the loss .* when it is computed again, not"):
        recording.steps[0].replayed  # noqa: B018 - it raises


def test_a_long_rehearsal_records_neither_tensors_nor_hashes(tmp_path):
    step = record(tmp_path, script(), detail="losses").steps[1]
    assert step.hashes == {}
    with pytest.raises(NotRecorded, match="the rehearsal records losses"):
        step.before  # noqa: B018 - it raises


# ---------------------------------------------------------------------------- clipping


@pytest.mark.parametrize(
    "clipping",
    [
        "nn.utils.clip_grad_norm_(model.parameters(), 0.1)",
        "clip_grad_norm_(list(model.parameters()), max_norm=0.1)",
        HAND_CLIP.format(clip="p.grad.mul_(0.1 / norm)"),
        HAND_CLIP.format(clip="p.grad = p.grad * (0.1 / norm)"),
        HAND_CLIP.format(clip="p.grad.data.copy_(p.grad * (0.1 / norm))"),
        HAND_CLIP.format(clip="p.grad *= 0.1 / norm"),
        "norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()\n"
        "torch._foreach_mul_([p.grad for p in model.parameters()], 0.1 / norm.item())",
    ],
    ids=["torch", "imported", "in place", "assigned", "copied", "augmented", "foreach"],
)
def test_the_gradient_before_clipping_is_kept_however_it_is_clipped(tmp_path, clipping):
    head = HEAD.replace("import torch\n", "import torch\nfrom torch.nn.utils import clip_grad_norm_\n")
    recording = record(tmp_path, script(before_step=clipping, head=head))
    for step in recording.steps:
        norm = torch.cat([each.flatten() for each in step.gradient.values()]).norm()
        assert norm == pytest.approx(0.1, rel=1e-4)
        for name, gradient in step.unclipped.items():
            torch.testing.assert_close(gradient.double(), step.replayed[name], rtol=1e-4, atol=1e-7)


def test_a_division_before_the_norm_is_taken_belongs_to_the_gradient(tmp_path):
    average = "for p in model.parameters(): p.grad /= 4\n"
    clip = HAND_CLIP.format(clip="p.grad.mul_(0.01 / norm)")
    step = record(tmp_path, script(before_step=average + clip)).steps[0]
    for name, gradient in step.unclipped.items():
        torch.testing.assert_close(gradient.double() * 4, step.replayed[name], rtol=1e-4, atol=1e-7)


def test_a_call_of_torchs_clipping_is_recorded_with_its_limit_and_parameters(tmp_path):
    clips = "nn.utils.clip_grad_norm_(model.hidden.parameters(), 0.1)"
    recording = record(tmp_path, script(before_step=clips))
    (clip,) = recording.clips_of(2)
    assert (clip.limit, clip.names) == (0.1, ("hidden.weight", "hidden.bias"))


# ---------------------------------------------------------------------------- data, files, ends


def test_saves_and_loads_have_the_keys_of_what_is_in_the_file(tmp_path):
    saves = "torch.save({'model': model.hidden.state_dict(), 'step': step}, 'c.pt')\ntorch.load('c.pt')"
    recording = record(tmp_path, script(after_step=saves))
    assert [(save.step, save.path) for save in recording.saves] == [(1, "c.pt"), (2, "c.pt"), (3, "c.pt")]
    assert recording.loads[0].keys == recording.saves[0].keys == ("model.weight", "model.bias", "step")


def test_a_program_is_stopped_after_the_steps_that_are_needed(tmp_path):
    recording = record(tmp_path, script(replaced=[("steps = 3", "steps = 10**9")]), stop_after=4)
    assert (recording.ended, len(recording.steps)) == ("stopped", 4)
    assert recording.steps[3].replayed


def test_what_is_printed_because_a_program_is_stopped_is_not_of_its_run(tmp_path):
    """A progress bar shows the loss of the step before once more when it is closed: it looked like the last step's."""
    step = "    optimizer.step()\n"
    printed = "    try:\n        optimizer.step()\n    finally:\n        print('step', step)\n"
    recording = record(tmp_path, script(replaced=[(step, printed)]), stop_after=2)
    assert [line.text for line in recording.printed] == ["step 0"]


def test_a_killed_program_leaves_what_it_had_done_and_a_resumed_one_continues_the_numbers(tmp_path):
    killed = record(tmp_path, script(after_step="print('after', step)"), kill_after=2)
    assert (killed.ended, [step.number for step in killed.steps]) == ("killed", [0, 1])
    assert [line.text for line in killed.printed] == ["after 0"]
    resumed = record(tmp_path, script(), first_step=2)
    assert [step.number for step in resumed.steps] == [2, 3, 4]
    assert [forward.step for forward in resumed.forwards()] == [2, 3, 4]


def test_a_failure_is_told_with_the_users_line(tmp_path):
    recording = record(tmp_path, script(before_step="if step == 1: raise ValueError('no more')"))
    assert recording.ended == "failed"
    assert recording.message.startswith("ValueError: no more at train.py:")
    assert len(recording.steps) == 1


TWO_OPTIMIZERS = """\
matrices = [p for p in model.parameters() if p.dim() == 2 and p is not model.wte.weight]
others = [p for p in model.parameters() if p.dim() != 2 or p is model.wte.weight]
torch.optim.AdamW(model.parameters())
optimizers = [torch.optim.SGD(matrices, lr=0.1), torch.optim.AdamW(others, lr=0.01)]
"""


@pytest.mark.parametrize("order", ["optimizers", "reversed(optimizers)"])
def test_the_steps_of_two_optimizers_after_the_same_gradients_are_one_step(tmp_path, order):
    """Muon beside AdamW: each was a step of its own, in which half of the parameters stayed as they were."""
    text = script(replaced=[("optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)\n", TWO_OPTIMIZERS)])
    text = text.replace("    optimizer.step()", f"    [each.step() for each in {order}]")
    text = text.replace("optimizer.zero_grad()", "model.zero_grad()")
    found = record(tmp_path, text)
    assert [step.number for step in found.steps] == [0, 1, 2]
    first, last = found.steps[0], found.steps[-1]
    assert {group.optimizer for group in first.groups} == {"SGD", "AdamW"}
    assert set(first.before) == set(first.after) == {"wte.weight", "hidden.weight", "hidden.bias"}
    assert all(not torch.equal(first.before[name], last.after[name]) for name in first.before)
    assert torch.equal(found.steps[1].before["wte.weight"], first.after["wte.weight"])


def test_the_gradient_of_a_smoothed_loss_is_computed_again_with_its_smoothing(tmp_path):
    smoothed = "F.cross_entropy(model(x).view(-1, 11), y.reshape(-1), label_smoothing=0.1)"
    plain = "F.cross_entropy(model(x).view(-1, 11), y.reshape(-1))"
    recording = record(tmp_path, script(replaced=[(plain, smoothed)]))
    for step in recording.steps:
        for name, gradient in step.replayed.items():
            assert torch.allclose(step.unclipped[name].double(), gradient, rtol=1e-4, atol=1e-7), name
