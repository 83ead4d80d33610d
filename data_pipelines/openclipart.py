"""A real image-text set: the drawings of the Open Clip Art Library in Debian's packages, captioned by their metadata.

    python -m data_pipelines.openclipart --fetch --out=data/openclipart
    python -m data_pipelines.openclipart --packages=debs --out=data/openclipart
    python -m data_pipelines.openclipart --fetch --out=data/openclipart-artists --held_out_artists=0.1

Pictures come from the package openclipart-png; titles, descriptions and tags from the RDF in the files of
openclipart-svg. With --fetch, packages that are not in --packages are fetched with your own `apt-get download` (155 MB;
Debian and Ubuntu). Only drawings that are public domain by their own metadata are used. Left out and counted: geometric
shapes and gradients, drawings with the pixels of another, empty ones, and 15 PNGs that are decompression bombs, the
largest with 623 million pixels. credits.jsonl names the creator and licence of each record.
"""

from __future__ import annotations

import collections
import hashlib
import html
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from clipjax import files as atomic
from clipjax.data.images.decode import open_image
from clipjax.data.records import RecordError, encode_record
from clipjax.data.write import write_records
from clipjax.storage import as_path
from data_pipelines import command
from data_pipelines.archives import deb_members
from data_pipelines.command import PipelineError, Skips
from data_pipelines.emoji_packages import default_cache
from data_pipelines.files import split_by_share
from data_pipelines.openclipart_packages import ROOT, NoWork, Work, find_package, read_works, version_of

LONGEST_SIDE = 256  # pixels
DEFAULT_SPLITS = "train=0.9,validation=0.05,test=0.05"
PUBLIC_DOMAIN = ("http://web.resource.org/cc/PublicDomain", "http://creativecommons.org/licenses/publicdomain/")
# A title or description shared by more drawings than this is that of their collection, or a licence.
_MAX_SAME_TEXT = 8
_MAX_TAGS, _MAX_WORDS = 8, 40
_NO_CATEGORY = ("special", "unsorted")
# Words that come from the library's upload form and its Perl code, not from the artist.
_NO_TAGS = {"hash", "unsorted", "special", "clip art", "clipart", "svg", "inkscape", "theme"}


def build(
    out: str | Path,
    *,
    packages: str | Path | None = None,
    fetch: bool = False,
    longest_side: int = LONGEST_SIDE,
    splits: str = DEFAULT_SPLITS,
    held_out_artists: float = 0.0,
    overwrite: bool = False,
) -> dict:
    """Writes the records and credits.jsonl to `out`, prints the report, returns the manifest.

    packages: folder with openclipart-png_*.deb and openclipart-svg_*.deb. longest_side: larger pictures are stored
    shrunk, over white. held_out_artists: share of the artists whose drawings are all in the split "artists", from 0 up
    to, but not including, 1; `splits` divides the others. Raises PipelineError for a missing or damaged package and
    for wrong shares.
    """
    out, folder, skips = as_path(out), Path(packages or default_cache().with_name("deb")), Skips()
    split_of = split_by_share(splits)
    if not 0 <= held_out_artists < 1:
        raise PipelineError(
            f"--held_out_artists={held_out_artists} is not a share; expected 0 to less than 1, like 0.1."
        )
    if held_out_artists and "artists" in _names(splits):
        raise PipelineError(f"--splits={splits} names a split 'artists', as --held_out_artists does; use another name.")
    kept = split_by_share(f"artists={held_out_artists},others={1 - held_out_artists}")
    png, svg = (find_package(folder, kind, fetch) for kind in ("png", "svg"))
    works = _usable(read_works(svg, _refused_by(skips, "svg")), skips)
    counts = collections.Counter(text for work in works.values() for text in (work.title, work.description))
    captions = {path: _captions(path, work, counts) for path, work in works.items()}
    categories = sorted({_category(path) for path, texts in captions.items() if texts} - {""})

    drawings: dict[str, list[tuple[str, bytes]]] = {name: [] for name in _names(splits)}
    if held_out_artists:
        drawings["artists"] = []
    for path, image in _pictures(png, captions, longest_side, skips):
        artist = works[path].creator
        away = held_out_artists and artist and kept(f"artist {artist}") == "artists"
        drawings["artists" if away else split_of(_series(path))].append((path, image))
    taken = [path for items in drawings.values() for path, _ in items]
    first = dict.fromkeys(captions[path][0].lower() for path in taken)
    pair_ids = {text: number for number, text in enumerate(first)}

    def records(items: list[tuple[str, bytes]]) -> Iterator[bytes]:
        for path, image in items:
            category, texts = _category(path), captions[path]
            label = categories.index(category) if category else None
            yield encode_record(image, texts, key=path, label=label, pair_id=pair_ids[texts[0].lower()])

    manifest = write_records(
        out,
        {name: records(items) for name, items in drawings.items()},
        name="openclipart",
        class_names=categories,
        skipped=skips.counts,
        licences=[
            {
                "source": f"Open Clip Art Library and its artists (Debian openclipart {version_of(png)})",
                "licence": "public domain (by each drawing's own metadata: credits.jsonl)",
                "url": PUBLIC_DOMAIN[0],
            }
        ],
        source={
            "pipeline": "openclipart",
            "packages": {"openclipart-png": version_of(png), "openclipart-svg": version_of(svg)},
            "longest_side": longest_side,
            "splits": splits,
            **({"held_out_artists": held_out_artists} if held_out_artists else {}),
        },
        overwrite=overwrite,
        say=print,
    )
    lines = (
        {"key": path, "creator": works[path].creator, "licence": works[path].licence, "title": works[path].title}
        for path in taken
    )
    atomic.write_text(out / "credits.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    command.print_manifest(out, manifest, skips)
    texts = [text for path in taken for text in captions[path]]
    print(f"  {len(texts):,} captions, {len(set(texts)):,} of them distinct; {len(first):,} distinct first ones")
    return manifest


def main(argv: list[str] | None = None) -> None:
    parser = command.make_parser("openclipart", __doc__)
    command.add_output_flags(parser)
    parser.add_argument(
        "--packages",
        type=command.local_path,
        help=f"folder of the two .deb files; default {default_cache().with_name('deb')}",
    )
    parser.add_argument("--fetch", action="store_true", help="fetch missing packages with apt-get download")
    parser.add_argument(
        "--longest_side", type=int, default=LONGEST_SIDE, help="store larger pictures shrunk; default %(default)s"
    )
    parser.add_argument(
        "--splits", default=DEFAULT_SPLITS, help="shares with sum 1; drawings of a series stay together; %(default)s"
    )
    parser.add_argument(
        "--held_out_artists", type=float, default=0.0, help="share of the artists that no other split shows; default 0"
    )
    command.run(build, parser, argv)


def _names(splits: str) -> list[str]:
    return [part.split("=")[0].strip() for part in splits.split(",")]


def _refused_by(skips: Skips, kind: str):
    return lambda cause, name: skips.add(f"{kind}: {cause}", name)


def _usable(works: dict[str, Work | NoWork], skips: Skips) -> dict[str, Work]:
    usable = {}
    for path, work in works.items():
        if isinstance(work, NoWork):
            skips.add(str(work), path)
        elif path.startswith("shapes/") or "gradient" in path:
            skips.add("geometric shape or gradient", path)
        elif path.startswith("unsorted/duplicates"):
            skips.add("duplicate by the library's own account", path)
        elif work.licence not in PUBLIC_DOMAIN:
            skips.add(f"not declared public domain ({work.licence or 'no licence given'})", path)
        else:
            usable[path] = work
    return usable


def _pictures(
    package: Path, captions: dict[str, list[str]], longest_side: int, skips: Skips
) -> Iterator[tuple[str, bytes]]:
    """(path, image file) of each drawing with a caption, in the package's order; the same pixels once."""
    prefix = ROOT + "png/"
    seen: set[bytes] = set()
    for member in deb_members(
        package, lambda name: name.startswith(prefix) and name.endswith(".png"), _refused_by(skips, "png")
    ):
        path = member.name.removeprefix(prefix).removesuffix(".png")
        if path not in captions:
            continue  # its SVG is counted already, or is a link
        if not captions[path]:
            skips.add("no caption: neither a title nor a telling file name", path)
            continue
        try:
            image, pixels = picture(member.data, longest_side)
        except RecordError as error:
            skips.add(error.cause, f"{path}: {error}")
            continue
        if pixels in seen:
            skips.add("same pixels as another drawing", path)
            continue
        seen.add(pixels)
        yield path, image


def picture(data: bytes, longest_side: int) -> tuple[bytes, bytes]:
    """(image file as stored, digest of its pixels over white). Raises RecordError, also for one of a single colour."""
    image = open_image(data)
    if all(low == high for low, high in image.getextrema()):
        raise RecordError("nothing is drawn", "all pixels have one colour")
    if max(image.size) > longest_side:
        scale = longest_side / max(image.size)
        image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        data = buffer.getvalue()
    return data, hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()


def _captions(path: str, work: Work, counts: collections.Counter[str]) -> list[str]:
    """The title, the description, and the title with tags; empty where the drawing has no name."""
    of_collection = counts[work.title] > _MAX_SAME_TEXT or re.match(r"Part of |Clipart by |.*Collection", work.title)
    title = "" if of_collection else _plain(work.title)
    # Two letters are an abbreviation at best: "aj", "b w".
    name = title or _file_name(path, work.creator)
    if not re.search(r"[^\W\d_]{3}", name):
        return []
    description = _plain(work.description) if counts[work.description] <= _MAX_SAME_TEXT else ""
    if len(description.split()) > _MAX_WORDS:
        description = " ".join(description.split()[:_MAX_WORDS])
    known = {name.lower(), work.creator.lower(), ""}
    tags = [tag for tag in (_plain(tag.replace("_", " ")) for tag in work.tags) if _is_tag(tag) and tag not in known]
    texts = [name, description, ", ".join([name, *sorted(tags)[:_MAX_TAGS]])]
    return list({text.lower(): text for text in reversed(texts) if text}.values())[::-1]


def _is_tag(tag: str) -> bool:
    return tag.lower() not in _NO_TAGS and "/" not in tag and len(tag) <= 30


def _plain(text: str) -> str:
    """The text without markup, Perl references, addresses, and a version number at its end."""
    text = re.sub(r"<!--.*?-->|</?\w[^<>]*>", " ", html.unescape(html.unescape(text)))
    text = re.sub(r"(?i)(?:hash\()?\b0x[0-9a-f]+\)?|\S+@\S+|(?:https?://|www\.)\S+", " ", text)
    text = re.sub(r"(?<=[^\W\d])[\s_]+0*\d{1,2}$", "", " ".join(text.split()))
    return text.strip(" ,;-")


def _file_name(path: str, creator: str) -> str:
    """The file name as words, without numbers and without the creator's name, which the library added, truncated."""
    words = [word for word in re.split(r"[_\-\s.]+", path.rpartition("/")[2].lower()) if word and not word.isdigit()]
    author = re.sub(r"[_\-\s.]+", "_", creator.lower())
    for start in range(1, len(words)):
        rest = "_".join(words[start:])
        if len(rest) >= 3 and author.startswith(rest):
            words = words[:start]
            break
    return " ".join(re.sub(r"\d+", " ", " ".join(words)).split())


def _category(path: str) -> str:
    top = path.partition("/")[0]
    return "" if top in _NO_CATEGORY else top.replace("_", " ")


def _series(path: str) -> str:
    """The path without its number: drawings that differ in the number are versions and belong to one split."""
    return re.sub(r"[\d_]+$", "", path)


if __name__ == "__main__":
    main()
