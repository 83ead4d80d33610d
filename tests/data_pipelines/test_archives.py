"""Archives are read without trusting them."""

import gzip
import io
import tarfile

import pytest

from data_pipelines.archives import ArchiveError, deb_members, tar_members
from tests.data_pipelines.debs import deb_bytes, tar_bytes


def read(path, reader=tar_members, **limits) -> tuple[dict[str, bytes], list[tuple[str, str]]]:
    refused: list[tuple[str, str]] = []
    members = reader(path, lambda name: True, lambda cause, name: refused.append((cause, name)), **limits)
    return {member.name: member.data for member in members}, refused


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_members_that_climb_out_links_and_large_ones_are_refused_and_the_others_read(tmp_path, compress):
    members = {
        "./a/0.jpg": b"one",
        "../../etc/passwd": b"x",
        "/etc/shadow": b"x",
        "a/../../b": b"x",
        "..\\up": b"x",
        "c:evil": b"x",
        "link.jpg": "/etc/passwd",
        "large.jpg": b"x" * 2000,
        "dots..jpg": b"two",
    }
    (tmp_path / "x.tar").write_bytes(compress(tar_bytes(members)))
    good, refused = read(tmp_path / "x.tar", max_member=1000)
    assert good == {"a/0.jpg": b"one", "dots..jpg": b"two"}
    climbs = [name for cause, name in refused if cause == "name climbs out of the archive"]
    assert climbs == ["../../etc/passwd", "/etc/shadow", "a/../../b", "..\\up", "c:evil"]
    assert refused[5:] == [("link or device", "link.jpg"), ("archive member too large", "large.jpg")]


def test_an_archive_bomb_ends_at_the_limit(tmp_path):
    (tmp_path / "bomb.tar.gz").write_bytes(gzip.compress(tar_bytes({"zeros": bytes(80 << 20)})))
    with pytest.raises(ArchiveError, match="holds more than 67,108,864 bytes, at most 200 times its own size"):
        read(tmp_path / "bomb.tar.gz")
    with pytest.raises(ArchiveError, match="holds more than 1,000 bytes"):
        read(tmp_path / "bomb.tar.gz", max_total=1000)


def test_a_header_that_asks_for_much_memory_is_refused(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        header = tarfile.TarInfo("a")
        header.pax_headers = {"comment": "x" * (2 << 20)}
        tar.addfile(header)
    (tmp_path / "x.tar").write_bytes(buffer.getvalue())
    with pytest.raises(ArchiveError, match="header of 2,0"):
        read(tmp_path / "x.tar")


def test_damage_is_an_error_after_the_members_before_it(tmp_path):
    whole = tar_bytes({"a": b"1" * 600, "b": b"2" * 600, "c": b"3"})
    broken = bytearray(whole)
    broken[1536 + 100 : 1536 + 140] = bytes(40)  # in b's header: without care, the end of the archive
    for data in (bytes(broken), whole[:2100], whole[:1700]):
        (tmp_path / "x.tar").write_bytes(data)
        seen = []
        with pytest.raises(ArchiveError, match="x.tar is damaged"):
            for member in tar_members(tmp_path / "x.tar", lambda name: True, lambda cause, name: None):
                seen.append(member.name)
        assert seen == ["a"]
    for data in (b"", b"no tar at all" * 100, gzip.compress(whole)[:40]):
        (tmp_path / "x.tar").write_bytes(data)
        with pytest.raises(ArchiveError, match="x.tar is damaged"):
            read(tmp_path / "x.tar")


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_an_archive_cut_between_two_members_is_told_once(tmp_path, compress):
    whole = tar_bytes({"a": b"1" * 600, "b": b"2" * 600, "c": b"3"})
    (tmp_path / "x.tar").write_bytes(compress(whole[:3072]))
    told = ("no end mark: the archive may have been cut between two files", str(tmp_path / "x.tar"))
    assert read(tmp_path / "x.tar") == ({"a": b"1" * 600, "b": b"2" * 600}, [told])
    for end in (512, 1024):  # half an end mark, and a whole one
        (tmp_path / "x.tar").write_bytes(compress(whole[:3072] + bytes(end)))
        assert read(tmp_path / "x.tar") == ({"a": b"1" * 600, "b": b"2" * 600}, [])


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_archives_joined_by_cat_are_read_on(tmp_path, compress):
    one, two = tar_bytes({"a": b"1" * 600, "b": b"2"}), tar_bytes({"c": b"3", "a": b"4"})
    for between in (b"", bytes(512), bytes(20480)):
        (tmp_path / "x.tar").write_bytes(compress(one + between) + compress(two))
        members = list(tar_members(tmp_path / "x.tar", lambda name: True, lambda cause, name: None))
        assert [(name, data[:1], part) for name, data, part in members] == [
            ("a", b"1", 0), ("b", b"2", 0), ("c", b"3", 1), ("a", b"4", 1)
        ]  # fmt: skip
    # Zeros that do not fill a block, a tar of nothing, zeros before the first member.
    for whole in (one + bytes(100), one + bytes(10240), bytes(10240) + one):
        (tmp_path / "x.tar").write_bytes(compress(whole))
        assert list(read(tmp_path / "x.tar")[0]) == ["a", "b"]


def test_bytes_after_the_end_are_told_unless_members_are_lost_in_them(tmp_path):
    tar = tar_bytes({"a": b"1" * 600, "b": b"2"})
    for trailing in (b"x", b"garbage" * 500):
        (tmp_path / "x.tar").write_bytes(tar + trailing)
        good, ((cause, where),) = read(tmp_path / "x.tar")
        assert list(good) == ["a", "b"] and cause == "no part of the archive"
        assert f"x.tar, the block at byte {len(tar)}" in where
    for damaged, message in (
        (tar + b"x" * 512 + tar, f"the block at byte {len(tar)}, .* one follows at byte {len(tar) + 512}"),
        (tar + b"x" * 77 + tar, f"one follows at byte {len(tar) + 77}"),
        (tar + gzip.compress(tar), "data compressed by gzip. Unpack them"),
        (tar[:1536] + bytes(512) + tar[2048:], "the header at byte 1536 is overwritten by zeros"),
    ):
        (tmp_path / "x.tar").write_bytes(damaged)
        with pytest.raises(ArchiveError, match=message):
            read(tmp_path / "x.tar")


def test_names_that_are_not_utf8_keep_their_bytes(tmp_path):
    names = [b"caf\xe9".decode("utf-8", "surrogateescape"), b"caf\xe8".decode("utf-8", "surrogateescape"), "café"]
    for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "x.tar", "w", format=format, errors="surrogateescape") as tar:
            for name in (*names, "/" + names[0]):
                tar.addfile(tarfile.TarInfo(name))
        good, refused = read(tmp_path / "x.tar")
        assert list(good) == names and refused == [("name climbs out of the archive", "/caf\\xe9")]


def test_a_debian_package_is_read_without_debian(tmp_path):
    (tmp_path / "x.deb").write_bytes(deb_bytes({"./usr/a": b"1", "./usr/b": "a"}))
    assert read(tmp_path / "x.deb", deb_members) == ({"usr/a": b"1"}, [("link or device", "usr/b")])
    for data, message in (
        (b"PK", "is not a Debian package"),
        (deb_bytes({}, "data.tar.zst"), "data.tar.zst; those in .gz, .xz and .bz2"),
        (deb_bytes({"a": b"1"})[:80], "damaged Debian package"),
        (deb_bytes({"a": b"1" * 5000})[:-40], "x.deb is damaged"),
    ):
        (tmp_path / "x.deb").write_bytes(data)
        with pytest.raises(ArchiveError, match=message):
            read(tmp_path / "x.deb", deb_members)
