"""Wrong training programs: changes of the specimen, and the checks that must turn red for each."""

from harness.tests.training.specimen_changes import (
    ADAMW,
    CHUNK,
    CLIP,
    GROUPS,
    LAST_RATE,
    LOSS,
    SET_RATE,
    WARMUP,
    ZERO_GRAD,
    Trainer,
)

TARGETS = "data::targets-are-the-next-tokens,rehearsal=plain"
TARGETS_EPOCH = "data::targets-are-the-next-tokens,rehearsal=epoch"
TEXT = "data::rows-are-of-the-text"
PARTS = "data::parts-share-no-token"
ROWS = "data::rows-of-a-batch-differ,rehearsal=plain"
ROWS_OF_RANKS = "data::rows-of-a-batch-differ,rehearsal=two-ranks"
BATCHES = "data::batches-differ"
COVERAGE = "data::epoch-coverage"
UNIFORM = "data::starts-are-uniform"
GRADIENT = "training::gradient-is-of-this-batch"
ACCUMULATION = "training::accumulation-is-one-batch"
CLIPPING = "training::clipping"
SCHEDULE = "training::lr-at-each-step,rehearsal=past-horizon"
SCHEDULE_K = "training::lr-at-each-step,rehearsal=accumulate"
STEPS = "training::steps-and-tokens"
UPDATE = ("training::optimizer-step,steps=1", "training::optimizer-step,steps=10")
SETTINGS = "training::optimizer-settings"
DECAY = "training::decay-by-parameter"
ONCE = "training::every-parameter-once"
MOVES = "training::every-parameter-moves"
FLOAT32 = "training::weights-and-moments-are-float32"
LOST = "training::few-updates-are-lost"
ENTROPY = "training::loss-below-entropy"
PLATEAU = "training::plateau-of-the-next-token"
OVERFIT = "training::overfits-one-batch"
REPEATABLE = "training::repeatable"
SEED = "training::seed-matters"
RESUME = "training::resume-is-continuation"
CHECKPOINT = "training::checkpoint-is-complete"
PURE = "training::validation-is-pure"
TRACE = "training::validation-leaves-no-trace"
SAME_SET = "training::validation-set-stays"
VALIDATION_LOSS = "training::printed-validation-loss"
LOGGED = "training::printed-loss,rehearsal=plain"
LOGGED_K = "training::printed-loss,rehearsal=accumulate"
RANKS = "training::ranks-agree"
ONE_BATCH = "training::ranks-are-one-batch"

DATA = (
    Trainer(
        "labels-not-shifted",
        "The targets are the inputs: the model learns to copy.",
        "huggingface/transformers issue 27517",
        (("y[row, : len(chunk) - 1] = chunk[1:]", "y[row, : len(chunk) - 1] = chunk[:-1]"),),
        (TARGETS, ENTROPY, PLATEAU),
        "the targets are the inputs themselves (offset 0)",
    ),
    Trainer(
        "labels-shifted-twice",
        "The loader and the loop both shift: the model learns the token two on.",
        "huggingface/transformers issue 47394",
        (
            (CHUNK, CHUNK.replace("+ 1]", "+ 2]")),
            ("x[row, : len(chunk) - 1] = chunk[:-1]", "x[row, : len(chunk) - 2] = chunk[:-2]"),
            ("y[row, : len(chunk) - 1] = chunk[1:]", "y[row, : len(chunk) - 2] = chunk[2:]"),
        ),
        (TARGETS,),
        "shifted twice (offset 2)",
    ),
    Trainer(
        "labels-roll-wraparound",
        "The targets are the ids rolled: the last target of a row is its first token.",
        "folklore",
        (("    return x, y\n", "    return x, x.roll(-1, 1)\n"),),
        (TARGETS,),
        "torch.roll wraps around",
    ),
    Trainer(
        "labels-row-mismatch",
        "The targets belong to another row of the batch.",
        "huggingface/transformers issue 47394",
        (("    return x, y\n", "    return x, y.roll(1, 0)\n"),),
        (TARGETS,),
        "the targets of row 0 are those of row 3 of the batch",
    ),
    Trainer(
        "loss-ignore-index-real-token",
        "The loss ignores targets that are a real token, the space.",
        "folklore",
        (("    return x, y\n", "    return x, y.masked_fill(y == 32, -100)\n"),),
        (TARGETS,),
        "the loss ignores the targets that are token 32",
    ),
    Trainer(
        "loss-averaged-over-pads",
        "The padding of a short window counts, as token 0.",
        "Lightning-AI/litgpt commit 7b867e96",
        (
            (
                "y = torch.full((len(starts), block_size), -100)",
                "y = torch.zeros(len(starts), block_size, dtype=torch.long)",
            ),
        ),
        (TARGETS_EPOCH,),
        "the next token is 0",
    ),
    Trainer(
        "data-token-dtype-overflow",
        "The ids are stored in a type that is too small for them.",
        "princeton-nlp/LLM-Shearing issue 65",
        ((CHUNK, CHUNK.replace("np.int64))", "np.int64) % 64)")),),
        (TEXT,),
        "modulo 64",
    ),
    Trainer(
        "data-val-is-train",
        "Validation is on the training part.",
        "openai/parameter-golf issue 2127",
        (("val_data = data[split:]", "val_data = data[: len(data) - split]"),),
        (PARTS, COVERAGE),
        "the validation rows are in the training part",
    ),
    Trainer(
        "split-one-too-far",
        "The last target of the training part is the first token of the validation part.",
        "folklore",
        (("train_data = data[:split]", "train_data = data[: split + 1]"),),
        (PARTS,),
        "the training part reaches into the validation part",
    ),
    Trainer(
        "data-trains-on-val-batch",
        "One step consumes a batch of the validation part.",
        "karpathy/llm.c commit ca27eb8",
        (
            (
                "    return windows(train_data, mine)\n",
                "    return windows(val_data if number == 3 else train_data, mine)\n",
            ),
            (
                "starts.append(train_starts[epoch_order(epoch)[place]])",
                "starts.append(train_starts[place % 5 if number == 3 else epoch_order(epoch)[place]])",
            ),
        ),
        (PARTS, COVERAGE),
        "the training part reaches into the validation part",
    ),
    Trainer(
        "batch-rows-equal",
        "All rows of a batch are one window.",
        "finetrainers issue 394",
        (("(count,)).tolist()", "(1,)).tolist() * count"),),
        (ROWS,),
        "is in its batch 4 times",
    ),
    Trainer(
        "batch-comes-again",
        "The loop trains on the first five batches for ever.",
        "folklore",
        (("overfit_batches = 0", "overfit_batches = 5"),),
        (BATCHES,),
        "step 5 has the batch of step 0",
    ),
    Trainer(
        "data-stride-skips-token",
        "Windows start one token too far apart: a target a window is never seen.",
        "karpathy/build-nanogpt pull 109",
        (("range(0, len(train_data) - 1, block_size)", "range(0, len(train_data) - 1, block_size + 1)"),),
        (COVERAGE,),
        "leaves out target",
    ),
    Trainer(
        "data-tail-dropped",
        "The short window at the end is dropped in every epoch.",
        "karpathy/llm.c issue 321",
        (("range(0, len(train_data) - 1, block_size)", "range(0, len(train_data) - block_size, block_size)"),),
        (COVERAGE,),
        "leaves out",
    ),
    Trainer(
        "data-same-order-each-epoch",
        "Every epoch has the same shuffled order: set_epoch is missing.",
        "areal-project/AReaL pull 632",
        (("manual_seed(seed + epoch)", "manual_seed(seed)"),),
        (COVERAGE,),
        "has the shuffled order of epoch 0",
    ),
    Trainer(
        "data-workers-repeat",
        "Two workers give the same windows, one after the other.",
        "a-r-r-o-w/finetrainers pull 415",
        (("divmod(i, len(train_starts))", "divmod(i // 2, len(train_starts))"),),
        (COVERAGE,),
        "leaves out target 0, the first of",
    ),
    Trainer(
        "data-subset-only",
        "Windows are drawn from the first half of the training part only.",
        "folklore",
        (("torch.randint(len(train_data) - block_size, (count,))", "torch.randint(len(train_data) // 2, (count,))"),),
        (UNIFORM,),
        "possible ones",
    ),
)

GRADIENTS = (
    Trainer(
        "zero-grad-missing",
        "The gradients of all steps add up.",
        "stackoverflow 60335387",
        ((ZERO_GRAD, ""),),
        (GRADIENT,),
        "no zero_grad",
    ),
    Trainer(
        "accum-zero-grad-each-micro",
        "zero_grad is in the loop over micro-batches: the last one alone counts.",
        "folklore",
        (("    for x, y in batches:\n", "    for x, y in batches:\n        optimizer.zero_grad(set_to_none=True)\n"),),
        (ACCUMULATION,),
        "times the expected gradient, the cosine to it is",
    ),
    Trainer(
        "accum-not-divided",
        "The micro-batches' means are added and not divided by their number.",
        "karpathy/nanoGPT issue 168",
        ((LOSS, LOSS.replace("count", "(y != -100).sum()")),),
        (ACCUMULATION, LOGGED_K),
        "3 times that of the mean loss of its 3 micro-batches",
    ),
    Trainer(
        "accum-divided-twice",
        "The loss is divided by the number of micro-batches once more.",
        "unslothai/unsloth-zoo pull 1023",
        ((LOSS, LOSS + " / gradient_accumulation_steps"),),
        (ACCUMULATION, LOGGED_K),
        "0.333333 times that of the mean loss of its 3 micro-batches",
    ),
    Trainer(
        "accum-mean-of-means",
        "The micro-batches' means are averaged although one has fewer targets.",
        "huggingface/transformers issue 34242",
        ((LOSS, LOSS.replace("count", "(y != -100).sum() / gradient_accumulation_steps")),),
        (ACCUMULATION, LOGGED_K),
        "which is the mean of the micro-batches' means",
    ),
    Trainer(
        "clip-inside-accumulation",
        "The gradient is clipped after every micro-batch.",
        "facebookresearch/lingua commit 5455bbc",
        (
            ("        loss.backward()\n", f"        loss.backward()\n        {CLIP}\n"),
            (f"    {CLIP}\n    optimizer", "    optimizer"),
        ),
        (ACCUMULATION,),
        "times the expected gradient, the cosine to it is",
    ),
    Trainer(
        "opt-step-skipped",
        "Every other optimizer step is skipped.",
        "folklore",
        (("    optimizer.step()\n", "    if it % 2:\n        optimizer.step()\n"),),
        (STEPS, ACCUMULATION, SCHEDULE_K, LOGGED_K),
        "optimizer steps: 2, declared 5",
    ),
    Trainer(
        "clip-missing",
        "The gradient is not clipped.",
        "simchowitzlabpublic/nano-world-model pull 22",
        ((CLIP, "norm = torch.zeros(())"),),
        (CLIPPING,),
        "not clipped before the step",
    ),
    Trainer(
        "clip-after-step",
        "The gradient is clipped after the step.",
        "folklore",
        ((f"    {CLIP}\n    optimizer.step()\n", f"    optimizer.step()\n    {CLIP}\n"),),
        (CLIPPING,),
        "not clipped before the step",
    ),
    Trainer(
        "clip-per-tensor",
        "Each tensor is clipped by its own norm.",
        "folklore",
        ((CLIP, "norm = max(nn.utils.clip_grad_norm_(p, grad_clip) for p in model.parameters())"),),
        (CLIPPING,),
        "each tensor is clipped by its own norm",
    ),
    Trainer(
        "clip-by-value",
        "Each value is clipped, which changes the direction.",
        "folklore",
        ((CLIP, "norm = torch.zeros(())\n    nn.utils.clip_grad_value_(model.parameters(), grad_clip / 10)"),),
        (CLIPPING,),
        "the cosine between them",
    ),
)

STEP = (
    Trainer(
        "lr-schedule-not-applied",
        "The learning rate is computed and logged, and the optimizer keeps the peak.",
        "folklore",
        (('        group["lr"] = lr\n', "        pass\n"),),
        (SCHEDULE,),
        "the learning rate is the peak at every step",
    ),
    Trainer(
        "lr-warmup-missing",
        "The schedule begins at its peak.",
        "folklore",
        ((WARMUP, "return learning_rate"),),
        (SCHEDULE,),
        "with the peak in place of the warm-up",
    ),
    Trainer(
        "lr-no-clamp-past-horizon",
        "The cosine rises again past the horizon.",
        "karpathy/nanochat pull 775",
        ((LAST_RATE, ""),),
        (SCHEDULE,),
        "which goes on past the horizon",
    ),
    Trainer(
        "lr-horizon-too-long",
        "The horizon is eight times as long: the rate never decays.",
        "karpathy/llm.c commit c6680a2",
        (("decay_iters = lr_decay_iters or max_iters", "decay_iters = 8 * (lr_decay_iters or max_iters)"),),
        (SCHEDULE,),
        "with a horizon of 64 steps",
    ),
    Trainer(
        "lr-minimum-ignored",
        "The cosine goes to 0.",
        "folklore",
        (
            (
                "return min_lr + 0.5 * (1 + math.cos(math.pi * ratio)) * (learning_rate - min_lr)",
                "return 0.5 * (1 + math.cos(math.pi * ratio)) * learning_rate",
            ),
            (LAST_RATE, LAST_RATE.replace("return min_lr", "return 0.0")),
        ),
        (SCHEDULE,),
        "the minimum is ignored",
    ),
    Trainer(
        "units-micro-vs-step",
        "The schedule counts micro-batches.",
        "karpathy/nanochat pull 775",
        ((SET_RATE, "    lr = get_lr(it * gradient_accumulation_steps)\n"),),
        (SCHEDULE_K,),
        "steps counted in micro-batches",
    ),
    Trainer(
        "adam-l2-not-decoupled",
        "Adam with weight_decay, which is L2 in the gradient, in place of AdamW.",
        "karpathy/llm.c commit 645869b",
        ((ADAMW, ADAMW.replace("AdamW", "Adam")),),
        (DECAY,),
        "Adam adds its weight_decay to the gradient (L2)",
    ),
    Trainer(
        "adam-betas-swapped",
        "The betas are (0.95, 0.9).",
        "folklore",
        ((ADAMW, ADAMW.replace("(beta1, beta2)", "(beta2, beta1)")),),
        (SETTINGS,),
    ),
    Trainer(
        "adam-eps-too-large",
        "eps is 1e-3.",
        "karpathy/nanoGPT issue 168",
        ((ADAMW, ADAMW.replace("betas=", "eps=1e-3, betas=")),),
        (SETTINGS,),
    ),
    Trainer(
        "adam-eps-before-correction",
        "eps is added to the root of the second moment before its bias correction.",
        "Kingma and Ba 2015, the efficient form of section 2",
        (
            (
                ADAMW,
                f"""class AdamW(torch.optim.Optimizer):
    def __init__(self, groups, lr, betas):
        super().__init__(groups, dict(lr=lr, betas=betas, eps=1e-8))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["step"] = torch.zeros(())
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
                state["step"] += 1
                t = int(state["step"])
                m = state["exp_avg"].lerp_(p.grad, 1 - b1)
                v = state["exp_avg_sq"].mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
                p *= 1 - group["lr"] * group["weight_decay"]
                p -= group["lr"] * (1 - b2**t) ** 0.5 / (1 - b1**t) * m / (v.sqrt() + group["eps"])


{ADAMW.replace("torch.optim.", "")}""",
            ),
        ),
        UPDATE,
        "eps is added before the bias correction",
    ),
    Trainer(
        "adamw-decay-twice",
        "An optimizer of one's own decays before it calls AdamW, which decays too.",
        "folklore",
        (
            (
                ADAMW,
                f"""class AdamW(torch.optim.AdamW):
    def step(self):
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p *= 1 - group["lr"] * group["weight_decay"]
        super().step()


{ADAMW.replace("torch.optim.", "")}""",
            ),
        ),
        UPDATE,
        "the weights decay twice",
    ),
    Trainer(
        "wd-on-everything",
        "Weight decay on gains and biases too.",
        "karpathy/minGPT issue 23",
        (('"weight_decay": 0.0}', '"weight_decay": weight_decay}'),),
        (DECAY,),
        "those of one dimension too",
    ),
    Trainer(
        "wd-zero",
        "Weight decay is not passed through.",
        "folklore",
        (('"weight_decay": weight_decay}', '"weight_decay": 0.0}'),),
        (DECAY,),
        "no parameter decays",
    ),
    Trainer(
        "opt-misses-pos-embedding",
        "The position embedding is in no group.",
        "folklore",
        ((GROUPS, 'matrices = [p for n, p in model.named_parameters() if p.dim() >= 2 and n != "wpe.weight"]'),),
        (ONCE, MOVES),
        "are in no group: wpe.weight",
    ),
    Trainer(
        "opt-misses-last-block",
        "The last block is frozen, off by one.",
        "open-mmlab/mmpretrain issue 702",
        (("model.train()\nmatrices", "model.train()\nmodel.blocks[-1].requires_grad_(False)\nmatrices"),),
        (MOVES,),
        "blocks.1.ln_1.weight",
    ),
    Trainer(
        "precision-pure-bfloat16",
        "Weights and moments are bfloat16, without float32 masters.",
        "Micikevicius et al. 2018, section 3.1",
        (("model = TinyGPT()\n", "model = TinyGPT().bfloat16()\n"),),
        (FLOAT32, LOST, MOVES),
        "100.0% of blocks.0.ln_1.weight",
    ),
)

RUNS = (
    Trainer(
        "mask-missing",
        "Attention sees the future.",
        "paiml/entrenar issue 310",
        (("is_causal=True", "is_causal=False"),),
        (ENTROPY,),
        "the source's entropy is 1.136",
    ),
    Trainer(
        "stale-parameters",
        "The optimizer holds the parameters of another copy of the model, which stays as it is.",
        "folklore",
        (("first_iter = 0\n", "import copy\n\nmodel = copy.deepcopy(model)\nfirst_iter = 0\n"),),
        (ONCE,),
        "no module of the model owns",
    ),
    Trainer(
        "clip-loss-not-grad",
        "The loss is clipped in place of the gradient: above the limit there is no gradient.",
        "karpathy.github.io/2019/04/25/recipe",
        ((LOSS, f"{LOSS.replace('= ', '= (')}).clamp(max=2.0)"),),
        (OVERFIT,),
        "lowest 5.5",
    ),
    Trainer(
        "not-repeatable",
        "The seed is a new one in every run.",
        "folklore",
        (("torch.manual_seed(seed)\n", "torch.seed()\n"),),
        (REPEATABLE,),
        "the weights before it differ",
    ),
    Trainer(
        "seed-ignored",
        "The seed is a number in the text.",
        "Lightning-AI/litgpt commit f6174d92",
        (("torch.manual_seed(seed)\n", "torch.manual_seed(1234)\n"),),
        (SEED,),
        "another seed leaves the weights at the start and the batches as they are",
    ),
    Trainer(
        "ckpt-optimizer-missing",
        "The optimizer's moments are not restored.",
        "karpathy/llama2.c issue 148",
        (('    optimizer.load_state_dict(checkpoint["optimizer"])\n', ""),),
        (RESUME, CHECKPOINT),
        "moments",
    ),
    Trainer(
        "ckpt-rng-missing",
        "The random state is not restored: the batches are others.",
        "karpathy/build-nanogpt pull 83",
        (('    torch.set_rng_state(checkpoint["rng"])\n', ""),),
        (RESUME, CHECKPOINT),
        "the batch differs, and so does the random state",
    ),
    Trainer(
        "ckpt-iter-off-by-one",
        "The number of the step is saved before it is counted: a step is done twice.",
        "folklore",
        (('"iter": it + 1', '"iter": it'),),
        (RESUME, CHECKPOINT),
        "steps after the checkpoint",
    ),
    Trainer(
        "eval-mode-forgotten",
        "Validation has dropout.",
        "ipolharvard/ethos-ares issue 20",
        (("    model.eval()\n", ""),),
        (PURE, TRACE),
        "not in eval mode",
    ),
    Trainer(
        "train-mode-not-restored",
        "Training goes on without dropout after the first validation.",
        "ThilinaRajapakse/simpletransformers issue 941",
        (("    model.train()\n    return total", "    return total"),),
        (PURE,),
        "training passes not in training mode",
    ),
    Trainer(
        "eval-with-gradients",
        "Validation records gradients.",
        "folklore",
        (("@torch.no_grad()\ndef estimate_loss", "def estimate_loss"),),
        (PURE,),
        "validation passes with gradients",
    ),
    Trainer(
        "eval-draws-from-training",
        "Validation draws its windows from training's random numbers.",
        "karpathy/nanoGPT, estimate_loss",
        (("starts = list(val_starts)", "starts = torch.randint(len(val_data) - block_size, (20,)).tolist()"),),
        (TRACE, SAME_SET),
        "random state",
    ),
    Trainer(
        "eval-average-of-averages",
        "The validation loss is the mean of the batches' means.",
        "huggingface/transformers issue 34138",
        (
            (
                "total += sum_of_losses(model(x), y).item()",
                "total += sum_of_losses(model(x), y).item() / int((y != -100).sum())",
            ),
            ("count += int((y != -100).sum())", "count += 1"),
        ),
        (VALIDATION_LOSS,),
        "the mean of the batches' means",
    ),
    Trainer(
        "loss-logged-from-one-micro",
        "The logged loss is that of the last micro-batch.",
        "karpathy/nanochat pull 52",
        (("step_loss += loss.detach()", "step_loss = loss.detach() * gradient_accumulation_steps"),),
        (LOGGED_K,),
        "the loss of the last micro-batch alone",
    ),
    Trainer(
        "loss-printed-as-a-sum",
        "The printed loss is a sum over the positions of a row.",
        "folklore",
        (("{step_loss.item():.4f}", "{step_loss.item() * block_size:.4f}"),),
        (LOGGED,),
        "which is another number",
    ),
    Trainer(
        "ddp-no-sync",
        "The gradients are not summed over the ranks.",
        "karpathy/build-nanogpt pull 30",
        (("            dist.all_reduce(p.grad)\n", "            pass\n"),),
        (RANKS, ONE_BATCH),
        "the ranks have [64, 64] targets",
    ),
    Trainer(
        "grad-sum-instead-of-mean",
        "The gradients of the ranks are summed and not divided.",
        "pytorch/torchtune commit e420bc0c7",
        (("        dist.all_reduce(count)\n", "        pass\n"),),
        (ONE_BATCH,),
        "2 times the mean",
    ),
    Trainer(
        "data-ranks-read-same",
        "Every rank has the same rows.",
        "Shark-NLP/DiffuSeq issue 37",
        (("starts[rank * batch_size : (rank + 1) * batch_size]", "starts[:batch_size]"),),
        (ROWS_OF_RANKS,),
        "is in its batch 2 times",
    ),
    Trainer(
        "init-rank-dependent",
        "The ranks start with different weights, which nobody broadcasts.",
        "karpathy/nanoGPT issue 22",
        (("torch.manual_seed(seed)\n", "torch.manual_seed(seed + rank)\n"),),
        (RANKS,),
    ),
)

WRONG_TRAINERS = (*DATA, *GRADIENTS, *STEP, *RUNS)
