"""The arms by name: who computes, in which types, with which attention, compiled or not."""

from __future__ import annotations

from harness.bench.arms.registry import arm

BF16 = {"dtype": "bfloat16"}

# The subject, as it is and in other types.
arm("subject", "the subject in float32, with its own attention")
arm("fp32", "parameters and products in float32", claims={"dtype": "float32"})
arm("bf16", "parameters and products in bfloat16", dtype="bfloat16", claims=BF16)
arm("bf16-autocast", "parameters in float32, products in bfloat16, as one trains", autocast="bfloat16", claims=BF16)
arm("fp16", "parameters and products in float16", dtype="float16", devices=("cuda",), claims={"dtype": "float16"})

# Ways to compute attention. `flash` is whatever fused kernel torch chooses.
arm("looped", "one head after the other", attention="looped", claims={"attention": "formula"})
arm(
    "naive",
    "all heads at once, the scores stored",
    attention="naive",
    claims={"attention": "formula", "compiled": False},
)
arm(
    "flash",
    "torch's fused kernel, no scores stored",
    attention="flash",
    claims={"attention": "flash", "quadratic": False, "compiled": False},
)
arm("sdpa-math", "SDPA by its backend `math`", attention="sdpa-math", claims={"attention": "math"})
arm(
    "sdpa-efficient",
    "SDPA by its memory-efficient backend",
    attention="sdpa-efficient",
    devices=("cuda",),
    claims={"attention": "efficient"},
)
arm(
    "sdpa-cudnn",
    "SDPA by cuDNN's backend",
    attention="sdpa-cudnn",
    dtype="bfloat16",
    devices=("cuda",),
    claims={"attention": "cudnn"},
)
# Inductor rewrites the formula into the fused kernel, so this arm is not called naive: what it ran as is on record.
arm("formula-compiled", "the formula under torch.compile", attention="naive", compiled=True, claims={"compiled": True})

# Compiled or not.
arm("eager", "operation by operation", claims={"compiled": False})
arm("compiled", "torch.compile, Inductor", compiled=True, claims={"compiled": True})
arm("graph", "one CUDA graph, replayed", devices=("cuda",), options={"graph": True})

# Generation.
arm("uncached", "every token computes all positions before it", options={"use_cache": False})
arm("cached", "the subject's own cache", options={"use_cache": True})
arm("growing", "keys and values concatenated at each step", options={"use_cache": True, "cache": "growing"})

# Training.
arm("for-loop", "AdamW, one tensor after the other", options={"optimizer": {"foreach": False, "fused": False}})
arm("foreach", "AdamW, an operation over all tensors", options={"optimizer": {"foreach": True}})
arm("fused", "AdamW in one kernel", options={"optimizer": {"fused": True}})
arm("one-batch", "the batch at once")
arm("accumulated", "the batch in four parts, gradients added up", options={"parts": 4})
arm("stored", "activations kept for the backward pass")
arm("checkpointed", "activations of a block computed again in the backward pass", options={"checkpointing": True})

# Peers, where their packages are.
arm("hf-sdpa", "transformers' GPT-2, SDPA", peer="hf-sdpa")
arm("hf-eager", "transformers' GPT-2, eager attention", peer="hf-eager", claims={"attention": "formula"})
arm("ctranslate2", "CTranslate2 in float32", peer="ctranslate2")
arm("nanogpt", "nanoGPT from --nanogpt PATH", peer="nanogpt")

# Text.
arm("one-piece", "tiktoken, the text as one string")
arm("paragraphs", "tiktoken, paragraph by paragraph on the run's threads", options={"paragraphs": True})
