"""Checks the options before anything is read."""

from __future__ import annotations

from pathlib import Path

from clipjax.config import nearest
from data_pipelines.command import PipelineError
from data_pipelines.files import split_by_share
from data_pipelines.prepare.options import Options
from data_pipelines.prepare.readers import READERS
from data_pipelines.prepare.steps.captions import SCRIPTS
from data_pipelines.prepare.steps.hashes import HASH_BITS
from data_pipelines.prepare.steps.languages import known

CHOICES = {"merge": ("off", "key", "image"), "decontaminate_by": ("image", "caption", "either")}
RANGES = {
    "quality": (1, 100),
    "near_duplicates": (-1, HASH_BITS // 4),
    "decontaminate_bits": (0, HASH_BITS // 4),
    "records_per_shard": (1, 1 << 24),
    "top_fraction": (0, 1),
    "min_score": (-1, 1),
    "language_confidence": (0, 1),
}
NOT_NEGATIVE = ("shorter_side", "longest_side", "min_side", "min_words", "min_letters", "max_words", "same_caption")


def check(options: Options) -> None:
    """Raises PipelineError naming the flag."""
    split_by_share(options.splits)
    _require(options.reader in READERS, f"--reader={options.reader} is unknown.{nearest(options.reader, READERS)}")
    for script in options.scripts:
        _require(script in SCRIPTS, f"--scripts={script} is unknown.{nearest(script, SCRIPTS)}")
    for code in options.languages:
        _require(code in known(), f"--languages={code} is unknown.{nearest(code, known())}")
    _require(options.keep_undecided or bool(options.languages), "--no-keep_undecided needs --languages.")
    for name, choices in CHOICES.items():
        value = getattr(options, name)
        _require(value in choices, f"--{name}={value} is none of {', '.join(choices)}.")
    for name, (low, high) in RANGES.items():
        value = getattr(options, name)
        _require(low <= value <= high, f"--{name}={value} is not in {low}..{high}.")
    for name in NOT_NEGATIVE:
        _require(getattr(options, name) >= 0, f"--{name}={getattr(options, name)} is negative.")
    _require(
        options.max_aspect == 0 or options.max_aspect >= 1,
        f"--max_aspect={options.max_aspect} leaves out every image: it is the longer side over the shorter. 0 leaves "
        "out none.",
    )
    scored = options.min_score > -1 or options.top_fraction > 0
    _require(not scored or bool(options.clip_model), "--min_score and --top_fraction need --clip_model.")
    _require(scored or not options.clip_model, "--clip_model needs --min_score or --top_fraction.")
    _require(
        not options.clip_model or Path(options.clip_model).exists(), f"--clip_model={options.clip_model} is not there."
    )
    _require(
        bool(options.balance_entries) == (options.balance_limit > 0),
        "--balance_entries and --balance_limit (the t of MetaCLIP) need each other.",
    )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise PipelineError(message)
