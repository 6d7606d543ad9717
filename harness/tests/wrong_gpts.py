"""Wrong GPTs: the reference with one fault each, as its author might have made it. Each is visibly wrong."""

import dataclasses

import torch
from torch import nn

from gpt import GPT, Block, CausalSelfAttention
from gpt.model import LoopedSelfAttention


class Wrong(GPT):
    """The reference, and then `damage`."""

    def __init__(self, config, **options):
        super().__init__(config, **options)
        self.damage()

    def damage(self):
        raise NotImplementedError

    def attentions(self):
        return [m for m in self.modules() if isinstance(m, CausalSelfAttention | LoopedSelfAttention)]


# structure


class UntiedHead(GPT):
    def __init__(self, config, **options):
        super().__init__(dataclasses.replace(config, tied=False), **options)


class TieLostOnLoad(GPT):
    def load_state_dict(self, state, strict=True, assign=False):
        answer = super().load_state_dict(state, strict, assign)
        self.lm_head.weight = nn.Parameter(self.lm_head.weight.detach().clone())
        return answer


class BlocksInAList(Wrong):
    def damage(self):
        self.hidden = list(self.transformer["h"])
        self.transformer["h"] = nn.ModuleList()

    @property
    def blocks(self):
        return self.hidden if hasattr(self, "hidden") else self.transformer["h"]


class MaskInAnAttribute(Wrong):
    def damage(self):
        for attention in self.attentions():
            attention.my_mask = torch.ones(3, 3).tril()


class MaskAsParameter(Wrong):
    def damage(self):
        size = self.config.block_size
        for attention in self.attentions():
            attention.bias = nn.Parameter(torch.ones(1, 1, size, size).tril())


class AnswersAnyLength(GPT):
    def forward(self, idx, targets=None, **options):
        return super().forward(idx[:, -self.config.block_size :], targets, **options)


class DropoutInEval(Wrong):
    def damage(self):
        for block in self.transformer["h"]:
            block.mlp.register_forward_hook(lambda m, x, out: nn.functional.dropout(out, 0.1, training=True))


class ExtraNormInTheMiddle(Wrong):
    def damage(self):
        self.transformer["extra"] = nn.LayerNorm(self.config.n_embd)


# initialisation


class ResidualUnscaled(GPT):
    def __init__(self, config, **options):
        super().__init__(dataclasses.replace(config, init="unscaled"), **options)


class BiasAtDefault(Wrong):
    def damage(self):
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None and not module.bias.is_meta:
                nn.init.uniform_(module.bias, -0.01, 0.01)


class LayersCopied(Wrong):
    def damage(self):
        first, *others = self.transformer["h"]
        for block in others:
            block.load_state_dict(first.state_dict())


class EmbeddingTooLarge(Wrong):
    def damage(self):
        with torch.no_grad():
            self.transformer["wte"].weight.mul_(10)


# attention and causality


class MaskOffByOne(Wrong):
    def damage(self):
        for attention in self.attentions():
            attention.flash = False
            attention.mask = torch.ones_like(attention.mask).tril(diagonal=1)


class MaskTransposed(Wrong):
    def damage(self):
        for attention in self.attentions():
            attention.flash = False
            attention.mask = attention.mask.mT


class FlashForgetsTheMask(GPT):
    """Only the flash path: the naive one is right."""

    def __init__(self, config, **options):
        super().__init__(config, **options)
        for attention in self.modules():
            if isinstance(attention, CausalSelfAttention) and attention.flash:
                attention.attend_flash = lambda q, k, v: nn.functional.scaled_dot_product_attention(q, k, v)


class MaskAfterSoftmax(Wrong):
    def damage(self):
        for attention in self.attentions():
            attention.flash = False
            attention.attend_naive = lambda q, k, v, a=attention: (
                (q @ k.mT / q.size(-1) ** 0.5).softmax(-1) * a.mask[: q.size(-2), : k.size(-2)] @ v
            )


class RowsMix(Wrong):
    def damage(self):
        self.transformer["h"][1].register_forward_hook(lambda m, x, out: out + 1e-3 * out.mean(0, keepdim=True))


class PositionsCountDown(Wrong):
    def damage(self):
        self.transformer["wpe"].register_forward_pre_hook(lambda m, args: (args[0].flip(0),))


class SeesOnlyFourBack(Wrong):
    def damage(self):
        for attention in self.attentions():
            attention.flash = False
            attention.mask = attention.mask & ~attention.mask.tril(-4)


# parity


class ExactGelu(Wrong):
    def damage(self):
        for block in self.transformer["h"]:
            block.mlp.gelu = nn.GELU()


class EpsilonOfBert(Wrong):
    def damage(self):
        self.transformer["h"][1].ln_2.eps = 1e-12


class NormShared(Wrong):
    class Block(Block):
        def forward(self, x, memory=None):
            x = x + self.attn(self.ln_1(x), memory)
            return x + self.mlp(self.ln_1(x)) + 0.0 * self.ln_2(x)

    def damage(self):
        self.transformer["h"][1].__class__ = NormShared.Block


class SkipDetached(Wrong):
    """The forward pass is right; only gradients tell."""

    class Block(Block):
        def forward(self, x, memory=None):
            x = x.detach() + self.attn(self.ln_1(x), memory)
            return x + self.mlp(self.ln_2(x))

    def damage(self):
        self.transformer["h"][2].__class__ = SkipDetached.Block


class NormInHalf(Wrong):
    """Right in float32: drops bits only where the model runs in bfloat16."""

    def damage(self):
        self.register_forward_hook(
            lambda m, args, out: (
                (out[0].to(torch.float8_e4m3fn).to(out[0].dtype), out[1]) if out[0].dtype == torch.bfloat16 else out
            )
        )


class Babbles(Wrong):
    def damage(self):
        nan = float("nan")
        self.register_forward_hook(lambda m, args, out: (out[0] * nan, out[1] if out[1] is None else out[1] * nan))


class OneTokenShort(Wrong):
    def damage(self):
        self.register_forward_hook(lambda m, args, out: (out[0][..., :-1], out[1]))


class RaisesOnConstruction(GPT):
    def __init__(self, config, **options):
        raise ZeroDivisionError("heads per nothing")


class ExitsTheProcess(Wrong):
    def damage(self):
        self.register_forward_hook(lambda m, args, out: raise_exit())


def raise_exit():
    raise SystemExit(3)


class ChangesGlobals(Wrong):
    def damage(self):
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)


# loading


class LoaderForgetsToTranspose(GPT):
    @classmethod
    def from_pretrained(cls, folder, **options):
        model = super().from_pretrained(folder, **options)
        with torch.no_grad():
            weight = model.transformer["h"][1].attn.c_proj.weight
            weight.copy_(weight.mT.clone())
        return model


class LoaderRoundsToHalf(GPT):
    @classmethod
    def from_pretrained(cls, folder, **options):
        return super().from_pretrained(folder, **options).half().float()


class LoaderTakesAnything(GPT):
    @classmethod
    def from_pretrained(cls, folder, **options):
        try:
            return super().from_pretrained(folder, **options)
        except Exception:
            from gpt import PRESETS

            return cls(PRESETS["debug"])


# generation


class CachePositionOffByOne(Wrong):
    def damage(self):
        last = self.config.block_size - 1
        self.transformer["wpe"].register_forward_pre_hook(
            lambda m, args: ((args[0] + int(args[0][0] > 0)).clamp(max=last),)
        )


class CacheMaskTopLeft(Wrong):
    def damage(self):
        for attention in self.attentions():
            attention.attend_flash = lambda q, k, v: nn.functional.scaled_dot_product_attention(
                q, k, v, torch.ones(q.size(-2), k.size(-2), dtype=torch.bool).tril()
            )


class TopKPlusOne(GPT):
    def generate(self, idx, max_new_tokens, *, top_k=None, **options):
        return super().generate(idx, max_new_tokens, top_k=top_k and top_k + 1, **options)


class TemperatureTwice(GPT):
    def generate(self, idx, max_new_tokens, *, temperature=1.0, **options):
        return super().generate(idx, max_new_tokens, temperature=temperature**2, **options)


class NucleusWithoutItsEdge(GPT):
    def generate(self, idx, max_new_tokens, *, top_p=None, **options):
        return super().generate(idx, max_new_tokens, top_p=top_p and top_p - 0.15, **options)


class SeedIgnored(GPT):
    def generate(self, idx, max_new_tokens, *, seed=None, **options):
        return super().generate(idx, max_new_tokens, **options)


class KeepsTheFirstTokens(GPT):
    def generate(self, idx, max_new_tokens, **options):
        for _ in range(max_new_tokens):
            window = idx[:, : self.config.block_size]
            idx = torch.cat([idx, super().generate(window, 1, **options)[:, -1:]], dim=1)
        return idx


class LeavesEvalModeOn(GPT):
    def generate(self, idx, max_new_tokens, **options):
        answer = super().generate(idx, max_new_tokens, **options)
        self.eval()
        return answer


class CacheWrongPastTheContext(GPT):
    def generate(self, idx, max_new_tokens, *, use_cache=True, **options):
        answer = super().generate(idx, max_new_tokens, **options)
        if use_cache:
            answer[:, self.config.block_size :] = 0
        return answer


class NewNumbersForNobody(GPT):
    """One stream of random numbers, begun anew at each step."""

    def generate(self, idx, max_new_tokens, **options):
        for _ in range(max_new_tokens):
            idx = super().generate(idx, 1, **options)
        return idx


class FiltersTheFirstTokenOnly(GPT):
    def generate(self, idx, max_new_tokens, *, top_k=None, **options):
        idx = super().generate(idx, 1, top_k=top_k, **options)
        options["seed"] = options.get("seed") and options["seed"] + 1
        return super().generate(idx, max_new_tokens - 1, **options)


class GeneratesInTrainingMode(GPT):
    def generate(self, idx, max_new_tokens, **options):
        evaluating, training = self.eval, self.training
        self.eval = lambda: self
        try:
            return super().generate(idx, max_new_tokens, **options)
        finally:
            self.eval = evaluating
            self.train(training)


class CacheKeptBetweenPrompts(GPT):
    def new_cache(self, batch_size):
        if not hasattr(self, "kept"):
            self.kept = super().new_cache(batch_size)
        return self.kept


# training mode


class MaskOnlyInEval(Wrong):
    def damage(self):
        for attention in self.attentions():
            attention.flash = False
            attention.attend_naive = lambda q, k, v, a=attention, right=attention.attend_naive: (
                (q @ k.mT / q.size(-1) ** 0.5).softmax(-1) @ v if a.training else right(q, k, v)
            )


class ResidualDropoutForgotten(Wrong):
    def damage(self):
        for block in self.transformer["h"]:
            block.mlp.dropout = nn.Identity()


class LossLeavesOutTokenZero(GPT):
    def forward(self, idx, targets=None, **options):
        if targets is None:
            return super().forward(idx, **options)
        return super().forward(idx, targets.masked_fill(targets == 0, -100), **options)


class LastPositionRepeated(Wrong):
    def damage(self):
        last = self.config.block_size - 2
        self.transformer["wpe"].register_forward_pre_hook(lambda m, args: (args[0].clamp(max=last),))


class MaskOfMinusFifty(Wrong):
    def damage(self):
        for attention in self.attentions():
            attention.flash = False
            attention.attend_naive = lambda q, k, v, a=attention: (
                (q @ k.mT / q.size(-1) ** 0.5).masked_fill(~a.mask[: q.size(-2), : k.size(-2)], -50.0).softmax(-1) @ v
            )


# controls: equivalent programs, which no check may flag


class MaskFilledWithTheLeast(Wrong):
    def damage(self):
        for attention in self.attentions():
            attention.flash = False
            attention.attend_naive = lambda q, k, v, a=attention: (
                (q @ k.mT / q.size(-1) ** 0.5)
                .masked_fill(~a.mask[k.size(-2) - q.size(-2) : k.size(-2), : k.size(-2)], torch.finfo(q.dtype).min)
                .softmax(-1)
                @ v
            )


class MaskedAndRenormalised(Wrong):
    def damage(self):
        def attend(q, k, v, mask):
            weights = (q @ k.mT / q.size(-1) ** 0.5).softmax(-1)
            weights = weights * mask[k.size(-2) - q.size(-2) : k.size(-2), : k.size(-2)]
            return weights / weights.sum(-1, keepdim=True) @ v

        for attention in self.attentions():
            attention.flash = False
            attention.attend_naive = lambda q, k, v, a=attention: attend(q, k, v, a.mask)
