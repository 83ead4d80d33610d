"""Each step of data_pipelines.prepare, on the faults it is for."""

import dataclasses
import io
import random
import zlib

import numpy as np
import pytest
import scipy.fft
from PIL import Image, features

from clipjax.data.records import RecordError
from clipjax.data.write import write_records
from data_pipelines.command import PipelineError
from data_pipelines.prepare.check import check
from data_pipelines.prepare.options import Options
from data_pipelines.prepare.steps import balance, decontaminate, repeats, scores, shards
from data_pipelines.prepare.steps.captions import captions, clean, script
from data_pipelines.prepare.steps.decode import decode
from data_pipelines.prepare.steps.hashes import _DCT, bands, colours, distance, image_hash, pixels_sha, text_hash
from data_pipelines.prepare.types import Example, Row
from tests.data.samples import encoded, picture
from tests.data_pipelines.test_openclipart import bomb


def options(**fields) -> Options:
    return Options(reader="webdataset", input=("x",), **fields)


class Notes(list):
    def __call__(self, cause, key, text, count=1):
        self.append((cause, key, text))

    @property
    def causes(self):
        return [cause for cause, *_ in self]


def row(key: str, texts=("a dog",), at=0, image=None, **fields) -> Row:
    image = picture(zlib.crc32(key.encode())) if image is None else image
    known = {"image_hash": image_hash(image), "colours": colours(image), "pixels_sha": pixels_sha(image)}
    known |= {"label": "", "scores": (), "image_sha": key}
    return Row(key, 0, at, tuple(texts), **(known | fields))


def example(image: bytes, *texts: str) -> Example:
    return Example("k", image, texts)


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def photograph(seed: int, width: int = 320, height: int = 240) -> Image.Image:
    """Noise with the spectrum of photographs: amplitudes fall with the frequency."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    frequency[0, 0] = 1
    planes = [np.fft.ifft2(np.fft.fft2(rng.normal(size=(height, width))) / frequency**1.2).real for _ in range(3)]
    pixels = np.stack(planes, -1)
    return Image.fromarray(np.uint8(255 * (pixels - pixels.min()) / np.ptp(pixels)))


# decode


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_sound_image_keeps_its_bytes_and_is_never_made_larger(format):
    data = encoded(picture(0, 60, 40), format)
    result = decode(example(data), options(shorter_side=40, longest_side=60), Notes())
    assert result.image == data
    assert decode(example(data), options(shorter_side=200), Notes()).image == data
    assert result.pixels_sha and result.image_hash


def test_a_large_image_is_stored_within_both_bounds():
    jpeg = decode(example(encoded(picture(0, 600, 400), "JPEG")), options(shorter_side=100), notes := Notes()).image
    assert (opened(jpeg).size, opened(jpeg).format) == ((150, 100), "JPEG")
    png = decode(example(encoded(picture(0, 600, 400))), options(shorter_side=100, longest_side=120), notes).image
    assert (opened(png).size, opened(png).format) == ((120, 80), "PNG")
    assert notes.causes == ["stored smaller"] * 2
    low = decode(example(encoded(picture(0, 600, 400), "JPEG")), options(shorter_side=100, quality=20), notes).image
    assert len(low) < len(jpeg)


def test_images_of_kinds_that_trip_others_are_stored_as_training_sees_them():
    plain = picture(1, 60, 40)
    exif = Image.Exif()
    exif[0x0112] = 6
    animated = io.BytesIO()
    plain.save(animated, "GIF", save_all=True, append_images=[picture(2, 60, 40)])
    grey16 = Image.fromarray(np.asarray(plain.convert("L"), np.uint16) * 257)
    cases = {
        "CMYK": (encoded(plain.convert("CMYK"), "JPEG", quality=98), "JPEG", plain),
        "rotated": (encoded(plain, "JPEG", exif=exif, quality=98), "JPEG", plain.transpose(Image.Transpose.ROTATE_270)),
        "BMP": (encoded(plain, "BMP"), "PNG", plain),
        "rotated TIFF": (encoded(plain, "TIFF", exif=exif), "PNG", plain.transpose(Image.Transpose.ROTATE_270)),
        "16-bit": (encoded(grey16), "PNG", plain.convert("L").convert("RGB")),
        "animated": (animated.getvalue(), "PNG", opened(animated.getvalue()).convert("RGB")),
    }
    if features.check("avif"):
        cases["AVIF"] = encoded(plain, "AVIF", quality=95), "JPEG", plain
    if features.check("jpg_2000"):
        cases["JPEG 2000"] = encoded(plain, "JPEG2000"), "PNG", plain
    for name, (data, kind, expected) in cases.items():
        stored = opened(decode(example(data), options(), notes := Notes()).image)
        assert (stored.format, stored.mode, getattr(stored, "n_frames", 1)) == (kind, "RGB", 1), name
        assert stored.size == expected.size and stored.getexif().get(0x0112, 1) == 1, name
        difference = np.abs(np.asarray(stored, np.int16) - np.asarray(expected, np.int16))
        assert difference.mean() < (3 if kind == "JPEG" else 0.01), name
        assert notes.causes == ["stored anew"], name


@pytest.mark.parametrize(
    ("data", "flags", "cause"),
    [
        (b"", {}, "empty image"),
        (b"this is no picture", {}, "not an image"),
        (encoded(picture(0, 200, 200))[:4000], {}, "corrupt image"),
        (bomb(9_000), {}, "image too large"),
        (bomb(60_000), {}, "image too large"),
        (encoded(picture(0, 60, 20)), {"min_side": 21}, "side too short"),
        (encoded(picture(0, 60, 20)), {"max_aspect": 2.9}, "too elongated"),
    ],
    ids=["empty", "text", "truncated", "bomb", "larger bomb", "small", "long"],
)
def test_what_cannot_be_used_is_refused_by_cause(data, flags, cause):
    with pytest.raises(RecordError) as caught:
        decode(example(data), options(**flags), Notes())
    assert caught.value.cause == cause


# captions


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a  dog\n\ton &amp;amp; off ", "a dog on & off"),
        ("<b>A dog</b><br/> 3 < 5", "A dog 3 < 5"),
        ("see https://x.org/a?b a dog, me@x.org", "see a dog,"),
        ("cafe\u0301\u200b\u0007 \ufeffx", "caf\u00e9 x"),
        ("\U0001f469\u200d\U0001f680 astronaut", "\U0001f469\u200d\U0001f680 astronaut"),
    ],
)
def test_captions_are_cleaned(text, expected):
    assert clean(text) == expected


@pytest.mark.parametrize(
    ("text", "flags", "cause"),
    [
        (" \n", {}, "empty"),
        ("IMG_2034", {}, "a file name"),
        ("DSC 0012 (1)", {}, "a file name"),
        ("holiday-12.JPG", {}, "a file name"),
        ("d41d8cd98f00b204e9800998ecf8427e", {}, "a file name"),
        ("12345 !", {}, "hardly a letter"),
        ("dog", {"min_words": 2}, "too few words"),
        ("a " * 40, {"max_words": 39}, "too many words"),
        ("x" * 1_000_000, {}, "too many characters"),
        ("собака на пляже", {"scripts": ("latin",)}, "another script"),
        ("a dog 犬犬犬", {"scripts": ("latin", "greek")}, "another script"),
    ],
)
def test_captions_that_say_nothing_are_left_out_by_cause(text, flags, cause):
    with pytest.raises(RecordError) as caught:
        captions(example(b"", text), options(**flags), Notes())
    assert caught.value.cause == f"no caption left: {cause}"
    result = captions(example(b"", text, "a dog on a beach", "A dog on a  beach"), options(**flags), notes := Notes())
    assert result.texts == ("a dog on a beach",)
    assert f"caption left out: {cause}" in notes.causes


def test_captions_that_only_look_like_faults_stay():
    texts = ("photograph of a dog", "image of 2 dogs", "P 51 Mustang", "naïve café", "A&B <3")
    assert captions(example(b"", *texts), options(scripts=("latin",)), Notes()).texts == texts
    assert captions(example(b"", "IMG_2034 &amp;"), options(clean_captions=False), Notes()).texts == ("IMG_2034 &amp;",)
    with pytest.raises(RecordError) as caught:
        captions(example(b""), options(), Notes())
    assert caught.value.cause == "no caption"


def test_scripts_are_unicodes():
    assert [script(c) for c in "aжα犬あ한אब"] == [
        "latin", "cyrillic", "greek", "han", "hiragana", "hangul", "hebrew", "devanagari",
    ]  # fmt: skip


# hashes


def test_the_dct_is_scipys():
    np.testing.assert_allclose(_DCT, scipy.fft.dct(np.eye(32), norm="ortho", axis=0)[:8], atol=1e-12)


def test_hashes_of_the_same_picture_are_near_and_of_others_far():
    for seed in range(20):
        image = photograph(seed)
        reference = image_hash(image)
        jpeg = opened(encoded(image, "JPEG", quality=30)).convert("RGB")
        changed = {
            "smaller": image.resize((197, 140)),
            "compressed": jpeg,
            "brighter": image.point(lambda value: min(255, int(value * 1.1))),
        }
        for name, other in changed.items():
            assert distance(reference, image_hash(other)) <= 3, (seed, name)
            grids = [np.array(list(bytes.fromhex(colours(i))), int) for i in (image, other)]
            assert np.abs(grids[0] - grids[1]).max() <= repeats._SAME_COLOUR, (seed, name)
        assert distance(reference, image_hash(photograph(seed + 100))) > 12


def test_hashes_within_the_distance_always_share_a_band():
    rng = random.Random(0)
    for bits in range(9):
        for _ in range(50):
            one = rng.getrandbits(64)
            other = one
            for bit in rng.sample(range(64), bits):
                other ^= 1 << bit
            assert distance(one, other) == bits
            assert set(bands(one, bits)) & set(bands(other, bits))
    assert len(set(bands(0, 3))) == 4
    assert not set(bands(0, 3)) & set(bands(2**64 - 1, 3))


def test_text_hashes_ignore_case_punctuation_and_encoding():
    assert text_hash("A dog, on a beach.") == text_hash("a DOG on  a beach")
    assert text_hash("cafe\u0301") == text_hash("café") != text_hash("cafe")


# repetitions


def decide(step_votes, members_of, apply, rows, flags, extra=()):
    """Runs a group step without Beam: key -> row, or the cause it was left out for."""
    groups: dict = {}
    for one in rows:
        for group, member in members_of(one, flags):
            groups.setdefault(group, []).append(member)
    for group, member in extra:
        groups.setdefault(group, []).append(member)
    votes: dict = {}
    for group in groups.values():
        for member, vote in step_votes(sorted(group), flags):
            votes.setdefault(member, set()).add(vote)
    result = {}
    for one in rows:
        try:
            result[one.id] = apply(one, sorted(votes.get(one.id, ())), flags, Notes())
        except RecordError as error:
            result[one.id] = error.cause
    return result


def test_look_alikes_leave_the_smallest_key_in_any_order():
    image, other = photograph(0), photograph(1)
    red = Image.merge(
        "RGB", [image.convert("L").point(lambda v: v * 0.9), *[image.convert("L").point(lambda v: v // 2)] * 2]
    )
    rows = [
        row("c", image=image.resize((200, 150)), at=0),
        row("a", image=opened(encoded(image, "JPEG", quality=40)).convert("RGB"), at=1),
        row("b", image=other, at=2),
        row("d", image=red, at=3),  # the same drawing in another colour
    ]
    assert distance(rows[3].image_hash, rows[0].image_hash) <= 3
    for shuffled in (rows, rows[::-1]):
        result = decide(repeats.looks_votes, repeats.looks, repeats.drop_looks, shuffled, options(near_duplicates=3))
        assert result == {"0/0": "looks like another image", "0/1": rows[1], "0/2": rows[2], "0/3": rows[3]}


def test_one_image_with_several_captions_becomes_one_record():
    same = picture(0)
    rows = [
        row("b", ("two", "One", "three"), 0, same, scores=(0.2, 0.3, 0.4)),
        row("a", ("one",), 1, same, scores=(0.1,)),
        row("c", ("two", "four"), 2, same, scores=(0.5, 0.6)),
        row("d", ("one",), 3, picture(1), scores=(0.7,)),
    ]
    result = decide(repeats.merge_votes, repeats.same_pixels, repeats.merge, rows, options())
    assert result["0/1"].texts == ("one", "two", "three", "four")
    assert result["0/1"].scores == (0.1, 0.2, 0.4, 0.6)
    assert result["0/0"] == result["0/2"] == "same image, captions taken over"
    assert result["0/3"] == rows[3]


def test_a_key_is_used_once():
    rows = [row("a", ("one",), 0, picture(0)), row("a", ("two",), 1, picture(0)), row("a", ("three",), 2, picture(1))]
    result = decide(repeats.key_votes, repeats.same_key, repeats.merge, rows, options(merge="key"))
    assert result["0/0"].texts == ("one", "two")
    assert result["0/1"] == "key used again, captions taken over"
    assert result["0/2"] == "key used again"
    result = decide(repeats.key_votes, repeats.same_key, repeats.merge, rows, options(merge="off"))
    assert (result["0/0"], result["0/1"]) == (rows[0], "key used again")


def test_a_caption_stays_in_the_first_records_that_have_it():
    rows = [row("c", ("A dog.", "a cat"), 0), row("b", ("a dog",), 1), row("a", ("a dog!", "a bird"), 2)]
    result = decide(repeats.said_votes, repeats.said, repeats.drop_said, rows, options(same_caption=1))
    assert result["0/2"] == rows[2]
    assert result["0/1"] == "caption used by others"
    assert result["0/0"].texts == ("a cat",)
    assert decide(repeats.said_votes, repeats.said, repeats.drop_said, rows, options(same_caption=2))["0/1"] == rows[1]


@pytest.mark.parametrize("by", ["image", "caption", "either"])
def test_decontamination_knows_changed_images_and_captions_of_the_evaluation_set(tmp_path, by):
    from clipjax.data.records import encode_record

    evaluated = photograph(7)
    record = encode_record(encoded(evaluated), ["A dog, asleep"], key="e")
    write_records(tmp_path / "eval", {"test": [record], "train": [encode_record(encoded(picture(9)), ["x"], key="t")]},
                  name="e", source={})  # fmt: skip
    flags = options(decontaminate=(f"{tmp_path / 'eval'}:test",), decontaminate_by=by)
    pieces = list(decontaminate.references(flags))
    assert pieces == [(str(tmp_path / "eval"), "test", 0, 1)]
    known = [pair for piece in pieces for pair in decontaminate.reference_members(piece, flags)]
    small = opened(encoded(evaluated.resize((200, 150)), "JPEG", quality=50)).convert("RGB")
    rows = [
        row("image", ("other",), 0, small),
        row("caption", ("a dog asleep",), 1, picture(1)),
        row("captions", ("a dog asleep", "two"), 2, picture(2)),
        row("neither", ("a dog awake",), 3, picture(9)),
    ]
    result = decide(decontaminate.votes, decontaminate.members, decontaminate.decontaminate, rows, flags, known)
    image, caption = "image of an evaluation set", "caption of an evaluation set"
    assert result["0/0"] == (rows[0] if by == "caption" else image)
    assert result["0/1"] == (rows[1] if by == "image" else caption)
    assert result["0/2"].texts == (("a dog asleep", "two") if by == "image" else ("two",))
    assert result["0/3"] == rows[3]
    everything = list(decontaminate.references(options(decontaminate=(str(tmp_path / "eval"),))))
    assert [split for _, split, _, _ in everything] == ["test", "train"]


# choice


def test_scores_below_the_threshold_go():
    one = row("a", ("good", "bad"), scores=(0.3, 0.1))
    assert scores.choose(one, 0.2, options(), notes := Notes()).texts == ("good",)
    assert notes == [("caption left out: CLIP score below the threshold", "a", "bad")]
    with pytest.raises(RecordError, match="0.3000: good | bad"):
        scores.choose(one, 0.31, options(), Notes())


def test_the_threshold_of_a_fraction_keeps_at_least_that_fraction():
    values = np.round(np.random.default_rng(0).uniform(-0.2, 0.4, 999), 4)
    counts: dict = {}
    for value in values:
        (name,) = scores.count(row("a", scores=(-1.0, value), texts=("x", "y")), options())
        counts[name] = counts.get(name, 0) + 1
    for fraction in (0.01, 0.3, 1.0):
        threshold = scores.threshold(counts, options(top_fraction=fraction))
        kept = np.mean(values >= threshold)
        assert fraction <= kept < fraction + 0.01
    assert scores.threshold(counts, options(top_fraction=0.9, min_score=0.25)) == 0.25
    assert scores.threshold(counts, options(min_score=0.25)) == 0.25


def test_frequent_entries_are_thinned_to_about_the_limit_and_rare_ones_kept(tmp_path):
    (tmp_path / "entries.txt").write_text("Dog\nhot dog\nnarwhal\n\n", encoding="utf-8")
    flags = options(balance_entries=str(tmp_path / "entries.txt"), balance_limit=200)
    rows = [row(f"d{i}", (f"a dog, number {i}",), image=BLANK) for i in range(2000)]
    rows += [row(f"n{i}", ("a narwhal and a dog",), image=BLANK) for i in range(30)]
    rows += [row("none", ("a cat", "doggy"), image=BLANK), row("both", ("a cat", "a narwhal"), image=BLANK)]
    counts: dict = {}
    for one in rows:
        for entry in balance.count(one, flags):
            counts[entry] = counts.get(entry, 0) + 1
    assert counts == {"dog": 2030, "narwhal": 31}
    table = balance.probabilities(counts, flags)
    assert table == {"dog": 200 / 2030}

    def run(rows):
        kept, causes = {}, {}
        for one in rows:
            try:
                kept[one.key] = balance.balance(one, table, flags, Notes())
            except RecordError as error:
                causes[one.key] = error.cause
        return kept, causes

    kept, causes = run(rows)
    dogs = sum(key.startswith("d") for key in kept)
    # Four standard deviations of 2,000 draws with probability 200 / 2030.
    assert abs(dogs - 2000 * 200 / 2030) < 4 * np.sqrt(2000 * 0.0985 * 0.9015)
    assert sum(key.startswith("n") for key in kept) == 30
    assert causes["none"] == "caption matches no entry"
    assert kept["both"].texts == ("a narwhal",)
    assert run(rows[::-1])[0].keys() == kept.keys()


def test_entries_match_whole_words():
    entries = frozenset({"dog", "hot dog", "new york city", "it's"})
    assert balance.matches("A HOT-DOG in New York City; doggy", entries, 3) == ["dog", "hot dog", "new york city"]
    assert balance.matches("it's underdog", entries, 3) == ["it's"]
    with pytest.raises(PipelineError, match="cannot be read"):
        balance.read_entries("/nowhere")


# shards


BLANK = Image.new("RGB", (8, 8))


def test_shards_are_about_equal_never_empty_and_follow_the_key_alone():
    flags = options(records_per_shard=100, splits="train=0.9,test=0.1")
    rows = [row(f"key {i}", image=BLANK, at=i) for i in range(2000)]

    def run(rows):
        counts: dict = {}
        for one in rows:
            for name in shards.count(one, flags):
                counts[name] = counts.get(name, 0) + 1
        layout = shards.layout(counts, flags)
        return layout, {one.key: shards.assign(one, layout, flags, Notes()) for one in rows}

    layout, placed = run(rows)
    assert run(rows[::-1]) == (layout, placed)
    sizes: dict = {}
    for one in placed.values():
        sizes[one.split, one.shard] = sizes.get((one.split, one.shard), 0) + 1
    assert sorted(sizes) == [(split, i) for split in ("test", "train") for i in range(len(layout[split]))]
    assert len(layout["train"]) in (18, 19) and len(layout["test"]) in (2, 3)
    assert min(sizes.values()) > 60 and max(sizes.values()) <= 110
    _, more = run([*rows, *(row(f"new {i}", image=BLANK) for i in range(500))])
    assert all(more[key].split == one.split for key, one in placed.items())
    few = run(rows[:3])[1]
    assert {one.shard for one in few.values()} == {0}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"splits": "train=2"}, "--splits=train=2"),
        ({"scripts": ("latn",)}, "--scripts=latn is unknown. Did you mean 'latin'"),
        ({"merge": "x"}, "--merge=x is none of"),
        ({"near_duplicates": 99}, "--near_duplicates=99 is not in -1..16"),
        ({"top_fraction": 0.3}, "need --clip_model"),
        ({"clip_model": "/tmp"}, "--clip_model needs --min_score"),
        ({"clip_model": "/nowhere", "min_score": 0.1}, "--clip_model=/nowhere is not there"),
        ({"balance_limit": 3}, "need each other"),
        ({"min_words": -1}, "is negative"),
        ({"same_caption": -3}, "--same_caption=-3 is negative"),
        ({"max_aspect": 0.5}, "--max_aspect=0.5 leaves out every image"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(fields, message):
    with pytest.raises(PipelineError, match=message):
        check(options(**fields))
    with pytest.raises(PipelineError, match="--reader=webdatset is unknown.*webdataset"):
        check(dataclasses.replace(options(), reader="webdatset"))
