"""Findings read off failed checks, where the reading itself says what is wrong: a table from check and place to cause."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.diagnosis.finding import Finding

if TYPE_CHECKING:
    from harness.judging.run_check import Record


@dataclass(frozen=True)
class Rule:
    """What a failed check says: its measure, a pattern for "place: value" (or parameters), and the finding."""

    measure: str
    pattern: str
    where: str
    fault: str
    cause: str


TABLE = (
    Rule("answer_to_a_long_sequence", "no error", "structure", "too-long-is-cropped", "a sequence longer than the context is answered, not refused"),
    Rule("writes_to_its_input", "ids: True", "structure", "forward-writes-into-input", "the forward pass writes into the ids that it is given"),
    Rule("forward_changes", "the input ids: True", "structure", "forward-writes-into-input", "the forward pass writes into the ids that it is given"),
    Rule("forward_changes", "the state dict: True", "structure", "forward-keeps-a-count", "a forward pass changes what state_dict holds"),
    Rule("forward_changes", "the training flag: True", "structure", "train-mode-changed", "a forward pass changes the training flag"),
    Rule("changes_to_the_process", "random numbers", "behaviour.seeds", "seeds-on-construction", "it seeds, or draws from, torch's global random numbers"),
    Rule("changes_to_the_process", ".", "behaviour.globals", "changes-globals", "it changes global state of the process"),
    Rule("printed", ".", "behaviour.output", "prints-in-forward", "it prints"),
    Rule("growth", ".", "behaviour.memory", "keeps-activations", "memory grows from call to call: something is kept"),
    Rule("writes_to_its_input", "targets: True", "behaviour.input", "targets-written-in-place", "the forward pass writes into the targets that it is given"),
    Rule("buffers_that_train", ".", "structure", "buffer-that-trains", "a buffer takes part in training"),
    Rule("published_names_differing", ".", "structure", "published-name-changed", "names of the published checkpoint are missing, or there are others"),
    Rule("rows_mixing", ".", "embedding", "rows-mixed", "rows of the batch move one another"),
    Rule("cropped_context", "False", "structure", "mask-crop-block-size-stale", "after crop_block_size the model is another: mask or positions are cropped wrongly"),
    Rule("padding_seen", "other padding", "attn.mask", "padding-mask-ignored", "what stands under the padding moves the tokens beside it: the padding mask is not used"),
    Rule("padding_seen", "no padding", "attn.mask", "mask-polarity-inverted-padding", "the padding mask is read the other way round"),
    Rule("loss_against_definition", "case=plain", "loss", "", "the loss is not the mean cross entropy of the model's own logits"),
    Rule("loss_against_definition", "case=extreme", "loss", "loss-log-of-softmax", "log(softmax(logits)) where log_softmax belongs: infinite where a probability underflows"),
    Rule("loss_against_definition", "case=training", "loss", "loss-label-smoothing-in-training", "the loss is another in training mode"),
    Rule("component_precision", "dtype=float16.*(overflow|without)", "attn.mask", "crashes-in-float16", "a constant is too large for float16"),
    Rule("component_precision", r"h\.\d+\.ln_[12]|ln_f", "ln_1", "ln-of-squares-in-half", "in 16 bits the norm loses more digits than the dtype does"),
    Rule("component_precision", r"h\.\d+\.attn", "attn.softmax", "softmax-rounded-in-half", "in 16 bits the attention loses more digits than the dtype does"),
    Rule("component_precision", r"h\.\d+\.mlp", "mlp.activation", "mlp-in-half", "in 16 bits the MLP loses more digits than the dtype does"),
    Rule("component_precision", "head", "head", "logits-rounded-in-half", "in 16 bits the logits lose more digits than the dtype does"),
    Rule("autocast_error", "", "attn.mix", "crashes-under-autocast", "under torch.autocast the model fails, or loses more than bfloat16 does"),
    Rule("cached_half_precision_error", "", "cache.dtype", "kv-cache-rounded-in-half", "in 16 bits the cache keeps fewer bits than the model"),
    Rule("cache_past_the_context", "False", "cache.position", "kv-past-the-context", "past the context the cache goes on, with positions that are not there"),
    Rule("seed_reproducible", "another seed, other tokens: False", "generation.seed", "gen-seed-fixed", "every seed gives the same tokens"),
    Rule("generation_changes", "the prompt: True", "generation.prompt", "gen-writes-into-prompt", "generate writes into the prompt"),
    Rule("generation_changes", "the state dict: True", "generation.state", "pos-buffer-moved-model", "generate changes the model's weights"),
    Rule("generation_changes", "gradients are recorded: True", "generation.gradient", "gen-records-gradients", "generate records gradients: memory grows with each token"),
    Rule("generation_changes", "the training flag: True", "generation.mode", "train-mode-not-restored", "after generate the model stays in eval mode: dropout is off from then on"),
    Rule("draws_p_value", "neighbouring rows at step 0(?!.*neighbouring rows at step 1)", "generation.first", "gen-first-token-broadcast", "the rows of a batch share their first token"),
    Rule("draws_p_value", "steps . and . together", "generation.seed", "gen-reseeded-each-step", "every step draws the same random numbers: the generator is seeded anew"),
    Rule("draws_p_value", "neighbouring rows", "generation.seed", "gen-rows-share-their-draws", "the rows of a batch share their random numbers"),
    Rule("draws_p_value", "step", "generation.temperature", "", "what is drawn does not have the model's probabilities"),
    Rule("temperature_zero", ".", "generation.temperature", "gen-temperature-zero", "temperature 0 is an error, or does not take the likeliest token"),
    Rule("answer_lengths", "none asked for: (Assertion|Index|Runtime|Value|Type)", "generation.length", "gen-none-asked-crashes", "no new tokens asked for is an error"),
    Rule("answer_lengths", "a prompt longer than the context: .*\\(2, 35\\)", "generation.length", "gen-prompt-trimmed", "a prompt longer than the context comes back trimmed"),
    Rule("answer_lengths", "a prompt longer than the context: .*\\(2, (39|40|41)\\)", "generation.length", "gen-max-new-tokens-wrong-base", "the budget is counted from the prompt before it is trimmed"),
    Rule("answer_lengths", "a prompt of one token: .*\\(2, 5\\)", "generation.length", "gen-one-token-too-many", "one token more is generated than asked for"),
    Rule("answer_lengths", "a prompt of one token: .*\\(2, 3\\)", "generation.length", "gen-length-is-total", "the number of new tokens is taken for the length of the whole"),
    Rule("answer_lengths", "a prompt (as long as|longer than) the context: ", "generation.crop", "gen-crop-missing", "generation past the context is an error"),
    Rule("damaged_checkpoint", "truncated: loaded", "loading.file", "load-damaged-is-random", "a damaged file gives a model all the same"),
    Rule("damaged_checkpoint", "wpe.weight: loaded(?!.*loaded)", "loading.wpe", "load-missing-wpe-tolerated", "position embeddings that the file lacks are left random, without an error"),
    Rule("damaged_checkpoint", "damage=tensor missing", "loading.missing", "load-missing-tolerated", "a tensor that the file lacks is left random, without an error"),
    Rule("damaged_checkpoint", "damage=tensor unknown", "loading.unknown", "load-unknown-tolerated", "a tensor that the model has no place for is passed over"),
    Rule("damaged_checkpoint", "damage=shape wrong", "loading.shape", "load-shape-broadcast", "a tensor of a wrong shape is made to fit"),
    Rule("damaged_checkpoint", "damage=pickle only", "loading.file", "load-unpickles", "a pickle is loaded: it can run code"),
    Rule("loaded_parity", "layout=released", "loading.names", "load-released-names-unknown", "names as the released file has them, without 'transformer.', are not found"),
    Rule("config_honoured", "another n_head: False", "loading.config", "load-n-head-ignored", "n_head of config.json is ignored"),
    Rule("config_honoured", "another layer_norm_epsilon: False", "loading.config", "load-epsilon-ignored", "layer_norm_epsilon of config.json is ignored"),
    Rule("config_honoured", "another activation_function: False", "loading.config", "load-activation-ignored", "activation_function of config.json is ignored"),
    Rule("config_honoured", "scale_attn_weights false: False", "loading.config", "load-scale-flag-ignored", "scale_attn_weights of config.json is ignored"),
    Rule("config_honoured", "scale_attn_by_inverse_layer_idx true: False", "loading.config", "load-layer-scale-flag-ignored", "scale_attn_by_inverse_layer_idx of config.json is ignored"),
    Rule("config_honoured", "tie_word_embeddings false: False", "loading.lm_head", "load-untied-head-dropped", "a head of its own that the file has is dropped"),
    Rule("config_honoured", "a million layers: False", "loading.config", "load-config-believed", "what config.json claims is built before the file is looked at"),
    Rule("checkpoint_round_trip", "settings changed at Hugging Face: [1-9]", "loading.save", "save-config-wrong", "the written config.json is not the model's"),
    Rule("checkpoint_round_trip", "parameters that no longer train: [1-9]", "loading.gradient", "load-frozen", "loaded weights do not train"),
    Rule("parity", "size=debug-long.*Error", "attn.mask", "mask-size-from-wrong-dim", "the mask is smaller than the context: its size is another number's"),
    Rule("parity", "size=debug-long.*compare=blocks", "embedding.position", "pos-ids-low-precision", "beyond 256 positions the model differs: positions are computed in 16 bits, or a mask is too small"),
    Rule("half_precision_error", "dtype=float16", "attn.mask", "crashes-in-float16", "in float16 the model fails, or loses more than the dtype does"),
)  # fmt: skip


def explain(records: Sequence[Record]) -> list[Finding]:
    """A finding for each failed check whose reading says what is wrong, in the order of the table."""
    found: dict[str, Finding] = {}
    for told in TABLE:
        for record in records:
            if record.verdict in ("fail", "error") and record.check.measure == told.measure and told.fault not in found:
                text = _text(record)
                if re.search(told.pattern, text):
                    evidence = f"{record.check.suite}/{record.check.id}: {record.message}"
                    found[told.fault] = Finding(told.where, told.fault, told.cause, evidence[:220])
    return list(found.values())


def _text(record: Record) -> str:
    """The failed places with their values, and the parameters, as the table's patterns read them."""
    return " | ".join((*_parameters(record), *_places(record), record.message))


def _parameters(record: Record) -> Iterator[str]:
    yield ",".join(f"{key}={value}" for key, value in record.check.parameters.items())


def _places(record: Record) -> Iterator[str]:
    value = record.value
    if isinstance(value, dict):
        answers = record.details.get("answers", {})
        for place in record.where:
            yield f"{place}: {value.get(place)}{' ' + str(answers[place]) if place in answers else ''}"
    elif value is not None:
        yield str(value)
