"""Emoji with their names and tags, and the file in each package that draws each of them."""

from __future__ import annotations

import collections
import json
import re
import unicodedata
from dataclasses import dataclass

from data_pipelines.command import Skips


@dataclass(frozen=True)
class Emoji:
    code: str  # code points in hexadecimal, joined by "-", without the variation selector FE0F
    name: str  # Unicode's short name (CLDR), in lower case except proper names
    tags: tuple[str, ...]
    category: str
    subcategory: str
    old_name: str  # the character's own, older name; "" where that is also the short name of an emoji
    unicode: bool  # False: one of OpenMoji's own drawings


def normalise_code(code: str) -> str:
    """ "2764-FE0F" -> "2764": some packages leave the variation selector out."""
    return "-".join(point for point in code.upper().split("-") if point != "FE0F")


def has_tone(code: str) -> bool:
    """Whether the code points give a person a skin tone. (A tone alone is an emoji too.)"""
    return any(point in _TONES.values() for point in code.split("-")[1:])


def read_emoji(datasource: bytes, openmoji: bytes, *, skin_tones: bool) -> dict[str, Emoji]:
    """code -> Emoji, in Unicode's order, OpenMoji's own last.

    datasource: emoji.json of an emoji-datasource package; openmoji: data/openmoji.json.
    """
    characters = {normalise_code(entry["unified"]): entry for entry in json.loads(datasource)}
    old_names = collections.Counter(entry["name"].lower() for entry in characters.values())
    named = {normalise_code(entry["hexcode"]): entry for entry in json.loads(openmoji)}
    # A character's own name can be the short name of another one, or stand for two.
    ambiguous = {entry["annotation"].lower() for entry in named.values()} | {n for n in old_names if old_names[n] > 1}
    result = {}
    for code, entry in sorted(named.items(), key=lambda item: _order(item[1])):
        if entry["skintone"] and not skin_tones:
            continue
        base = normalise_code(entry["skintone_base_hexcode"]) if entry["skintone"] else code
        character = characters.get(base, {})
        known = base in characters
        old_name = (character.get("name") or "").lower() if base == code else ""
        result[code] = Emoji(
            code=code,
            name=entry["annotation"].strip(),
            tags=_tags(named.get(base, entry), entry["annotation"]),
            category=(character.get("category") or entry["group"]).replace("&", "and").replace("-", " ").lower(),
            subcategory=(character.get("subcategory") or entry["subgroups"]).replace("-", " ").lower(),
            old_name="" if old_name in ambiguous else old_name,
            unicode=known,
        )
    return result


def datasource_drawings(datasource: bytes, vendor: str, folder: str) -> dict[str, str]:
    """code -> path of the drawing in an emoji-datasource package."""
    result = {}
    for entry in json.loads(datasource):
        for variant in [entry, *entry.get("skin_variations", {}).values()]:
            if variant.get(f"has_img_{vendor}"):
                result[normalise_code(variant["unified"])] = folder + variant["image"]
    return result


def openmoji_drawings(paths: list[str], folder: str) -> dict[str, str]:
    """code -> path of the drawing; the file's name is the code."""
    return {normalise_code(path.removeprefix(folder).removesuffix(".svg")): path for path in paths}


def fluentui_drawings(
    paths: list[str], folder: str, emoji: dict[str, Emoji], skips: Skips, *, skin_tones: bool
) -> dict[str, str]:
    """code -> path of the drawing. File names are emoji names of Unicode 14 as slugs, some with a skin tone.

    A file with another name is counted in skips.
    """
    by_slug = {_slug(e.old_name): e.code for e in emoji.values() if e.old_name}
    by_slug |= {_slug(e.name): e.code for e in emoji.values() if e.unicode}
    stems = {path.removeprefix(folder).removesuffix(".svg"): path for path in paths}
    result = {}
    for stem, path in stems.items():
        base, tone = _split_tone(stem, stems)
        if tone and not skin_tones:
            skips.add("fluentui: skin tone variant", path)
            continue
        base = base.removesuffix("-default")
        slug = _FLUENTUI_NAMES.get(base, base)
        code = by_slug.get(slug) or by_slug.get(slug.removeprefix("person-"))
        if code is None:
            skips.add("fluentui: file name is no emoji's name", path)
            continue
        code = _with_tone(code, tone)
        if code not in emoji:
            skips.add("fluentui: no such emoji with a skin tone", path)
        elif code in result:
            skips.add("fluentui: second drawing of an emoji", path)
        else:
            result[code] = path
    return result


def captions(emoji: Emoji) -> list[str]:
    """Captions made of the emoji's names, tags and category; the first is its name."""
    article = "an" if emoji.name[0].lower() in "aeiou" else "a"
    tags = ", ".join(emoji.tags[:6])
    texts = [
        emoji.name,
        f"{article} {emoji.name} emoji",
        f"an emoji of {emoji.name}",
        f"{emoji.name}, {emoji.subcategory}",
        f"{emoji.name}, an emoji for {emoji.category}",
    ]
    if tags:
        texts += [f"{emoji.name}: {tags}", f"an emoji for {tags}"]
    if emoji.old_name:
        texts.append(emoji.old_name)
    return list(dict.fromkeys(texts))


# Skin tones as fluentui-emoji spells them, and their code points; "-light" also ends "-medium-light".
_TONES = {
    "-medium-light": "1F3FC",
    "-medium-dark": "1F3FE",
    "-light": "1F3FB",
    "-medium": "1F3FD",
    "-dark": "1F3FF",
}

# File names of fluentui-emoji that are not short names, even without "person-".
_FLUENTUI_NAMES = {
    "blackbird": "black-bird",
    "knocked-out-face": "face-with-crossed-out-eyes",
    "man-blonde-hair": "man-blond-hair",
    "man-deaf": "deaf-man",
    "man-merpeople": "merman",
    "man-with-bunny-ears": "men-with-bunny-ears",
    "man-wrestling": "men-wrestling",
    "person-blonde-hair": "person-blond-hair",
    "person-deaf": "deaf-person",
    "person-merpeople": "merperson",
    "person-with-bunny-ears": "people-with-bunny-ears",
    "person-wrestling": "people-wrestling",
    "phoenix-bird": "phoenix",
    "red-triangle": "red-triangle-pointed-up",
    "stuffedbread-flat": "stuffed-flatbread",
    "woman-blonde-hair": "woman-blond-hair",
    "woman-deaf": "deaf-woman",
    "woman-merpeople": "mermaid",
    "woman-with-bunny-ears": "women-with-bunny-ears",
    "woman-wrestling": "women-wrestling",
}


def _slug(name: str) -> str:
    spelt = name.lower().replace("*", "asterisk").replace("#", "hashtag").replace("’", "").replace("'", "")
    plain = unicodedata.normalize("NFKD", spelt)
    return re.sub("[^a-z0-9]+", "-", plain.encode("ascii", "ignore").decode()).strip("-")


def _split_tone(stem: str, stems: dict[str, str]) -> tuple[str, str]:
    """("man-dark", ...) -> ("man", "1F3FF"); "traffic-light" has no tone: there is no "traffic-default"."""
    for suffix, code in _TONES.items():
        if stem.endswith(suffix) and stem.removesuffix(suffix) + "-default" in stems:
            return stem.removesuffix(suffix), code
    return stem, ""


def _with_tone(code: str, tone: str) -> str:
    """The code with a skin tone, which follows the first character, the person."""
    first, *rest = code.split("-")
    return "-".join([first, tone, *rest]) if tone else code


def _tags(entry: dict, name: str) -> tuple[str, ...]:
    words = f"{entry['tags']},{entry['openmoji_tags']}".split(",")
    return tuple(dict.fromkeys(word.strip() for word in words if word.strip() and word.strip() != name))


def _order(entry: dict) -> tuple[float, str]:
    return (entry["order"] if isinstance(entry["order"], int) else float("inf"), entry["hexcode"])
