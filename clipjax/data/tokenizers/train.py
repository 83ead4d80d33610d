"""Trains a SentencePiece tokenizer on captions."""

from __future__ import annotations

import io
from collections.abc import Sequence

import sentencepiece

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2
# The 256 byte pieces would leave a small vocabulary no room.
MIN_VOCAB_FOR_BYTES = 1024


class TrainingTextError(ValueError):
    """No tokenizer can be made of these texts; the message says why."""


def train_sentencepiece(lines: Sequence[str], vocab_size: int, model_type: str = "unigram") -> bytes:
    """The bytes of a SentencePiece model: the same for the same lines and arguments.

    lines: captions, already in lower case where the tokenizer lowers case. vocab_size: pieces at most; there are fewer
    where the text has fewer. model_type: "unigram" or "bpe". Ids: 0 padding, 1 end of sequence, 2 unknown. From
    MIN_VOCAB_FOR_BYTES pieces on, characters that are no piece become bytes. Raises TrainingTextError.
    """
    byte_fallback = vocab_size >= MIN_VOCAB_FOR_BYTES
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            # An iterator and a writer instead of paths: SentencePiece stores paths in the model.
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            model_type=model_type,
            byte_fallback=byte_fallback,
            character_coverage=0.9995 if byte_fallback else 1.0,
            pad_id=PAD_ID,
            eos_id=EOS_ID,
            unk_id=UNK_ID,
            bos_id=-1,
            # Threads add up counts in any order.
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise TrainingTextError(
            f"SentencePiece could not train {vocab_size} pieces on {len(lines)} texts: {error}. "
            "A --vocab_size below the number of different characters is too small."
        ) from error
    return model.getvalue()
