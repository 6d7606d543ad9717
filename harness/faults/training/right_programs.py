"""Other right training programs: changes of a specimen that follow other conventions; no check may turn red."""

from harness.faults.training.changes import (
    ADAMW,
    CHUNK,
    CLIP,
    EPOCHS,
    FUNCTIONS,
    LOSS,
    SET_RATE,
    SHORT_CHUNK,
    TRAINER_CLASS,
    WARMUP,
    WITH_MUON,
    ZERO_GRAD,
    Trainer,
)

RIGHT_TRAINERS = (
    Trainer(
        "warm-up-from-zero-then-linear",
        "k/w, so that the learning rate is 0 at step 0, then a line to the minimum.",
        "Hugging Face's get_linear_schedule_with_warmup",
        (
            (WARMUP, "return learning_rate * it / warmup_iters"),
            ("0.5 * (1 + math.cos(math.pi * ratio))", "(1 - ratio)"),
        ),
        rehearsals=("plain", "past-horizon", "accumulate"),
    ),
    Trainer(
        "warm-up-stable-decay",
        "The peak until the last three steps, then a line.",
        "MiniCPM (Hu et al. 2024)",
        (
            (
                "ratio = (it - warmup_iters) / (decay_iters - warmup_iters)",
                "ratio = max(0, it - (decay_iters - 3)) / 3",
            ),
            ("0.5 * (1 + math.cos(math.pi * ratio))", "(1 - ratio)"),
        ),
        rehearsals=("past-horizon",),
    ),
    Trainer(
        "short-window-dropped",
        "The text ends with less than a window, which is left out.",
        "the usual __len__ of a Dataset: (len(tokens) - 1) // block_size",
        (("range(0, len(train_data) - 1, block_size)", "range(0, len(train_data) - block_size, block_size)"),),
        rehearsals=("plain", "epoch"),
    ),
    Trainer(
        "validation-loader-without-a-generator",
        "PyTorch draws a number for each pass over a loader: every program that validates through one has that.",
        "pytorch/pytorch issue 80119",
        (
            (
                "self.val_loader = self.loader(val_set)",
                "self.val_loader = DataLoader(val_set, batch_size=config.batch_size)",
            ),
        ),
        rehearsals=("validate-often", "validate-never"),
        specimen=TRAINER_CLASS,
    ),
    Trainer(
        "muon-beside-adamw",
        "Muon for the matrices of the blocks, AdamW for the others.",
        "Jordan et al. 2024, Muon",
        WITH_MUON,
        rehearsals=("plain", "accumulate", "straight", "resumed"),
    ),
    Trainer(
        "decay-written-out",
        "The weights are multiplied by 1 - lr * decay before the step of an optimizer that has no decay.",
        "Loshchilov and Hutter 2019",
        (
            ('{"params": matrices, "weight_decay": weight_decay}', '{"params": matrices, "weight_decay": 0.0}'),
            (
                "    optimizer.step()\n",
                "    with torch.no_grad():\n        for p in matrices:\n            p.mul_(1 - lr * weight_decay)\n"
                "    optimizer.step()\n",
            ),
        ),
        rehearsals=("plain",),
    ),
    Trainer(
        "loss-written-out",
        "The loss is the log-sum-exp less the score of the target, which the program picks itself.",
        "karpathy/nanochat, and hand-written losses in many tutorials",
        (
            (
                'return F.cross_entropy(logits.view(-1, vocab_size), y.view(-1), ignore_index=-100, reduction="sum")',
                "picked = logits.gather(-1, y.clamp(min=0).unsqueeze(-1)).squeeze(-1)\n"
                "    return ((logits.logsumexp(-1) - picked) * (y != -100)).sum()",
            ),
        ),
        rehearsals=("plain", "accumulate"),
    ),
    Trainer(
        "in-the-order-of-the-text",
        "Windows side by side, in the same order in every epoch.",
        "karpathy/build-nanogpt",
        (
            (
                "return torch.randperm(len(train_starts), generator=generator).tolist()",
                "return list(range(len(train_starts)))",
            ),
        ),
        rehearsals=("epoch", "accumulate"),
    ),
    Trainer(
        "random-in-every-rehearsal",
        "Windows that start anywhere, drawn with replacement.",
        "karpathy/nanoGPT",
        (('if sampling == "random":', "if True:"),),
        rehearsals=("epoch", "starts"),
    ),
    Trainer(
        "validates-after-the-first-steps",
        "There is no validation before the first step.",
        "karpathy/build-nanogpt",
        (("if eval_interval and it % eval_interval == 0:", "if eval_interval and it and it % eval_interval == 0:"),),
        rehearsals=("epoch", "starts"),
    ),
    Trainer(
        "random-windows-and-a-validation-after-the-first-steps",
        "Windows that start anywhere, and no validation before the first step.",
        "folklore",
        (
            ("if eval_interval and it % eval_interval == 0:", "if eval_interval and it and it % eval_interval == 0:"),
            ('if sampling == "random":', "if True:"),
        ),
        rehearsals=("epoch", "starts"),
    ),
    Trainer(
        "sgd-with-momentum",
        "SGD with Nesterov's momentum and L2 decay.",
        "torch.optim.SGD",
        ((ADAMW, "optimizer = torch.optim.SGD(groups, lr=learning_rate, momentum=0.9, nesterov=True)"),),
        rehearsals=("plain",),
    ),
    Trainer(
        "clip-by-hand",
        "The global norm by hand, without the 1e-6 of PyTorch.",
        "folklore",
        (
            (
                CLIP,
                """grads = [p.grad for p in model.parameters()]
    norm = torch.sqrt(sum((g * g).sum() for g in grads))
    if norm > grad_clip:
        for g in grads:
            g.mul_(grad_clip / norm)""",
            ),
        ),
        rehearsals=("plain", "accumulate"),
    ),
    Trainer(
        "mean-loss-over-equal-batches",
        "F.cross_entropy's own mean, divided by the number of micro-batches.",
        "karpathy/nanoGPT",
        ((LOSS, "loss = F.cross_entropy(model(x).view(-1, vocab_size), y.view(-1)) / gradient_accumulation_steps"),),
        rehearsals=("plain",),
    ),
    Trainer(
        "autocast-over-float32-masters",
        "Products in bfloat16, weights and moments in float32.",
        "torch.autocast",
        (
            (
                LOSS,
                """with torch.autocast("cpu", torch.bfloat16):
            logits = model(x)
        loss = sum_of_losses(logits.float(), y) / count""",
            ),
        ),
        rehearsals=("plain",),
    ),
    Trainer(
        "estimates-of-both-losses",
        "The loss of as many batches of the training part as of the validation part is estimated, without a trace.",
        "karpathy/nanoGPT, estimate_loss",
        (
            (
                "    for batch in batches[: eval_iters or None]:\n        x, y = windows(val_data, batch)\n",
                """    both = [(p, b) for p in (train_data, val_data) for b in batches[: eval_iters or None]]
    for part, batch in both:
        x, y = windows(part, batch)
        if part is train_data:
            sum_of_losses(model(x), y)
            continue
""",
            ),
        ),
        rehearsals=("epoch", "validate-often", "validate-never"),
    ),
    Trainer(
        "estimate-on-random-training-windows",
        "The estimate of the training loss draws its windows from a generator of its own, others each time.",
        "folklore",
        (
            (
                "    for batch in batches[: eval_iters or None]:\n        x, y = windows(val_data, batch)\n",
                """    batches = batches[: eval_iters or None]
    for batch in batches:
        drawn = torch.randint(len(train_data) - block_size, (len(batch),), generator=estimates).tolist()
        sum_of_losses(model(windows(train_data, drawn)[0]), windows(train_data, drawn)[1])
    for batch in batches:
        x, y = windows(val_data, batch)
""",
            ),
            ("torch.manual_seed(seed)\n", "torch.manual_seed(seed)\nestimates = torch.Generator().manual_seed(seed)\n"),
        ),
        rehearsals=("epoch", "plain", "validate-often", "validate-never"),
    ),
    Trainer(
        "windows-of-different-lengths",
        "Short windows are padded, and the loss ignores the padding.",
        "karpathy/makemore",
        ((CHUNK, SHORT_CHUNK),),
        rehearsals=("plain", "accumulate"),
    ),
    Trainer(
        "zero-grad-first-and-fused",
        "zero_grad at the beginning of a step, and the fused kernel of AdamW.",
        "torch.optim.AdamW",
        (
            (ZERO_GRAD, ""),
            (SET_RATE, "    optimizer.zero_grad()\n" + SET_RATE),
            (ADAMW, ADAMW.replace("betas=", "fused=True, betas=")),
        ),
        rehearsals=("plain", "accumulate"),
    ),
    Trainer(
        "drop-last-of-shuffled-windows",
        "The last, incomplete batch of a shuffled epoch is left out: other windows each time.",
        "PyTorch, DataLoader(drop_last=True)",
        (
            (
                "self.train_loader = self.loader(train_set, sampler=self.sampler)",
                "self.train_loader = DataLoader(train_set, config.batch_size, sampler=self.sampler, drop_last=True,\n"
                "            generator=torch.Generator())",
            ),
        ),
        rehearsals=("epoch", "accumulate", "straight", "resumed"),
        specimen=TRAINER_CLASS,
    ),
    Trainer(
        "two-workers",
        "Two processes read the windows, some batches ahead; the position is that of the batches that were used.",
        "PyTorch, DataLoader(num_workers=2)",
        (('{"num_workers": self.config.num_workers,', '{"num_workers": 2 if sampler else 0,'),),
        rehearsals=("epoch", "straight", "resumed"),
        specimen=TRAINER_CLASS,
    ),
    Trainer(
        "validates-the-weights-themselves",
        "There is no average: validation is of the weights that are trained.",
        "karpathy/minGPT",
        (
            (
                "        total, count = 0.0, 0\n        for x, y in self.val_loader:\n"
                "            total += self.sum_of_losses(self.ema, x, y).item()\n",
                "        self.model.eval()\n        total, count = 0.0, 0\n        for x, y in self.val_loader:\n"
                "            total += self.sum_of_losses(self.model, x, y).item()\n",
            ),
            ("        self.best = min(", "        self.model.train()\n        self.best = min("),
        ),
        rehearsals=("plain", "validate-often", "validate-never"),
        specimen=TRAINER_CLASS,
    ),
    Trainer(
        "average-with-a-warm-up",
        "The average follows the weights more closely in the first steps.",
        "TensorFlow, ExponentialMovingAverage(num_updates)",
        (
            (
                "average.lerp_(p, 1 - self.config.ema_decay)",
                "average.lerp_(p, 1 - min(self.config.ema_decay, (1 + self.step) / (10 + self.step)))",
            ),
        ),
        rehearsals=("validate-often", "validate-never", "straight", "resumed"),
        specimen=TRAINER_CLASS,
    ),
    Trainer(
        "shards-in-the-order-of-the-text",
        "Shards and windows come in the order of the text in every epoch.",
        "karpathy/build-nanogpt",
        (
            ("order = rng.permutation(len(shards))", "order = range(len(shards))"),
            ("rows = rng.permutation(len(x))", "rows = range(len(x))"),
        ),
        rehearsals=("epoch", "starts", "accumulate", "straight", "resumed"),
        specimen=FUNCTIONS,
    ),
    Trainer(
        "update-in-one-expression",
        "The bias corrections are in the step size and in the root, as in PyTorch's own loop.",
        "torch.optim.AdamW",
        (
            (
                '                m_hat = m / (1 - b1 ** state["step"])\n',
                '                size = group["lr"] / (1 - b1 ** state["step"])\n',
            ),
            (
                '                v_hat = v / (1 - b2 ** state["step"])\n',
                '                root = v.sqrt() / math.sqrt(1 - b2 ** state["step"])\n',
            ),
            (
                '                p.sub_(group["lr"] * m_hat / (v_hat.sqrt() + group["eps"]))\n',
                '                p.addcdiv_(m, root + group["eps"], value=-size)\n',
            ),
        ),
        rehearsals=("plain",),
        specimen=FUNCTIONS,
    ),
    Trainer(
        "norm-of-all-gradients-as-one-vector",
        "The gradients are put into one vector, whose norm is the limit's.",
        "folklore",
        (
            (
                "norm = torch.stack([p.grad.norm() for p in params]).norm()",
                "norm = torch.cat([p.grad.flatten() for p in params]).norm()",
            ),
        ),
        rehearsals=("plain", "accumulate"),
        specimen=FUNCTIONS,
    ),
    Trainer(
        "autocast-in-the-forward-pass",
        "Products in bfloat16; the loss, the weights and the moments in float32.",
        "torch.autocast",
        (('"autocast": False,', '"autocast": True,'),),
        rehearsals=("plain", "accumulate"),
        specimen=FUNCTIONS,
    ),
    Trainer(
        "label-smoothing-in-the-loss",
        "A tenth of each target is spread over the vocabulary in training, and none in validation.",
        "Vaswani et al. 2017, section 5.4",
        (
            (
                "ignore_index=-100, reduction",
                "ignore_index=-100, label_smoothing=0.1 if model.training else 0.0, reduction",
            ),
        ),
        rehearsals=("plain", "accumulate"),
        specimen=TRAINER_CLASS,
    ),
    Trainer(
        "schedule-ends-after-the-epochs",
        "A program that counts epochs has a schedule of a length of its own, and stops before its end.",
        "karpathy/nanoGPT (lr_decay_iters)",
        (
            (
                'parser.add_argument("--warmup", type=int, default=10)\n',
                'parser.add_argument("--warmup", type=int, default=10)\n'
                'parser.add_argument("--decay-steps", type=int, default=60)\n',
            ),
            ("args.epochs * math.ceil(batches / args.accum)", "args.decay_steps"),
        ),
        rehearsals=("plain", "epochs"),
        specimen=EPOCHS,
    ),
)
