"""Mistakes of a program that counts epochs: changes of `epochs.py`, and the checks that must turn red for each."""

from collections.abc import Sequence

from harness.faults.training.changes import EPOCHS, Change, Trainer
from harness.faults.training.checks import (
    BEST_WEIGHTS,
    CHECKPOINT,
    CLIPPING_OWN,
    COVERAGE,
    COVERAGE_WORKERS,
    FLOAT32_OWN,
    GRADIENT_OWN,
    LATER,
    LOST_OWN,
    PARTS,
    REPEATABLE,
    RESUME,
    SCHEDULE_EPOCHS,
    TARGETS,
    TARGETS_EPOCH,
    VALIDATION_LOSS,
    VALIDATION_LOSS_EPOCH,
    VALIDATION_LOSS_EPOCHS,
)


def _mistake(id: str, what: str, source: str, *change: Change, red: Sequence[str], hint: str = "") -> Trainer:
    return Trainer(id, what, source, change, tuple(red), hint, specimen=EPOCHS)


SCHEDULER_STEP = "        scheduler.step()\n"

OF_EPOCHS = (
    _mistake(
        "schedule-is-stepped-once-an-epoch",
        "The schedule counts steps, and its step is called at the end of each epoch.",
        "PyTorch, OneCycleLR: its step is called after each batch",
        (SCHEDULER_STEP, ""),
        ("    return step\n", "    scheduler.step()\n    return step\n"),
        red=(SCHEDULE_EPOCHS,),
        hint="goes on by one an epoch",
    ),
    _mistake(
        "minimum-of-a-factor",
        "The minimum of LambdaLR's factor is a learning rate, and no share of the peak.",
        "PyTorch, LambdaLR: the function computes a factor",
        ("least = args.min_lr / args.lr", "least = args.min_lr"),
        red=(SCHEDULE_EPOCHS,),
        hint="to the minimum times the peak",
    ),
    _mistake(
        "horizon-in-micro-batches",
        "The schedule ends after as many steps as there are micro-batches in one epoch.",
        "folklore",
        ("args.epochs * math.ceil(batches / args.accum)", "batches"),
        red=(SCHEDULE_EPOCHS,),
        hint="horizon of",
    ),
    _mistake(
        "workers-read-the-same",
        "Each worker of the loader reads all windows, so that each comes as often as there are workers.",
        "PyTorch, IterableDataset: each worker has a copy of the dataset",
        ("own = order if info is None else order[info.id :: info.num_workers]", "own = order"),
        red=(COVERAGE_WORKERS,),
        hint="leaves out target",
    ),
    _mistake(
        "end-token-is-padding",
        "The token that ends a document is the loss's padding, and no target.",
        "folklore: tokenizer.pad_token = tokenizer.eos_token",
        (
            "F.cross_entropy(logits.float().flatten(0, 1), y.flatten(), ",
            "F.cross_entropy(logits.float().flatten(0, 1), y.flatten(), ignore_index=logits.size(-1) - 1, ",
        ),
        red=(TARGETS, TARGETS_EPOCH, COVERAGE, VALIDATION_LOSS_EPOCH),
        hint="the loss ignores the targets that are token",
    ),
    _mistake(
        "validation-documents-are-trained",
        "The training part has the documents of the validation too.",
        "folklore",
        ("for document in encoded[:-val_documents] for", "for document in encoded[: -(val_documents // 2)] for"),
        red=(PARTS,),
        hint="the validation part",
    ),
    _mistake(
        "vocabulary-in-the-order-of-a-set",
        "The vocabulary is in the order of a set, which is another one in each process.",
        "folklore",
        ('characters = sorted(set("".join(documents)))', 'characters = list(set("".join(documents)))'),
        red=(REPEATABLE, RESUME, CHECKPOINT),
        hint="the batch differs",
    ),
    _mistake(
        "best-weights-by-reference",
        "The best weights are not copied: they are the model's own, and end as the last ones.",
        "PyTorch, saving and loading models: state_dict() is a reference",
        ("copy.deepcopy(model.state_dict())", "model.state_dict()"),
        red=(BEST_WEIGHTS,),
        hint="which are not the best",
    ),
    _mistake(
        "softmax-over-the-queries",
        "The attention's softmax is over the queries.",
        "folklore",
        (".softmax(dim=-1)", ".softmax(dim=-2)"),
        red=(LATER,),
        hint="the logits change with later tokens",
    ),
    _mistake(
        "model-is-cast",
        "The model itself is cast to 16 bits, where autocast was meant.",
        "folklore",
        (
            "    matrices = [",
            "    model.to(torch.bfloat16 if args.precision == 'float16' else torch.float32)\n    matrices = [",
        ),
        ("torch.float16, enabled", "torch.bfloat16, enabled"),
        ('enabled=args.precision == "float16")\n    epoch', "enabled=False)\n    epoch"),
        red=(FLOAT32_OWN, LOST_OWN),
        hint="",
    ),
    _mistake(
        "loss-in-16-bits",
        "The loss is of logits in 16 bits, outside of autocast.",
        "folklore",
        ("logits.float().flatten(0, 1)", "logits.flatten(0, 1)"),
        red=(FLOAT32_OWN,),
        hint="the loss is computed in float16",
    ),
    _mistake(
        "clipped-under-the-scale",
        "The gradients are clipped while the loss scale is in them.",
        "PyTorch, AMP examples: gradient clipping",
        ("        scaler.unscale_(optimizer)\n", ""),
        red=(GRADIENT_OWN, CLIPPING_OWN),
        hint="it is clipped while it is multiplied by the loss scale",
    ),
    _mistake(
        "schedule-begins-anew",
        "A resumed run begins its schedule anew.",
        "folklore",
        (
            "            part.load_state_dict(state[name])\n",
            '            if name != "scheduler":\n                part.load_state_dict(state[name])\n',
        ),
        red=(RESUME,),
        hint="learning rate",
    ),
    _mistake(
        "validation-is-smoothed",
        "The validation loss has the label smoothing of training.",
        "folklore",
        ("loss_of(model, ids, targets, args).item()", "loss_of(model, ids, targets, args, args.smoothing).item()"),
        red=(VALIDATION_LOSS, VALIDATION_LOSS_EPOCH),
        hint="the loss with label smoothing",
    ),
    _mistake(
        "validation-is-divided-by-all",
        "The validation's sum over some batches is divided by the targets of all.",
        "folklore",
        ("return total / count", "return total / (len(x) * T)"),
        red=(VALIDATION_LOSS_EPOCHS,),
        hint="another number",
    ),
)
