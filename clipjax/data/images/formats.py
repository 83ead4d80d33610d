"""Which files are images: their suffixes, the formats that the installed Pillow reads, and why a file is neither."""

from __future__ import annotations

from PIL import __version__ as pillow_version
from PIL import features

IMAGE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".avif",
    ".jp2",
    ".j2k",
    ".jfif",
    ".jpe",
)
# Pillow's name of a format -> the name of the library that it needs. A Pillow may be built without these.
OPTIONAL = {"WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}
FORMATS = tuple(
    name
    for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000")
    if name not in OPTIONAL or features.check(OPTIONAL[name])
)
PNG = b"\x89PNG\r\n\x1a\n"
_FIRST_BYTES = {
    b"\xff\xd8\xff": "JPEG",
    PNG: "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"\0\0\0\x0cjP  ": "JPEG2000",
    b"\xff\x4f\xff\x51": "JPEG2000",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
}
_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"hevc": "HEIC", b"mif1": "HEIC"}


def kind_of(data: bytes) -> str:
    """The format that a file's first bytes announce, by Pillow's name where it has one; "" if they announce none."""
    if data[4:8] == b"ftyp":
        brands = [data[8:12], *(data[i : i + 4] for i in range(16, min(len(data), int.from_bytes(data[:4])), 4))]
        return next((kind for brand, kind in _BRANDS.items() if brand in brands), "")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return next((kind for first, kind in _FIRST_BYTES.items() if data.startswith(first)), "")


def why_unreadable(data: bytes, formats: tuple[str, ...]) -> str:
    """Why Pillow, which reads `formats`, takes this file for no image."""
    kind = kind_of(data)
    if kind in formats:
        return f"it begins as {kind}, but its header, or the type of its pixels, is not one that Pillow reads"
    if kind in OPTIONAL:
        return (
            f"{kind}, and the installed Pillow {pillow_version} was built without its plug-in '{OPTIONAL[kind]}'; "
            "the wheels have it: pip install --force-reinstall --only-binary=:all: pillow"
        )
    if kind:
        return f"{kind}, which is not read; convert it to JPEG, PNG or WebP"
    return f"none of {', '.join(formats)} ({len(data)} bytes)"
