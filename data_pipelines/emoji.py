"""A real image-text set from open-licence emoji packages, one rendering style held out.

    python -m data_pipelines.emoji --out=data/emoji
    python -m data_pipelines.emoji --out=data/emoji-openmoji --held_out=openmoji
    python -m data_pipelines.emoji --out=data/emoji --packages=node_modules
    python -m data_pipelines.emoji --out=data/emoji-names --held_out_names=0.1

Four styles: google (Noto), openmoji, fluentui and twitter (Twemoji). Packages that are not in --packages are fetched
there with your own `npm pack` (165 MB in all). Splits:

    train       drawings of all styles except the held-out one
    validation  one of these drawings for a tenth of the names, which train then lacks
    test        the held-out style: no drawing of it is in the other splits

With --held_out_names, train, validation and test lack a share of the names, and there are two more splits:

    names           drawings of these names in the other styles
    names_and_style drawings of these names in the held-out style

The names, tags and categories come from openmoji and emoji-datasource-google. SVG is drawn by CairoSVG:
pip install 'clipjax[pipelines]'. Pictures are 64 x 64 PNG and keep their alpha channel.
"""

from __future__ import annotations

import collections
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from clipjax import files as atomic
from clipjax.data.records import encode_record
from clipjax.data.write import write_records
from clipjax.storage import as_path
from data_pipelines import command, emoji_names
from data_pipelines.command import PipelineError, Skips
from data_pipelines.emoji_names import Emoji
from data_pipelines.emoji_packages import STYLES, default_cache, licence_entry, read_package, version_of

IMAGE_SIZE = 64  # pixels
VALIDATION_SHARE = 0.1
_METADATA = ("emoji.json", "data/openmoji.json")

Drawing = tuple[str, Emoji, bytes]  # style, emoji, SVG or PNG file


def build(
    out: str | Path,
    *,
    packages: str | Path | None = None,
    held_out: str = "twitter",
    held_out_names: float = 0.0,
    skin_tones: bool = False,
    overwrite: bool = False,
) -> dict:
    """Writes the records and report.json to `out`, prints the report, returns the manifest.

    packages: folder with the npm tarballs or unpacked packages; missing ones are fetched into it.
    held_out_names: share of the names in splits of their own, from 0 up to, but not including, 1.
    Raises PipelineError for an unknown style, a missing package without npm, or a missing CairoSVG.
    """
    out = as_path(out)
    if not 0 <= held_out_names < 1:
        raise PipelineError(f"--held_out_names={held_out_names} is not a share; expected 0 to less than 1, like 0.1.")
    if held_out not in STYLES:
        raise PipelineError(f"--held_out={held_out} is not a style; the styles are {', '.join(STYLES)}.")
    files = {style: _read_style(Path(packages or default_cache()), style) for style in STYLES}
    emoji = emoji_names.read_emoji(
        files["google"]["emoji.json"], files["openmoji"]["data/openmoji.json"], skin_tones=skin_tones
    )
    skips = Skips()
    drawings = {style: _drawings(style, files[style], emoji, skips, skin_tones) for style in STYLES}
    names = _class_names(emoji, drawings[held_out])
    pair_ids = {name: i for i, name in enumerate(dict.fromkeys([*names, *(e.name for e in emoji.values())]))}
    splits = _split(drawings, emoji, held_out)
    if held_out_names:
        splits = _without_names(splits, held_out_names)

    manifest = write_records(
        out,
        {split: _records(items, pair_ids, len(names), skips) for split, items in splits.items()},
        name="emoji",
        class_names=names,
        skipped=skips.counts,
        licences=[licence_entry(STYLES[style], files[style]) for style in STYLES],
        source={
            "pipeline": "emoji",
            "packages": {STYLES[style].name: version_of(files[style]) for style in STYLES},
            "held_out": held_out,
            "skin_tones": skin_tones,
            **({"held_out_names": held_out_names} if held_out_names else {}),
        },
        overwrite=overwrite,
        say=print,
    )
    report = _report(drawings, emoji, names, held_out)
    atomic.write_text(out / "report.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    command.print_manifest(out, manifest, skips)
    _print_report(report, held_out)
    return manifest


def main(argv: list[str] | None = None) -> None:
    parser = command.make_parser("emoji", __doc__)
    command.add_output_flags(parser)
    parser.add_argument(
        "--packages",
        type=command.local_path,
        help=f"folder of npm tarballs or unpacked packages; default {default_cache()}",
    )
    parser.add_argument("--held_out", default="twitter", help=f"style of the test split: {', '.join(STYLES)}")
    parser.add_argument(
        "--held_out_names", type=float, default=0.0, help="share of the names that no other split shows; default 0"
    )
    parser.add_argument("--skin_tones", action="store_true", help="with the skin tone variants, as names of their own")
    command.run(build, parser, argv)


def _read_style(folder: Path, style: str) -> dict[str, bytes]:
    package = STYLES[style]
    wanted = (*_METADATA, package.evidence[0])
    return read_package(
        folder, package.name, package.version, lambda path: path in wanted or path.startswith(package.drawings)
    )


def _drawings(
    style: str, files: dict[str, bytes], emoji: dict[str, Emoji], skips: Skips, skin_tones: bool
) -> dict[str, bytes]:
    """code -> file of one style, for every emoji that the style draws."""
    folder = STYLES[style].drawings
    paths = [path for path in files if path.startswith(folder)]
    if style == "fluentui":
        found = emoji_names.fluentui_drawings(paths, folder, emoji, skips, skin_tones=skin_tones)
    elif style == "openmoji":
        found = emoji_names.openmoji_drawings(paths, folder)
    else:
        found = emoji_names.datasource_drawings(files["emoji.json"], style, folder)
    result = {}
    for code, path in found.items():
        if code not in emoji:
            toned = not skin_tones and emoji_names.has_tone(code)
            skips.add(f"{style}: {'skin tone variant' if toned else 'no name for this code'}", path)
        elif path not in files:
            skips.add(f"{style}: file missing from the package", path)
        else:
            result[code] = files[path]
    return {code: result[code] for code in emoji if code in result}


def _class_names(emoji: dict[str, Emoji], held_out: dict[str, bytes]) -> list[str]:
    """Names of the emoji that the held-out style draws, each once."""
    return list(dict.fromkeys(emoji[code].name for code in held_out if emoji[code].unicode))


def _split(drawings: dict[str, dict[str, bytes]], emoji: dict[str, Emoji], held_out: str) -> dict[str, list[Drawing]]:
    splits: dict[str, list[Drawing]] = {"train": [], "validation": [], "test": []}
    for code, one in emoji.items():
        styles = [style for style in drawings if style != held_out and code in drawings[style]]
        away = _validation_style(code, styles) if code in drawings[held_out] else None
        for style in styles:
            splits["validation" if style == away else "train"].append((style, one, drawings[style][code]))
        if code in drawings[held_out] and one.unicode:
            splits["test"].append((held_out, one, drawings[held_out][code]))
    return splits


def _without_names(splits: dict[str, list[Drawing]], share: float) -> dict[str, list[Drawing]]:
    """The splits without the drawings of a share of the names, which go to the splits names and names_and_style."""

    def held_out(drawing: Drawing) -> bool:
        place = int.from_bytes(hashlib.sha256(f"name {drawing[1].name}".encode()).digest()[:8]) / 2**64
        return place < share

    result = {split: [item for item in items if not held_out(item)] for split, items in splits.items()}
    result["names"] = [item for split in ("train", "validation") for item in splits[split] if held_out(item)]
    result["names_and_style"] = [item for item in splits["test"] if held_out(item)]
    return result


def _validation_style(code: str, styles: list[str]) -> str | None:
    """The style whose drawing goes to validation; None for most emoji, and for those train would otherwise lack."""
    number = int.from_bytes(hashlib.sha256(code.encode()).digest()[:8])
    if len(styles) < 2 or number % 1000 >= 1000 * VALIDATION_SHARE:
        return None
    return styles[number // 1000 % len(styles)]


def _records(items: list[Drawing], pair_ids: dict[str, int], num_classes: int, skips: Skips) -> Iterator[bytes]:
    for style, emoji, file in items:
        try:
            image = _png(file)
        except PipelineError:
            raise
        except (OSError, ValueError, SyntaxError) as error:
            skips.add(f"{style}: drawing unreadable", f"{emoji.code} {emoji.name}: {error}")
            continue
        pair_id = pair_ids[emoji.name]
        # The class names come first among the pair ids.
        label = pair_id if pair_id < num_classes else None
        yield encode_record(
            image, emoji_names.captions(emoji), key=f"{style}/{emoji.code}", label=label, pair_id=pair_id
        )


def _png(file: bytes) -> bytes:
    """The drawing as PNG: a 64-pixel PNG as it is, SVG drawn at 64 x 64.

    Raises PipelineError without CairoSVG; OSError, ValueError or SyntaxError for a file that is not a picture.
    """
    png = file if file.startswith(b"\x89PNG") else _draw_svg(file)
    with Image.open(io.BytesIO(png)) as image:
        if image.convert("RGBA").getextrema()[3][1] == 0:
            raise ValueError("nothing is drawn")
    return png


def _draw_svg(file: bytes) -> bytes:
    try:
        import cairosvg
    except (ImportError, OSError) as error:
        raise PipelineError(
            f"SVG cannot be drawn ({error}). Install CairoSVG, pip install 'clipjax[pipelines]', and the cairo "
            "library, for example apt-get install libcairo2."
        ) from error
    try:
        return cairosvg.svg2png(bytestring=file, output_width=IMAGE_SIZE, output_height=IMAGE_SIZE)
    except Exception as error:  # CairoSVG fails in many ways on SVG that it does not support
        raise ValueError(f"CairoSVG: {type(error).__name__}: {error}") from error


def _report(drawings: dict[str, dict[str, bytes]], emoji: dict[str, Emoji], names: list[str], held_out: str) -> dict:
    known = set(names)
    by_style = {
        style: len({emoji[code].name for code in found} & known)
        for style, found in drawings.items()
        if style != held_out
    }
    shown = set().union(*({emoji[c].name for c in found} for style, found in drawings.items() if style != held_out))
    by_caption = collections.defaultdict(set)
    for one in emoji.values():
        for text in emoji_names.captions(one):
            by_caption[text.lower()].add(one.name)
    by_picture = collections.defaultdict(list)
    for code, file in drawings[held_out].items():
        by_picture[file].append(emoji[code].name)
    return {
        "class_names": len(names),
        "class_names_in_style": by_style,
        "class_names_in_no_training_style": sorted(known - shown),
        "test_names_with_the_same_picture": [group for group in by_picture.values() if len(group) > 1],
        "captions_of_several_names": {text: sorted(group) for text, group in by_caption.items() if len(group) > 1},
    }


def _print_report(report: dict, held_out: str) -> None:
    total = report["class_names"]
    for style, count in report["class_names_in_style"].items():
        print(f"  {style} draws {count:,} of the {total:,} class names")
    print(f"  {len(report['class_names_in_no_training_style']):,} class names are in no training style")
    print(f"  {len(report['captions_of_several_names']):,} captions (never the first) belong to several names")
    same = report["test_names_with_the_same_picture"]
    best = 1 - sum(len(group) - 1 for group in same) / total
    print(
        f"  {sum(map(len, same)):,} names share {len(same):,} pictures in {held_out}: "
        f"top-1 on test is at most {best:.1%}"
    )


if __name__ == "__main__":
    main()
