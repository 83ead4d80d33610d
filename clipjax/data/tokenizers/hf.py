"""Any tokenizer.json: BERT's WordPiece (ALIGN), RoBERTa and XLM-R, Gemma (SigLIP 2), CLIP; and BERT's vocab.txt."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipjax.config import ConfigError, TokenizerConfig, require
from clipjax.config.errors import shown
from clipjax.data.tokenizers.clean_text import make_clean
from clipjax.data.tokenizers.rust import (
    RustTokenizer,
    files_sha256,
    import_tokenizers,
    library_errors,
    quiet_stderr,
    read_json,
)
from clipjax.files import TextFileError, read_text, split_lines

MAX_UNUSED = 1 << 20  # ids without a piece
# Keys of a token in tokenizer_config.json, and its usual names where there is no such file.
NAMES = {
    "bos": (("bos_token", "cls_token"), ("<|startoftext|>", "[CLS]", "<s>", "<bos>")),
    "eos": (("eos_token", "sep_token"), ("<|endoftext|>", "[SEP]", "</s>", "<eos>")),
    "pad": (("pad_token",), ("[PAD]", "<pad>")),
}

VOCABULARY = "vocab.txt"
BERT = dict(unk_token="[UNK]", sep_token="[SEP]", pad_token="[PAD]", cls_token="[CLS]")


def hf_tokenizer(config: TokenizerConfig, context_length: int) -> RustTokenizer:
    """The `tokenizers` pipeline of a tokenizer.json (config.path: the file or its folder), padded on the right.

    config.path may also be a BERT's vocab.txt, which older models have alone (Chinese-CLIP).

    The file's post-processor adds special tokens, unless config.add_bos or add_eos is set. config.lowercase lowers case
    before the file's own normalisation (SigLIP 2). A special token written out in a text is read as text: "[SEP]"
    becomes "[ SEP]". Raises ConfigError.
    """
    tokenizers = import_tokenizers()
    path = Path(config.path)
    path = path / "tokenizer.json" if path.is_dir() else path
    settings = token_settings(path.parent)
    if path.name == VOCABULARY:
        with library_errors(f"config.tokenizer.path: '{path}' and its tokenizer_config.json are not a BERT's"):
            pipeline = wordpiece(path, settings)
    else:
        pipeline = read_pipeline(path)
    ids = {kind: find_token(pipeline, settings, kind) for kind in NAMES}
    if config.add_bos is not None or config.add_eos is not None:
        set_template(pipeline, config, ids)
    if config.lowercase:
        own = [pipeline.normalizer] if pipeline.normalizer is not None else []
        pipeline.normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.Lowercase(), *own])
    special = [token.content for token in pipeline.get_added_tokens_decoder().values() if token.special]
    own_pad = ids["pad"] if ids["pad"] >= 0 else ids["eos"]
    # add_bos and add_eos stay None: the file decides.
    config = dataclasses.replace(config, clean=bool(config.clean), lowercase=bool(config.lowercase))
    return RustTokenizer(
        pipeline,
        config,
        context_length,
        pad_id=own_pad if config.pad_id is None else config.pad_id,
        eos_id=ids["eos"],
        sha256=files_sha256(path),
        clean=make_clean(dataclasses.replace(config, lowercase=False)),
        literals=literal_pattern(special),
    )


def read_pipeline(path: Path) -> Any:
    """The `tokenizers` pipeline of a tokenizer.json. Raises ConfigError for a file that is missing, or not one."""
    require(path.is_file(), f"config.tokenizer.path: there is no file '{path}'.")
    tokenizers = import_tokenizers()
    try:
        text = read_text(path)
    except ValueError as error:
        raise ConfigError(f"config.tokenizer.path: '{path}' is not JSON ({error}).") from error
    with library_errors(f"config.tokenizer.path: '{path}' is not JSON, or is not a tokenizer.json"), quiet_stderr():
        pipeline = tokenizers.Tokenizer.from_str(text)
        ids = pipeline.get_vocab().values()
    # The library counts up to the largest id when it writes a pipeline.
    require(
        max(ids, default=0) < 2 * len(ids) + MAX_UNUSED,
        f"config.tokenizer.path='{path}' has the id {max(ids, default=0):,} among {len(ids):,} pieces.",
    )
    return pipeline


def wordpiece(path: Path, settings: dict[str, Any]) -> Any:
    """The pipeline of a BERT's vocab.txt, a piece a line; settings: tokenizer_config.json's, or BERT's own for {}.

    From transformers models/bert/tokenization_bert.py. Raises ConfigError for a file without BERT's special tokens.
    """
    library = import_tokenizers()
    require(path.is_file(), f"config.tokenizer.path: there is no file '{path}'.")
    try:
        vocabulary = {piece: i for i, piece in enumerate(split_lines(read_text(path)))}
    except TextFileError as error:
        raise ConfigError(f"config.tokenizer.path: {error}") from error
    named = {key: settings.get(key) or usual for key, usual in BERT.items()}
    names = {key: token["content"] if isinstance(token, dict) else token for key, token in named.items()}
    missing = [name for name in names.values() if name not in vocabulary]
    require(not missing, f"config.tokenizer.path='{path}' is not a BERT's vocabulary: it lacks {', '.join(missing)}.")
    pipeline = library.Tokenizer(library.models.WordPiece(vocabulary, unk_token=names["unk_token"]))
    pipeline.add_special_tokens([*names.values()])
    pipeline.normalizer = library.normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    pipeline.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    pipeline.decoder = library.decoders.WordPiece(prefix="##")
    ends = [(names[key], vocabulary[names[key]]) for key in ("cls_token", "sep_token")]
    pipeline.post_processor = library.processors.TemplateProcessing(
        single=f"{ends[0][0]} $A {ends[1][0]}", special_tokens=ends
    )
    return pipeline


def token_settings(folder: Path) -> dict[str, Any]:
    """The merged content of a folder's special_tokens_map.json and tokenizer_config.json; empty without either."""
    files = (folder / "special_tokens_map.json", folder / "tokenizer_config.json")
    settings: dict[str, Any] = {}
    for file in files:
        own = read_json(file) if file.is_file() else {}
        require(isinstance(own, dict), f"config.tokenizer.path: '{file}' is {shown(own)}; expected an object.")
        settings |= own
    return settings


def find_token(pipeline: Any, settings: dict[str, Any], kind: str) -> int:
    """The id of the token "bos", "eos" or "pad", by its name in settings or a usual one; -1: none."""
    keys, usual = NAMES[kind]
    named = [settings[key] for key in keys if settings.get(key)]
    named = [token.get("content") if isinstance(token, dict) else token for token in named]
    with library_errors(f"{keys[0]} of the tokenizer is no text"):
        ids = [pipeline.token_to_id(token) for token in named or usual if isinstance(token, str)]
    return next((i for i in ids if i is not None), -1)


def set_template(pipeline: Any, config: TokenizerConfig, ids: dict[str, int]) -> None:
    """Makes the pipeline add BOS and EOS as config.add_bos and add_eos say; None adds none. Raises ConfigError."""
    wanted = [kind for kind in ("bos", "eos") if getattr(config, f"add_{kind}")]
    for kind in wanted:
        require(ids[kind] >= 0, f"config.tokenizer.add_{kind}: '{config.path}' has no such token.")
    parts = [kind for kind in ("bos", "$A", "eos") if kind in ("$A", *wanted)]
    with library_errors(f"config.tokenizer.path='{config.path}'"), quiet_stderr():
        pipeline.post_processor = import_tokenizers().processors.TemplateProcessing(
            single=" ".join(parts), special_tokens=[(kind, ids[kind]) for kind in wanted]
        )


def literal_pattern(special: Sequence[str]) -> re.Pattern | None:
    """Matches the special tokens of two characters or more, in any case, since a normalizer may lower it first."""
    escaped = [re.escape(token) for token in sorted(special, key=len, reverse=True) if len(token) > 1]
    return re.compile("|".join(escaped), re.IGNORECASE) if escaped else None
