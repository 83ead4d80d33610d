"""On two small packages made here, laid out as Debian's."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from clipjax.config import SourceConfig
from clipjax.data.sources import open_source
from data_pipelines import openclipart
from data_pipelines.command import PipelineError
from data_pipelines.openclipart_packages import NoWork, Work, parse_work
from tests.data_pipelines.debs import deb_bytes

PUBLIC_DOMAIN = openclipart.PUBLIC_DOMAIN[0]


def svg(title="", description="", tags=(), creator="", licence=PUBLIC_DOMAIN, head="") -> bytes:
    items = "".join(f"<rdf:li>{tag}</rdf:li>" for tag in tags)
    return f"""<?xml version="1.0"?>{head}<svg xmlns="http://www.w3.org/2000/svg"><metadata>
    <rdf:RDF xmlns:cc="http://web.resource.org/cc/" xmlns:dc="http://purl.org/dc/elements/1.1/"
      xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><cc:Work rdf:about="">
    <dc:title>{title}</dc:title><dc:description>{description}</dc:description>
    <dc:subject><rdf:Bag>{items}</rdf:Bag></dc:subject>
    <dc:publisher><cc:Agent><dc:title>Open Clip Art Library</dc:title></cc:Agent></dc:publisher>
    <dc:creator><cc:Agent><dc:title>{creator}</dc:title></cc:Agent></dc:creator>
    <cc:license rdf:resource="{licence}"/></cc:Work></rdf:RDF></metadata><path d="M9 9h9v9z"/></svg>""".encode()


def png(seed: int, size=(20, 16)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 4), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def bomb(side: int) -> bytes:
    """A PNG of 1 bit a pixel that claims side x side pixels in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def blank() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


DRAWINGS = {
    "animals/cat_01": (
        svg("A Cat 2", "a cat &amp;amp; a &lt;b&gt;mat&lt;/b&gt;", ("cat", "hash(0x8a0)", "small_animal"), "Ann"),
        png(0),
    ),
    "animals/cat_02": (svg("Cat, asleep", "ann@example.com &lt;!-- x --&gt; &lt;br/&gt;"), png(1)),
    "animals/dog_ann_lee": (svg("My theme", "", ("Dog",), "Ann Leeds"), png(2, (600, 300))),
    "tools/same": (svg("a saw"), png(1)),
    "tools/ab_1": (svg("My theme"), png(3)),
    "tools/cut": (svg("a hammer"), png(4)[:200]),
    "tools/huge": (svg("a huge saw"), bomb(9_000)),
    "tools/huger": (svg("a larger saw"), bomb(60_000)),
    "tools/blank": (svg("a glass"), blank()),
    "tools/gpl": (svg("a tool", licence="http://creativecommons.org/licenses/GPL/2.0/"), png(5)),
    "tools/entity": (svg("&a;", head='<!DOCTYPE svg [<!ENTITY a "lol">]>'), png(6)),
    "tools/broken": (b"<svg><not", png(7)),
    "shapes/star_1": (svg("star"), png(8)),
    "unsorted/house": (svg("House"), png(9)),
}
DRAWINGS |= {f"special/thing {i}": (svg("My theme"), png(ord(i))) for i in "abcdefgh"}


@pytest.fixture
def packages(tmp_path):
    folder = tmp_path / "debs"
    folder.mkdir()
    for place, kind in enumerate(("svg", "png")):
        files = {f"./usr/share/openclipart/{kind}/{path}.{kind}": both[place] for path, both in DRAWINGS.items()}
        files |= {f"./usr/share/openclipart/{kind}/link.{kind}": f"tools/same.{kind}"}
        (folder / f"openclipart-{kind}_1%3a0.18-1_all.deb").write_bytes(deb_bytes(files))
    return folder


def test_records_captions_and_what_is_left_out(packages, tmp_path):
    out = tmp_path / "out"
    manifest = openclipart.build(out, packages=packages, splits="all=1")
    source = open_source(SourceConfig(path=str(out), split="all"))
    records = {record["key"]: record for record in (source[i] for i in range(len(source)))}
    texts = {key: record["texts"] for key, record in records.items() if not key.startswith("special/")}
    assert texts == {
        "animals/cat_01": ["A Cat", "a cat & a mat", "A Cat, cat, small animal"],
        "animals/cat_02": ["Cat, asleep"],
        # A collection's title: the file name without the creator's name that the library cut off.
        "animals/dog_ann_lee": ["dog", "dog, Dog"],
        "unsorted/house": ["House"],
    }
    assert records["special/thing a"]["texts"] == ["thing a"]
    assert manifest["class_names"] == ["animals", "tools"]
    assert {key: record["label"] for key, record in records.items() if key[0] in "au"} == {
        "animals/cat_01": 0,
        "animals/cat_02": 0,
        "animals/dog_ann_lee": 0,
        "unsorted/house": -1,
    }
    assert records["animals/cat_01"]["image"] == png(0)
    with Image.open(io.BytesIO(records["animals/dog_ann_lee"]["image"])) as image:
        assert (image.mode, image.size) == ("RGB", (256, 128))
    assert manifest["skipped"] == {
        "SVG declares XML entities": 1,
        "SVG is not well-formed XML": 1,
        "geometric shape or gradient": 1,
        "no caption: neither a title nor a telling file name": 1,
        "not declared public domain (http://creativecommons.org/licenses/GPL/2.0/)": 1,
        "corrupt image": 1,
        "image too large": 2,
        "nothing is drawn": 1,
        "same pixels as another drawing": 1,
        "png: link or device": 1,
        "svg: link or device": 1,
    }
    lines = [json.loads(line) for line in (out / "credits.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["key"] for line in lines] == [source[i]["key"] for i in range(len(source))]
    assert lines[0] == {"key": "animals/cat_01", "creator": "Ann", "licence": PUBLIC_DOMAIN, "title": "A Cat 2"}


def test_versions_of_one_drawing_stay_in_one_split(packages, tmp_path):
    openclipart.build(tmp_path / "out", packages=packages, splits="a=0.5,b=0.5")
    keys = {}
    for split in ("a", "b"):
        source = open_source(SourceConfig(path=str(tmp_path / "out"), split=split))
        keys |= {source[i]["key"]: split for i in range(len(source))}
    assert set(keys.values()) == {"a", "b"}
    assert keys["animals/cat_01"] == keys["animals/cat_02"]


def test_all_drawings_of_a_held_out_artist_are_in_a_split_of_their_own(packages, tmp_path):
    manifest = openclipart.build(tmp_path / "out", packages=packages, splits="train=1", held_out_artists=0.9)
    source = open_source(SourceConfig(path=str(tmp_path / "out"), split="artists"))
    # Ann's, and not those of Ann Leeds or of nobody.
    assert [source[i]["key"] for i in range(len(source))] == ["animals/cat_01"]
    assert manifest["splits"]["train"]["records"] == 11
    for wrong in (1.0, -0.1):
        with pytest.raises(PipelineError, match="is not a share"):
            openclipart.build(tmp_path / "out", packages=packages, held_out_artists=wrong)
    with pytest.raises(PipelineError, match="names a split 'artists'"):
        openclipart.build(tmp_path / "out", packages=packages, splits="artists=1", held_out_artists=0.1)


def test_an_entity_bomb_is_refused_at_its_declaration():
    levels = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 30))
    with pytest.raises(NoWork, match="declares XML entities"):
        parse_work(svg("&l29;", head=f'<!DOCTYPE svg [<!ENTITY l0 "lol">{levels}]>'))
    with pytest.raises(NoWork, match="declares XML entities"):
        parse_work(svg("&x;", head='<!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]>'))
    # A document type without entities is what most SVG has.
    head = '<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.0//EN" "http://www.w3.org/TR/2001/REC-SVG-20010904/DTD/svg10.dtd">'
    assert parse_work(svg("x", head=head)) == Work("x", licence=PUBLIC_DOMAIN)
    with pytest.raises(NoWork, match="says nothing of itself"):
        parse_work(b"<svg/>")


def test_a_missing_package_is_an_error_that_says_how_to_get_it(tmp_path):
    with pytest.raises(PipelineError, match="--fetch"):
        openclipart.build(tmp_path / "out", packages=tmp_path)
