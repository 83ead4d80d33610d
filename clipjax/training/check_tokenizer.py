"""Do the tokenizer and the text tower fit each other? Asked when the tokenizer's file has been read."""

from __future__ import annotations

from typing import Any

from clipjax.config import ExperimentConfig, require
from clipjax.models import text_tower


def check_tokenizer(config: ExperimentConfig, tokenizer: Any) -> None:
    """Refuses a tokenizer whose ids the text tower cannot take or pool. Raises ConfigError."""
    text = config.model.text
    require(
        tokenizer.vocab_size <= text.vocab_size,
        f"{config.tokenizer.path} has {tokenizer.vocab_size} pieces, more than "
        f"config.model.text.vocab_size={text.vocab_size}; set vocab_size to at least {tokenizer.vocab_size}.",
    )
    if refuse := text_tower(text).check_tokenizer:
        refuse(text, tokenizer)
