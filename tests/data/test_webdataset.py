"""WebDataset tars are read where they lie: as tarfile reads them, without trusting what is in them."""

import gzip
import io
import json
import logging
import os
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from clipjax.config import DataConfig
from clipjax.data.records import ManifestError, RecordError
from clipjax.data.sources import WebDatasetConfig, open_source, tar_format, tar_index
from tests.data.samples import FORMATS, encoded, example, picture
from tests.data.test_pipeline import stream

EXTENSIONS = ("jpg", "png", "webp")
LONG = "/".join(["a long folder"] * 12)  # more than the 100 characters of a plain header


def tar_info(name, size=0, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info


def write_tar(path, files, format=tarfile.PAX_FORMAT):
    """files: (name, content) pairs, or TarInfo for what is no file."""
    with tarfile.open(path, "w", format=format) as tar:
        for entry in files:
            if isinstance(entry, tarfile.TarInfo):
                tar.addfile(entry)
            else:
                name, content = entry
                tar.addfile(tar_info(name, len(content)), io.BytesIO(content))
    return path


def sample(i, folder=""):
    """Files of record i: every third has its captions in a .json."""
    image = encoded(picture(i), FORMATS[i % 3])
    texts = example(i)["texts"]
    caption = (f"{i:06d}.json", json.dumps({"caption": texts}).encode()) if i % 3 == 2 else None
    files = [(f"{i:06d}.{EXTENSIONS[i % 3]}", image), caption or (f"{i:06d}.txt", texts[0].encode())]
    return [(folder + name, content) for name, content in files]


def samples(numbers, folder=""):
    return [file for i in numbers for file in sample(i, folder)]


def open_tars(path, **changes):
    return open_source(WebDatasetConfig(path=str(path), **changes))


def cause_of(source, index):
    with pytest.raises(RecordError) as caught:
        source[index]
    return caught.value.cause


@pytest.fixture
def warnings(monkeypatch):
    lines = []
    monkeypatch.setattr(logging.getLogger("absl"), "handle", lambda record: lines.append(record.getMessage()))
    return lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tars")
    for shard in range(3):
        write_tar(folder / f"{shard:05d}.tar", samples(range(shard * 10, shard * 10 + 10)))
    return folder


def test_samples_of_several_tars_are_records_in_order_with_their_places(folder):
    source = open_tars(folder)
    assert len(source) == 30
    for i in (0, 1, 2, 9, 10, 29, 17):
        texts = example(i)["texts"]
        expected = {"key": f"{i:06d}", "texts": texts if i % 3 == 2 else texts[:1], "label": -1, "pair_id": -1}
        assert source[i] == {**expected, "image": example(i)["image"]}
    assert source.where(23) == (str(folder / "00002.tar"), 3)
    for beyond in (-1, 30):
        with pytest.raises(IndexError):
            source[beyond]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_byte_is_tarfiles_in_all_formats_with_long_and_foreign_names(tmp_path, format):
    long = LONG if format != tarfile.USTAR_FORMAT else "a" * 80 + "/" + "b" * 60
    files = [
        ("./x/0.jpg", b"a" * 511), ("./x/0.txt", b"one"), (f"{long}/1.png", b"b" * 512), (f"{long}/1.txt", b"two"),
        (f"{long}/größe.tar.webp", b"c" * 513), (f"{long}/größe.txt", b"three"), ("empty.jpg", b""),
        ("empty.txt", b"four"), ("dots.v1.jpg", b"d"), ("dots.v1.txt", b"five"), ("x.y/2.jpeg", b"e"),
        ("x.y/2.txt", b"six"),
    ]  # fmt: skip
    path = write_tar(tmp_path / "0.tar", files, format)
    with tarfile.open(path) as tar, open(path, "rb") as file:
        expected = [(m.name, m.offset, m.offset_data, m.size) for m in tar]
        found = [(m.name, m.header, m.data, m.size) for m in tar_format.members(file, path.stat().st_size)]
    assert found == expected
    source = open_tars(path)
    assert [len(source), source[0]["image"], source[1]["image"]] == [6, b"a" * 511, b"b" * 512]
    assert [source[i]["texts"] for i in (0, 1, 3, 5)] == [["one"], ["two"], ["four"], ["six"]]
    assert source[1]["key"] == f"{long}/1" and source[5]["key"] == "x.y/2"
    # "größe" and "dots" end at their first dot; what is left, "tar.webp" and "v1.jpg", is no image's extension.
    assert cause_of(source, 2) == cause_of(source, 4) == "no image"


def test_samples_are_those_of_the_webdataset_package(folder):
    webdataset = pytest.importorskip("webdataset")
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    theirs = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    ours = open_tars(folder)
    assert [s["__key__"] for s in theirs] == [ours[i]["key"] for i in range(len(ours))]
    for i, s in enumerate(theirs):
        image = next(s[name] for name in EXTENSIONS if name in s)
        texts = [s["txt"].decode()] if "txt" in s else json.loads(s["json"])["caption"]
        assert (ours[i]["image"], ours[i]["texts"]) == (image, texts)


def test_a_tar_is_indexed_once_and_again_when_it_has_changed(tmp_path, monkeypatch):
    calls = []
    original = tar_index.index_tar
    monkeypatch.setattr(tar_index, "index_tar", lambda file: calls.append(file.name) or original(file))
    path = write_tar(tmp_path / "0.tar", samples(range(5)))
    assert len(open_tars(tmp_path)) == len(open_tars(tmp_path)) == 5
    assert len(calls) == 1 and (tmp_path / "0.tar.clipjax-index.npy").exists()
    write_tar(path, samples(range(7)))
    assert len(open_tars(tmp_path)) == 7
    # Of the same size, written later.
    same_size = write_tar(path, samples([*range(6), 3]))
    os.utime(same_size, ns=(1, 2))
    assert open_tars(tmp_path)[6]["key"] == "000003"
    assert len(calls) == 3


@pytest.mark.parametrize("damage", [lambda d: d[:-7], lambda d: b"", lambda d: d[:200] + b"\xff" * 8 + d[208:]])
def test_a_damaged_index_is_made_again(tmp_path, damage):
    write_tar(tmp_path / "0.tar", samples(range(5)))
    open_tars(tmp_path)
    index = tmp_path / "0.tar.clipjax-index.npy"
    index.write_bytes(damage(index.read_bytes()))
    source = open_tars(tmp_path)
    assert [source[i]["key"] for i in range(5)] == [f"{i:06d}" for i in range(5)]


def test_an_index_that_claims_more_than_memory_is_made_again(tmp_path):
    write_tar(tmp_path / "0.tar", samples(range(5)))
    open_tars(tmp_path)
    index = tmp_path / "0.tar.clipjax-index.npy"
    index.write_bytes(index.read_bytes().replace(b"(9, 3), }" + b" " * 17, b"(9999999999999999, 3), }  "))
    assert b"9999999999999999" in index.read_bytes()
    assert len(open_tars(tmp_path)) == 5
    assert b"9999999999999999" not in index.read_bytes()


def test_each_process_indexes_in_an_order_of_its_own_and_a_long_wait_is_told(tmp_path, monkeypatch, warnings):
    for shard in range(20):
        write_tar(tmp_path / f"{shard:02d}.tar", samples([shard]))
    calls, original = [], tar_index.index_tar
    monkeypatch.setattr(tar_index, "index_tar", lambda file: calls.append(file.name) or original(file))
    monkeypatch.setattr("clipjax.data.sources.webdataset.PROGRESS_SECONDS", -1)
    monkeypatch.setattr("clipjax.data.sources.webdataset.INDEXING_THREADS", 1)
    source = open_tars(tmp_path)
    assert [source[i]["key"] for i in range(20)] == [f"{i:06d}" for i in range(20)]
    assert len(calls) == 20 and calls != sorted(calls)
    assert any("20 of 20" in line for line in warnings)


def test_an_index_holds_no_pickle(tmp_path):
    write_tar(tmp_path / "0.tar", samples(range(5)))
    np.save(tmp_path / "0.tar.clipjax-index.npy", np.array([print, {}], object), allow_pickle=True)
    assert len(open_tars(tmp_path)) == 5


def test_indexes_of_a_folder_that_cannot_be_written_are_kept_in_memory_with_one_line(tmp_path, monkeypatch, warnings):
    for shard in range(3):
        write_tar(tmp_path / f"{shard}.tar", samples(range(4)))

    def read_only(path):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(tar_index, "replacing", read_only)
    source = open_tars(tmp_path)
    assert len(source) == 12 and source[11]["key"] == "000003"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.tar", "1.tar", "2.tar"]
    assert len([line for line in warnings if "Indexes cannot be kept" in line and "Read-only" in line]) == 1
    monkeypatch.undo()
    assert len(open_tars(tmp_path, data_dir=str(tmp_path / "kept"))) == 12
    assert len(list((tmp_path / "kept").iterdir())) == 3 and len(list(tmp_path.glob("*.npy"))) == 0


def test_threads_and_a_pickled_copy_read_the_same_with_few_files_open(tmp_path, monkeypatch):
    monkeypatch.setattr("clipjax.data.sources.local_files.MAX_OPEN", 2)
    for shard in range(8):
        write_tar(tmp_path / f"{shard}.tar", samples([shard]))
    source = pickle.loads(pickle.dumps(open_tars(tmp_path)))
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda i: source[i * 5 % 8]["key"], range(800)))
    assert keys == [f"{i * 5 % 8:06d}" for i in range(800)]
    assert len(source.open_files.files) == 2


def test_members_that_climb_out_links_and_devices_are_refused_and_counted(tmp_path, warnings):
    good = samples(range(2))
    files = [
        *good[:2], ("/etc/0.jpg", b"x"), ("../1.jpg", b"x"), ("a/../../2.jpg", b"x"),
        tar_info("3.jpg", kind=tarfile.SYMTYPE, link="/etc/passwd"),
        tar_info("4.jpg", kind=tarfile.LNKTYPE, link="000000.jpg"), tar_info("5.jpg", kind=tarfile.CHRTYPE),
        tar_info("6.jpg", kind=tarfile.FIFOTYPE), tar_info("folder.jpg", kind=tarfile.DIRTYPE),
        # Within a sample: the image is a link.
        tar_info("7.jpg", kind=tarfile.SYMTYPE, link="/etc/passwd"), ("7.txt", b"root"), *good[2:],
    ]  # fmt: skip
    source = open_tars(write_tar(tmp_path / "0.tar", files))
    assert source.refused == 8
    assert [source[0]["key"], source[2]["key"], len(source)] == ["000000", "000001", 3]
    assert cause_of(source, 1) == "no image"
    lines = [line for line in warnings if "are not read" in line]
    assert len(lines) == 1 and lines[0].startswith("8 files in the tars of") and "0.tar" in lines[0]
    assert open_tars(tmp_path).refused == 8, "from the saved index, too"


def test_what_is_no_sample_is_left_out_as_webdataset_does(tmp_path):
    files = [("__meta__", b"x"), ("README", b"x"), (".hidden", b"x"), *samples([0])]
    source = open_tars(write_tar(tmp_path / "0.tar", files))
    assert [len(source), source[0]["key"]] == [1, "000000"]


def test_samples_without_image_or_caption_are_bad_records_by_cause(tmp_path):
    image = encoded(picture(0))
    files = [
        ("0.txt", b"no image"), ("1.png", image), ("2.png", image), ("2.txt", b" \n"), ("3.png", image),
        ("3.txt", b"caf\xe9"), ("4.png", image), ("4.json", b"{"), ("5.png", image), ("5.json", b'["caption"]'),
        ("6.png", image), ("6.json", b'{"caption": 3, "text": ""}'), ("7.png", image), ("7.png", image),
        ("8.png", image), ("8.txt", b"x" * (1 << 20 | 1)), ("9.png", image), ("9.json", b"[" * 100_000),
        ("10.png", image), ("10.json", b'{"caption": "\xff"}'), ("11.png", image), ("11.txt", b"\xef\xbb\xbfgood\n"),
        ("12.png", image), ("12.cls", b"cat"), ("13.png", image), ("13.cls", b"99999999999"),
    ]  # fmt: skip
    source = open_tars(write_tar(tmp_path / "0.tar", files))
    causes = ["no image", "no caption", "no caption", "not UTF-8", "corrupt record", "no caption", "no caption",
              "corrupt record", "caption too long", "corrupt record", "corrupt record"]  # fmt: skip
    assert [cause_of(source, i) for i in range(11)] == causes
    assert source[11]["texts"] == ["good"]
    assert cause_of(source, 12) == cause_of(source, 13) == "unusable label"


def test_bad_samples_in_a_run_are_replaced_counted_by_cause_and_named(tmp_path, warnings):
    files = [*samples(range(8)), ("8.png", b"not an image"), ("8.txt", b"caption 0 of record 8"), ("9.txt", b"alone")]
    files += [("10.png", encoded(picture(0))), ("10.txt", b"\xff\xfe\xff")]
    source = open_tars(write_tar(tmp_path / "0.tar", files))
    iterator = stream(source, data=DataConfig(max_bad_share=1.0), batch=11)
    batch, state = next(iterator)
    assert set(state["bad"]) == {"not an image", "no image", "not UTF-8"}
    assert set(batch["text"][:, 1]) <= set(range(8))
    assert any(f"{tmp_path}/0.tar record 9: '9' has .txt, none of them .jpg" in line for line in warnings)


def test_fields_of_the_json_and_classes_are_captions_where_they_are_asked_for(tmp_path):
    document = {"caption": "plain", "alt": ["one", "two"], "meta": {"long": "three"}, "items": [{"t": "4"}, {"t": "5"}]}
    files = [("0.png", b"x"), ("0.txt", b"text"), ("0.json", json.dumps(document).encode()), ("0.raw", b"other")]
    files += [("1.png", b"y"), ("1.cls", b"1\n")]
    write_tar(tmp_path / "0.tar", files)
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    read = lambda **changes: open_tars(tmp_path, **changes)  # noqa: E731
    assert read()[0]["texts"] == ["text"]
    assert read(text_key="caption")[0]["texts"] == ["plain"]
    assert read(text_key="alt, meta/long")[0]["texts"] == ["one", "two", "three"]
    assert read(text_key="txt,caption")[0]["texts"] == ["text", "plain"]
    assert read(text_key="txt")[0]["texts"] == ["text"]
    assert read(text_key="items/t")[0]["texts"] == ["4", "5"]
    assert cause_of(read(text_key="nothing"), 0) == "no caption"
    assert read(image_key="raw")[0]["image"] == b"other"
    alone = open_tars(write_tar(tmp_path / "json_alone.tar", [files[0], files[2]]), text_key="txt")
    assert cause_of(alone, 0) == "no caption"
    (tmp_path / "json_alone.tar").unlink()
    source = read()
    assert source.class_names == ("cat", "dog")
    assert (source[1]["texts"], source[1]["label"], source[0]["label"]) == (["dog"], 1, -1)


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.99])
def test_a_cut_tar_is_refused_with_its_name_and_the_byte(tmp_path, kept):
    path = write_tar(tmp_path / "0.tar", [(f"{i}.jpg", bytes(1000 + i)) for i in range(20)])
    with tarfile.open(path) as tar:
        end = max(member.offset_data + member.size for member in tar)
    size = int(end * kept) // 512 * 512 + 100
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ManifestError, match=f"{path} cannot be read: it is cut at byte {size}"):
        open_tars(path)


def test_a_tar_cut_between_two_files_is_told(tmp_path, warnings):
    path = write_tar(tmp_path / "0.tar", samples(range(4)))
    with tarfile.open(path) as tar:
        third = [member.offset for member in tar if member.name.startswith("000002")][0]
    path.write_bytes(path.read_bytes()[:third])
    assert len(open_tars(path)) == 2
    assert [line for line in warnings if f"{path} has no end mark" in line]


def test_a_damaged_header_is_refused_with_its_byte_and_after_indexing_costs_one_record(tmp_path):
    path = write_tar(tmp_path / "0.tar", samples(range(6)))
    source = open_tars(path)
    with tarfile.open(path) as tar:
        second = [member.offset for member in tar if member.name.startswith("000002")][1]
    time = path.stat().st_mtime_ns
    data = bytearray(path.read_bytes())
    data[second + 3] ^= 1
    path.write_bytes(data)
    assert cause_of(source, 2) == "unreadable record"
    assert [source[i]["key"] for i in (0, 1, 3, 4, 5)] == [f"00000{i}" for i in (0, 1, 3, 4, 5)]
    os.utime(path, ns=(time, time + 1))
    with pytest.raises(ManifestError, match=f"no tar header at byte {second}: its checksum is wrong"):
        open_tars(path)


def test_a_tar_that_shrinks_or_goes_during_the_run_costs_records_and_no_crash(tmp_path):
    path = write_tar(tmp_path / "0.tar", samples(range(6)))
    source = open_tars(path)
    source[5]
    os.truncate(path, path.stat().st_size // 3)
    assert source[0]["key"] == "000000" and cause_of(source, 5) == "unreadable record"
    path.unlink()
    assert cause_of(pickle.loads(pickle.dumps(source)), 0) == "unreadable record"


def test_compressed_sparse_and_foreign_files_are_refused_by_name(tmp_path):
    tar = write_tar(tmp_path / "0.tar", samples(range(2)))
    path = tmp_path / "1.tar"
    path.write_bytes(gzip.compress(tar.read_bytes()))
    with pytest.raises(ManifestError, match="1.tar cannot be read: it is compressed by gzip.*unpack it"):
        open_tars(path)
    path.write_bytes(b"not a tar " * 100)
    with pytest.raises(ManifestError, match="1.tar cannot be read: no tar header at byte 0"):
        open_tars(path)
    write_tar(path, [tar_info("0.jpg", kind=tarfile.GNUTYPE_SPARSE)], tarfile.GNU_FORMAT)
    with pytest.raises(ManifestError, match="the member at byte 0 is sparse"):
        open_tars(path)
    sparse = tar_info("0.jpg")
    sparse.pax_headers = {"GNU.sparse.major": "1"}
    write_tar(path, [sparse])
    with pytest.raises(ManifestError, match="is sparse"):
        open_tars(path)


def test_sizes_that_lie_end_in_an_error_not_in_memory_or_a_loop(tmp_path):
    path = tmp_path / "0.tar"
    for key, value in (("size", "-512"), ("size", "99999999999999"), ("path", "x")):
        info = tar_info("0.jpg", 4)
        info.pax_headers = {key: value}
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
            tar.addfile(info, io.BytesIO(b"data"))
        if key == "path":
            continue
        with pytest.raises(ManifestError, match="negative size|is cut at byte"):
            open_tars(path)
    huge = bytearray(tarfile.TarInfo("big").tobuf(tarfile.GNU_FORMAT))
    for field in (b"\x80" + b"\x7f" * 11, b"\xff" + b"\x01" * 11, b"99999999999\0"):
        huge[124:136] = field
        huge[148:156] = b"%06o\0 " % (sum(huge[:148]) + 256 + sum(huge[156:]))
        path.write_bytes(huge)
        with pytest.raises(ManifestError, match="0.tar cannot be read"):
            open_tars(path)


def test_patterns_name_their_files_and_a_missing_one_is_an_error(folder, tmp_path):
    assert len(open_tars(f"{folder}/{{00000..00002}}.tar")) == 30
    assert len(open_tars(f"{folder}/{{00000,00002}}.tar")) == 20
    assert len(open_tars(f"{folder}/0000[01].tar")) == 20
    assert open_tars(folder / "00001.tar")[0]["key"] == "000010"
    with pytest.raises(ManifestError, match=r"no file '.*/00003.tar', of '.*\{00001..00004\}.tar'"):
        open_tars(f"{folder}/{{00001..00004}}.tar")
    for bad in ("{2..1}.tar", "{0..99999999}.tar", "{a,{b,c}}.tar", "{0..9999}{0..9999}.tar"):
        with pytest.raises(ManifestError):
            open_tars(f"{folder}/{bad}")
    for remote, problem in {
        "pipe:cat 0.tar": "is a command, not files",
        "https://host/0.tar": "the scheme https:// is not supported",
        "az://bucket/{0..1}.tar": "the scheme az:// is not supported",
        "gs:/bucket/0.tar": "write gs://bucket/0.tar",
    }.items():
        with pytest.raises(ManifestError, match=problem):
            open_tars(remote)
    with pytest.raises(ManifestError, match="has no .tar file"):
        open_tars(tmp_path)


def test_the_split_is_a_folder_or_begins_the_names_and_another_one_is_never_read_for_it(folder, tmp_path):
    for name in ("train-00000-of-00002.tar", "train-00001-of-00002.tar", "validation-00000-of-00001.tar"):
        write_tar(tmp_path / name, samples(range(3)))
    assert len(open_tars(tmp_path)) == 6 and len(open_tars(tmp_path, split="validation")) == 3
    with pytest.raises(ManifestError, match=r"after the split 'test', only .*of the split\(s\) train, validation"):
        open_tars(tmp_path, split="test")
    with pytest.raises(ManifestError, match="no file named after the split 'validation'"):
        open_tars(folder, split="validation")
    (tmp_path / "train-00001-of-00002.tar").unlink()
    with pytest.raises(ManifestError, match="train-00001-of-00002.tar missing"):
        open_tars(tmp_path)
    (tmp_path / "test").mkdir()
    write_tar(tmp_path / "test" / "a.tar", samples([4]))
    assert open_tars(tmp_path, split="test")[0]["key"] == "000004"


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    path = write_tar(tmp_path / "0.tar", samples([0]))
    path.rename(tmp_path / "real")
    path.symlink_to(path)  # a loop: not even root can open it
    with pytest.raises(ManifestError, match="0.tar is not a file"):
        open_tars(tmp_path)


def test_any_damage_ends_in_a_named_error_or_other_samples_never_in_a_crash(tmp_path):
    path = write_tar(tmp_path / "0.tar", [*samples(range(3)), (f"{LONG}.jpg", b"x"), (f"{LONG}.txt", b"long")])
    sound, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    headers = [member.offset for member in tarfile.open(path)]
    for _ in range(300):
        data = bytearray(sound)
        at = headers[rng.integers(len(headers))] + int(rng.integers(1100))  # a header, or what an extended one says
        data[at] = int(rng.integers(256))
        if rng.random() < 0.5:  # with a checksum that is right
            start = at // 512 * 512
            summed = data[start : start + 148] + b" " * 8 + data[start + 156 : start + 512]
            data[start + 148 : start + 156] = b"%06o\0 " % sum(summed)
        path.write_bytes(data)
        (tmp_path / "0.tar.clipjax-index.npy").unlink(missing_ok=True)
        try:
            source = open_tars(path)
        except ManifestError as error:
            assert str(path.parent) in str(error)
            refused += 1
            continue
        for i in range(len(source)):
            try:
                source[i]
            except RecordError:
                pass
    assert 50 < refused < 290, "neither nothing nor everything was found damaged"
