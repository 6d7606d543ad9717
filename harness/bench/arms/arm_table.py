"""The arms as a table: who computes, in which dtypes, with which attention, compiled or not."""

from __future__ import annotations

from harness.bench.arms.registry import ArmSpec

BF16 = {"dtype": "bfloat16"}

ARMS = (
    # The subject, as it is and in other types.
    ArmSpec("subject", "the subject in float32, with its own attention"),
    ArmSpec("fp32", "parameters and products in float32", claims={"dtype": "float32"}),
    ArmSpec("bf16", "parameters and products in bfloat16", dtype="bfloat16", claims=BF16),
    ArmSpec(
        "bf16-autocast", "parameters in float32, products in bfloat16, as one trains", autocast="bfloat16", claims=BF16
    ),
    ArmSpec(
        "fp16", "parameters and products in float16", dtype="float16", devices=("cuda",), claims={"dtype": "float16"}
    ),
    # Weights of linear layers in another form. On a CPU torch multiplies a row by a plain weight on one thread.
    ArmSpec(
        "fp32-packed",
        "float32, weights of linear layers packed by oneDNN, beside the plain ones",
        weights="packed",
        devices=("cpu",),
        claims={"dtype": "float32"},
    ),
    ArmSpec(
        "bf16-packed",
        "bfloat16, weights of linear layers packed by oneDNN, beside the plain ones",
        dtype="bfloat16",
        weights="packed",
        devices=("cpu",),
        claims=BF16,
    ),
    # On a CPU torch multiplies int8 weights in vectors only if the activations are in 16 bits.
    ArmSpec(
        "int8",
        "weights of linear layers in int8, the rest in bfloat16",
        dtype="bfloat16",
        weights="int8",
        devices=("cpu",),
        claims={"dtype": "int8"},
    ),
    ArmSpec(
        "int4",
        "weights of linear layers in int4, 32 with a scale and a zero point in common, the rest in bfloat16",
        dtype="bfloat16",
        weights="int4",
        devices=("cpu",),
        claims={"dtype": "int4"},
    ),
    # Attention. `flash` is the fused kernel that torch chooses.
    ArmSpec("looped", "one head after the other", attention="looped", claims={"attention": "formula"}),
    ArmSpec(
        "naive",
        "all heads at once, the scores stored",
        attention="naive",
        claims={"attention": "formula", "compiled": False},
    ),
    ArmSpec(
        "flash",
        "torch's fused kernel, no scores stored",
        attention="flash",
        claims={"attention": "flash", "quadratic": False, "compiled": False},
    ),
    ArmSpec("sdpa-math", "SDPA by its backend `math`", attention="sdpa-math", claims={"attention": "math"}),
    ArmSpec(
        "sdpa-efficient",
        "SDPA by its memory-efficient backend",
        attention="sdpa-efficient",
        devices=("cuda",),
        claims={"attention": "efficient"},
    ),
    ArmSpec(
        "sdpa-cudnn",
        "SDPA by cuDNN's backend",
        attention="sdpa-cudnn",
        dtype="bfloat16",
        devices=("cuda",),
        claims={"attention": "cudnn"},
    ),
    # Inductor rewrites the formula into the fused kernel, so this arm is not called naive. The record says what ran.
    ArmSpec(
        "formula-compiled",
        "the formula under torch.compile",
        attention="naive",
        compiled=True,
        claims={"compiled": True},
    ),
    # Compiled or not.
    ArmSpec("eager", "operation by operation", claims={"compiled": False}),
    ArmSpec("compiled", "torch.compile, Inductor", compiled=True, claims={"compiled": True}),
    ArmSpec("graph", "one CUDA graph, replayed", devices=("cuda",), options={"graph": True}),
    # Generation.
    ArmSpec("uncached", "every token computes all positions before it", options={"use_cache": False}),
    ArmSpec("cached", "the subject's own cache", options={"use_cache": True}),
    ArmSpec("growing", "keys and values concatenated at each step", options={"use_cache": True, "cache": "growing"}),
    # Feed-forward layers.
    ArmSpec("experts", "the subject's mixture of experts"),
    ArmSpec("dense-active", "a dense MLP as wide as the experts that compute a token"),
    ArmSpec("dense-total", "a dense MLP as wide as all experts"),
    # Serving.
    ArmSpec("static", "a batch of requests enters when the one before it has ended", options={"static": True}),
    ArmSpec("continuous", "requests enter and leave between two steps", options={"static": False}),
    # Speculative decoding.
    ArmSpec("alone", "the target alone, with its cache"),
    ArmSpec("draft-model", "a model of one layer drafts", options={"draft": "model"}),
    ArmSpec("early-exit", "the target's first layer drafts", options={"draft": "early-exit"}),
    ArmSpec(
        "prompt-lookup", "the text itself drafts: what followed its last tokens", options={"draft": "prompt-lookup"}
    ),
    ArmSpec(
        "hf-assisted",
        "transformers' assisted generation, the same draft model",
        peer="hf-sdpa",
        beside="draft-model",
        options={"draft": "model"},
    ),
    # Training.
    ArmSpec("for-loop", "AdamW, one tensor after the other", options={"optimizer": {"foreach": False, "fused": False}}),
    ArmSpec("foreach", "AdamW, an operation over all tensors", options={"optimizer": {"foreach": True}}),
    ArmSpec("fused", "AdamW in one kernel", options={"optimizer": {"fused": True}}),
    ArmSpec("one-batch", "the batch at once"),
    ArmSpec("accumulated", "the batch in four parts, gradients added up", options={"parts": 4}),
    ArmSpec("stored", "activations kept for the backward pass"),
    ArmSpec(
        "checkpointed", "activations of a block computed again in the backward pass", options={"checkpointing": True}
    ),
    # Several ranks, of one thread each, on CPUs through gloo.
    ArmSpec("one-process", "the whole batch in one process"),
    ArmSpec("ddp", "two data parallel ranks", devices=("cpu",), options={"ranks": "data"}),
    ArmSpec("fsdp", "two fully sharded ranks", devices=("cpu",), options={"ranks": "sharded"}),
    ArmSpec("tp", "two tensor parallel ranks", devices=("cpu",), options={"ranks": "tensor"}),
    # Peers, where their packages are.
    ArmSpec("hf-sdpa", "transformers' GPT-2, SDPA", peer="hf-sdpa"),
    ArmSpec("hf-eager", "transformers' GPT-2, eager attention", peer="hf-eager", claims={"attention": "formula"}),
    ArmSpec("ctranslate2", "CTranslate2 in float32", peer="ctranslate2"),
    ArmSpec(
        "ctranslate2-int8",
        "CTranslate2, weights and activations in int8",
        peer="ctranslate2-int8",
        beside="int8",
        options={"stored_as": "int8", "activations": "int8"},
    ),
    ArmSpec("nanogpt", "nanoGPT from --nanogpt PATH", peer="nanogpt"),
    # Text.
    ArmSpec("one-piece", "tiktoken, the text as one string"),
    ArmSpec("paragraphs", "tiktoken, paragraph by paragraph on the run's threads", options={"paragraphs": True}),
)
