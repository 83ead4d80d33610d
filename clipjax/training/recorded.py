"""What a fingerprint recorded before some options existed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipjax.config import PixelConfig, TokenizerConfig, flat
from clipjax.models import IMAGE_TOWERS, TEXT_TOWERS


def without_later_defaults(expected: Mapping[str, Any], recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that a fingerprint is compared with: `expected` without options that `recorded` lacks, at defaults.

    Entries are named like options ("image.norm_eps"). An option that was added after the fingerprint was written makes
    no difference at its default.
    """
    return {name: value for name, value in expected.items() if name in recorded or value != _default(name, expected)}


def _default(name: str, entries: Mapping[str, Any]) -> Any:
    """The default of the option that an entry records; None for an entry that is no option, such as sha256."""
    section, _, field = name.partition(".")
    parts = {"pixels": PixelConfig, "tokenizer": TokenizerConfig}
    for tower, table in (("image", IMAGE_TOWERS), ("text", TEXT_TOWERS)):
        row = table.get(entries.get(f"{tower}.name", ""))
        parts |= {tower: row.config} if row else {}
    return flat(parts[section]()).get(field) if section in parts else None
