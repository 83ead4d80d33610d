"""Mutations of small valid files: of their bytes, of their text, and of what their format is made of.

Every function takes the bytes and a random.Random, and returns other bytes. The same generator gives the same bytes.
"""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

Mutation = Callable[[bytes, random.Random], bytes]

NUMBERS = (
    0,
    1,
    -1,
    2,
    7,
    127,
    128,
    255,
    256,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**63 - 1,
    2**63,
    2**64,
)
VALUES = (
    *(None, True, False, 0, 1, -1, 0.5, -0.0, 1e308, float("nan"), float("inf"), 10**30, 10**400, 2**31, 2**63),
    *("", "\0", "\x1b[2J", "a\nb", "../../etc/passwd", "/etc/passwd", "\ud800", "x" * 5000, "\u202e", "1e999", "nan"),
    *([], {}, [[]], [None], {"": None}, [1, 2], [0] * 100, ["a"], {"a": {"a": {"a": {}}}}),
)
TOKENS = (
    *(
        b"\0",
        b"\xff" * 8,
        b"\x80",
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        b"\r",
        b"\r\n",
        b"\n\n",
        b'"',
        b'""',
        b",",
        b"\t",
        b";",
    ),
    *(b"{", b"}", b"[" * 1200, b"]", b"null", b"NaN", b"-1", b"1e999", b"9" * 5000, b"\x1b[31m", b"\xe2\x80\xae"),
    *(b"../", b"/", b"\\", b"%", b"<script>", b"PK\x03\x04", b"PK\x05\x06", b"\xff\xda", b"\xff\xd8", b"IEND", b"IDAT"),
    *(
        b"<|endoftext|>",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"a" * 3000,
        b"PAR1",
        b"ustar",
        b"}" * 50,
        b"...........",
    ),
    # pickle's instructions
    *(
        b")",
        b"}",
        b"]",
        b"(",
        b"t",
        b"\x85",
        b"\x87",
        b"R",
        b"b",
        b"Q",
        b"0",
        b"1",
        b"2",
        b"q\0",
        b"h\0",
        b"r\0\0\0\xff",
    ),
    *(
        b"cos\nsystem\n",
        b"\x8a\xff",
        b"\x8b\xff\xff\xff\x7f",
        b"\x8d" + b"\xff" * 8,
        b"K\0\x85R",
        b"\x93",
        b"\x94",
        b".",
    ),
)


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to four changes of a file's bytes."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = rng.choice(_BYTES)(data, rng)
    return data


def flip(data: bytes, rng: random.Random) -> bytes:
    """Other bits, mostly in one byte."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8)) if data else 0):
        changed[_place(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwrite(data: bytes, rng: random.Random) -> bytes:
    """A byte, or some, with values that lengths and counts choke on."""
    at = _place(data, rng)
    value = bytes([rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))]) * rng.choice((1, 1, 2, 4, 8))
    return data[:at] + value + data[at + len(value) :]


def number(data: bytes, rng: random.Random) -> bytes:
    """A whole number of 2, 4 or 8 bytes, of either order, in place of what is there."""
    size, at = rng.choice((2, 4, 8)), _place(data, rng)
    value = (rng.choice(NUMBERS) + rng.choice((0, 0, 1, -1))) % (1 << 8 * size)
    return data[:at] + value.to_bytes(size, rng.choice(("little", "big"))) + data[at + size :]


def cut(data: bytes, rng: random.Random) -> bytes:
    """Without its end."""
    return data[: rng.choice((_place(data, rng), max(0, len(data) - 1 - rng.randrange(16))))]


def remove(data: bytes, rng: random.Random) -> bytes:
    """Without a piece."""
    at = _place(data, rng)
    return data[:at] + data[at + 1 + rng.randrange(1 + len(data) // rng.choice((2, 10, 100))) :]


def splice(data: bytes, rng: random.Random) -> bytes:
    """A piece of the file, again, at another place."""
    at, to = _place(data, rng), _place(data, rng)
    piece = data[at : at + 1 + rng.randrange(1 + len(data) // rng.choice((2, 10, 100)))]
    return data[:to] + piece * rng.choice((1, 1, 2, 20)) + data[to + rng.choice((0, len(piece))) :]


def insert(data: bytes, rng: random.Random) -> bytes:
    """One of TOKENS, put in or over."""
    at, token = _place(data, rng), rng.choice(TOKENS)
    return data[:at] + token + data[at + rng.choice((0, len(token))) :]


_BYTES: tuple[Mutation, ...] = (flip, flip, overwrite, number, number, cut, remove, splice, insert, insert)


def _place(data: bytes, rng: random.Random) -> int:
    """A place in the data, often near its ends, where headers are."""
    if not data:
        return 0
    near = min(len(data), 64)
    return rng.choice(
        (rng.randrange(len(data)), rng.randrange(len(data)), rng.randrange(near), len(data) - 1 - rng.randrange(near))
    )


def of_json(data: bytes, rng: random.Random) -> bytes:
    """Values and keys of a JSON document changed, or its bytes."""
    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return mutate_bytes(data, rng)
    for _ in range(rng.choice((1, 1, 2, 3))):
        document = _changed(document, rng)
    return json.dumps(document).encode("utf-8", "surrogatepass")


def _changed(value: Any, rng: random.Random, depth: int = 0) -> Any:
    """A tree with one node changed."""
    if isinstance(value, (dict, list)) and value and (depth == 0 or rng.random() < 0.8):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key, copy = rng.choice(keys), value.copy()
        what = rng.random()
        if what < 0.7:
            copy[key] = _changed(copy[key], rng, depth + 1)
        elif what < 0.8:
            del copy[key]
        elif isinstance(copy, dict):
            copy[rng.choice(("", "name", "\x1b[1m", "../x", f"{key}2", "None", str(key).upper()))] = copy.pop(key)
        else:
            copy += [copy[key]] * rng.choice((1, 3, 100))
        return copy
    if isinstance(value, int) and not isinstance(value, bool) and rng.random() < 0.6:
        return rng.choice((*NUMBERS, value + 1, -value, value * 2, value // 3, 0.5))
    if isinstance(value, str) and rng.random() < 0.3:
        return mutate_bytes(value.encode("utf-8", "replace"), rng).decode("utf-8", "replace")
    if rng.random() < 0.03:
        return _nested(rng.choice((50, 900, 5000)), rng.choice(("list", "dict")))
    return rng.choice(VALUES)


def _nested(depth: int, kind: str) -> Any:
    value: Any = 1
    for _ in range(min(depth, 400)):  # json.dumps recurses, too; deeper ones come from TOKENS
        value = [value] if kind == "list" else {"a": value}
    return value


def of_lines(data: bytes, rng: random.Random) -> bytes:
    """Lines taken out, doubled, joined or exchanged, or the bytes of one changed."""
    lines = data.split(b"\n")
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(lines))
        what = rng.randrange(6)
        if what == 0:
            lines[at] = mutate_bytes(lines[at], rng)
        elif what == 1:
            lines[at : at + 1] = []
        elif what == 2:
            lines.insert(at, rng.choice(lines) if lines else b"")
        elif what == 3:
            lines[at : at + 2] = [b"".join(lines[at : at + 2])]
        elif what == 4:
            lines.insert(at, rng.choice(TOKENS))
        else:
            lines = mutate_bytes(b"\n".join(lines), rng).split(b"\n")
        lines = lines or [b""]
    return rng.choice((b"\n", b"\n", b"\n", b"\r\n", b"\r")).join(lines)


def of_json_lines(data: bytes, rng: random.Random) -> bytes:
    """A line's JSON changed, or the lines."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    if rng.random() < 0.5 and lines[at].strip():
        lines[at] = of_json(lines[at], rng)
        return b"\n".join(lines)
    return of_lines(data, rng)


def of_gzip(data: bytes, rng: random.Random) -> bytes:
    """What is packed changed and packed again, or the packed bytes."""
    if rng.random() < 0.4:
        return mutate_bytes(data, rng)
    return gzip.compress(of_lines(gzip.decompress(data), rng), 1, mtime=0)


def of_safetensors(data: bytes, rng: random.Random) -> bytes:
    """The header changed as JSON, with its own length; or any bytes."""
    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    length = int.from_bytes(data[:8], "little")
    header = of_json(data[8 : 8 + length], rng)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def of_tar(data: bytes, rng: random.Random) -> bytes:
    """A field of a header changed and its checksum made right; blocks moved; or any bytes."""
    if rng.random() < 0.3 or len(data) < 512:
        return mutate_bytes(data, rng)
    blocks = [data[at : at + 512] for at in range(0, len(data), 512)]
    heads = [at for at, block in enumerate(blocks) if block[257:262] == b"ustar"]
    if not heads or rng.random() < 0.2:
        at = rng.randrange(len(blocks))
        blocks[at : at + 1] = rng.choice(([], [blocks[at]] * 2, [rng.choice(blocks)], [b"\0" * 512] * 2))
        return b"".join(blocks)
    at = rng.choice(heads)
    begin, end = rng.choice(
        ((0, 100), (0, 100), (100, 108), (124, 136), (124, 136), (156, 157), (156, 157), (157, 257), (345, 500))
    )
    field = rng.choice(
        (mutate_bytes(blocks[at][begin:end], rng), rng.choice(TOKENS), rng.choice((b"x", b"g", b"L", b"5", b"S")))
    )
    block = blocks[at][:begin] + field[: end - begin].ljust(end - begin, b"\0") + blocks[at][end:]
    total = sum(block[:148]) + 8 * 32 + sum(block[156:])
    blocks[at] = block[:148] + b"%06o\0 " % total + block[156:]
    return b"".join(blocks)


def of_zip(inner: Callable[[str], Mutation]) -> Mutation:
    """An archive with members changed and packed again, checksums included; or any bytes. inner: by a member's name."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        if rng.random() < 0.35:
            return mutate_bytes(data, rng)
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
        for _ in range(rng.choice((1, 1, 2))):
            at = rng.randrange(len(members))
            name, content = members[at]
            what = rng.random()
            if what < 0.7:
                members[at] = name, inner(name)(content, rng)
            elif what < 0.8:
                members[at : at + 1] = []
            elif what < 0.9:
                members.append((rng.choice((name, f"{name}x", "../x", "data.pkl", "a/data.pkl")), content))
            else:
                members[at] = name, b"\0" * rng.choice((0, 1000, 3_000_000))
            members = members or [("x", b"")]
        out = io.BytesIO()
        packed = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
        with zipfile.ZipFile(out, "w", packed, compresslevel=1) as archive:
            for name, content in members:
                info = zipfile.ZipInfo(name)
                info.compress_type = packed
                archive.writestr(info, content)
        return _edited(out.getvalue(), rng) if rng.random() < 0.2 else out.getvalue()

    return mutate


def _edited(data: bytes, rng: random.Random) -> bytes:
    """A number in the directory of an archive changed: flags, method, sizes or offset of a member."""
    at = data.rfind(b"PK\1\2") if rng.random() < 0.5 else data.find(b"PK\1\2")
    if at < 0:
        return data
    field, kind = rng.choice(((8, "<H"), (10, "<H"), (16, "<I"), (20, "<I"), (24, "<I"), (42, "<I")))
    value = rng.choice((0, 1, 8, 12, 14, 99, 0xFFFF, 2**31, 2**32 - 1)) % (1 << 8 * struct.calcsize(kind))
    return data[: at + field] + struct.pack(kind, value) + data[at + field + struct.calcsize(kind) :]


def either(*mutations: Mutation) -> Mutation:
    """One of several."""
    choices: Sequence[Mutation] = mutations
    return lambda data, rng: rng.choice(choices)(data, rng)
