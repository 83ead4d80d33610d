"""The settings of a preparation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from data_pipelines.files import DEFAULT_SPLITS


@dataclass(frozen=True)
class Options:
    """Each field is a flag of the same name, which docs/data_pipelines.md explains. 0, "", () and -1 mean off."""

    reader: str
    input: tuple[str, ...]
    # reading
    caption_columns: tuple[str, ...] = ("caption",)
    image_column: str = "image"
    key_column: str = ""
    label_column: str = ""
    class_names: str = ""
    split: str = "train"
    data_dir: str = ""
    image_root: str = ""
    delimiter: str = ""
    # decode
    shorter_side: int = 0
    longest_side: int = 0
    quality: int = 92
    min_side: int = 0
    max_aspect: float = 0.0
    # captions
    clean_captions: bool = True
    min_words: int = 1
    min_letters: int = 2
    max_words: int = 0
    scripts: tuple[str, ...] = ()
    # languages
    languages: tuple[str, ...] = ()
    language_confidence: float = 0.3
    keep_undecided: bool = True
    # repetitions
    merge: Literal["off", "key", "image"] = "image"
    near_duplicates: int = -1
    same_caption: int = 0
    decontaminate: tuple[str, ...] = ()
    decontaminate_by: Literal["image", "caption", "either"] = "image"
    decontaminate_bits: int = 4
    # choice
    clip_model: str = ""
    min_score: float = -1.0
    top_fraction: float = 0.0
    balance_entries: str = ""
    balance_limit: int = 0
    # output
    splits: str = DEFAULT_SPLITS
    records_per_shard: int = 4096
    licence: str = ""

    def while_reading(self) -> dict:
        """The options that decide how a unit is read and cleaned; others concern later steps, or where units are."""
        later = ("input", "merge", "near_duplicates", "same_caption", "decontaminate", "decontaminate_by")
        later += ("decontaminate_bits", "min_score", "top_fraction", "balance_entries", "balance_limit")
        later += ("splits", "records_per_shard", "licence")
        return {name: value for name, value in self.as_json().items() if name not in later}

    def as_json(self) -> dict:
        """Without a delimiter that was not set: what was made before there was this option stays finished."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "delimiter" or value}
