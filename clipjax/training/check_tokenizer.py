"""Do the tokenizer and the text tower fit each other? Asked when the tokenizer's file has been read."""

from __future__ import annotations

from typing import Any

from clipjax.config import ConfigError, ExperimentConfig, require


def check_tokenizer(config: ExperimentConfig, tokenizer: Any) -> None:
    """Refuses a tokenizer whose ids the text tower cannot take or pool. Raises ConfigError."""
    text = config.model.text
    require(
        tokenizer.vocab_size <= text.vocab_size,
        f"{config.tokenizer.path} has {tokenizer.vocab_size} pieces, more than "
        f"config.model.text.vocab_size={text.vocab_size}; set vocab_size to at least {tokenizer.vocab_size}.",
    )
    # eos_id < 0 takes the largest id of a text for its end: right where EOS is the vocabulary's last id, as in CLIP.
    largest = text.eos_id < 0 and tokenizer.eos_id == tokenizer.vocab_size - 1
    if text.pool == "eos" and not largest and text.eos_id != tokenizer.eos_id:
        raise ConfigError(
            f"config.model.text.pool='eos' looks for id eos_id={text.eos_id}, but the tokenizer ends texts with "
            f"{tokenizer.eos_id}; set config.model.text.eos_id={tokenizer.eos_id}."
        )
    require(
        text.name != "bert" or text.pad_id == tokenizer.pad_id,
        f"config.model.text.pad_id={text.pad_id} is what the tower takes for padding, but the tokenizer pads with "
        f"{tokenizer.pad_id}; set config.model.text.pad_id={tokenizer.pad_id} or config.tokenizer.pad_id.",
    )
