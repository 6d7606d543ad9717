"""Wrong steps of the optimizer: changes of the specimen, and the checks that must turn red for each."""

from harness.faults.training.changes import (
    ADAMW,
    GROUPS,
    LAST_RATE,
    MUON,
    SET_RATE,
    WARMUP,
    WITH_MUON,
    Trainer,
)
from harness.faults.training.checks import (
    DECAY,
    FLOAT32,
    LOST,
    MOVES,
    MUON_STEP,
    ONCE,
    SCHEDULE,
    SCHEDULE_K,
    SCHEDULE_PLAIN,
    SETTINGS,
    UPDATE,
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
        "lr-of-one-group",
        "Only the first group gets the scheduled rate; the others keep the peak.",
        "folklore",
        (("    for group in optimizer.param_groups:\n", "    for group in optimizer.param_groups[:1]:\n"),),
        (SCHEDULE_PLAIN,),
        "the learning rate of group 1 is not in proportion to that of group 0",
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
        "weights or moments have 16 bits",
    ),
    Trainer(
        "muon-not-orthogonal",
        "Muon's momentum is normalised, and no iteration makes it orthogonal.",
        "folklore",
        (*WITH_MUON[1:], (WITH_MUON[0][0], MUON.replace("for _ in range(iterations):", "for _ in range(0):"))),
        (MUON_STEP,),
        "not made orthogonal",
    ),
)
