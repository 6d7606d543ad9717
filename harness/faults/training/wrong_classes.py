"""Mistakes of a `Trainer` class: changes of `trainer_class.py`, and the checks that must turn red for each."""

from collections.abc import Sequence

from harness.faults.training.changes import TRAINER_CLASS, Change, Trainer
from harness.faults.training.checks import (
    CHECKPOINT,
    CLIPPING,
    COVERAGE,
    DECAY,
    LOGGED,
    LOGGED_K,
    MEAN,
    MOVES,
    ONCE,
    PARTS,
    PURE,
    RANDOM,
    RESUME,
    SCHEDULE,
    SCHEDULE_K,
    SEED,
    SETTINGS,
    TRACE,
    VALIDATION_LOSS,
)

# Texts of the specimen that several changes replace.
SCHEDULER_STEP = "        self.scheduler.step()\n"
OPTIMIZER_STEP = "        self.optimizer.step()\n"
CLIP = "nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)"
SAVED_PARTS = 'for part in ("model", "ema", "optimizer", "scheduler")}'
LOADED_PARTS = '        for part in ("model", "ema", "optimizer", "scheduler"):\n'
LOADED_NAMES = '        for name in ("step", "epoch", "seen", "best"):\n            setattr'
VALIDATES = "        total, count = 0.0, 0\n        for x, y in self.val_loader:\n"


def _mistake(id: str, what: str, source: str, *change: Change, red: Sequence[str], hint: str = "") -> Trainer:
    return Trainer(id, what, source, change, tuple(red), hint, by_lot=True, specimen=TRAINER_CLASS)


CLASSES = (
    _mistake(
        "lambda-lr-per-micro-batch",
        "LambdaLR is stepped after every micro-batch.",
        "starVLA/starVLA pull 210",
        (OPTIMIZER_STEP + SCHEDULER_STEP, OPTIMIZER_STEP),
        ("            self.loss += loss.item()\n", "            self.loss += loss.item()\n    " + SCHEDULER_STEP),
        red=(SCHEDULE_K,),
        hint="steps counted in micro-batches",
    ),
    _mistake(
        "lambda-lr-per-epoch",
        "LambdaLR, whose numbers are steps, is stepped once an epoch.",
        "Lightning, configure_optimizers: the interval is an epoch if nobody says otherwise",
        (OPTIMIZER_STEP + SCHEDULER_STEP, OPTIMIZER_STEP),
        (
            "            self.epoch, self.seen = self.epoch + 1, 0\n",
            "            self.epoch, self.seen = self.epoch + 1, 0\n    " + SCHEDULER_STEP,
        ),
        red=(SCHEDULE,),
        hint="the same at every step",
    ),
    _mistake(
        "lambda-lr-before-the-optimizer",
        "The scheduler steps before the optimizer: the first value is skipped.",
        "lincc-frameworks/hyrax issue 983",
        (OPTIMIZER_STEP + SCHEDULER_STEP, SCHEDULER_STEP + OPTIMIZER_STEP),
        red=(SCHEDULE,),
        hint="one step early",
    ),
    _mistake(
        "lambda-lr-returns-a-rate",
        "The function gives LambdaLR a learning rate, which LambdaLR multiplies by the peak.",
        "PyTorch, LambdaLR: the function computes a factor",
        (
            "self.scheduler = LambdaLR(self.optimizer, self.lr_factor)",
            "self.scheduler = LambdaLR(self.optimizer, lambda k: config.peak_lr * self.lr_factor(k))",
        ),
        red=(SCHEDULE,),
        hint="times the peak: the factor of a scheduler is relative to the peak",
    ),
    _mistake(
        "lambda-lr-counts-windows",
        "The function is given the windows that were seen, and not the steps.",
        "sgl-project/SpecForge issue 364",
        (
            "self.scheduler = LambdaLR(self.optimizer, self.lr_factor)",
            "self.scheduler = LambdaLR(self.optimizer, lambda k: self.lr_factor(config.batch_size * k))",
        ),
        red=(SCHEDULE,),
        hint="every step counts as 4",
    ),
    _mistake(
        "scheduler-not-saved",
        "The scheduler is neither saved nor restored: its count begins again.",
        "lightly-ai/lightly-train pull 301",
        (SAVED_PARTS, SAVED_PARTS.replace(', "scheduler"', "")),
        (LOADED_PARTS, LOADED_PARTS.replace(', "scheduler"', "")),
        red=(RESUME,),
        hint="the learning rate differs",
    ),
    _mistake(
        "scheduler-resumes-at-the-epoch",
        "The scheduler, which counts steps, is given the number of the epoch after a resume.",
        "vllm-project/speculators pull 900",
        (
            '        torch.set_rng_state(state["rng"])\n',
            '        torch.set_rng_state(state["rng"])\n        self.scheduler.last_epoch = self.epoch\n',
        ),
        red=(RESUME,),
        hint="the learning rate differs",
    ),
    _mistake(
        "sampler-position-not-restored",
        "A resumed run begins its epoch again.",
        "KempnerInstitute/KempnerForge issue 51",
        (LOADED_NAMES, LOADED_NAMES.replace(', "seen"', "")),
        red=(RESUME, CHECKPOINT),
        hint="lost by the resume: batch",
    ),
    _mistake(
        "sampler-epoch-not-restored",
        "A resumed run has the order of the first epoch.",
        "huggingface/accelerate pull 4071",
        (LOADED_NAMES, LOADED_NAMES.replace(', "epoch"', "")),
        red=(RESUME, CHECKPOINT),
        hint="lost by the resume: batch",
    ),
    _mistake(
        "sampler-position-in-batches",
        "The position counts batches, and the sampler skips windows.",
        "huggingface/accelerate issue 2016",
        ("self.seen += len(x)", "self.seen += 1"),
        red=(RESUME, CHECKPOINT),
        hint="lost by the resume: batch",
    ),
    _mistake(
        "set-epoch-missing",
        "The sampler is not given the epoch: every epoch has the order of the first.",
        "huggingface/transformers issue 4398",
        ("self.sampler.set_epoch(self.epoch, skip=self.seen)", "self.sampler.set_epoch(0, skip=self.seen)"),
        red=(COVERAGE,),
        hint="has the shuffled order of epoch 0",
    ),
    _mistake(
        "sampler-ignores-the-seed",
        "The sampler's generator has the epoch as its seed: other seeds give the same batches.",
        "PyTorch, DistributedSampler: its seed is 0 if nobody gives it one",
        ("manual_seed(self.seed + self.epoch)", "manual_seed(self.epoch)"),
        red=(SEED,),
        hint="leaves the batches as they are",
    ),
    _mistake(
        "sampler-forgets-the-last-window",
        "The sampler draws from all windows but the last two.",
        "folklore",
        ("torch.randperm(self.size, generator", "torch.randperm(self.size - 2, generator"),
        red=(COVERAGE,),
        hint="leaves out",
    ),
    _mistake(
        "validation-order-is-drawn",
        "The validation loader shuffles: each validation draws its order from training's random numbers.",
        "folklore",
        (
            "self.val_loader = self.loader(val_set)",
            "self.val_loader = DataLoader(val_set, batch_size=config.batch_size, shuffle=True)",
        ),
        red=(TRACE,),
    ),
    _mistake(
        "validation-seeds-again",
        "Each validation seeds the global generator, so that the same dropout masks follow each of them.",
        "folklore",
        (VALIDATES, "        torch.manual_seed(1234)\n" + VALIDATES),
        red=(TRACE,),
        hint="seeded again",
    ),
    _mistake(
        "positions-are-no-parameter",
        "The table of positions is a plain tensor: it is never trained, and in no checkpoint.",
        "pytorch/pytorch, nn.Module: only an nn.Parameter is registered",
        (
            "self.positions = nn.Embedding(config.seq_len, config.d_model)",
            "self.positions = 0.02 * torch.randn(config.seq_len, config.d_model)",
        ),
        ("self.positions(torch.arange(ids.size(1)))", "self.positions[: ids.size(1)]"),
        red=(RANDOM,),
        hint="positions",
    ),
    _mistake(
        "validation-part-begins-early",
        "The first window of the validation part is the last one of the training part.",
        "marin-community/marin pull 2700",
        ("val_set = Windows(tokens[split:]", "val_set = Windows(tokens[split - config.seq_len :]"),
        red=(PARTS,),
        hint="part",
    ),
    _mistake(
        "validation-total-goes-on",
        "The sum of a validation's losses goes on with that of the one before.",
        "deephealthproject/pyeddl issue 61",
        (VALIDATES, VALIDATES.replace("total, count = 0.0, 0", 'total, count = getattr(self, "total", 0.0), 0')),
        ("        self.best = min", "        self.total = total\n        self.best = min"),
        red=(VALIDATION_LOSS,),
        hint="which is another number",
    ),
    Trainer(
        "ema-decay-swapped",
        "The average moves by decay, not by 1 - decay: it is nearly the last weights.",
        "folklore",
        (("average.lerp_(p, 1 - self.config.ema_decay)", "average.lerp_(p, self.config.ema_decay)"),),
        (MEAN,),
        "decay and 1 - decay are swapped",
        specimen=TRAINER_CLASS,
    ),
    _mistake(
        "ema-not-saved",
        "The average is neither saved nor restored: a resumed run averages from new weights on.",
        "ai2cm/ace issue 349",
        (SAVED_PARTS, SAVED_PARTS.replace(', "ema"', "")),
        (LOADED_PARTS, LOADED_PARTS.replace(', "ema"', "")),
        red=(RESUME,),
        hint="validation loss differs",
    ),
    _mistake(
        "ema-has-dropout",
        "The average is a copy of the model in training mode.",
        "folklore",
        ("copy.deepcopy(self.model).eval()", "copy.deepcopy(self.model)"),
        red=(PURE, TRACE),
        hint="not in eval mode",
    ),
    _mistake(
        "ema-stays-in-the-model",
        "The averaged weights are copied into the model for validation, and training goes on from them.",
        "PKU-YuanGroup/Open-Sora-Plan issue 186",
        (VALIDATES, "        self.model.load_state_dict(self.ema.state_dict())\n" + VALIDATES),
        red=(TRACE,),
        hint="the weights before it differ",
    ),
    _mistake(
        "ema-resumed-as-the-model",
        "A resumed run trains the averaged weights.",
        "Megvii-BaseDetection/YOLOX issue 1318",
        (
            '        torch.set_rng_state(state["rng"])\n',
            '        torch.set_rng_state(state["rng"])\n        self.model.load_state_dict(state["ema"])\n',
        ),
        red=(RESUME, CHECKPOINT),
        hint="lost by the resume: weights",
    ),
    _mistake(
        "gains-decay",
        "Only parameters that are called a bias are spared: the gains of LayerNorm decay.",
        "bigscience-workshop/Megatron-DeepSpeed pull 262",
        (
            "decay = [p for p in self.model.parameters() if p.dim() >= 2]",
            'decay = [p for n, p in self.model.named_parameters() if not n.endswith("bias")]',
        ),
        (
            "no_decay = [p for p in self.model.parameters() if p.dim() < 2]",
            'no_decay = [p for n, p in self.model.named_parameters() if n.endswith("bias")]',
        ),
        red=(DECAY,),
        hint="has a decay of 0.1, not 0",
    ),
    _mistake(
        "head-replaced-after-the-optimizer",
        "The head is built anew when the optimizer has the parameters of the old one.",
        "folklore",
        (
            "        self.step, self.epoch, self.seen",
            "        self.model.head = nn.Linear(config.d_model, 256, bias=False)\n"
            "        self.step, self.epoch, self.seen",
        ),
        red=(ONCE, MOVES),
        hint="no module of the model owns",
    ),
    _mistake(
        "embeddings-under-no-grad",
        "The embeddings are computed without gradients, and stay as they are.",
        "folklore",
        (
            "        x = self.tokens(ids) + self.positions(torch.arange(ids.size(1)))\n",
            "        with torch.no_grad():\n"
            "            x = self.tokens(ids) + self.positions(torch.arange(ids.size(1)))\n",
        ),
        red=(MOVES,),
        hint="get no gradient: tokens.weight, positions.weight",
    ),
    _mistake(
        "betas-not-passed",
        "The betas of the settings are not passed on.",
        "folklore",
        (", betas=(config.beta1, config.beta2))", ")"),
        red=(SETTINGS,),
    ),
    _mistake(
        "clip-by-group",
        "Each group is clipped by its own norm.",
        "huggingface/transformers pull 614",
        (
            f"self.norm = {CLIP}",
            'norms = [nn.utils.clip_grad_norm_(group["params"], self.config.max_grad_norm)'
            " for group in self.optimizer.param_groups]\n        self.norm = max(norms)",
        ),
        red=(CLIPPING,),
        hint="each group is clipped by its own norm",
    ),
    _mistake(
        "clip-the-first-group",
        "Only the gradients of the first group are clipped.",
        "NVIDIA/Megatron-LM issue 580",
        (CLIP, CLIP.replace("self.model.parameters()", 'self.optimizer.param_groups[0]["params"]')),
        red=(CLIPPING,),
        hint="the norm is over",
    ),
    _mistake(
        "clip-the-average",
        "The parameters of the average, which have no gradients, are clipped.",
        "folklore",
        (CLIP, CLIP.replace("self.model", "self.ema")),
        red=(CLIPPING,),
        hint="not clipped before the step",
    ),
    _mistake(
        "zero-grad-before-the-step",
        "The gradients are set to zero before the optimizer uses them.",
        "folklore",
        ("        self.optimizer.zero_grad()\n", ""),
        (OPTIMIZER_STEP, "        self.optimizer.zero_grad()\n" + OPTIMIZER_STEP),
        red=(CLIPPING, MOVES),
        hint="set to zero after the backward passes",
    ),
    _mistake(
        "logged-loss-goes-on",
        "The logged loss is not set to zero at the beginning of a step.",
        "meta-pytorch/torchtune pull 2745",
        ("        self.loss, self.lr = 0.0, ", '        self.loss, self.lr = getattr(self, "loss", 0.0), '),
        red=(LOGGED,),
        hint="the sum over the steps up to here",
    ),
    _mistake(
        "logged-loss-divided-again",
        "The logged loss is divided by the number of micro-batches once more.",
        "BottleCapAI/NoCap-Test pull 2",
        ("self.loss += loss.item()", "self.loss += loss.item() / len(micro_batches)"),
        red=(LOGGED_K,),
        hint="the mean divided by the number of micro-batches",
    ),
)
