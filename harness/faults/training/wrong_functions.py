"""Mistakes of functions under `main()`: changes of `functions.py`, and the checks that must turn red for each."""

from collections.abc import Sequence

from harness.faults.training.changes import FUNCTIONS, Change, Trainer
from harness.faults.training.checks import (
    ACCUMULATION,
    CHECKPOINT,
    CLIPPING,
    COVERAGE,
    DECAY,
    FLOAT32,
    LOGGED_K,
    LOST,
    PLATEAU,
    REPEATABLE,
    RESUME,
    SCHEDULE,
    SEED,
    TARGETS,
    TRACE,
    UPDATE,
    VALIDATION_LOSS,
)

# Texts of the specimen that several changes replace.
DECAYS = '                p.mul_(1 - group["lr"] * group["weight_decay"])\n'
UPDATES = '                p.sub_(group["lr"] * m_hat / (v_hat.sqrt() + group["eps"]))\n'
NORM = "norm = torch.stack([p.grad.norm() for p in params]).norm()"
COUNT = "count = sum(int((y != -100).sum()) for _, y in micro_batches)"
DRAW = 'micro_batches = [next(batches) for _ in range(s["grad_accum_steps"])]'
GENERATOR = 'rng = np.random.default_rng((s["random_seed"], position["epoch"]))'
SAVE = """        if s["checkpoint_every"] and (step + 1) % s["checkpoint_every"] == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
            torch.save(state | {"position": position, "step": step + 1}, saved)
"""


def _mistake(id: str, what: str, source: str, *change: Change, red: Sequence[str], hint: str = "") -> Trainer:
    return Trainer(id, what, source, change, tuple(red), hint, by_lot=True, specimen=FUNCTIONS)


OF_FUNCTIONS = (
    _mistake(
        "adamw-no-bias-correction",
        "The moments are not corrected for their start at zero.",
        "allenai/OLMo-core pull 317",
        ('m_hat = m / (1 - b1 ** state["step"])', "m_hat = m"),
        ('v_hat = v / (1 - b2 ** state["step"])', "v_hat = v"),
        red=UPDATE,
        hint="no bias correction",
    ),
    _mistake(
        "adamw-counts-parameters",
        "The count of the steps grows with every parameter.",
        "flashlight/flashlight issue 143",
        ('super().__init__(groups, {"lr": lr', 'self.count = 0\n        super().__init__(groups, {"lr": lr'),
        (
            '                state["step"] += 1\n',
            '                self.count += 1\n                state["step"] = self.count\n',
        ),
        red=UPDATE,
        hint="the bias correction is that of",
    ),
    _mistake(
        "adamw-decays-after-the-update",
        "The decay comes after the update, on the new weights.",
        "bitsandbytes-foundation/bitsandbytes issue 2010",
        (DECAYS, ""),
        (UPDATES, UPDATES + DECAYS),
        red=UPDATE,
        hint="the decay comes after the update",
    ),
    _mistake(
        "adamw-decay-without-the-rate",
        "The decay is not multiplied by the learning rate.",
        "egg-west/AdamW-pytorch issue 1",
        ('p.mul_(1 - group["lr"] * group["weight_decay"])', 'p.mul_(1 - group["weight_decay"])'),
        red=UPDATE,
        hint="the decay is not multiplied by the learning rate",
    ),
    _mistake(
        "adamw-second-moment-not-an-average",
        "The squared gradient is added to the second moment without the factor 1 - beta2.",
        "PennyLaneAI/pennylane issue 1928",
        ("addcmul_(p.grad, p.grad, value=1 - b2)", "addcmul_(p.grad, p.grad)"),
        red=(*UPDATE, LOST),
        hint="without the factor 1 - beta2",
    ),
    _mistake(
        "adamw-eps-in-the-root",
        "eps is added inside the square root.",
        "folklore",
        ('(v_hat.sqrt() + group["eps"])', '(v_hat + group["eps"]).sqrt()'),
        red=UPDATE,
        hint="eps is inside the square root",
    ),
    _mistake(
        "adamw-one-correction-for-both",
        "Both moments are corrected by beta1.",
        "folklore",
        ('v_hat = v / (1 - b2 ** state["step"])', 'v_hat = v / (1 - b1 ** state["step"])'),
        red=UPDATE,
        hint="beta1",
    ),
    _mistake(
        "adamw-moments-in-bfloat16",
        "The moments are bfloat16.",
        "workofart/ml-by-hand pull 85",
        (
            'state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)',
            'state["exp_avg"], state["exp_avg_sq"] = (torch.zeros_like(p, dtype=torch.bfloat16) for _ in range(2))',
        ),
        red=(FLOAT32, *UPDATE),
        hint="16 bits",
    ),
    _mistake(
        "adamw-count-not-in-the-state",
        "The count of the steps is an attribute, which no checkpoint has.",
        "lightly-ai/lightly-train pull 892",
        ('super().__init__(groups, {"lr": lr', 'self.count = 0\n        super().__init__(groups, {"lr": lr'),
        (
            "        for group in self.param_groups:\n",
            "        self.count += 1\n        for group in self.param_groups:\n",
        ),
        ('                    state["step"] = 0\n', ""),
        ('                state["step"] += 1\n', ""),
        ('b1 ** state["step"]', "b1**self.count"),
        ('b2 ** state["step"]', "b2**self.count"),
        red=(RESUME,),
        hint="the weights after it differ",
    ),
    _mistake(
        "biases-decay",
        "Only the parameters of LayerNorm are spared: the biases decay.",
        "dingo-actual/om issue 12",
        ("if p.dim() > 1]", 'if "ln" not in n]'),
        ("if p.dim() <= 1]", 'if "ln" in n]'),
        red=(DECAY,),
        hint="has a decay of 0.1, not 0",
    ),
    _mistake(
        "warm-up-again-after-a-resume",
        "The schedule counts the steps since the resume.",
        "mlbench/mlbench-old issue 50",
        ('group["lr"] = lr_at(step, s)', 'group["lr"] = lr_at(step - first_step, s)'),
        red=(RESUME, CHECKPOINT),
        hint="lost by the resume: learning rate",
    ),
    _mistake(
        "minimum-is-a-share",
        "The minimum is multiplied by the peak, as if it were a share of it.",
        "folklore",
        (
            '    if step >= s["lr_decay_iters"]:\n        return s["final_lr"]\n',
            '    if step >= s["lr_decay_iters"]:\n        return s["final_lr"] * s["learning_rate"]\n',
        ),
        (
            'return s["final_lr"] + (s["learning_rate"] - s["final_lr"]) * left',
            'return s["learning_rate"] * (s["final_lr"] + (1 - s["final_lr"]) * left)',
        ),
        red=(SCHEDULE,),
        hint="to the minimum times the peak",
    ),
    _mistake(
        "warm-up-in-windows",
        "The warm-up is a number of windows, and is compared with steps.",
        "folklore",
        ('    if step < s["warmup_iters"]:\n', '    if step * s["device_batch_size"] < s["warmup_iters"]:\n'),
        ('(step + 1) / s["warmup_iters"]', '(step + 1) * s["device_batch_size"] / s["warmup_iters"]'),
        red=(SCHEDULE,),
        hint="warm-up",
    ),
    _mistake(
        "clip-by-the-sum-of-norms",
        "The norms of the tensors are added, and not their squares.",
        "folklore",
        (NORM, NORM.replace("]).norm()", "]).sum()")),
        red=(CLIPPING,),
        hint="the norms of the tensors are added",
    ),
    _mistake(
        "clip-by-the-squared-norm",
        "The square root of the norm is missing.",
        "folklore",
        (NORM, NORM.replace("]).norm()", "]).square().sum()")),
        red=(CLIPPING,),
        hint="not square-rooted",
    ),
    _mistake(
        "clip-by-the-mean-norm",
        "The norm is the mean of the tensors' norms.",
        "folklore",
        (NORM, NORM.replace("]).norm()", "]).mean()")),
        red=(CLIPPING,),
        hint="the mean of the tensors' norms",
    ),
    _mistake(
        "loss-over-padding-too",
        "The loss is divided by all positions, those of the padding too.",
        "Lightning-AI/litgpt commit 7b867e96",
        (COUNT, "count = sum(y.numel() for _, y in micro_batches)"),
        red=(ACCUMULATION, LOGGED_K),
        hint="divided by all",
    ),
    _mistake(
        "loss-by-the-first-micro-batch",
        "The loss is divided as if every micro-batch had as many targets as the first.",
        "huggingface/transformers issue 34242",
        (COUNT, "count = len(micro_batches) * int((micro_batches[0][1] != -100).sum())"),
        red=(ACCUMULATION, LOGGED_K),
        hint="times that of the mean loss",
    ),
    _mistake(
        "loss-by-rows",
        "Each row's mean counts the same, however short the row is.",
        "huggingface/transformers issue 34510",
        (
            'return F.cross_entropy(logits.float().view(-1, 256), y.view(-1), ignore_index=-100, reduction="sum")',
            'own = F.cross_entropy(logits.float().view(-1, 256), y.view(-1), reduction="none").view_as(y)\n'
            "    targets = (y != -100).sum(1)\n"
            "    return (own.sum(1) / targets).mean() * targets.sum()",
        ),
        red=(ACCUMULATION,),
        hint="rows",
    ),
    _mistake(
        "targets-before-their-inputs",
        "The targets are the tokens before their inputs.",
        "folklore",
        ("= tokens[:-1], tokens[1:]\n", "= tokens[1:], tokens[:-1]\n"),
        red=(TARGETS, PLATEAU),
        hint="the tokens before their inputs (offset -1)",
    ),
    _mistake(
        "first-target-masked",
        "The mask of the targets is off by one: the first target of every row is ignored.",
        "jingyaogong/minimind pull 621",
        (
            "    return x.view(count, T), y.view(count, T)\n",
            "    y.view(count, T)[:, 0] = -100\n    return x.view(count, T), y.view(count, T)\n",
        ),
        red=(TARGETS,),
        hint="the loss ignores the target at position 0",
    ),
    _mistake(
        "shard-boundary-lost",
        "The last target of a shard, the first token of the next one, is never a target.",
        "AnswerDotAI/ModernBERT pull 184",
        ("own[start : start + length + 1]", "own[start : start + length]"),
        red=(COVERAGE,),
        hint="leaves out target",
    ),
    _mistake(
        "last-shard-skipped",
        "The last shard is skipped because it is shorter.",
        "microsoft/onnxruntime-training-examples issue 34",
        ('sorted(folder.glob("train_*.npy"))', 'sorted(folder.glob("train_*.npy"))[:-1]'),
        red=(COVERAGE,),
        hint="leaves out the tail",
    ),
    _mistake(
        "first-batch-of-a-shard-skipped",
        "The next shard is begun at its second batch.",
        "karpathy/build-nanogpt pull 100",
        (
            'position["shard"], position["row"] = number + 1, 0',
            'position["shard"], position["row"] = number + 1, s["device_batch_size"]',
        ),
        red=(COVERAGE,),
        hint="leaves out target",
    ),
    _mistake(
        "shard-order-repeats",
        "The order of shards and windows is the same in every epoch.",
        "mlfoundations/open_lm pull 191",
        (GENERATOR, 'rng = np.random.default_rng(s["random_seed"])'),
        red=(COVERAGE,),
        hint="has the shuffled order of epoch 0",
    ),
    _mistake(
        "shard-order-unseeded",
        "The order of shards and windows has no seed.",
        "ai2cm/ace issue 690",
        (GENERATOR, "rng = np.random.default_rng()"),
        red=(REPEATABLE,),
        hint="the batch differs",
    ),
    _mistake(
        "shard-position-not-restored",
        "A resumed run begins at the first shard.",
        "paiml/entrenar issue 294",
        (
            'position, first_step = state["position"], state["step"]',
            'first_step = state["step"]',
        ),
        red=(RESUME, CHECKPOINT),
        hint="lost by the resume: batch",
    ),
    _mistake(
        "shard-position-one-row-late",
        "The position is counted after a row is given: at a checkpoint it lacks the last row.",
        "huggingface/accelerate pull 4203",
        (
            '                position["row"] += 1\n                yield x[row], y[row]\n',
            '                yield x[row], y[row]\n                position["row"] += 1\n',
        ),
        red=(RESUME, CHECKPOINT),
        hint="lost by the resume: batch",
    ),
    _mistake(
        "position-of-the-batch-ahead",
        "One batch is read ahead, and the position that is saved is behind it.",
        "lhotse-speech/lhotse pull 417",
        (
            "    batches = training_batches(folder, s, position)\n",
            "    batches = training_batches(folder, s, position)\n    ahead = [next(batches)]\n",
        ),
        (
            DRAW,
            'ahead += [next(batches) for _ in range(s["grad_accum_steps"])]\n'
            '        micro_batches, ahead = ahead[: s["grad_accum_steps"]], ahead[s["grad_accum_steps"] :]',
        ),
        red=(RESUME, CHECKPOINT),
        hint="lost by the resume: batch",
    ),
    _mistake(
        "saved-before-the-step",
        "The checkpoint is written before the step that it counts.",
        "folklore",
        (SAVE, ""),
        ('        norm = clip(params, s["max_norm"])\n', SAVE + '        norm = clip(params, s["max_norm"])\n'),
        red=(RESUME, CHECKPOINT),
        hint="lost by the resume: weights",
    ),
    _mistake(
        "seeded-after-the-model",
        "The seed is set after the weights are drawn.",
        "folklore",
        ('    torch.manual_seed(s["random_seed"])\n', ""),
        ("    model = Transformer(s)\n", '    model = Transformer(s)\n    torch.manual_seed(s["random_seed"])\n'),
        red=(SEED,),
        hint="leaves the weights at the start",
    ),
    _mistake(
        "functional-dropout-in-validation",
        "F.dropout is called without `training=`: validation has dropout.",
        "karpathy/nanoGPT pull 240",
        (
            "x = x + F.dropout(self.out(y), self.drop_rate, self.training)",
            "x = x + F.dropout(self.out(y), self.drop_rate)",
        ),
        red=(TRACE,),
        hint="random state",
    ),
    _mistake(
        "validation-loss-over-padding-too",
        "The validation loss is divided by all positions, those of the padding too.",
        "Nota-NetsPresso/netspresso-trainer issue 360",
        ("count += int((y[start : start + B] != -100).sum())", "count += y[start : start + B].numel()"),
        red=(VALIDATION_LOSS,),
        hint="the padding too",
    ),
    _mistake(
        "logged-loss-of-the-first-micro-batch",
        "The logged loss is that of the first micro-batch.",
        "folklore",
        (
            "            step_loss += loss.item()\n",
            "            step_loss = step_loss or loss.item() * len(micro_batches)\n",
        ),
        red=(LOGGED_K,),
        hint="micro-batch",
    ),
)
