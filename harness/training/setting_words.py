"""The words that people use for the settings of a training program, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Word:
    """A setting: what it is, and its names, written with underscores; letter case counts for single letters only.

    `of_options` are names that say it on a command line only: in a source, other things are called the same.
    """

    what: str
    names: tuple[str, ...]
    of_options: tuple[str, ...] = ()


def _word(what: str, names: str, of_options: str = "") -> Word:
    return Word(what, tuple(dict.fromkeys(names.split())), tuple(of_options.split()))


def _pairs(first: str, second: str) -> str:
    """Return every name of one word of each: "eval val", "every" is "eval_every val_every"."""
    return " ".join(f"{one}_{other}" for one in first.split() for other in second.split())


_OFTEN = "every interval freq frequency period every_steps"
_VALIDATION = "eval val valid validation validate evaluate evaluation"


WORDS: Mapping[str, Word] = {
    "text": _word("the text", "text data_file text_file data_path text_path input_file input train_file corpus"),
    "text_length": _word(
        "the part of the text that is read",
        _pairs("max n num train", "chars bytes characters") + " max_text_length train_tokens chars train_size",
    ),
    "validation_length": _word(
        "the part of the text for validation", _pairs("val valid eval", "chars bytes characters tokens size")
    ),
    "vocabulary": _word("the vocabulary", "vocabulary"),
    "validation_fraction": _word("the share of validation", "validation_fraction val_fraction val_split val_ratio"),
    "order": _word("the order of windows", "order sampling"),
    "lines": _word("the lines that are read", f"{_pairs('max n num train', 'lines')} lines"),
    "validation_lines": _word("the lines for validation", _pairs("val valid eval", "lines")),
    "documents": _word("the documents that are read", _pairs("max n num train", "docs documents")),
    "validation_documents": _word("the documents for validation", _pairs("val valid eval", "docs documents")),
    "shuffle_buffer": _word(
        "the windows that are shuffled together",
        _pairs("shuffle shuffle_buffer buffer", "size") + " shuffle_buffer",
        "buffer",
    ),
    "workers": _word("the loader's processes", "workers num_workers"),
    "n_layer": _word("the number of layers", "n_layer n_layers num_layers layers depth num_hidden_layers"),
    "n_head": _word("the number of heads", "n_head n_heads num_heads heads num_attention_heads"),
    "n_embd": _word(
        "the width",
        "n_embd d_model width emb_dim embed_dim hidden_size n_embed dim embd_size embedding_dim embedding_size",
        "hidden d channels model_dim",
    ),
    "block_size": _word(
        "the length of a window",
        "block_size T seq_len seq_length sequence_length context_length context max_length max_seq_len context_size "
        "context_len ctx_len max_len",
        "length ctx seq window seqlen n_ctx ctx_length n_positions",
    ),
    "stride": _word("the distance between windows", "stride window_stride"),
    "dropout": _word(
        "dropout",
        "dropout drop_rate dropout_rate embd_pdrop resid_pdrop attn_pdrop dropout_p p_dropout attn_dropout "
        "resid_dropout emb_dropout",
        "drop",
    ),
    "batch_size": _word(
        "the windows of a micro-batch",
        "batch_size B device_batch_size micro_batch_size mini_batch_size per_device_train_batch_size train_batch_size "
        "per_device_batch_size micro_batch batch",
        "bs",
    ),
    "accumulation": _word(
        "the micro-batches of a step",
        "accumulation gradient_accumulation_steps grad_accum_steps accumulation_steps accum_steps grad_accum "
        "gradient_accumulation accum accumulate accumulate_steps accumulate_grad_batches",
    ),
    "tokens_per_step": _word("the tokens of a step", "total_batch_size tokens_per_step batch_tokens tokens_per_batch"),
    "steps": _word(
        "the number of steps",
        "steps max_iters max_steps num_steps n_steps num_iterations iterations train_steps total_steps num_iters iters "
        "n_iters training_steps max_updates num_updates total_iters total_iterations",
        "updates",
    ),
    "epochs": _word("the number of epochs", "epochs num_epochs n_epochs max_epochs num_train_epochs"),
    "overfit_batches": _word("training on a few batches only", "overfit_batches overfit_single_batch overfit"),
    "lr": _word("the learning rate", "lr learning_rate max_lr peak_lr"),
    "min_lr": _word("the least learning rate", "min_lr min_learning_rate lr_min final_lr end_lr"),
    "cooldown": _word(
        "the steps of the final decay",
        "cooldown cooldown_steps cooldown_iters warmdown warmdown_steps warmdown_iters decay_length",
    ),
    "warmup": _word("the steps of warm-up", "warmup warmup_iters warmup_steps num_warmup_steps lr_warmup"),
    "warmup_share": _word(
        "the share of the steps that is warm-up", _pairs("warmup", "ratio fraction frac share") + " pct_start"
    ),
    "stable": _word("the end of the constant phase", _pairs("stable hold constant plateau", "iters steps")),
    "horizon": _word("the end of the schedule", "horizon lr_decay_iters decay_steps lr_decay_steps decay_iters"),
    "schedule": _word("the schedule", "schedule lr_schedule lr_scheduler lr_scheduler_type"),
    "weight_decay": _word("the weight decay", "weight_decay wd"),
    "beta1": _word("beta1", "beta1 adam_beta1"),
    "beta2": _word("beta2", "beta2 adam_beta2"),
    "eps": _word("epsilon", "eps adam_eps adam_epsilon epsilon"),
    "ema_decay": _word(
        "the decay of the mean of the weights", "ema_decay ema_beta ema_rate ema_momentum avg_decay", "ema"
    ),
    "clip": _word("the limit of the gradient norm", "clip grad_clip max_grad_norm clip_grad gradient_clip max_norm"),
    "precision": _word("the precision", "precision dtype mixed_precision"),
    "compile": _word("torch.compile", "compile torch_compile use_compile"),
    "device": _word("the device", "device"),
    "backend": _word("the backend of ranks", "backend dist_backend ddp_backend"),
    "eval_every": _word(
        "the steps between validations",
        f"{_pairs(_VALIDATION, _OFTEN)} eval_steps val_loss_every",
    ),
    "eval_batches": _word(
        "the batches of a validation",
        _pairs("eval val valid validation", "batches iters max_batches num_batches")
        + f" {_pairs('max num n', 'eval_batches val_batches eval_iters val_iters')} val_max_steps eval_iter",
    ),
    "sample_every": _word("the steps between samples", _pairs("sample generate", _OFTEN)),
    "sample_tokens": _word("the tokens of a sample", "sample_tokens max_new_tokens sample_length"),
    "save_every": _word(
        "the steps between checkpoints",
        f"{_pairs('save checkpoint ckpt', _OFTEN)} save_steps",
    ),
    "out": _word(
        "the folder of checkpoints", "out out_dir output_dir checkpoint_dir save_dir ckpt_dir run_dir work_dir"
    ),
    "resume": _word(
        "resuming from a checkpoint",
        "resume resume_from resume_from_checkpoint resume_path init_from load_checkpoint resume_training",
    ),
    "log_every": _word("the steps between log lines", f"{_pairs('log print logging report', _OFTEN)} logging_steps"),
    "seed": _word("the seed", "seed random_seed manual_seed rng_seed"),
}

# What a value is called, best first; a setting that lists its choices takes the first of these that is one.
VALUES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "order": {"epoch": ("epoch", "sequential", "permutation"), "random": ("random",)},
    "precision": {"float32": ("float32", "fp32", "32", "no", "none", "off")},
    "vocabulary": {"bytes": ("bytes", "byte", "characters", "char")},
}
# What a setting is called `resume` by another value than a truth value or a path.
RESUME_VALUES: Mapping[str, str] = {"init_from": "resume"}  # nanoGPT


def word_of(name: str, *, option: bool = False) -> str | None:
    """Return the word of a setting's name, or None if it is no known one. `option`: it is one of a command line."""
    plain = name.strip("-").replace("-", "_").replace(".", "_")
    if len(plain) > 1:
        plain = plain.lower()
    found = (word for word, known in WORDS.items() if plain in known.names or (option and plain in known.of_options))
    return next(found, None)


def describe(word: str) -> str:
    """Return what a word means and its names, for a message that says what was looked for."""
    return f"{WORDS[word].what} ({', '.join(WORDS[word].names)})"
