"""On a tree of four small packages made here, laid out as the published ones are."""

import colorsys
import io
import json
import tarfile

import pytest
from PIL import Image

from clipjax.config import SourceConfig
from clipjax.data.sources import open_source
from data_pipelines import emoji, emoji_packages
from data_pipelines.command import PipelineError
from data_pipelines.emoji_packages import STYLES

# code, name, name in emoji.json, fluentui's file name ("" for none)
CHARACTERS = (
    ("1F600", "grinning face", "GRINNING FACE", "grinning-face"),
    ("2764-FE0F", "red heart", "HEAVY BLACK HEART", "red-heart"),
    ("1F44B", "waving hand", "WAVING HAND SIGN", "waving-hand-default"),
    ("002A-FE0F-20E3", "keycap: *", "KEYCAP: *", "keycap-asterisk"),
    ("1F480", "skull", "SKULL", "skull"),
    ("1F6F8", "flying saucer", "FLYING SAUCER", "flying-saucer"),
    ("1F9DD", "elf", "ELF", "person-elf-default"),
    ("1F1F3-1F1F4", "flag: Norway", "Norway Flag", ""),
    ("1F1F8-1F1EF", "flag: Svalbard & Jan Mayen", "Svalbard & Jan Mayen Flag", ""),
)
NOT_IN_TWITTER = "flying saucer"
SAME_IN_TWITTER = {"flag: Norway", "flag: Svalbard & Jan Mayen"}


def png(number: int) -> bytes:
    colour = tuple(int(255 * c) for c in colorsys.hsv_to_rgb(number / 40, 1, 1))
    buffer = io.BytesIO()
    Image.new("RGBA", (64, 64), (*colour, 255)).save(buffer, "PNG")
    return buffer.getvalue()


def svg(number: int) -> bytes:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72"><path d="M9 9h{number + 5}v9z"/></svg>'.encode()
    )


def datasource(vendor: str) -> dict[str, bytes]:
    entries, files = [], {}
    for number, (code, name, old_name, _) in enumerate(CHARACTERS):
        image = code.lower() + ".png"
        has = {f"has_img_{vendor}": not (vendor == "twitter" and name == NOT_IN_TWITTER)}
        entry = {"unified": code, "image": image, "name": old_name, "category": "Smileys & Emotion"}
        entry |= {"subcategory": "face-smiling", **has}
        files[f"img/{vendor}/64/{image}"] = png(30 if vendor == "twitter" and name in SAME_IN_TWITTER else number)
        if name == "waving hand":
            toned = {"unified": f"{code}-1F3FF", "image": "1f44b-1f3ff.png", **has}
            entry["skin_variations"] = {"1F3FF": toned}
            files[f"img/{vendor}/64/1f44b-1f3ff.png"] = png(20)
        entries.append(entry)
    if vendor == "google":
        files["img/google/64/1f480.png"] = files["img/google/64/1f480.png"][:60]
    readme = {v: STYLES[v].evidence[1] for v in ("google", "twitter")}
    return files | {"emoji.json": json.dumps(entries).encode(), "README.md": f"* {readme[vendor]}.".encode()}


def openmoji() -> dict[str, bytes]:
    entries, files = [], {}
    listed = [(code.replace("2764-FE0F", "2764"), name, 1 + i) for i, (code, name, _, _) in enumerate(CHARACTERS)]
    for number, (code, name, order) in enumerate([*listed, ("E000", "goldfish", ""), ("1F44B-1F3FF", "", 99)]):
        tone = code.endswith("1F3FF")
        entries.append(
            {
                "hexcode": code,
                "annotation": "waving hand: dark skin tone" if tone else name,
                "tags": "" if tone else f"{name}, tag {number}",
                "openmoji_tags": "more",
                "group": "extras-openmoji" if code == "E000" else "people",
                "subgroups": "animals-nature",
                "skintone": 5 if tone else "",
                "skintone_base_hexcode": "1F44B" if tone else "",
                "order": order,
            }
        )
        files[f"color/svg/{code}.svg"] = svg(number)
    return files | {
        "data/openmoji.json": json.dumps(entries).encode(),
        "LICENSE.txt": STYLES["openmoji"].evidence[1].encode(),
    }


def fluentui() -> dict[str, bytes]:
    names = [name for *_, name in CHARACTERS if name] + ["waving-hand-dark", "no-such-thing"]
    return {f"icons/flat/{name}.svg": svg(number) for number, name in enumerate(names)} | {"LICENSE": b"MIT Licence?"}


@pytest.fixture
def packages(tmp_path):
    """google as a tarball, the others unpacked."""
    folder = tmp_path / "packages"
    contents = {"google": datasource("google"), "twitter": datasource("twitter")}
    contents |= {"openmoji": openmoji(), "fluentui": fluentui()}
    for style, files in contents.items():
        package = STYLES[style]
        about = {"package.json": json.dumps({"version": package.version}).encode()}
        root = folder / package.name
        for path, content in (files | about).items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(content)
    google = STYLES["google"]
    with tarfile.open(folder / f"{google.name}-{google.version}.tgz", "w:gz") as tar:
        tar.add(folder / google.name, "package")
    (folder / google.name / "package.json").unlink()
    return folder


@pytest.fixture
def cairosvg():
    try:
        import cairosvg
    except (ImportError, OSError) as error:
        pytest.skip(f"CairoSVG does not work here: {error}")
    return cairosvg


def read(folder, split) -> dict[str, dict]:
    source = open_source(SourceConfig(path=str(folder), split=split))
    return {record["key"]: record for record in (source[i] for i in range(len(source)))}


def test_styles_are_joined_by_code_and_name_and_the_held_out_one_is_in_test_alone(packages, tmp_path, cairosvg):
    manifest = emoji.build(tmp_path / "out", packages=packages)
    train, test = read(tmp_path / "out", "train"), read(tmp_path / "out", "test")
    if manifest["splits"]["validation"]["records"]:
        train |= read(tmp_path / "out", "validation")
    names = manifest["class_names"]

    assert names == [name for _, name, _, _ in CHARACTERS if name != NOT_IN_TWITTER]
    assert {key.split("/")[0] for key in test} == {"twitter"}
    assert {key.split("/")[0] for key in train} == {"google", "openmoji", "fluentui"}
    assert sorted(names[record["label"]] for record in test.values()) == sorted(names)
    for record in [*train.values(), *test.values()]:
        if record["label"] >= 0:
            assert names[record["label"]] == record["texts"][0] and record["label"] == record["pair_id"]
    for style in ("google", "openmoji", "fluentui"):
        assert train[f"{style}/2764"]["texts"][0] == "red heart"
        assert train[f"{style}/002A-20E3"]["texts"][0] == "keycap: *"
        assert train[f"{style}/1F6F8"]["label"] == -1
    assert train["openmoji/E000"]["texts"][0] == "goldfish" and train["openmoji/E000"]["label"] == -1
    assert "heavy black heart" in train["google/2764"]["texts"]
    assert "red heart: tag 1, more" in train["google/2764"]["texts"]


def test_everything_left_out_is_counted_by_cause(packages, tmp_path, cairosvg):
    manifest = emoji.build(tmp_path / "out", packages=packages)
    assert manifest["skipped"] == {
        "fluentui: file name is no emoji's name": 1,
        "fluentui: skin tone variant": 1,
        "google: drawing unreadable": 1,
        "google: skin tone variant": 1,
        "openmoji: skin tone variant": 1,
        "twitter: skin tone variant": 1,
    }


def test_report_says_what_no_model_can_tell_apart(packages, tmp_path, cairosvg, capsys):
    emoji.build(tmp_path / "out", packages=packages)
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert [set(group) for group in report["test_names_with_the_same_picture"]] == [SAME_IN_TWITTER]
    assert report["class_names_in_style"] == {"google": 8, "openmoji": 8, "fluentui": 6}
    assert "top-1 on test is at most 87.5%" in capsys.readouterr().out


def test_skin_tones_get_names_of_their_own(packages, tmp_path, cairosvg):
    manifest = emoji.build(tmp_path / "out", packages=packages, skin_tones=True)
    label = manifest["class_names"].index("waving hand: dark skin tone")
    records = read(tmp_path / "out", "train") | read(tmp_path / "out", "test")
    if manifest["splits"]["validation"]["records"]:
        records |= read(tmp_path / "out", "validation")
    keys = {key for key, record in records.items() if record["label"] == label}
    assert keys == {f"{style}/1F44B-1F3FF" for style in STYLES}


def test_licences_come_with_the_words_that_grant_them(packages, tmp_path, cairosvg, caplog):
    manifest = emoji.build(tmp_path / "out", packages=packages)
    licences = {entry["source"].split(",")[0]: entry for entry in manifest["licences"]}
    assert licences["Twemoji"]["licence"] == "CC-BY-4.0"
    assert "Creative Commons Attribution 4.0" in licences["Twemoji"]["evidence"]
    # The fixture's fluentui has other words than the MIT licence's.
    assert licences["Fluent Emoji (flat)"]["evidence"] == "not found in the package"
    assert "check its licence" in caplog.text


def test_svg_is_drawn_at_64_pixels_with_its_transparency(packages, tmp_path, cairosvg):
    emoji.build(tmp_path / "out", packages=packages)
    with Image.open(io.BytesIO(read(tmp_path / "out", "train")["openmoji/E000"]["image"])) as image:
        assert (image.format, image.size, image.mode) == ("PNG", (64, 64), "RGBA")
        assert image.getpixel((0, 0))[3] == 0


def test_second_run_leaves_the_records_and_another_held_out_style_moves_the_split(packages, tmp_path, cairosvg):
    first = emoji.build(tmp_path / "out", packages=packages)
    assert emoji.build(tmp_path / "out", packages=packages) == first
    emoji.build(tmp_path / "out", packages=packages, held_out="openmoji", overwrite=True)
    assert {key.split("/")[0] for key in read(tmp_path / "out", "test")} == {"openmoji"}
    assert "openmoji/E000" not in read(tmp_path / "out", "test")


def test_held_out_names_are_in_no_other_split(packages, tmp_path, cairosvg):
    whole = emoji.build(tmp_path / "whole", packages=packages)
    manifest = emoji.build(tmp_path / "out", packages=packages, held_out_names=0.5)
    split_names = {
        split: {record["texts"][0] for record in read(tmp_path / "out", split).values()}
        for split, about in manifest["splits"].items()
        if about["records"]
    }
    assert split_names["names"] == split_names["names_and_style"] == {"elf", "keycap: *"}
    assert not split_names["names"] & set().union(*(split_names.get(s, set()) for s in ("train", "validation", "test")))
    assert {key.split("/")[0] for key in read(tmp_path / "out", "names_and_style")} == {"twitter"}
    assert "twitter" not in {key.split("/")[0] for key in read(tmp_path / "out", "names")}
    records = [sum(about["records"] for about in m["splits"].values()) for m in (whole, manifest)]
    assert records[0] == records[1] and manifest["class_names"] == whole["class_names"]
    with pytest.raises(PipelineError, match="--held_out_names=1 is not a share"):
        emoji.build(tmp_path / "out", packages=packages, held_out_names=1)


def test_a_missing_package_without_npm_is_an_error_that_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(emoji_packages.shutil, "which", lambda name: None)
    with pytest.raises(PipelineError, match="npm pack emoji-datasource-google@16.0.0"):
        emoji.build(tmp_path / "out", packages=tmp_path)


def test_a_failing_npm_is_quoted_and_leaves_no_file(tmp_path, monkeypatch):
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error 404 no such package' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setattr(emoji_packages.shutil, "which", lambda name: str(npm))
    with pytest.raises(PipelineError, match="404 no such package"):
        emoji.build(tmp_path / "out", packages=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_damaged_tarball_is_named(packages, tmp_path):
    tarball = packages / "emoji-datasource-google-16.0.0.tgz"
    tarball.write_bytes(tarball.read_bytes()[:500])
    with pytest.raises(PipelineError, match="emoji-datasource-google-16.0.0.tgz is damaged"):
        emoji.build(tmp_path / "out", packages=packages)


def test_unknown_style_is_refused(tmp_path):
    with pytest.raises(PipelineError, match="google, openmoji, fluentui, twitter"):
        emoji.build(tmp_path / "out", held_out="apple")
