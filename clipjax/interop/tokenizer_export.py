"""A run's tokenizer in the files of another library, read there to the same ids, or refused before anything is written.

hf          the files that transformers has a class for (CLIP's, SigLIP's, a tokenizer.json of its own); any other
            tokenizer as a tokenizer.json of the class PreTrainedTokenizerFast, with the rules of its text inside
open_clip   OpenAI's vocabulary, which comes with open_clip; any other as a tokenizer.json, with the rules in text_cfg
openai, eva_clip, long_clip OpenAI's vocabulary alone: their code has no other
big_vision, ..._stacked     a SentencePiece model alone
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from clipjax.config import ConfigError, TokenizerConfig
from clipjax.data.tokenizers import TOKENIZERS, make_tokenizer
from clipjax.data.tokenizers.clean_text import repair
from clipjax.data.tokenizers.clip_bpe import clip_bpe, read_openai
from clipjax.data.tokenizers.hf import VOCABULARY, find_token, hf_tokenizer, token_settings
from clipjax.data.tokenizers.rust import RustTokenizer, import_tokenizers
from clipjax.data.tokenizers.sentencepiece import SentencePieceTokenizer
from clipjax.interop.names import InteropError
from clipjax.interop.sentencepiece_files import to_pipeline, written_out
from clipjax.interop.tokenizer_files import copy_tokenizer

# SHA-256 of the merges that openai/CLIP and open_clip come with, one a line.
OPENAI_MERGES = "f61f2adf497e6f5357c347aeb4646fabe82f341e946de5bdec5d2858e41bef4a"
FAST, BERT = "PreTrainedTokenizerFast", "BertTokenizer"
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
PUNCTUATION = r"[!-/:-@\[-`{-~]"
SPACES = r"[\s\x1c-\x1f]+"  # Python's
# A capital sigma at the end of a word, by Unicode's rule: after a cased letter and not before one, apart from marks.
CASED, IGNORED = r"[\p{Lu}\p{Ll}\p{Lt}]", r"[\p{Mn}\p{Me}\p{Cf}\p{Lm}\p{Sk}'.:\u00b7\u2018\u2019\u2024\u2027]"
FINAL_SIGMA = "(?<=" + "|".join(CASED + IGNORED * n for n in range(4)) + f")\u03a3(?!{IGNORED}*{CASED})"
# Texts that a converted tokenizer is compared on, before it is written.
TEXTS = (
    *("a photo of a small dog on the beach", "A Photo Of TWO dogs, 12 cats & 3.5 birds!?", "", " \t \n "),
    *("don't they'RE", "  leading and   inner\twhite\u00a0space\u3000here  ", "snake_case __init__ C++ #tag @user"),
    *("...---!!!???,,,;;;", "na\u00efve caf\u00e9 cafe\u0301 \u0130stanbul", "very long caption " * 60),
    "\u039f\u0394\u03a5\u03a3\u03a3\u0395\u03a5\u03a3 \u03a3\u0391\u03a3.",
    "\u4e2d\u6587 \u65e5\u672c\u8a9e\u306e \ud55c\uad6d\uc5b4",
    "\u05e9\u05b8\u05dc\u05d5\u05b9\u05dd \u0645\u064e\u0651\u0631",
    *("\u2460\u2461 \u00bd x\u00b2 \ufb01ne", "\U0001f436 \U0001f469\u200d\U0001f467 \u2764\ufe0f"),
)


class Export(NamedTuple):
    """How a tokenizer is exported: what the configuration says of it, and the function that writes its files."""

    described: TokenizerConfig
    write: Callable[[Path], None]


def plan_tokenizer(format: str, family: str, tokenizer: TokenizerConfig, context_length: int) -> Export:
    """The files of a tokenizer in a format (a --format) and family.

    Raises InteropError where ids would differ, and ConfigError where a library is not installed.
    """
    try:
        made = make_tokenizer(tokenizer, context_length)
        return FORMATS[format](family, made)
    except (InteropError, ConfigError) as error:
        if isinstance(error.__cause__, ImportError):  # a library is missing, whatever the format can hold
            raise
        raise InteropError(
            f"Format '{format}' cannot hold this run's tokenizer, {tokenizer.name} '{tokenizer.path}', with its ids: "
            f"{str(error).rstrip('.')}. Pass --notokenizer to export the weights without it."
        ) from error


def _made_by(tokenizer: Any, make: Any) -> bool:
    """Whether the tokenizer is of the kind whose row in TOKENIZERS has this function."""
    return TOKENIZERS[tokenizer.config.name].make is make


def _hf(family: str, tokenizer: Any) -> Export:
    config = tokenizer.config
    kept = _kept_by_transformers(family, tokenizer)
    if kept:
        return Export(config, kept)
    if family == "hf_siglip2":
        if not _is_gemma(tokenizer):
            raise InteropError(
                "transformers reads every siglip2 directory with Siglip2Tokenizer: Gemma's tokenizer.json with lower "
                "case and an end of text"
            )
        return _converted(tokenizer, config, kind="Siglip2Tokenizer")
    return _converted(tokenizer, config)


def _kept_by_transformers(family: str, tokenizer: Any) -> Callable[[Path], None] | None:
    """Writes the tokenizer's own files, where a class of transformers gives its ids from them; else None."""
    config, path = tokenizer.config, Path(tokenizer.config.path)
    plain = not (config.clean or config.canonicalize or config.eos_to_pad or tokenizer.config.lowercase)
    unchanged = plain and (config.add_bos, config.add_eos, config.pad_id) == (None, None, None)
    if _made_by(tokenizer, hf_tokenizer):
        folder = path if path.is_dir() else path.parent
        bert = path.name == VOCABULARY
        own_class = token_settings(folder).get("tokenizer_class", BERT if bert else FAST)
        if family == "hf_siglip2":
            return None
        if unchanged and own_class.removesuffix("Fast") != FAST.removesuffix("Fast"):
            return lambda to: _copy(path, to, {"tokenizer_class": own_class} if bert else {})
        if unchanged:
            return lambda to: _copy(path, to, {"tokenizer_class": FAST})
    encloses = config.add_bos and config.add_eos and config.lowercase
    if family == "hf_clip" and _made_by(tokenizer, clip_bpe) and path.is_dir() and encloses:
        if not (config.clean or config.canonicalize or config.eos_to_pad) and tokenizer.pad_id == tokenizer.eos_id:
            return lambda to: _copy(path, to, {})
    if family == "hf_siglip" and _made_by(tokenizer, SentencePieceTokenizer) and _is_siglip(tokenizer):
        return lambda to: _write_siglip(tokenizer, to)
    return None


def _is_gemma(tokenizer: Any) -> bool:
    """Whether Siglip2Tokenizer, which takes pieces and merges from the file and nothing else, gives the same ids."""
    config = tokenizer.config
    ends = config.lowercase and config.add_eos and not (config.add_bos or config.eos_to_pad)
    if not (_made_by(tokenizer, hf_tokenizer) and ends):
        return False
    content = json.loads(tokenizer.pipeline.to_str())
    model = {name: content["model"].get(name) for name in ("type", "byte_fallback", "fuse_unk")}
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    steps = [step for step in content["normalizer"].get("normalizers", []) if step != {"type": "Lowercase"}]
    usual = model == dict(type="BPE", byte_fallback=True, fuse_unk=True) and steps == [spaces]
    return usual and not (config.clean or config.canonicalize)


def _is_siglip(tokenizer: Any) -> bool:
    config = tokenizer.config
    names = [tokenizer.model.id_to_piece(i) for i in (tokenizer.eos_id, tokenizer.model.unk_id())]
    rules = config.canonicalize and config.drop_underscore and config.lowercase and config.add_eos
    others = config.clean or config.add_bos or config.eos_to_pad
    return bool(rules) and not others and tokenizer.pad_id == tokenizer.eos_id and names == ["</s>", "<unk>"]


def _write_siglip(tokenizer: Any, folder: Path) -> None:
    shutil.copy(tokenizer.config.path, folder / "spiece.model")
    names = dict(tokenizer_class="SiglipTokenizer", eos_token="</s>", pad_token="</s>", unk_token="<unk>")
    settings = names | dict(model_max_length=tokenizer.context_length, split_special_tokens=True)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))


def _copy(path: Path, folder: Path, changes: dict[str, Any]) -> None:
    """The tokenizer's files, with further entries of tokenizer_config.json."""
    copy_tokenizer(path, folder)
    if changes:
        settings, own = token_settings(folder), TokenizerConfig(name="hf", path=str(path))
        pad = {} if settings.get("pad_token") else _names_of(make_tokenizer(own, 77), settings)
        (folder / "tokenizer_config.json").write_text(json.dumps(pad | settings | changes, indent=2))


def _open_clip(family: str, tokenizer: Any) -> Export:
    config = tokenizer.config
    if _is_openai(tokenizer):
        return Export(config, lambda to: _copy(Path(config.path), to, {}))
    if not config.clean:
        raise InteropError(
            "open_clip repairs wrong encodings and HTML entities in every text, and config.tokenizer.clean is off"
        )
    settings = token_settings(Path(config.path).parent) if _made_by(tokenizer, hf_tokenizer) else {}
    stripped = not config.eos_to_pad or (tokenizer.pad_id == 0 and settings.get("sep_token"))
    told = not config.drop_underscore and (config.lowercase or not config.canonicalize) and stripped
    if (
        _made_by(tokenizer, hf_tokenizer)
        and told
        and (config.add_bos, config.add_eos, config.pad_id) == (None, None, None)
    ):
        own = {} if settings.get("tokenizer_class") else {"tokenizer_class": FAST}
        return Export(config, lambda to: _copy(Path(config.path), to, own))
    return _converted(tokenizer, TokenizerConfig(name="hf", path="tokenizer.json", clean=True), cleaned=True)


def _code_with_openai(family: str, tokenizer: Any) -> Export:
    if not _is_openai(tokenizer):
        raise InteropError("the code that reads these files has OpenAI's vocabulary and no other")
    return Export(tokenizer.config, lambda to: _copy(Path(tokenizer.config.path), to, {}))


def _big_vision(family: str, tokenizer: Any) -> Export:
    if not _made_by(tokenizer, SentencePieceTokenizer):
        raise InteropError("big_vision reads SentencePiece models")
    return Export(tokenizer.config, lambda to: _copy(Path(tokenizer.config.path), to, {}))


def _is_openai(tokenizer: Any) -> bool:
    """Whether ids are those of open_clip's SimpleTokenizer as it is."""
    config, path = tokenizer.config, Path(tokenizer.config.path)
    if (
        not _made_by(tokenizer, clip_bpe)
        or path.is_dir()
        or config.canonicalize
        or config.eos_to_pad
        or tokenizer.pad_id
    ):
        return False
    lines = "\n".join(map(" ".join, read_openai(path)[1]))
    known = hashlib.sha256(lines.encode()).hexdigest() == OPENAI_MERGES
    return known and all((config.clean, config.lowercase, config.add_bos, config.add_eos))


def _converted(tokenizer: Any, described: TokenizerConfig, cleaned: bool = False, kind: str = FAST) -> Export:
    """As a tokenizer.json; cleaned: whether the reader does what config.tokenizer.clean asks for. kind: the class
    of transformers that reads it."""
    config = tokenizer.config
    if config.clean and not cleaned:
        raise InteropError(
            "a tokenizer.json cannot express config.tokenizer.clean, which repairs wrong encodings and HTML entities"
        )
    pipeline = json_pipeline(tokenizer)
    check_same(tokenizer, pipeline)
    own = token_settings(Path(config.path).parent) if _made_by(tokenizer, hf_tokenizer) else {}
    settings = _names_of(tokenizer, own)
    settings |= dict(tokenizer_class=kind, model_max_length=tokenizer.context_length, padding_side="right")
    # A special token that is written out in a text is text.
    settings |= dict(truncation_side="right", clean_up_tokenization_spaces=False, split_special_tokens=True)

    def write(folder: Path) -> None:
        pipeline.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))

    return Export(described, write)


def json_pipeline(tokenizer: Any) -> Any:
    """A tokenizers.Tokenizer with all rules of a tokenizer except config.clean, padding and truncation.

    Raises InteropError for what it cannot express.
    """
    library, config = import_tokenizers(), tokenizer.config
    normalizers, regex = library.normalizers, library.Regex
    steps = []
    if config.canonicalize:
        steps += [] if config.drop_underscore else [normalizers.Replace("_", " ")]
        steps += [normalizers.Replace(regex(PUNCTUATION), ""), normalizers.Replace(regex(SPACES), " ")]
        steps += [normalizers.Replace(regex(r"\A | \z"), "")]
    rust = isinstance(tokenizer, RustTokenizer)
    if config.lowercase and not (rust and Path(config.path).is_dir()) and not _made_by(tokenizer, hf_tokenizer):
        steps += [normalizers.Replace(regex(FINAL_SIGMA), "\u03c2"), normalizers.Lowercase()]
    if rust:
        pipeline = library.Tokenizer.from_str(tokenizer.pipeline.to_str())
        pipeline.no_truncation()
    else:
        pipeline = to_pipeline(Path(config.path).read_bytes(), str.lower if config.lowercase else None)
    if steps:
        own = [pipeline.normalizer] if pipeline.normalizer is not None else []
        pipeline.normalizer = normalizers.Sequence([*steps, *own])
    if not rust or config.eos_to_pad:
        if config.add_eos is None:
            raise InteropError("config.tokenizer.eos_to_pad is set, and tokenizer.json itself adds the end of text")
        end = tokenizer.pad_id if config.eos_to_pad else tokenizer.eos_id
        bos = tokenizer.model.bos_id() if not rust else find_token(pipeline, {}, "bos")
        enclosing = {"bos": bos} if config.add_bos else {}
        enclosing |= {"eos": end} if config.add_eos else {}
        parts = [part for part in ("bos", "$A", "eos") if part == "$A" or part in enclosing]
        pipeline.post_processor = library.processors.TemplateProcessing(
            single=" ".join(parts), special_tokens=list(enclosing.items())
        )
    return pipeline


def check_same(tokenizer: Any, pipeline: Any) -> None:
    """Raises InteropError naming a text whose ids differ. Texts are compared as they are after config.clean."""
    length, clean = tokenizer.context_length, repair if tokenizer.config.clean else str
    texts = [clean(text) for text in TEXTS]
    texts += written_out(tokenizer.model) if _made_by(tokenizer, SentencePieceTokenizer) else []
    pipeline = import_tokenizers().Tokenizer.from_str(pipeline.to_str())
    pipeline.enable_truncation(length)
    for text, ids in zip(texts, tokenizer(texts), strict=True):
        encoded = pipeline.encode(text).ids
        if encoded + [tokenizer.pad_id] * (length - len(encoded)) != ids.tolist():
            raise InteropError(f"as a tokenizer.json it would give other ids for the text {text[:60]!r}")


def _names_of(tokenizer: Any, settings: dict[str, Any]) -> dict[str, str]:
    """The special tokens of tokenizer_config.json."""
    rust = isinstance(tokenizer, RustTokenizer)
    name = tokenizer.pipeline.id_to_token if rust else tokenizer.model.id_to_piece
    texts = {key: settings[key] for key in NAMED if settings.get(key)}
    names = {key: text["content"] if isinstance(text, dict) else text for key, text in texts.items()}
    names |= {"eos_token": name(tokenizer.eos_id)} if tokenizer.eos_id >= 0 else {}
    if not rust:
        names["unk_token"] = name(tokenizer.model.unk_id())
    return names | {"pad_token": name(tokenizer.pad_id)}


FORMATS: dict[str, Callable[[str, Any], Export]] = {
    "hf": _hf,
    "open_clip": _open_clip,
    "openai": _code_with_openai,
    "eva_clip": _code_with_openai,
    "long_clip": _code_with_openai,
    "big_vision": _big_vision,
    "big_vision_stacked": _big_vision,
}
