"""Tars as people make and break them: joined, unsorted, written over, named in any encoding, with hidden files."""

import gzip
import io
import json
import os
import shutil
import subprocess
import tarfile

import numpy as np
import pytest

from clipjax.data.records import ManifestError, RecordError
from clipjax.data.sources import tar_index
from tests.data.test_webdataset import cause_of, open_tars, samples, tar_info, warnings, write_tar  # noqa: F401

END = 1024  # bytes of an end mark


def pair(key, text, image=b"image"):
    return [(f"{key}.jpg", image), (f"{key}.txt", text.encode())]


def pairs(numbers, size=100):
    return [file for i in numbers for file in pair(f"{i:04d}", f"caption {i}", b"%04d" % i + bytes(size))]


def records(source):
    """key -> (image's first bytes, texts), or the cause of a bad record by number."""
    found = {}
    for i in range(len(source)):
        try:
            record = source[i]
        except RecordError as error:
            found[i] = error.cause
        else:
            found[record["key"]] = (record["image"][:4], record["texts"])
    return found


def bytes_of(tmp_path, files, format=tarfile.PAX_FORMAT, name="part.bin"):
    return write_tar(tmp_path / name, files, format).read_bytes()


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_archives_joined_by_cat_are_read_on_and_told_at_each_start(tmp_path, warnings, format):  # noqa: F811
    parts = [bytes_of(tmp_path, pairs(range(i, i + 3)), format) for i in (0, 3, 6)]
    (tmp_path / "a.tar").write_bytes(b"".join(parts))
    expected = {f"{i:04d}": (b"%04d" % i, [f"caption {i}"]) for i in range(9)}
    for _ in range(2):  # the second time from the saved index
        warnings.clear()
        assert records(open_tars(tmp_path)) == expected
        (line,) = warnings
        assert "a.tar is 3 archives joined into one file, and all of them are read" in line
        assert f"the second one begins at byte {len(parts[0])}" in line
    for between in (b"", bytes(512), bytes(END), bytes(50 * 512)):  # end marks of any length, or none
        whole = parts[0].rstrip(b"\0")
        whole += bytes(-len(whole) % 512) + between + parts[1]
        (tmp_path / "a.tar").write_bytes(whole)
        assert len(records(open_tars(tmp_path))) == 6


def test_joined_archives_with_the_same_keys_keep_their_own_pairs(tmp_path, warnings):  # noqa: F811
    one, other = pair("0", "one", b"1111"), pair("0", "other", b"2222")
    (tmp_path / "a.tar").write_bytes(bytes_of(tmp_path, one) + bytes_of(tmp_path, other))
    source = open_tars(tmp_path)
    assert [(source[i]["image"], source[i]["texts"]) for i in range(2)] == [(b"1111", ["one"]), (b"2222", ["other"])]
    assert not [line for line in warnings if "not sorted" in line]


def test_an_index_of_an_earlier_version_does_not_hide_what_follows(tmp_path):
    first = bytes_of(tmp_path, pairs(range(3)))
    path = tmp_path / "a.tar"
    path.write_bytes(first + bytes_of(tmp_path, pairs(range(3, 6))))
    status = path.stat()
    earlier = [[1, 0], [status.st_size, status.st_mtime_ns], [0, 1100]]
    np.save(tmp_path / "a.tar.clipjax-index.npy", np.array(earlier, np.int64))
    assert len(open_tars(path)) == 6


def test_bytes_after_the_end_are_told_by_place_unless_members_are_lost_in_them(tmp_path, warnings):  # noqa: F811
    tar, path = bytes_of(tmp_path, pairs(range(3))), tmp_path / "a.tar"
    for trailing in (b"x", b"garbage " * 99, bytes(1000) + b"x" * 700):
        path.write_bytes(tar + trailing)
        for _ in range(2):
            warnings.clear()
            assert len(open_tars(path)) == 3
            byte = len(tar + trailing) - len(trailing.lstrip(b"\0"))
            assert [
                line for line in warnings if f"a.tar continues after its end mark: what follows byte {byte} is" in line
            ]
    end = len(tar.rstrip(b"\0")) + -len(tar.rstrip(b"\0")) % 512
    for trailing, message in (
        (b"x" * 512 + tar, f"another member follows at byte {len(tar) + 512}"),
        (b"x" * 100 + tar, f"another member follows at byte {len(tar) + 100}"),
        (gzip.compress(tar), f"byte {len(tar)} begins .* compressed by gzip. Unpack them"),
    ):
        path.write_bytes(tar + trailing)
        with pytest.raises(ManifestError, match=f"a.tar cannot be read: the archive ends at byte {end}, .*{message}"):
            open_tars(path)


def test_a_header_of_zeros_within_a_tar_is_damage_not_its_end(tmp_path):
    path = write_tar(tmp_path / "a.tar", pairs(range(4)))
    sound = path.read_bytes()
    with tarfile.open(path) as tar:
        headers = [member.offset for member in tar]
    for at in headers:
        path.write_bytes(sound[:at] + bytes(512) + sound[at + 512 :])
        with pytest.raises(ManifestError, match=f"the header at byte {at} is overwritten by zeros"):
            open_tars(path)
    hole = headers[3] + 4096 - headers[3] % 512
    path.write_bytes(sound[: headers[3]] + bytes(hole - headers[3]) + b"image data" * 52 + sound[headers[2] :])
    with pytest.raises(ManifestError, match="another member follows"):
        open_tars(path)


def test_a_tar_that_ends_in_many_zeros_or_holds_nothing_is_told(tmp_path, warnings):  # noqa: F811
    tar = bytes_of(tmp_path, pairs(range(3)))
    (tmp_path / "a.tar").write_bytes(tar + bytes(2 << 20))
    (tmp_path / "b.tar").write_bytes(bytes(10240))
    assert len(open_tars(tmp_path)) == 3
    assert [line for line in warnings if "a.tar ends in 21" in line and "not have been copied completely" in line]
    assert [line for line in warnings if "b.tar has no samples" in line]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("folder", ["", "x/" + "l" * 60 + "/" + "m" * 60 + "/"])
def test_names_that_are_not_utf8_keep_their_bytes(tmp_path, format, folder):
    names = [b"caf\xe8".decode("utf-8", "surrogateescape"), b"caf\xe9".decode("utf-8", "surrogateescape"), "café"]
    files = [
        (f"{folder}{names[0]}.jpg", b"e grave"),
        *pair(folder + names[1], "e acute"),
        *pair(folder + names[2], "é"),
    ]
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=format, errors="surrogateescape") as tar:
        for name, content in files:
            tar.addfile(tar_info(name, len(content)), io.BytesIO(content))
    source = open_tars(path)
    assert len(source) == 3 and cause_of(source, 0) == "no caption"
    keys = [source[i]["key"] for i in (1, 2)]
    assert keys == [folder + "caf\\xe9", folder + "café"]
    json.dumps(keys, ensure_ascii=False).encode("utf-8")
    assert [source[i]["texts"] for i in (1, 2)] == [["e acute"], ["é"]]
    with pytest.raises(RecordError, match=r"caf\\xe8' has \.jpg"):
        source[0]


def test_a_tar_that_was_written_over_gives_no_wrong_pair(tmp_path):
    old = write_tar(tmp_path / "old.tar", pairs(range(120), 20))
    path = tmp_path / "a.tar"
    shutil.copy(old, path)
    source = open_tars(path)
    true = {f"{i:04d}": (b"%04d" % i, [f"caption {i}"]) for i in range(240)}
    good = bad = 0
    rng = np.random.default_rng(0)
    for shift in range(12):
        # Other samples, other sizes, one file fewer or more: much then lies where other samples' files were.
        files = [file for i in rng.permutation(240)[:120] for file in pairs([i], int(rng.integers(1, 600)))]
        files = files[1:] if shift % 2 else files + [("last.txt", b"x")]
        with open(path, "r+b") as file:
            file.write(bytes_of(tmp_path, files)[: path.stat().st_size])
        for i in range(len(source)):
            try:
                record = source[i]
            except RecordError as error:
                assert error.cause in ("changed tar", "unreadable record", "corrupt record", "no image", "no caption")
                bad += 1
            else:
                assert true[record["key"]] == (record["image"][:4], record["texts"])
                good += 1
    assert bad > 1000


def test_files_of_several_keys_in_the_place_of_a_sample_are_no_record(tmp_path):
    path = write_tar(tmp_path / "a.tar", pair("0", "zero") + pair("1", "one"))
    source = open_tars(path)
    for files in (
        [("0.jpg", b"other"), ("1.txt", b"of 1")],  # one key each
        [("1.jpg", b"other"), ("1.txt", b"of 1")],  # another key
        [("0.jpg", b"image"), ("1.jpg", b"x")],
    ):
        write_tar(path, files + pair("1", "one"))
        with pytest.raises(
            RecordError, match=r"a\.tar has files of .* not the sample that its index has there.*Start ag"
        ):
            source[0]
        assert source[1]["texts"] == ["one"]


def test_a_tar_of_the_same_size_and_time_is_indexed_again_where_its_samples_moved(tmp_path, warnings):  # noqa: F811
    path = write_tar(tmp_path / "a.tar", pairs(range(9)))
    status = path.stat()
    open_tars(path)
    for files in (pairs(range(1, 10)), [*pairs([0], 900), *pairs(range(1, 9))], pairs(range(8))):
        write_tar(path, files)
        os.truncate(path, status.st_size)
        os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))
        warnings.clear()
        assert list(records(open_tars(path))) == [name.removesuffix(".jpg") for name, _ in files[::2]]
        assert [line for line in warnings if "a.tar has other samples than its index" in line]


def test_an_unsorted_tar_is_refused_with_the_way_to_sort_it(tmp_path):
    files = pairs(range(20))
    path = write_tar(tmp_path / "a.tar", files[::2] + files[1::2])
    write_tar(tmp_path / "b.tar", files[::2] + files[1::2])
    for _ in range(2):
        with pytest.raises(ManifestError) as caught:
            open_tars(tmp_path)
        message = str(caught.value)
        assert "a.tar is not sorted: the files of 20 of its keys do not follow one another" in message
        assert "The first is '0000', with files at byte 0 and at byte 20480." in message
        assert "1 other tars are unsorted, too" in message and "tar --sort=name -cf sorted-a.tar" in message
    if shutil.which("tar") and b"GNU" in subprocess.run(["tar", "--version"], capture_output=True, check=True).stdout:
        for command in message.splitlines()[1:]:
            subprocess.run(command, shell=True, check=True, cwd=tmp_path)
        source = open_tars(tmp_path / "sorted-a.tar")
        assert [source[i]["texts"] for i in range(20)] == [[f"caption {i}"] for i in range(20)]
        assert path.exists()


@pytest.mark.parametrize(
    "runs",
    [
        [("{}.jpg", "{}.cls"), ("{}.txt",)],
        [("{}.json",), ("{}.txt",), ("{}.png",)],
        [("{}.raw",), ("{}.txt",)],  # an image_key of the user's own
        [("{}.jpg", "{}.json"), ("{}.json", "{}.txt")],
    ],
)
def test_any_order_in_which_keys_are_apart_is_told(tmp_path, runs):
    names = [name.format(i) for kinds in runs for i in range(5) for name in kinds]
    with pytest.raises(ManifestError, match="the files of 5 of its keys"):
        open_tars(write_tar(tmp_path / "a.tar", [(name, b"1") for name in names]))


def test_few_keys_apart_are_a_warning_and_duplicates_are_none(tmp_path, warnings):  # noqa: F811
    write_tar(tmp_path / "a.tar", [*pairs(range(300)), ("0007.json", b"{}")])
    source = open_tars(tmp_path)
    assert len(source) == 301 and cause_of(source, 300) == "no image"
    assert [line for line in warnings if "1 of its keys" in line and "The first is '0007'" in line]
    warnings.clear()
    # The same samples twice in one tar, and in two tars.
    write_tar(tmp_path / "a.tar", pairs([*range(9), *range(9)]))
    write_tar(tmp_path / "b.tar", pairs(range(9)))
    assert len(open_tars(tmp_path)) == 27
    assert not [line for line in warnings if "not sorted" in line]


def test_the_message_of_an_unsorted_tar_is_that_of_its_joined_parts_too(tmp_path):
    images, texts = pairs(range(9))[::2], pairs(range(9))[1::2]
    (tmp_path / "a.tar").write_bytes(bytes_of(tmp_path, images) + bytes_of(tmp_path, texts))
    with pytest.raises(ManifestError, match="the files of 9 of its keys"):
        open_tars(tmp_path)
    # One sample, whose caption is in the other archive.
    (tmp_path / "a.tar").write_bytes(bytes_of(tmp_path, images[:1]) + bytes_of(tmp_path, texts[:1]))
    with pytest.raises(ManifestError, match="the files of 1 of its keys"):
        open_tars(tmp_path)


def test_the_extension_is_all_that_follows_the_first_dot_in_any_letter_case(tmp_path):
    files = [
        ("a/x.JPG", b"image"), ("a/x.Seg.PNG", b"mask"), ("a/x.en.txt", b"english\n"), ("a/x.de.TXT", b"deutsch"),
        ("a/x.meta.json", b'{"alt": ["one", "two"], "caption": "of meta"}'), ("a/x.json", b'{"caption": "of json"}'),
        ("a/x.list.json", b'["first", "second"]'), ("a/x.caption", b"of file"),
    ]  # fmt: skip
    path = write_tar(tmp_path / "a.tar", files)

    def texts(text_key):
        return open_tars(path, text_key=text_key)[0]["texts"]

    assert texts("en.txt") == texts(".en.txt") == texts("EN.TXT") == ["english"]
    assert texts("de.txt,en.txt") == ["deutsch", "english"]
    assert texts("meta.json/alt") == ["one", "two"] and texts("meta.json") == ["of meta"]
    assert texts("list.json") == ["first", "second"]
    assert texts("caption") == ["of json"] == texts("")
    for key, image in (("seg.png", b"mask"), ("SEG.png", b"mask"), (".jpg", b"image"), ("", b"image")):
        assert open_tars(path, image_key=key)[0]["image"] == image
    write_tar(tmp_path / "b.tar", [*pair("0", "zero"), ("0.Kind.CLS", b"3")])
    for key in ("kind.cls", ".kind.cls", "KIND.cls"):
        assert open_tars(tmp_path / "b.tar", label_key=key)[0]["label"] == 3
    for key in ("jpeg,jpg", "jpeg;jpg"):
        assert open_tars(path, image_key=key)[0]["image"] == b"image"


@pytest.mark.parametrize("name", ["caption", "jpg.txt", "JPG.TXT", "png.txt", "Caption", "jpg.caption", "txt", "TXT"])
def test_caption_files_of_other_names_are_captions_by_default(tmp_path, name):
    files = [("0.jpg", b"x"), (f"0.{name}", b"a caption\n")]
    path = write_tar(tmp_path / "a.tar", files)
    assert open_tars(path)[0]["texts"] == ["a caption"]
    # What came first before still does.
    write_tar(path, [*files, ("0.json", b'{"caption": "of the json"}')])
    assert open_tars(path)[0]["texts"] == (["a caption"] if name.lower() == "txt" else ["of the json"])


def test_what_is_not_read_by_default_is_named_with_the_option_that_reads_it(tmp_path):
    files = [("0.v2.jpg", b"x"), ("0.txt", b"a"), ("1.jpg", b"x"), ("1.en.txt", b"a"), ("2.png", b"x"), ("2.txt", b"a")]
    source = open_tars(write_tar(tmp_path / "a.tar", files))
    with pytest.raises(RecordError, match=r"To read the \.v2\.jpg, set image_key='v2\.jpg'"):
        source[0]
    with pytest.raises(RecordError, match=r"To read the \.en\.txt, set text_key='en\.txt'"):
        source[1]
    with pytest.raises(RecordError, match=r"none of them \.raw\. To read the \.png, set image_key='png'"):
        open_tars(tmp_path, image_key="raw")[2]
    with pytest.raises(RecordError, match=r"To read the \.txt, set text_key='txt'"):
        open_tars(tmp_path, text_key="title")[2]


HIDDEN = (".ipynb_checkpoints/0", "__MACOSX/0", "__MACOSX/._0", "._0", "a/._0", "a/.ipynb_checkpoints/0", ".x/y/0",
          "__meta__/0", "Thumbs.db/0", "@eaDir/0")  # fmt: skip


def test_hidden_members_are_no_samples_and_do_not_part_those_they_lie_in(tmp_path, warnings):  # noqa: F811
    files = []
    for key in ("0", "a/1", "./2", "./a/3"):
        image, text = pair(key, f"caption of {key}")
        hidden = [file for name in HIDDEN for file in pair(name, "hidden")]
        files += [*hidden, image, *hidden, text]
    source = open_tars(write_tar(tmp_path / "a.tar", [*files, (".DS_Store", b"x"), ("a/Thumbs.db", b"x")]))
    assert [(source[i]["key"], source[i]["texts"]) for i in range(len(source))] == [
        (key, [f"caption of {key}"]) for key in ("0", "a/1", "./2", "./a/3")
    ]
    assert not warnings


def test_odd_tars_have_the_samples_of_the_webdataset_package(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    odd = b"caf\xe9".decode("utf-8", "surrogateescape")
    files = [
        *pair("./a/0", "zero"), *pair("b.c/0", "one"), ("2.JPG", b"x"), ("2.Txt", b"two"), ("2.seg.PNG", b"m"),
        ("__meta__", b"x"), ("__meta__/3.jpg", b"x"), ("README", b"x"), *pair(odd, "four"), *pair("größe", "five"),
        ("6.a.b.c.jpg", b"x"), ("6.txt", b"six"), *pair("l" * 120 + "/" + "m" * 150, "long"), *pair("7 8", "spaces"),
        tar_info("folder.jpg", kind=tarfile.DIRTYPE), *pair("2", "again"), *pair("9\n", "line end"),
    ]  # fmt: skip
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", errors="surrogateescape") as tar:
        for entry in files:
            name, content = (entry, None) if isinstance(entry, tarfile.TarInfo) else entry
            info = name if content is None else tar_info(name, len(content))
            tar.addfile(info, io.BytesIO(content or b""))
    ours = open_tars(path, image_key="jpg,a.b.c.jpg")
    theirs = list(webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False))
    assert [sample["__key__"].replace("\udce9", "\\xe9") for sample in theirs] == [
        ours[i]["key"] for i in range(len(ours))
    ]
    for i, sample in enumerate(theirs):
        image = sample.get("jpg", sample.get("a.b.c.jpg"))
        assert (ours[i]["image"], ours[i]["texts"]) == (image, [sample["txt"].decode()])


def test_compressed_tars_and_tars_in_subfolders_are_told(tmp_path, warnings):  # noqa: F811
    (tmp_path / "sub").mkdir()
    write_tar(tmp_path / "sub/b.tar", pairs([1]))
    (tmp_path / "c.tar.gz").write_bytes(gzip.compress(b"x"))
    with pytest.raises(ManifestError, match="no .tar file, but 1 like .*c.tar.gz and 1 like .*sub/b.tar"):
        open_tars(tmp_path)
    write_tar(tmp_path / "a.tar", pairs([0]))
    assert len(open_tars(tmp_path)) == 1
    assert any("Not read in" in line and "c.tar.gz" in line and "sub/b.tar" in line for line in warnings)


@pytest.mark.parametrize("names", [("cc3m-train-0000", "cc3m-Validation-0000"), ("train0", "validation0")])
def test_a_split_may_be_a_word_within_the_names(tmp_path, warnings, names):  # noqa: F811
    for number, name in enumerate((*names, "extra")):
        write_tar(tmp_path / f"{name}.tar", pairs([number]))
    assert [open_tars(tmp_path, split=split).files for split in ("train", "validation")] == [
        [str(tmp_path / f"{name}.tar")] for name in names
    ]
    assert len([line for line in warnings if "such as extra.tar, are not read" in line]) == 2
    with pytest.raises(ManifestError, match="named after the split 'val'.*train, validation"):
        open_tars(tmp_path, split="val")
    (tmp_path / f"{names[0]}.tar").unlink()
    with pytest.raises(ManifestError, match="named after the split 'train'.*validation"):
        open_tars(tmp_path)


def test_a_tar_that_grows_while_it_is_indexed_is_refused(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "a.tar", samples(range(3)))
    index_tar = tar_index.index_tar

    def grow(file):
        index = index_tar(file)
        with open(path, "ab") as more:
            more.write(bytes(512))
        return index

    monkeypatch.setattr(tar_index, "index_tar", grow)
    with pytest.raises(ManifestError, match="its size changed while it was indexed"):
        open_tars(path)
