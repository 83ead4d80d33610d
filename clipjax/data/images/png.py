"""What Pillow leaves unchecked, or gets wrong, in PNG files."""

from __future__ import annotations

import struct
import zlib

from PIL import Image

from clipjax.data.records import RecordError


def check_chunks(data: bytes) -> None:
    """Compares every chunk of a PNG file with its CRC. Pillow compares those before the pixels only.

    Costs a CRC of the file, a few percent of decoding it. Raises RecordError for a chunk that differs or is cut off.
    """
    view, at = memoryview(data), 8
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        if kind == b"IEND" and not length:
            # Nothing that matters can be missing now; what follows is not the image.
            if end + 4 > len(data) or zlib.crc32(kind) == int.from_bytes(view[end : end + 4]):
                return
        if end + 4 > len(data):
            raise RecordError("corrupt image", f"PNG chunk {kind!r} at byte {at} is cut off")
        if zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4]):
            raise RecordError("corrupt image", f"PNG chunk {kind!r} at byte {at} differs from its CRC")
        at = end + 4


def check_unread(image: Image.Image) -> None:
    """Checks the file behind a PNG whose pixels Pillow has not read yet, and corrects the colour that is transparent.

    Any other image is left alone. Raises RecordError as check_chunks does.
    """
    if image.format != "PNG" or not getattr(image, "tile", None) or image.fp is None:
        return
    position = image.fp.tell()
    image.fp.seek(0)
    check_chunks(image.fp.read())
    image.fp.seek(position)
    # Pillow scales samples of other depths to 8 bits, but not the sample that stands for transparency.
    key, samples = image.info.get("transparency"), image.tile[0].args
    if isinstance(key, int) and samples in ("L;2", "L;4"):
        image.info["transparency"] = key * (85 if samples == "L;2" else 17)
    elif isinstance(key, tuple) and samples == "RGB;16B":
        image.info["transparency"] = tuple(sample >> 8 for sample in key)
