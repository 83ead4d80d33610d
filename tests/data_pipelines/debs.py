"""Debian packages and tar archives made here."""

import io
import lzma
import tarfile


def tar_bytes(members: dict[str, bytes | str]) -> bytes:
    """name -> content; a str is the target of a symbolic link."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            if isinstance(content, str):
                header.type, header.linkname = tarfile.SYMTYPE, content
                tar.addfile(header)
            else:
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))
    return buffer.getvalue()


def deb_bytes(members: dict[str, bytes | str], data_name: str = "data.tar.xz") -> bytes:
    parts = {"debian-binary": b"2.0", "control.tar.xz": b"odd", data_name: lzma.compress(tar_bytes(members))}
    result = b"!<arch>\n"
    for name, data in parts.items():
        result += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode() + data
        result += b"\n" * (len(data) % 2)
    return result
