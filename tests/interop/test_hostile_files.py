"""Files that were made to take all memory or time, to name other files, or to be read forever: each one clean line."""

import json
import os
import socket
import struct
import zipfile

import numpy as np
import pytest

from clipjax.interop import archives, pickle_program, torch_files
from clipjax.interop.foreign import open_foreign
from clipjax.interop.names import InteropError
from clipjax.interop.safetensors import open_safetensors
from clipjax.interop.source import open_weights
from tests.interop.test_commands import publish

NUMBERS = np.arange(4, dtype=np.float32).tobytes()


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value


def number(value):
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def one(value):
    return number(value) + b"\x85"


FOUR, STEP, START = one(4), one(1), number(0)


def tensor(shape=FOUR, strides=STEP, offset=START):
    """The instructions that describe a tensor of the storage "0"."""
    storage = b"(" + text(b"storage") + b"ctorch\nFloatStorage\n" + text(b"0") + text(b"cpu") + number(4) + b"tQ"
    rest = b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + offset + shape + strides + rest + b"tR"


def named(**tensors):
    return b"\x80\2}(" + b"".join(text(name.encode()) + value for name, value in tensors.items()) + b"u."


def archive(path, program, packing=zipfile.ZIP_STORED, **members):
    with zipfile.ZipFile(path, "w", packing) as file:
        file.writestr("m/data.pkl", program)
        for name, content in ({"0": NUMBERS} | members).items():
            file.writestr(f"m/data/{name}", content)
    return path


def refused(path, message):
    """Reading path to its last number is refused in one line."""
    with pytest.raises(InteropError, match=message) as error:
        for stored in open_weights(path).tensors.values():
            stored.read()
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_description_with_all_that_real_ones_have_is_read(tmp_path):
    (found,) = open_weights(archive(tmp_path / "x.pt", named(a=tensor()))).tensors.values()
    np.testing.assert_array_equal(found.read(), [0, 1, 2, 3])


PAIR = b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(100))  # each a pair of the one before: 2^100 in all
PROGRAMS = {
    "memo entries": (b"}" + b"\x94" * 50_000 + b".", "more than 20,000 steps"),
    "empty dicts": (b"(" + b"}" * 50_000 + b"t.", "more than 20,000 steps"),
    "copies of a list": (b"](" + b"K\1" * 9_000 + b"eq\0" + b"h\0Q" * 9 + b".", "more than 20,000 steps"),
    "copies of a dict": (
        b"](" + b"K\1K\2\x86" * 2_000 + b"eq\0" + b"ccollections\nOrderedDict\nh\0\x85R" * 99 + b".",
        "more than 20,000 steps",
    ),
    "a long number": (b"\x8b\xff\xff\xff\x7f.", "damaged description"),
    "a long text": (b"\x8d" + b"\xff" * 7 + b"\x7f.", "damaged description"),
    "tuples in tuples": (b")" + b"\x85" * 15_000 + b".", "more than 100 containers"),
    "dicts in dicts": (text(b"a").join([b"}"] * 400) + text(b"b") + tensor() + b"s" * 400 + b".", "100 containers"),
    "dup": (b"}2.", "pickle's DUP"),
    "laughs": (b")q\0" + PAIR + b".", "more than 100 containers"),
    "laughs as a name": (b")q\0" + PAIR + b"h\x60h\x60\x93.", "damaged description"),
    "a list in itself": (b"]q\0h\0a.", "has no tensors"),
    "a call of itself": (b"](ctorch._tensor\n_rebuild_from_type_v2\nq\1Nh\0eh\1h\0R.", "damaged|no tensors"),
    "no end": (b"}", "damaged description|has no end"),
    "empty": (b"", "damaged description"),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_description_that_would_take_all_memory_or_time_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.setattr(pickle_program, "MAX_STEPS", 20_000)
    program, message = PROGRAMS[name]
    refused(archive(tmp_path / "x.pt", b"\x80\4" + program), message)


def test_a_tuple_as_a_key_is_never_hashed(tmp_path):
    """Python's hash of a tuple that is 10,000 deep would end the process."""
    deep = b"\x80\2}(" + b")" + b"\x85" * 15_000 + tensor() + b"u."
    assert list(open_weights(archive(tmp_path / "x.pt", deep)).tensors) == ["?"]


TENSORS = {
    "stride 0": (tensor(shape=one(10**10), strides=one(0)), r"repeats the 4 numbers"),
    "overlapping": (
        tensor(shape=number(10**6) * 2 + b"\x86", strides=number(0) * 2 + b"\x86"), "repeats the 4 numbers"
    ),
    "negative stride": (tensor(strides=one(-1)), "'a' is described by a shape, strides"),
    "negative offset": (tensor(offset=number(-1)), "'a' is described by a shape"),
    "negative shape": (tensor(shape=one(-4)), "'a' is described by a shape"),
    "offset beyond the end": (tensor(offset=number(2**40)), "a .4. is larger than its storage"),
    "enormous shape": (tensor(shape=one(2**61)), "larger than its storage"),
    "rank": (tensor(b"(" + number(1) * 65 + b"t", b"(" + number(1) * 65 + b"t"), "'a' is described by a shape"),
    "fewer strides": (tensor(strides=b")"), "'a' is described by a shape"),
    "no storage": (b"ctorch._utils\n_rebuild_tensor_v2\n(NK\0" + one(1) * 2 + b"tR", "'a' is described by a shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_beyond_its_storage_is_refused(name, tmp_path):
    described, message = TENSORS[name]
    refused(archive(tmp_path / "x.pt", named(a=described)), message)


def test_a_small_tensor_that_repeats_numbers_is_read(tmp_path):
    expanded = tensor(shape=number(3) + number(4) + b"\x86", strides=number(0) + number(1) + b"\x86")
    (found,) = open_weights(archive(tmp_path / "x.pt", named(a=expanded))).tensors.values()
    np.testing.assert_array_equal(found.read(), [[0, 1, 2, 3]] * 3)


def test_names_that_repeat_escape_or_never_end_are_refused(tmp_path, monkeypatch):
    both = b"\x80\2}(" + text(b"a.b") + tensor() + text(b"a") + b"}" + text(b"b") + tensor() + b"su."
    refused(archive(tmp_path / "x.pt", both), "two tensors that are called 'a.b'")
    refused(archive(tmp_path / "x.pt", named(**{"a\x1b[2J\nerror": tensor()})), r"a tensor 'a\\x1b\[2J\\nerror'")
    refused(archive(tmp_path / "x.pt", named(**{"a" * 2000: tensor()})), "names of more than 1000 characters")
    monkeypatch.setattr(torch_files, "MAX_TENSORS", 5)
    refused(archive(tmp_path / "x.pt", named(**{f"t{i}": tensor() for i in range(6)})), "more than 5 tensors")


def test_an_archive_that_unpacks_to_gigabytes_is_refused_before_it_does(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "FREE", 1 << 16)
    for suffix in ("pt", "npz"):
        path = archive(tmp_path / f"x.{suffix}", named(a=tensor()), zipfile.ZIP_DEFLATED, big=bytes(1 << 20))
        refused(path, "unpacks to 1,04.,..., more than 20 times as many")


def test_an_archive_with_too_many_members_is_refused_before_they_are_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_DIRECTORY", 1000)
    path = archive(tmp_path / "x.pt", named(a=tensor()), **{str(i): b"" for i in range(50)})
    refused(path, "has a list of members of .* bytes; the limit is 1,000")
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 10)  # written as a 64-bit archive
    refused(archive(tmp_path / "y.pt", named(a=tensor()), **{str(i): b"" for i in range(50)}), "list of members")


def edited(path, changes):
    """The archive with bytes of its first member's entry in the directory changed: {offset in it: bytes}."""
    data = bytearray(path.read_bytes())
    at = data.find(b"PK\1\2")
    for offset, value in changes.items():
        data[at + offset : at + offset + len(value)] = value
    path.write_bytes(data)
    return path


def test_encrypted_and_oddly_packed_archives_are_named(tmp_path):
    path = archive(tmp_path / "x.pt", named(a=tensor()))
    refused(edited(path, {8: b"\1\0"}), "is encrypted: 'm/data.pkl'")
    refused(archive(path, named(a=tensor()), zipfile.ZIP_LZMA), "'m/data.pkl' is packed by method 14; expected deflate")
    last = path.stat().st_size
    refused(edited(archive(path, named(a=tensor())), {42: struct.pack("<I", last)}), "damaged")


def test_members_that_share_bytes_are_refused(tmp_path):
    path = archive(tmp_path / "x.pt", named(a=tensor()))
    data = path.read_bytes()
    second = data.find(b"PK\1\2", data.find(b"PK\1\2") + 1)
    first_offset = struct.unpack_from("<I", data, data.find(b"PK\1\2") + 42)[0]
    path.write_bytes(data[: second + 42] + struct.pack("<I", first_offset) + data[second + 46 :])
    refused(path, "'m/data/0' shares its bytes with another member|damaged")


def test_numbers_that_differ_from_their_checksum_are_refused(tmp_path):
    for suffix in ("pt", "npz"):
        path = tmp_path / f"x.{suffix}"
        if suffix == "pt":
            archive(path, named(a=tensor()))
        else:
            np.savez(path, a=np.frombuffer(NUMBERS, np.float32))
        data = path.read_bytes()
        path.write_bytes(data.replace(NUMBERS, b"\1" + NUMBERS[1:]))
        refused(path, "damaged: BadZipFile Bad CRC")


def test_an_npz_of_anything_but_numbers_is_refused(tmp_path):
    for array, message in {
        "objects": (np.array([{}], object), "holds Python objects"),
        "texts": (np.array(["a"]), "has the type <U1; expected numbers"),
        "records": (np.zeros(2, [("a", "f4")]), "expected numbers"),
    }.values():
        np.savez(tmp_path / "x.npz", a=array, allow_pickle=True)
        refused(tmp_path / "x.npz", message)
    with zipfile.ZipFile(tmp_path / "y.npz", "w") as file:
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -2)}".ljust(70)
        file.writestr("a.npy", b"\x93NUMPY\1\0" + struct.pack("<H", 70) + header)
        file.writestr("readme.txt", "no array")
    refused(tmp_path / "y.npz", "damaged")


def safetensors(path, header, body=b""):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + body)
    return path


def entry(begin, end, shape=None, dtype="F32"):
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


ONE = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
HEADERS = {
    "negative offset": (entry(-4, 0, [1]), "'a' is described by"),
    "negative shape": (entry(0, 4, [-1, -1]), "'a' is described by"),
    "a shape of no numbers": (entry(0, 4, [True]), "'a' is described by"),
    "an enormous shape": (entry(0, 4, [2**40, 2**40]), "has 4 bytes"),
    "three offsets": ({**entry(0, 4), "data_offsets": [0, 2, 4]}, "'a' is described by"),
    "rank": (entry(0, 4, [1] * 65), "'a' is described by"),
    "no object": (7, "'a' is described by 7"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_safetensors_header_that_cannot_be_is_refused(name, tmp_path):
    described, message = HEADERS[name]
    refused(safetensors(tmp_path / "x.safetensors", {"a": described}, bytes(4)), message)


def test_safetensors_with_overlaps_holes_or_a_name_twice_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    refused(safetensors(path, {"a": entry(0, 8), "b": entry(4, 8)}, bytes(8)), "'b' begins at byte 4")
    refused(safetensors(path, {"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)), "'b' begins at byte 8")
    refused(safetensors(path, b"{%s,%s}" % (ONE, ONE), bytes(4)), "the field 'a' is there twice")
    refused(safetensors(path, b'{"a":' + b"[" * 100_000), "nested too deeply")
    refused(safetensors(path, b"[]"), "expected an object")
    refused(safetensors(path, b'{"a":' + b"9" * 5000 + b"}"), "damaged header")
    empty = safetensors(path, {"a": entry(0, 0, [0, 2**40]), "b": entry(0, 4)}, bytes(4))
    assert [stored.read().shape for stored in open_safetensors(empty).values()] == [(0, 2**40), (1,)]
    monkeypatch.setattr("clipjax.interop.safetensors.MAX_HEADER", 100)
    refused(safetensors(path, b"{%s%s}" % (ONE, b" " * 100), bytes(4)), "a header of 154 bytes, the limit is 100")


NAMES = ["../x.safetensors", "/etc/passwd", "..", "", "a\0b", "a/b", 7, None, ["x"], "x" * 300]


@pytest.mark.parametrize("name", NAMES)
def test_an_index_names_files_beside_it_only(name, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(InteropError, match="tensor 'a' is in .*; expected a file's name beside it") as error:
        open_weights(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b"[]", b"7", b'{"a":1,"a":2}', b"{", b"\xff", b'{"a":' + b"9" * 5000 + b"}", b"\0" * 9],
)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_json_beside_weights_that_is_none_is_refused_in_one_line(name, content, tmp_path):
    safetensors(tmp_path / "model.safetensors", {"a": entry(0, 4)}, bytes(4))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InteropError, match=name) as error:
        open_weights(tmp_path)
    assert "\n" not in str(error.value)


def test_what_is_no_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "device.pt").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(tmp_path)  # a socket's path is short
        listener.bind("socket.pt")
        for name, kind in {"pipe": "named pipe", "device": "device", "socket": "socket"}.items():
            with pytest.raises(InteropError, match=f"is a {kind}"):
                open_weights(tmp_path / f"{name}.pt")
        with pytest.raises(InteropError, match="has no weights"):
            open_weights(tmp_path)
    (tmp_path / "config.json").symlink_to("config.json")
    (tmp_path / "model.safetensors").symlink_to("model.safetensors")
    with pytest.raises(InteropError, match="has no weights"):
        open_weights(tmp_path)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("vision_config", "num_hidden_layers", 10**9),
        ("vision_config", "image_size", 10**9),
        ("vision_config", "hidden_size", "many"),
        ("vision_config", "patch_size", 0),
        ("text_config", "vocab_size", 10**400),
        ("text_config", "num_attention_heads", -1),
        ("vision_config", "num_attention_heads", 255),
        ("text_config", "max_position_embeddings", [1]),
        ("text_config", "layer_norm_eps", "x"),
    ],
)
def test_a_configuration_of_sizes_that_no_model_has_is_refused(section, field, value, tmp_path):
    folder = publish(tmp_path / "siglip")
    config = json.loads((folder / "config.json").read_text())
    config[section][field] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises((InteropError, ValueError)) as error:
        open_foreign(str(folder))
    assert type(error.value).__module__.startswith("clipjax."), error.value
