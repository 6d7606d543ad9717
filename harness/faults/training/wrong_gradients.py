"""Wrong losses and gradients: changes of the specimen, and the checks that must turn red for each."""

from harness.faults.training.changes import (
    CLIP,
    LOSS,
    ZERO_GRAD,
    Trainer,
)
from harness.faults.training.checks import (
    ACCUMULATION,
    BEST,
    CLIPPING,
    ENTROPY,
    FINITE,
    GRADIENT,
    LOGGED_K,
    OVERFIT,
    PLATEAU,
    SCHEDULE_K,
    STEPS,
    UPDATE,
)

NOT_FINITE = (*FINITE, CLIPPING, *UPDATE, ENTROPY, PLATEAU, OVERFIT)
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
        "the last of 3 micro-batches alone",
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
        "the mean of the micro-batches' means",
    ),
    Trainer(
        "attention-row-without-keys",
        "The mask hides a token from itself: the first one sees none, and its softmax is NaN.",
        "folklore",
        (
            (
                "y = F.scaled_dot_product_attention(q, k, v, is_causal=True)",
                "scores = (q @ k.mT * q.size(-1) ** -0.5).masked_fill(~torch.ones(T, T).tril(-1).bool(), -math.inf)\n"
                "        y = scores.softmax(-1) @ v",
            ),
        ),
        NOT_FINITE,
        "softmax makes the first NaN",
    ),
    Trainer(
        "gradient-of-root-at-zero",
        "A penalty is the root of a sum of squares that starts at 0: its gradient is NaN.",
        "folklore",
        ((LOSS, LOSS + " + 1e-3 * model.ln_f.bias.square().sum().sqrt()"),),
        (*NOT_FINITE, BEST),
        "the loss is finite, and the gradient of ln_f.bias is not",
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
        "the weight that their targets give them",
    ),
    Trainer(
        "opt-step-skipped",
        "Every other optimizer step is skipped.",
        "folklore",
        (("    optimizer.step()\n", "    if it % 2:\n        optimizer.step()\n"),),
        (STEPS, ACCUMULATION, SCHEDULE_K, LOGGED_K),
        "have no part in the gradient",
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
