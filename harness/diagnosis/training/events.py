"""The events of a training program in their order: the checks that judge each, its line, and what follows from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from harness.diagnosis.training import event_lines as line
from harness.diagnosis.training.checkpoint_lines import of_the_lost_state
from harness.diagnosis.training.looks import (
    Look,
    end_of_function,
    first_of,
    function_around,
    nearest,
    of_the_divisor,
    of_the_number_of_steps,
    of_the_rate,
    of_the_tensor,
    within,
)
from harness.training.recording import Recording

Line = Callable[[Recording, str], str]


@dataclass(frozen=True)
class Judged:
    """A check of an event.

    Attributes:
        where: The event, as a finding names it.
        line: From a recording and the first place that failed in it to the user's line.
        says: What is wrong if the check fails, where its reading gives no cause.
        says_too: The reading's hint says more about it, and does not replace it.
        lines: Other lines, by a word of the cause.
        look: Where else to look for the line, in the program's source.
        explains: Checks that fail for the same reason, if this one fails.
    """

    where: str
    line: Line
    says: str
    says_too: bool = False
    lines: Mapping[str, Line] | None = None
    look: Look | None = None
    explains: tuple[str, ...] = ()


FINITE = "numbers-stay-finite"
BITWISE = ("validation-leaves-no-trace", "resume-is-continuation", "checkpoint-is-complete")
LOSS_LEVELS = ("plateau-of-the-next-token", "loss-below-entropy", "overfits-one-batch")

# Lines of source, as patterns: what draws windows, what makes them, what parts the text, what seeds.
ORDERS = r"\b(randperm|permutation|shuffle|RandomSampler)\b"
DROPS_ALWAYS = r"\bF\.dropout\((?!.*\btraining\b)"  # a dropout that is on in every mode
DRAWS = (r"\b(randint|integers|choice|choices|sample|randrange)\(", ORDERS)
TO_THE_LAST = r"\)\[:\s*-\s*\d+\]|\b(randperm|permutation)\(.*-\s*\d"
WINDOWS = (r"\brange\([^,]*,[^,]*,", r"//", r"\[.*:.*\+.*\]")
WORKERS = (r"\binfo\.id\b|worker_id|islice\(.*\bworker|\[\s*worker", r"get_worker_info\(", r"IterableDataset\)")
PARTED = r"random_split\(|\bSubset\("
VALIDATION_PART = r"^\s*(?!for|if|while|return).*(val|test|eval)\w*\s*(,\s*\w+\s*)?=[^=].*\["
TRAINING_PART = r"^\s*(?!for|if|while|return).*train\w*\s*(,\s*\w+\s*)?=[^=].*\["
SEEDS_ALL = r"\b(torch|random|np|numpy|cuda)\.(manual_seed|manual_seed_all|seed)\(|seed_everything|set_seed"
OWN_GENERATOR = r"\bGenerator\(.*\.manual_seed\(|\b(default_rng|RandomState|Random)\("
SEEDS = (SEEDS_ALL, r"\b(manual_seed|manual_seed_all|set_seed|seed_everything|default_rng|seed)\(")
COLLECTS = r"\bparameters\(.*\b(for|if)\b|\b(for|if)\b.*\bparameters\(|requires_grad"
DETACHES = r"\bno_grad\(|\.detach\(|\.data\b|requires_grad|from_pretrained\("
FREEZES = r"requires_grad\w*\s*[(=]\s*False"
BARE_GROUP = r"\{\s*[\"\']params[\"\']\s*:(?!.*weight_decay)"
DECAYS = r"weight_decay[\"\']?\s*[:=]"
HALF = (r"\.to\(.*(dtype|float16)|\.half\(|\.bfloat16\(", r"bfloat16|float16")
IGNORES = (r"-100|(?i:\bignore)", r"masked_fill|\bpad")
ATTENDS = r"softmax\(|scaled_dot_product_attention\("
MASKS = r"is_causal|tril|triu|scaled_dot_product_attention|masked_fill"
RESETS = r"\bloss\w*\b[^=!<>]*=[^=].*\b0(\.0*)?\b|\bloss\w*\s*=\s*torch\.zeros\("
AVERAGES = (r"lerp_?\(", r"\bdecay\b.*\*|\*.*\bdecay\b", r"\bema\w*\b.*(mul_|add_|lerp|update)")
SWAPS = r"\b(backup|backups|stored|original|kept|saved)\w*\s*=[^=]"
COMPARES_BEST = (r"\bif\b.*[<>].*\bbest|\bif\b.*\bbest.*[<>]", r"\bbest\w*\s*=")
SUMS_RANKS = r"\b(all_reduce|reduce_scatter\w*|DistributedDataParallel|DDP|no_sync)\b"

# By check, in the order of a run's events. What depends on another event comes after it.
EVENTS: Mapping[str, Judged] = {
    FINITE: Judged(
        "numbers",
        line.of_the_step,
        "a number is not finite",
        explains=("best-checkpoint-is-the-best", "best-checkpoint-has-its-weights"),
    ),
    "padding-is-no-target": Judged(
        "targets",
        line.of_the_targets,
        "the loss counts padding",
        explains=("rows-are-of-the-text", "targets-are-the-next-tokens"),
    ),
    "rows-are-of-the-text": Judged(
        "batch", line.of_the_ids, "rows of a batch are not in the text", explains=("epoch-coverage",)
    ),
    "parts-share-no-token": Judged(
        "batch",
        line.of_the_validation_ids,
        "validation is on tokens that the program trains on",
        look=nearest(
            {
                "validation rows": (PARTED, VALIDATION_PART),
                "training part": (PARTED, TRAINING_PART),
                "": VALIDATION_PART,
            }
        ),
        explains=("epoch-coverage", "printed-validation-loss"),
    ),
    "rows-of-a-batch-differ": Judged(
        "batch",
        line.of_the_ids,
        "rows of a batch are the same",
        says_too=True,
        lines={"micro-batches of a step": line.of_the_draw},
        look=nearest({"micro-batches of a step": (), "": DRAWS}),
    ),
    "batches-differ": Judged(
        "batch", line.of_the_ids, "a batch comes again", look=nearest({"": DRAWS}), explains=("epoch-coverage",)
    ),
    "starts-are-uniform": Judged(
        "batch",
        line.of_the_ids,
        "some windows of the text are drawn more often, or never",
        says_too=True,
        look=nearest({"one token apart": (), "": DRAWS}),
    ),
    "targets-are-the-next-tokens": Judged(
        "targets",
        line.of_the_targets,
        "the targets are not the next tokens",
        look=nearest({"the loss ignores": IGNORES}),
        explains=LOSS_LEVELS,
    ),
    "validation-is-pure": Judged(
        "validation",
        line.of_the_validation,
        "a pass is in the wrong mode",
        look=first_of(
            function_around("validation passes not in eval mode", "with gradients"),
            end_of_function("training passes not in training mode"),
        ),
    ),
    "gradient-is-of-this-batch": Judged(
        "gradient",
        line.of_the_backward,
        "the gradient is not that of the mean loss",
        lines={
            "zero_grad": line.of_the_step,
            "batch before": line.of_the_ids,
            "label_smoothing": line.of_the_loss,
            "loss scale": line.of_the_clipping,
        },
        look=of_the_divisor,
        explains=("accumulation-is-one-batch", "overfits-one-batch", "plateau-of-the-next-token"),
    ),
    "accumulation-is-one-batch": Judged(
        "gradient",
        line.of_the_backward,
        "the micro-batches of a step are not one batch",
        lines={"zero_grad": line.of_the_step, "have no part": line.of_the_step, "alone": line.of_the_zeroing},
        look=of_the_divisor,
        explains=("printed-loss",),
    ),
    "ranks-are-one-batch": Judged(
        "ranks",
        line.of_the_backward,
        "the ranks' gradients are not those of one batch",
        look=nearest({"": SUMS_RANKS}),
        explains=("ranks-agree",),
    ),
    "ranks-agree": Judged(
        "ranks",
        line.of_the_step,
        "the ranks part",
        says_too=True,
        look=nearest({"before": SEEDS}),
    ),
    "clipping": Judged(
        "clipping",
        line.of_the_clipping,
        "the gradient is not clipped by its global norm",
        look=nearest({"not clipped before": (), "": r"\bnorm\w*\(|\bclip\w*_?\("}),
    ),
    "lr-at-each-step": Judged(
        "learning rate", line.of_the_scheduler, "the learning rate follows no known schedule", look=of_the_rate
    ),
    "optimizer-settings": Judged(
        "optimizer",
        line.of_the_optimizer,
        "the settings are not the declared ones",
        says_too=True,
        look=nearest({"beta": r"\bbetas?\b[\"\']?\s*[=:]", "eps": r"\beps(ilon)?\b[\"\']?\s*[=:]"}),
    ),
    "decay-by-parameter": Judged(
        "optimizer groups",
        line.of_the_optimizer,
        "the wrong parameters decay",
        look=nearest({"L2": (), "has a decay of": (BARE_GROUP, r"\bno_decay\w*\s*=[^=]", DECAYS), "": DECAYS}),
    ),
    "every-parameter-once": Judged(
        "optimizer groups",
        line.of_the_optimizer,
        "a parameter is not in the groups once",
        look=nearest({"no module of the model": "", "": COLLECTS}),
        explains=("every-parameter-moves",),
    ),
    "random-tensors-are-parameters": Judged(
        "model",
        line.of_the_optimizer,
        "a random tensor is no parameter",
        look=of_the_tensor,
    ),
    "weights-and-moments-are-float32": Judged(
        "precision",
        line.of_the_optimizer,
        "weights or moments have 16 bits",
        look=nearest({"the loss": (), "": HALF}),
        explains=("few-updates-are-lost", "every-parameter-moves"),
    ),
    "muon-step": Judged(
        "step",
        line.of_the_rule,
        "the update is not Muon's rule",
        look=within({"orthogonal": r"zeropower|newton|orthogon", "momentum": r"lerp|momentum"}),
    ),
    "optimizer-step": Judged(
        "step",
        line.of_the_rule,
        "the update is not the optimizer's rule",
        explains=("few-updates-are-lost",),
        look=within(
            {
                "eps": r"\beps\b",
                "bias correction": (r"\*\*|correct", r"hat\b|\bsqrt\("),
                "second moment": r"addcmul|exp_avg_sq|square\(",
                "deca": r"decay|\bwd\b",
                "beta": r"beta",
            }
        ),
    ),
    "every-parameter-moves": Judged(
        "step",
        line.of_the_optimizer,
        "a parameter does not move",
        look=nearest({"frozen": FREEZES, "get no gradient": (DETACHES, COLLECTS), "": COLLECTS}),
    ),
    "few-updates-are-lost": Judged("step", line.of_the_optimizer, "small updates are lost", says_too=True),
    "mean-of-weights": Judged(
        "mean of the weights", line.of_the_step, "the mean of the weights is another one", look=nearest({"": AVERAGES})
    ),
    "epoch-coverage": Judged(
        "batch",
        line.of_the_ids,
        "an epoch does not have each target once",
        says_too=True,
        look=nearest(
            {
                "workers": WORKERS,
                "is never a target": IGNORES,
                "shuffled order": (r"\bset_epoch\(\s*\d", OWN_GENERATOR, ORDERS),
                "the tail": (TO_THE_LAST, *WINDOWS),
                "": WINDOWS,
            }
        ),
    ),
    "repeatable": Judged(
        "seed",
        line.of_the_ids,
        "two runs with one seed differ",
        says_too=True,
        look=nearest({"other ids": r"(?<!sorted\()\bset\(", "the batch differs": (OWN_GENERATOR, *SEEDS), "": SEEDS}),
        explains=BITWISE,
    ),
    "seed-matters": Judged(
        "seed",
        line.of_the_ids,
        "the seed changes nothing",
        look=nearest({"leaves the batches": (OWN_GENERATOR, *SEEDS), "": SEEDS}),
    ),
    "steps-and-tokens": Judged(
        "steps",
        line.of_the_step,
        "the steps or their tokens are not as declared",
        says_too=True,
        look=first_of(nearest({"micro-batches": r"\bif\b.*%"}), of_the_number_of_steps),
    ),
    "printed-loss": Judged(
        "printed loss",
        line.of_print("loss"),
        "the printed loss is not that of the step",
        lines={"micro-batch": line.of_the_backward, "up to here": line.of_the_backward},
        look=nearest({"up to here": RESETS}),
    ),
    "validation-leaves-no-trace": Judged(
        "validation",
        line.of_the_validation,
        "validation changes the training after it",
        says_too=True,
        look=nearest({"seeded again": (), "random state": (DROPS_ALWAYS, *DRAWS), "the weights before it": SWAPS}),
    ),
    "validation-set-stays": Judged(
        "validation",
        line.of_the_validation,
        "each validation is on other windows, so that its losses differ",
        says_too=True,
        look=nearest({"": DRAWS}),
    ),
    "printed-validation-loss": Judged(
        "printed validation loss",
        line.of_print("val", "eval", "test"),
        "the printed loss is not that of the set",
        lines=dict.fromkeys(("means", "padding", "number, smaller"), line.of_the_validation)
        | {"smoothing": line.of_the_validation_loss},
        look=nearest({"padding": r"\bnumel\(", "number, smaller": r"\breturn\b.*/"}),
    ),
    "best-checkpoint-is-the-best": Judged(
        "best checkpoint", line.of_the_save, "the checkpoint is not the best one", look=nearest({"": COMPARES_BEST})
    ),
    "best-checkpoint-has-its-weights": Judged(
        "best checkpoint",
        line.of_the_save,
        "the checkpoint has other weights than the best ones",
        look=nearest({"which are not the best": COMPARES_BEST}),
    ),
    "checkpoint-is-complete": Judged(
        "checkpoint",
        line.of_the_save,
        "a part of the state is not restored",
        look=of_the_lost_state,
        explains=("resume-is-continuation",),
    ),
    "resume-is-continuation": Judged(
        "resume",
        line.of_the_load,
        "a resumed run is not the run without a stop",
        says_too=True,
        lines={"the weights after it differ": line.of_the_rule},  # by a state that the optimizer's state has not
        look=nearest({"learning rate": (r"\blast_epoch\b", r"sched\w*\.load_state_dict\(")}),
    ),
    "overfits-one-batch": Judged("learning", line.of_the_backward, "one batch is not learned by heart", says_too=True),
    "sees-no-later-token": Judged(
        "model",
        line.of_the_forward,
        "the model sees later tokens",
        look=nearest({"": (ATTENDS, MASKS)}),
        explains=LOSS_LEVELS,
    ),
    "loss-below-entropy": Judged(
        "loss", line.of_the_forward, "the model sees its answers", says_too=True, look=nearest({"": MASKS})
    ),
    "plateau-of-the-next-token": Judged("loss", line.of_the_loss, "the loss settles at another level", says_too=True),
}
