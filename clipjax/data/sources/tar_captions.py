"""The files of a sample in a tar that hold its captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from clipjax.data.images.decode import IMAGE_SUFFIXES
from clipjax.data.records import RecordError
from clipjax.data.sources.fields import captions, decode
from clipjax.json_files import parse_json as parse

CAPTION_FIELDS = "caption,captions,text,texts"
# Extensions of the files that are read where a sample of a tar has neither a .txt nor captions in a .json.
SIDECARS = ("caption", *(f"{suffix[1:]}.{kind}" for kind in ("txt", "caption") for suffix in IMAGE_SUFFIXES))


def text_keys(text_key: str) -> list[str]:
    """The names that a tar's text_key joins by commas: "alt, .txt" -> ["txt", "alt"]; the .txt comes first."""
    names = [name.strip().removeprefix(".") for name in text_key.split(",")]
    names = ["txt" if name.lower() == "txt" else name for name in names if name]
    return sorted(names, key=lambda name: name != "txt")


def sample_texts(
    parts: dict[str, bytes], names: Sequence[str], key: str, read_txt: Callable[[bytes, str], list[str]] | None = None
) -> list[str]:
    """The captions of a tar's sample, whose files are extension -> content. key: of the sample, for errors.

    names, of text_keys: extensions of files ("txt", "en.txt"), fields of the .json ("alt", "meta/long"), or fields of
    another JSON file ("meta.json/alt"). None: the .txt; without one, CAPTION_FIELDS of the .json; without them, the
    first of SIDECARS. read_txt: the captions of a .txt; None: all of it is one. Raises RecordError for a file that
    cannot be read.
    """
    if read_txt and "txt" in parts and "txt" in (names or ["txt"]):
        found = read_txt(parts["txt"], f"'{key}.txt'")
        others = [name for name in names if name != "txt"]
        return found + (sample_texts(parts, others, key) if others else [])
    if not names:
        texts = _file_texts(parts, "txt", key) or _json_texts(parts, CAPTION_FIELDS, key)
        return texts or next(filter(None, (_file_texts(parts, name, key) for name in SIDECARS)), [])
    texts = []
    for name in names:
        a_file = name == "txt" or ("." in name and name.partition("/")[0].lower() in parts)
        texts += (not a_file and _json_texts(parts, name, key)) or _file_texts(parts, name, key)
    return texts


def _file_texts(parts: dict[str, bytes], name: str, key: str) -> list[str]:
    """The text of a file, or the texts under "EXTENSION/FIELD" of one in JSON; without a field, CAPTION_FIELDS."""
    extension, _, field = name.partition("/")
    extension = extension.lower()
    if extension not in parts:
        return []
    where = f"'{key}.{extension}'"
    if extension.rpartition(".")[2] == "json":
        document = parse_json(parts[extension], where)
        if not field and not isinstance(document, dict):  # a text or a list of texts
            return captions({"": document}, "")
        return captions(document, field or CAPTION_FIELDS)
    text = "" if field else decode(parts[extension], where).strip()
    return [text] if text else []


def _json_texts(parts: dict[str, bytes], fields: str, key: str) -> list[str]:
    return captions(parse_json(parts["json"], f"'{key}.json'"), fields) if "json" in parts else []


def parse_json(data: bytes, where: str) -> Any:
    """The value of a JSON file. Raises RecordError."""
    try:
        return parse(data)
    except ValueError as error:
        raise RecordError("corrupt record", f"{where} is not JSON: {error}") from error


def other_choice(parts: dict[str, bytes], option: str, endings: Sequence[str], tried: Sequence[str]) -> str:
    """A sentence that names the option for a file such as a.v2.jpg or a.en.txt, which was not tried; "": there is none.

    Its extension is "v2.jpg" or "en.txt": all that follows the first dot.
    """
    names = [name for name in sorted(parts) if name.rpartition(".")[2] in endings and name not in tried]
    if not names:
        return ""
    rule = "; all that follows the first dot of a file's name is its extension" if "." in names[0] else ""
    return f". To read the .{names[0]}, set {option}='{names[0]}'{rule}"
