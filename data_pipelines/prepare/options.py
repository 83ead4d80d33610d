"""The settings of a preparation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clipjax.config import nearest
from data_pipelines.command import PipelineError
from data_pipelines.files import DEFAULT_SPLITS, split_by_share

HASH_BITS = 64


@dataclass(frozen=True)
class Options:
    """Every field is a flag of the same name; docs/data_pipelines.md explains them. 0, "", () and -1: off."""

    reader: str
    input: tuple[str, ...]
    # reading
    caption_columns: tuple[str, ...] = ("caption",)
    image_column: str = "image"
    key_column: str = ""
    label_column: str = ""
    split: str = "train"
    data_dir: str = ""
    image_root: str = ""
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

    def check(self) -> None:
        """Raises PipelineError naming the flag."""
        from data_pipelines.prepare.readers import READERS
        from data_pipelines.prepare.steps.captions import SCRIPTS
        from data_pipelines.prepare.steps.languages import known

        def require(condition: bool, message: str) -> None:
            if not condition:
                raise PipelineError(message)

        split_by_share(self.splits)
        require(self.reader in READERS, f"--reader={self.reader} is unknown.{nearest(self.reader, READERS)}")
        for script in self.scripts:
            require(script in SCRIPTS, f"--scripts={script} is unknown.{nearest(script, SCRIPTS)}")
        for code in self.languages:
            require(code in known(), f"--languages={code} is unknown.{nearest(code, known())}")
        require(self.keep_undecided or bool(self.languages), "--no-keep_undecided needs --languages.")
        for name, choices in (("merge", ("off", "key", "image")), ("decontaminate_by", ("image", "caption", "either"))):
            value = getattr(self, name)
            require(value in choices, f"--{name}={value} is none of {', '.join(choices)}.")
        for name, low, high in (
            ("quality", 1, 100),
            ("near_duplicates", -1, HASH_BITS // 4),
            ("decontaminate_bits", 0, HASH_BITS // 4),
            ("records_per_shard", 1, 1 << 24),
            ("top_fraction", 0, 1),
            ("min_score", -1, 1),
            ("language_confidence", 0, 1),
        ):
            value = getattr(self, name)
            require(low <= value <= high, f"--{name}={value} is not in {low}..{high}.")
        for name in ("shorter_side", "longest_side", "min_side", "min_words", "min_letters", "max_words"):
            require(getattr(self, name) >= 0, f"--{name}={getattr(self, name)} is negative.")
        scored = self.min_score > -1 or self.top_fraction > 0
        require(not scored or bool(self.clip_model), "--min_score and --top_fraction need --clip_model.")
        require(scored or not self.clip_model, "--clip_model needs --min_score or --top_fraction.")
        require(not self.clip_model or Path(self.clip_model).exists(), f"--clip_model={self.clip_model} is not there.")
        require(
            bool(self.balance_entries) == (self.balance_limit > 0),
            "--balance_entries and --balance_limit (the t of MetaCLIP) need each other.",
        )

    def while_reading(self) -> dict:
        """What decides how a unit is read and cleaned; the rest is decided over all rows, or says where units are."""
        later = ("input", "merge", "near_duplicates", "same_caption", "decontaminate", "decontaminate_by")
        later += ("decontaminate_bits", "min_score", "top_fraction", "balance_entries", "balance_limit")
        later += ("splits", "records_per_shard", "licence")
        return {name: value for name, value in self.as_json().items() if name not in later}

    def as_json(self) -> dict:
        return dataclasses.asdict(self)
