"""--out of a command that writes one file: refused, before anything is computed, where it cannot be written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from clipjax.commands.preflight import check_folder
from clipjax.config import require

HEAD = 4096  # bytes of a file by which it is recognised


def check_out(out: Path, is_own: Callable[[str], bool], own: str) -> None:
    """Raises ConfigError for a folder, for a place that cannot be written, and for a file of somebody else.

    is_own: whether a file that begins like this was written by the command. own: what that is, for people.
    """
    require(not out.is_dir(), f"--out={out} is a folder; name a file in it.")
    check_folder(out.parent, "--out")
    if out.is_file():
        with out.open("rb") as file:
            head = file.read(HEAD)
        # An empty file, such as mktemp makes, holds nothing to lose.
        require(
            not head or is_own(head.decode(errors="replace")),
            f"--out={out} exists and is not {own}: only such a file is replaced. Name another file, or move this one "
            "away.",
        )
