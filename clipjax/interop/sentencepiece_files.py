"""SentencePiece models as pipelines of the library `tokenizers`, for other libraries to read.

A .model is a protocol buffer, read here field by field (sentencepiece_model.proto), because the generated code needs
one exact version of protobuf. Its normalisation is a table of characters in a double array (Darts); the tables that
SentencePiece trains with are NFKC with a few additions, and are written as that.
"""

from __future__ import annotations

import re
import struct
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from clipjax.data.tokenizers.rust import import_tokenizers
from clipjax.interop.names import InteropError

UNIGRAM, BPE, CHAR = 1, 2, 4  # TrainerSpec.ModelType; 3 splits at spaces alone
NORMAL, UNKNOWN, CONTROL, UNUSED, BYTE = 1, 2, 3, 5, 6  # SentencePiece.Type; 4 is defined by the user
MOST_REPLACEMENTS = 400
MOST_EXEMPT = 1_200  # characters; those of a vocabulary with bytes are about 850
MOST_NODES = 20_000  # of the table of characters; NFKC's has about 1,500
PRIVATE = 0xF0000  # characters from here on are temporary stand-ins for others
STRANGER = "\U0010fffd"  # a character that no vocabulary has


@dataclass
class SentencePieceModel:
    """The parts of a .model that decide ids."""

    pieces: list[tuple[str, float, int]] = field(default_factory=list)  # (text, score, type)
    kind: int = UNIGRAM
    unknown: int = 0  # id
    byte_fallback: bool = False
    space_as_suffix: bool = False
    charsmap: bytes = b""
    add_space_before: bool = True
    join_spaces: bool = True
    escape_spaces: bool = True


def read_model(data: bytes) -> SentencePieceModel:
    """The content of a .model. Raises InteropError for another file."""
    model = SentencePieceModel()
    trainer = {3: "kind", 24: "space_as_suffix", 35: "byte_fallback", 40: "unknown"}
    normalizer = {2: "charsmap", 3: "add_space_before", 4: "join_spaces", 5: "escape_spaces"}
    try:
        for number, value in _fields(data):
            if number == 1:
                piece = dict(_fields(value))
                score = struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0
                model.pieces.append((piece.get(1, b"").decode(), score, piece.get(3, NORMAL)))
            for name, own in (
                (names[n], v) for at, names in ((2, trainer), (3, normalizer)) if number == at
                for n, v in _fields(value) if n in names
            ):  # fmt: skip
                setattr(model, name, type(getattr(model, name))(own))
    except (IndexError, ValueError, TypeError, struct.error) as error:
        raise InteropError(f"The SentencePiece model cannot be read: {type(error).__name__} {error}.") from error
    return model


def to_pipeline(data: bytes, changed_before: Any = None) -> Any:
    """A tokenizers.Tokenizer without special tokens that gives a SentencePiece model's ids.

    changed_before: a function text -> text, by which texts come normalised already (lower case), or None. Raises
    InteropError naming what cannot be expressed, and for a damaged model.
    """
    try:
        return _to_pipeline(data, changed_before)
    except InteropError:
        raise
    except BaseException as error:  # its tables, and the library, fail in many ways where it is damaged
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InteropError(f"the SentencePiece model is damaged: {type(error).__name__} {error!s:.200}") from error


def _to_pipeline(data: bytes, changed_before: Any) -> Any:
    tokenizers, model = import_tokenizers(), read_model(data)
    normalizers, regex = tokenizers.normalizers, tokenizers.Regex
    odd = [text for text, _, kind in model.pieces if kind not in (NORMAL, UNKNOWN, CONTROL, UNUSED, BYTE)]
    for refused, why in (
        (model.kind not in (UNIGRAM, BPE, CHAR), "splits texts at spaces alone (model_type word)"),
        (bool(odd), f"has symbols defined by the user, such as {odd[:3]}"),
        (model.space_as_suffix, "marks the end of a word instead of its beginning (treat_whitespace_as_suffix)"),
        (not model.escape_spaces, "keeps spaces as they are (escape_whitespaces=false)"),
        (any(kind == UNUSED for *_, kind in model.pieces), "has pieces that are marked as unused"),
    ):
        if refused:
            raise InteropError(f"the SentencePiece model {why}, which a tokenizer.json cannot express")
    pipeline = tokenizers.Tokenizer(_model(tokenizers, model))
    steps = _normalization(tokenizers, model, changed_before or (lambda text: text))
    if model.join_spaces:
        steps += [normalizers.Replace(regex(" {2,}"), " "), normalizers.Replace(regex(r"\A | \z"), "")]
    if model.add_space_before:
        steps += [normalizers.Prepend("\u2581")]
    strangers = _strangers(model)
    steps += [normalizers.Replace(text, STRANGER) for text in strangers]
    if steps:
        pipeline.normalizer = normalizers.Sequence(steps)
    inside = any("\u2581" in text[1:].lstrip("\u2581") for text, *_ in model.pieces)
    spaces = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="never", split=not inside)
    cuts = _cuts(model, strangers) if model.kind == UNIGRAM else ""
    split = [tokenizers.pre_tokenizers.Split(regex(cuts), "merged_with_previous")] if cuts else []
    pipeline.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([spaces, *split]) if split else spaces
    pipeline.decoder = tokenizers.decoders.Metaspace()
    return pipeline


def _strangers(model: SentencePieceModel) -> list[str]:
    """The special pieces of Unigram in which every letter is unknown.

    Written out in a text, each is one unknown token, as is any other letter that no piece has.
    """
    known = {letter for text, _, kind in model.pieces if kind == NORMAL for letter in text}
    own = [text for text, _, kind in model.pieces if kind in (UNKNOWN, CONTROL) and not known & {*text}]
    return own if model.kind == UNIGRAM and not model.byte_fallback else []


def _cuts(model: SentencePieceModel, strangers: list[str]) -> str:
    """A pattern of where to cut texts, so that Unigram finds no piece in them that SentencePiece never finds there.

    These are control symbols, the unknown piece and bytes ("</s>", "<unk>", "<0x41>"): SentencePiece reads what is
    written like one as text, and a tokenizer.json's Unigram knows no types of pieces. Each is cut in two where no other
    piece can lie across the cut and no two unknown letters meet, which become one token. Raises InteropError where
    there is no such place. strangers: pieces that need no cut.
    """
    normal = [text for text, _, kind in model.pieces if kind == NORMAL]
    pairs = {text[at : at + 2] for text in normal for at in range(len(text) - 1)}
    letters = {text for text in normal if len(text) == 1}

    def fits(left: str, right: str) -> bool:
        if not (model.byte_fallback or {left[-1], right[0]} & letters):
            return False
        return left[-1] + right[0] not in pairs or not any(_across(text, left, right) for text in normal)

    patterns = []
    for text, _, kind in model.pieces:
        if kind not in (UNKNOWN, CONTROL, BYTE) or text in strangers:
            continue
        at = next((at for at in range(1, len(text)) if fits(text[:at], text[at:])), None)
        if at is None:
            raise InteropError(
                f"the SentencePiece model reads its piece {text!r} as letters where a text contains it, which a "
                "tokenizer.json cannot express beside its other pieces"
            )
        patterns.append(f"{re.escape(text[:at])}(?={re.escape(text[at:])})")
    return "|".join(patterns)


def written_out(model: Any) -> list[str]:
    """Texts with the special pieces of a sentencepiece.SentencePieceProcessor, which it reads as letters."""
    ids = [i for i in range(len(model)) if model.is_control(i) or model.is_unknown(i) or model.is_byte(i)]
    return [f"{name} a{name}{name} b" for name in map(model.id_to_piece, ids)]


def _across(text: str, left: str, right: str) -> bool:
    """Whether a piece can begin in or before `left` and end in or after `right`, which follows it."""
    return any(
        (left.endswith(text[:at]) or text[:at].endswith(left))
        and (right.startswith(text[at:]) or text[at:].startswith(right))
        for at in range(1, len(text))
    )


def _model(tokenizers: Any, model: SentencePieceModel) -> Any:
    """Unigram, or BPE with the merges in the order in which SentencePiece makes them: the best score first."""
    if model.kind == UNIGRAM:
        return tokenizers.models.Unigram(
            [(text, score) for text, score, _ in model.pieces], model.unknown, model.byte_fallback
        )
    normal = {text for text, _, kind in model.pieces if kind == NORMAL}
    vocabulary = {text: i for i, (text, *_) in enumerate(model.pieces)}
    merges = [
        (-score, vocabulary[text], vocabulary[text[:at]], text[:at], text[at:])
        for text, score, kind in model.pieces
        for at in range(1, len(text))
        if model.kind == BPE and kind == NORMAL and text[:at] in normal and text[at:] in normal
    ]
    return tokenizers.models.BPE(
        vocabulary,
        [(left, right) for *_, left, right in sorted(merges)],
        unk_token=model.pieces[model.unknown][0],
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
    )


def _normalization(tokenizers: Any, model: SentencePieceModel, changed_before: Any) -> list[Any]:
    """Normalizers that do what a table does: NFKC, and other replacements of single characters.

    NFKC also sorts combining marks. Those that the vocabulary has and that are part of no letter (the vowels of Arabic
    and Hebrew) are exempt from it, as are the characters that the table leaves alone.
    """
    if not model.charsmap:
        return []
    normalizers, regex = tokenizers.normalizers, tokenizers.Regex
    nfkc = normalizers.NFKC()
    table = {key: value for key, value in read_charsmap(model.charsmap).items() if changed_before(key) == key}
    other: dict[str, str] = {}  # what characters become -> these characters
    for key, value in table.items():
        if nfkc.normalize_str(key) != value:
            other[value] = other.get(value, "") + key
    everything = [chr(code) for code in range(0x80, 0x30000) if not 0xD800 <= code < 0xE000]
    parts = [unicodedata.decomposition(character).split() for character in everything]
    composing = {chr(int(part[1], 16)) for part in parts if len(part) == 2 and part[0][0] != "<"}
    letters = {letter for text, _, kind in model.pieces if kind == NORMAL for letter in text}
    kept = [
        character
        for character in everything
        if (unicodedata.combining(character) and character not in composing and character not in table)
        and (model.byte_fallback or character in letters)
        or (unicodedata.normalize("NFKC", character) != character and character not in table)
        and changed_before(character) == character and nfkc.normalize_str(character) != character
    ]  # fmt: skip
    unstable = [value for value in other if nfkc.normalize_str(value) != value]
    if len(other) > MOST_REPLACEMENTS or len(kept) > MOST_EXEMPT or unstable:
        raise InteropError(
            "the SentencePiece model has a normalisation that a tokenizer.json cannot express: besides NFKC, "
            f"{len(other)} replacements and {len(kept)} characters that are exempt from it"
        )
    shield = [(character, chr(PRIVATE + i)) for i, character in enumerate(kept)]
    return [
        *(normalizers.Replace(regex(f"[{re.escape(keys)}]"), value) for value, keys in other.items()),
        *(normalizers.Replace(character, stand_in) for character, stand_in in shield),
        nfkc,
        *(normalizers.Replace(stand_in, character) for character, stand_in in shield),
    ]


def read_charsmap(data: bytes) -> dict[str, str]:
    """Single characters of a precompiled_charsmap and what each becomes.

    The bytes are the size of a double array, the array, and the texts that its leaves point into.
    """
    (size,) = struct.unpack("<I", data[:4])
    units, texts = struct.unpack(f"<{size // 4}I", data[4 : 4 + size]), data[4 + size :]

    def below(unit: int) -> int:
        return (unit >> 10) << ((unit & (1 << 9)) >> 6)

    result, stack, nodes = {}, [(below(units[0]), b"")], 0
    while stack:
        at, key = stack.pop()
        nodes += 1
        if nodes > MOST_NODES:  # a damaged array may lead back to where it came from
            raise InteropError("the SentencePiece model has a damaged table of characters")
        for byte in range(1, 256):
            place = at ^ byte
            if place >= len(units) or units[place] & 0x800000FF != byte:
                continue
            longer, inner = key + bytes([byte]), place ^ below(units[place])
            if (units[place] >> 8) & 1:
                start = units[inner] & 0x7FFFFFFF
                result[longer.decode()] = texts[start : texts.index(b"\0", start)].decode()
            if len(longer) < (2 if longer[0] >= 0xC0 else 1) + (longer[0] >= 0xE0) + (longer[0] >= 0xF0):
                stack.append((inner, longer))
    return result


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, int or bytes) of every field of a protocol buffer's message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 0:
            value, at = _varint(data, at)
        else:
            size = {1: 8, 5: 4}.get(key & 7)
            if size is None:
                size, at = _varint(data, at)
            value, at = data[at : at + size], at + size
        yield key >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
