"""Shared by the commands: flags, one-line errors, the report at the end."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from clipjax import signals
from clipjax.data.records import ManifestError, RecordError
from clipjax.files import TextFileError
from clipjax.storage import AnyPath, StorageError, as_path, is_remote

_EXAMPLES_PER_CAUSE = 3


class PipelineError(ValueError):
    """Input that a pipeline cannot use. The message says where, what is wrong and what to do."""


@dataclass
class Skips:
    """Inputs that were left out, by cause. The counts go into the manifest, the first examples to the screen."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, cause: str, example: str) -> None:
        self.counts[cause] = self.counts.get(cause, 0) + 1
        shown = self.examples.setdefault(cause, [])
        if len(shown) < _EXAMPLES_PER_CAUSE:
            shown.append(example)


def make_parser(name: str, doc: str) -> argparse.ArgumentParser:
    """A parser whose --help shows `doc`, the docstring of data_pipelines.NAME, with its examples."""
    return argparse.ArgumentParser(
        prog=f"python -m data_pipelines.{name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def output_path(text: str) -> AnyPath:
    """An argument that names what is written, here or in a bucket."""
    try:
        return as_path(text)
    except StorageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def local_path(text: str) -> Path:
    """An argument that names what is read or written on this machine."""
    path = output_path(text)
    if is_remote(path):
        raise argparse.ArgumentTypeError(f"{text} is in a bucket; expected a path of this machine. Copy or mount it.")
    return path


def add_output_flags(parser: argparse.ArgumentParser, kind: Callable[[str], AnyPath] = output_path) -> None:
    """kind: local_path where the records cannot be written into a bucket."""
    parser.add_argument("--out", type=kind, required=True, help="folder of the records; made by this command")
    parser.add_argument("--overwrite", action="store_true", help="replace records made from other input or arguments")


def run(
    build: Callable[..., object],
    parser: argparse.ArgumentParser,
    argv: list[str] | None = None,
    program: bool | None = None,
) -> None:
    """Calls build with the flags as keyword arguments. An error in the input is printed in one line, exit code 1.

    program: whether this process is the command alone, which a signal may end with one line; default: argv is None.
    """
    if argv is None if program is None else program:
        signals.install(parser.prog)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # Images over our limit are refused and counted; a warning at Pillow's own, lower limit would only repeat that.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    arguments = vars(parser.parse_args(argv))
    try:
        build(**arguments)
    except (PipelineError, ManifestError, RecordError, TextFileError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def print_manifest(folder: AnyPath, manifest: dict, skips: Skips | None = None) -> None:
    """Prints the counts of each split, what was left out and why, and the licences. skips: also examples of those."""
    print(f"{folder}: {manifest['name']}")
    for split, entry in manifest["splits"].items():
        megabytes = sum(shard["bytes"] for shard in entry["shards"]) / 1e6
        print(f"  {split:<14}{entry['records']:>9,} records {len(entry['shards']):>5} files {megabytes:>10,.1f} MB")
    if manifest["class_names"]:
        print(f"  {len(manifest['class_names']):,} class names")
    for cause, count in manifest["skipped"].items():
        print(f"  skipped {count:,}: {cause}")
        for example in skips.examples.get(cause, []) if skips else []:
            print(f"    {example}")
    for licence in manifest["licences"]:
        print(f"  licence {licence['licence']}: {licence['source']}")
