"""Clean, deduplicate, filter and shard images with captions on Apache Beam.

    python -m data_pipelines.prepare --reader=webdataset --input='shards/*.tar' --out=data/mine
    python -m data_pipelines.prepare --reader=img2dataset --input=laion --out=data/laion --shorter_side=256 \\
        --scripts=latin --min_words=2 --near_duplicates=3 --decontaminate=data/coco:test \\
        --clip_model=runs/clip --top_fraction=0.3 -- --direct_num_workers=8 --direct_running_mode=multi_processing
    python -m data_pipelines.prepare --reader=parquet --input=table.parquet --out=data/mine \\
        -- --runner=FlinkRunner --flink_master=host:8081

Flags behind -- are Beam's. Without --runner the pipeline runs in this process. A run that was killed continues when
you give the same command again. docs/data_pipelines.md describes each step.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys

from data_pipelines import command
from data_pipelines.prepare.options import Options
from data_pipelines.prepare.readers import READERS
from data_pipelines.prepare.run import build

HELP = {
    "reader": f"what the input is: {', '.join(READERS)}",
    "input": "files, patterns or folders, joined by commas; tfds: the name or folder of the dataset",
    "caption_columns": "columns or JSON fields with captions, joined by commas",
    "image_column": "column of the image; csv and jsonl: of its path; tfds: the feature",
    "key_column": "parquet: column of a unique key; without, file and row number",
    "label_column": "column or JSON field of a class's number or name, tfds: the feature; webdataset: default the .cls",
    "class_names": "file of class names, one per line, which labels are numbers or names of; default the input's",
    "split": "records and tfds: which split to read",
    "data_dir": "tfds: folder of the datasets that are given by name",
    "image_root": "csv and jsonl: folder that paths start from; default the table's",
    "delimiter": "csv: separates fields, one character or 'tab'; default: detected from the header",
    "shorter_side": "store larger images shrunk to this shorter side; 0: as they are",
    "longest_side": "store larger images shrunk to this longest side; 0: as they are",
    "quality": "of JPEGs that are encoded again",
    "min_side": "leave out images whose shorter side is below this",
    "max_aspect": "leave out images longer than this many times their shorter side; 0: none",
    "clean_captions": "resolve entities; take out tags, addresses, control characters; leave out file names",
    "min_words": "leave out captions of fewer words",
    "min_letters": "leave out captions of fewer letters",
    "max_words": "leave out captions of more words; 0: none",
    "scripts": "keep captions whose letters are nine tenths of these scripts, joined by commas: latin,greek",
    "languages": "keep captions in these languages, ISO 639 codes joined by commas: en,de",
    "language_confidence": "a caption's language is decided from this probability on",
    "keep_undecided": "keep captions whose language cannot be told: short ones, names, numbers",
    "merge": "records with the same 'key', or the same 'image', become one with all captions; or 'off'",
    "near_duplicates": "leave out images whose hash differs from another's in at most this many of 64 bits; -1: off",
    "same_caption": "keep a caption in at most this many records; 0: in all",
    "decontaminate": "records to keep out: folders FOLDER or FOLDER:SPLIT, joined by commas",
    "decontaminate_by": "image, caption or either",
    "decontaminate_bits": "how many of 64 bits an image may differ from one to keep out",
    "clip_model": "run or imported directory that scores each caption by its cosine with the image",
    "min_score": "leave out captions below this cosine",
    "top_fraction": "keep this fraction of the records, by their best caption; 0: all",
    "balance_entries": "file of words or phrases, one per line, by which captions are balanced, as in MetaCLIP",
    "balance_limit": "MetaCLIP's t: entries that occur more often are thinned out to about this many captions",
    "splits": "shares with sum 1; a key's split never changes",
    "records_per_shard": "about how many records a shard has",
    "licence": "of the data, for the manifest",
}  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    program = argv is None
    argv = list(sys.argv[1:] if argv is None else argv)
    split = argv.index("--") if "--" in argv else len(argv)
    own, beam_flags = argv[:split], argv[split + 1 :]
    parser = command.make_parser("prepare", __doc__)
    command.add_output_flags(parser, command.local_path)
    for field in dataclasses.fields(Options):
        _add_flag(parser, field)
    command.run(lambda **flags: build(beam_flags=beam_flags, **flags), parser, own, program)


def _local(text: str) -> str:
    """A text that is no path in a bucket: Beam's workers read files that all of them see."""
    command.local_path(text)
    return text


def _add_flag(parser: argparse.ArgumentParser, field: dataclasses.Field) -> None:
    required = field.default is dataclasses.MISSING
    default = None if required else field.default
    shown = ",".join(default) if isinstance(default, tuple) else default
    help = HELP[field.name] + ("" if required or shown in ("", ()) else f"; default {shown}")
    if isinstance(default, bool):
        kinds = {"action": argparse.BooleanOptionalAction}
    elif field.type.startswith("tuple"):
        kinds = {"type": lambda text: tuple(_local(part.strip()) for part in text.split(",") if part.strip())}
    else:
        kinds = {"type": {"int": int, "float": float}.get(field.type, _local)}
    parser.add_argument(f"--{field.name}", required=required, default=default, help=help.replace("%", "%%"), **kinds)


if __name__ == "__main__":
    main()
