"""The deviations that have a name: what the verdict calls them, what they change, and which checks they excuse."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass


@dataclass(frozen=True)
class NamedDeviation:
    """A deviation that has a name.

    Attributes:
        says: How the verdict describes it.
        faults: The ids of the catalogue that it is the same as.
        lacks: The families of GPT-2's parameters that a subject with it may not have.
        has: What a subject with it has that GPT-2 does not: see `BEYOND_GPT2`.
        decided_by: Patterns of the checks that have to run before the declaration is called stale.
        excuses: Patterns of the checks that test for this deviation alone, and so may fail in any way.
        settings: The further keys that a declaration of it may have, such as `epsilon`.
        computed: Whether GPT-2 with the deviation can be computed. If not, it excuses the checks of its subject matter.
    """

    says: str
    faults: tuple[str, ...]
    lacks: tuple[str, ...] = ()
    has: tuple[str, ...] = ()
    decided_by: tuple[str, ...] = ("parity::debug*",)
    excuses: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    computed: bool = True


# What a subject may have beyond GPT-2, and the words for it.
BEYOND_GPT2 = {
    "head": "head of its own",
    "head bias": "bias in the head",
    "padding": "padded vocabulary",
    "gate": "gate in the MLP (a second matrix, with which the first one's output is multiplied)",
    "hidden width": "width of the MLP other than four times that of the model",
    "key-value heads": "keys and values of fewer heads than the queries",
}
COUNTED = ("structure::parameter-count,size=debug,tied=true",)
NAMES = "structure::published-names*"
TIED = "structure::head-is-tied*"
# The sum of the attention rows is measured through the bias of the values.
ROW_SUMS = "attention::attention-rows-sum-to-one*"
NORM_BIASES = ("ln_1.bias", "ln_2.bias", "ln_f.bias")
BIASES = (
    "ln_1.bias", "attn.c_attn.bias", "attn.c_proj.bias", "ln_2.bias", "mlp.c_fc.bias", "mlp.c_proj.bias", "ln_f.bias",
)  # fmt: skip
GATE_BIAS = ("mlp.c_gate.bias",)
GATED = ("gate", "hidden width")

NAMED: dict[str, NamedDeviation] = {
    "exact-gelu": NamedDeviation("exact GELU", ("gelu-erf-for-tanh",)),
    "quick-gelu": NamedDeviation("QuickGELU", ("gelu-sigmoid-approx",)),
    "relu": NamedDeviation("ReLU", ("mlp-relu",)),
    "silu": NamedDeviation("SiLU", ("mlp-silu",)),
    "swiglu": NamedDeviation("SwiGLU", ("swiglu", "hidden-width"), GATE_BIAS, GATED, excuses=(NAMES,)),
    "geglu": NamedDeviation("GeGLU", ("geglu", "hidden-width"), GATE_BIAS, GATED, excuses=(NAMES,)),
    "reglu": NamedDeviation("ReGLU", ("reglu", "hidden-width"), GATE_BIAS, GATED, excuses=(NAMES,)),
    "glu": NamedDeviation("GLU", ("glu", "hidden-width"), GATE_BIAS, GATED, excuses=(NAMES,)),
    "hidden-width": NamedDeviation("another width of the MLP", ("hidden-width",), (), ("hidden width",), COUNTED),
    "grouped-queries": NamedDeviation("grouped queries", ("grouped-queries",), (), ("key-value heads",), COUNTED),
    "rotary-positions": NamedDeviation(
        "rotary positions", ("rotary-positions", "pos-missing"), ("wpe.weight",), excuses=(NAMES,), settings=("base",)
    ),
    "pos-sinusoidal": NamedDeviation("sinusoidal positions", ("pos-sinusoidal",), ("wpe.weight",), excuses=(NAMES,)),
    "pos-missing": NamedDeviation("no positions", ("pos-missing",), ("wpe.weight",), excuses=(NAMES,)),
    "rms-norm": NamedDeviation(
        "RMSNorm", ("rms-norm", "ln-no-mean-subtraction"), NORM_BIASES, excuses=(NAMES,), settings=("epsilon",)
    ),
    "ln-eps-wrong": NamedDeviation(
        "another epsilon", ("ln-eps-wrong", "ln-eps-too-large"), settings=("epsilon",)
    ),
    "untied-head": NamedDeviation("untied head", ("head-untied",), (), ("head",), COUNTED, (TIED,)),
    "head-has-bias": NamedDeviation("bias in the head", ("head-has-bias",), (), ("head bias",), COUNTED, (NAMES,)),
    "padded-vocabulary": NamedDeviation(
        "padded vocabulary", ("vocab-padding-unmasked",), (), ("padding",), COUNTED, (TIED,)
    ),
    "bias-free": NamedDeviation(
        "no bias", ("qkv-bias-missing", "ln-bias-ignored", "load-biases-dropped", "bias-free"),
        (*BIASES, *GATE_BIAS), (), COUNTED, (NAMES, ROW_SUMS),
    ),
    "bias-missing": NamedDeviation(
        "no bias in some layers", ("bias-missing", "qkv-bias-missing", "ln-bias-ignored"),
        (), (), COUNTED, (NAMES, ROW_SUMS), ("biases",),
    ),
    "qkv-bias-missing": NamedDeviation(
        "no bias of queries, keys and values", ("qkv-bias-missing",),
        ("attn.c_attn.bias",), (), COUNTED, (NAMES, ROW_SUMS),
    ),
    "final-ln-missing": NamedDeviation(
        "no final norm", ("final-ln-missing",), ("ln_f.weight", "ln_f.bias"), excuses=(NAMES,)
    ),
}  # fmt: skip
# Other words for the same deviation.
ALIASES = {
    "head-untied": "untied-head",
    "gelu-erf-for-tanh": "exact-gelu",
    "gelu-sigmoid-approx": "quick-gelu",
    "mlp-relu": "relu",
    "mlp-silu": "silu",
    "vocab-padding-unmasked": "padded-vocabulary",
    "head-bias": "head-has-bias",
    "sinusoidal-positions": "pos-sinusoidal",
    "no-positions": "pos-missing",
    "ln-eps-too-large": "ln-eps-wrong",
    "ln-no-mean-subtraction": "rms-norm",
}
# The parameters that a subject may not have if it has a fault that the formula computes.
LACKS = {
    "mlp-bias-dropped": ("mlp.c_fc.bias",),
    "mlp-out-bias-dropped": ("mlp.c_proj.bias",),
    "attn-out-bias-dropped": ("attn.c_proj.bias",),
    "attn-out-proj-skipped": ("attn.c_proj.weight", "attn.c_proj.bias"),
    "ln-bias-ignored": NORM_BIASES,
    "ln-gain-ignored": ("ln_1.weight", "ln_2.weight", "ln_f.weight"),
    "ln-affine-ignored": ("ln_1.weight", "ln_2.weight", "ln_f.weight", *NORM_BIASES),
    "ln-missing-before-attention": ("ln_1.weight", "ln_1.bias"),
    "ln-missing-before-mlp": ("ln_2.weight", "ln_2.bias"),
}
# The checks that a deviation excuses which no formula computes: patterns of its id, and of checks.
EXCUSED = {
    "mask-crop-block-size-stale": ("structure::cropped-context*",),
    "mask-polarity-inverted-padding": ("attention::padding*",),
    "padding-mask-ignored": ("attention::padding*",),
    "mask-size-from-wrong-dim": ("parity::debug-long*",),
    "mask-missing-last-layer": ("attention::*", "parity::*"),
    "scale-wrong": ("parity::*",),
    "softmax-unstable": ("precision::*", "parity::*"),
    "rows-mixed": ("attention::rows-do-not-mix*", "parity::*"),
    "parameter-*": ("structure::*", "parity::*"),
    "parameters-shared": ("structure::*", "parity::*"),
    "blocks-in-python-list": ("structure::*", "parity::*"),
    "pos-buffer-moved-model": ("generation::*",),
    "targets-written-in-place": ("behaviour::*",),
    "init-*": ("initialisation::*",),
    "*-identical-init": ("initialisation::*",),
    "load-*": ("loading::*",),
    "save-*": ("loading::*",),
    "ln-folding-wrong": ("loading::*",),
    "gen-*": ("generation::*", "interface::*", "parity::greedy-tokens*"),
    "train-mode-*": ("generation::*", "structure::*"),
    "kv-*": ("generation::*",),
    "labels-*": ("loss::*", "parity::*", "initialisation::initial-loss*"),
    "loss-*": ("loss::*", "parity::*", "initialisation::initial-loss*", "structure::training-mode*"),
    "*-detached*": ("parity::*gradients*", "structure::training-mode*", "attention::*"),
    "*-without-gradient": ("parity::*gradients*",),
    "gradient-*": ("parity::*gradients*",),
    "*-frozen": ("parity::*gradients*",),
    "embedding-padding-index": ("parity::*",),
    "*dropout*": ("dropout::*", "structure::training-mode*", "structure::evaluation-changes-nothing*"),
    "training-remembers": ("dropout::*",),
    "forward-seeds-*": ("dropout::*", "behaviour::*"),
    "tie-*": (TIED,),
    "head-tied-by-copy": (TIED,),
    "*-low-precision": ("precision::*", "parity::*"),
    "low-precision": ("precision::*", "parity::*"),
    "*-in-half": ("precision::*", "parity::half-precision*"),
    "crashes-*": ("precision::*", "parity::half-precision*"),
    "mask-only-in-*": ("structure::training-mode*", "parity::*"),
    "published-name-changed": (NAMES,),
    "too-long-is-cropped": ("structure::too-long-is-refused*",),
    "mask-in-an-attribute": ("structure::nothing-left-behind*",),
    "mask-is-a-parameter": ("structure::*",),
    "buffer-that-trains": ("structure::buffers-do-not-train*",),
    "forward-keeps-a-count": ("structure::evaluation-changes-nothing*",),
    "forward-writes-into-input": ("behaviour::*",),
    "prints-in-forward": ("behaviour::prints-little*",),
    "seeds-on-construction": ("behaviour::*",),
    "changes-globals": ("behaviour::*",),
    "answer-overwritten": ("conditions::answers-stay-what-they-were*",),
    "backward-not-linear": ("conditions::backward-is-linear*",),
    "backward-not-the-derivative": ("conditions::gradients-match-finite-differences*",),
    "call-changes-weights": ("conditions::calls-change-no-weights*",),
    "copy-differs": ("conditions::copies-answer-alike*",),
    "models-share-state": ("conditions::models-are-independent*",),
    "stale-weights": ("conditions::newest-weights-are-used*",),
    "wrong-under-a-condition": ("conditions::right-*", "conditions::gradients-under-every-condition*"),
    "keeps-activations": ("behaviour::memory-does-not-grow*",),
    "positions-not-followed": ("options::*",),
    "last-logits-*": ("options::*",),
    "use-cache-*": ("options::*",),
    "reduction-*": ("options::*",),
    "ignored-targets-*": ("options::*",),
    "label-smoothing-added": ("options::*",),
    "stop-token-*": ("options::*",),
    "pad-token-*": ("options::*",),
    "finished-rows-*": ("options::*",),
    "sequences-are-one": ("options::*",),
    "repetition-penalty-*": ("options::*",),
    "frequency-penalty-*": ("options::*",),
    "presence-penalty-*": ("options::*",),
    "min-p-*": ("options::*",),
    "top-k-zero-*": ("options::*",),
    "sampling-off-*": ("options::*",),
    "state-dict-hook-*": ("loading::*",),
}


def excused_by(fault: str) -> tuple[str, ...]:
    """Return the checks that a deviation excuses which no formula computes; () for an unknown id."""
    return next((checks for ids, checks in EXCUSED.items() if fnmatch.fnmatchcase(fault, ids)), ())
