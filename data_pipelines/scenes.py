"""Draws captioned scenes: the default data, enough for whole experiments on a laptop.

    python -m data_pipelines.scenes --out=data/scenes
    python -m data_pipelines.scenes --out=data/scenes-large --train=100000 --seed=1

64 x 64 PNG with one to three objects of 10 colours and 10 shapes on plain, shaded or patterned backgrounds,
and four captions each. Splits:

    train          three in five scenes show one to three objects of one kind, the others two objects side by side or
                   one above the other
    validation     new scenes of one kind, whose colour-shape pairs are in train
    compositional  new scenes of one kind, whose colour-shape pairs (20 of the 100) are in no other split
    relations      new scenes of two objects, for retrieval

A class name is count x colour x shape ("three blue triangles"): 300 of them. The same arguments and library
versions give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from clipjax.data.records import encode_record
from clipjax.data.write import write_records
from clipjax.storage import as_path
from data_pipelines import command, scene_content
from data_pipelines.scene_content import RELATIONS, SIZES, Content, Kind, Pair, Single
from data_pipelines.scene_drawing import draw, encode_png

CAPTIONS_PER_IMAGE = 4
PAIR_SHARE = 0.4  # of the training scenes

_SPLITS = ("train", "validation", "compositional", "relations")


def build(
    out: str | Path,
    *,
    train: int = 12_000,
    validation: int = 1_000,
    compositional: int = 1_000,
    relations: int = 1_000,
    seed: int = 0,
    overwrite: bool = False,
) -> dict:
    """Writes the scenes to `out`, prints the report, returns the manifest. train, ...: scenes of each split.

    Raises PipelineError for a negative number of scenes.
    """
    counts = {"train": train, "validation": validation, "compositional": compositional, "relations": relations}
    for split, count in counts.items():
        if count < 0:
            raise command.PipelineError(f"--{split}={count} is negative; expected a number of scenes, or 0 for none.")
    manifest = write_records(
        out,
        {split: records(split, count, seed) for split, count in counts.items()},
        name="scenes",
        class_names=scene_content.class_names(),
        licences=[{"source": "drawn by clipjax", "licence": "CC0-1.0"}],
        source={"pipeline": "scenes", "version": 1, "seed": seed, **counts},
        overwrite=overwrite,
        say=print,
    )
    command.print_manifest(as_path(out), manifest)
    return manifest


def records(split: str, count: int, seed: int) -> Iterator[bytes]:
    """Encoded records. Record i is a function of (split, seed, i) alone."""
    held_out = scene_content.held_out_kinds(seed)
    kinds = [kind for kind in scene_content.all_kinds() if (kind in held_out) == (split == "compositional")]
    pair_share = {"train": PAIR_SHARE, "relations": 1.0}.get(split, 0.0)
    for index in range(count):
        rng = np.random.default_rng([seed, 2, _SPLITS.index(split), index])
        content = _content(kinds, pair_share, rng)
        yield encode_record(
            encode_png(draw(content, rng)),
            scene_content.captions(content, rng, CAPTIONS_PER_IMAGE),
            key=f"{split}/{index}",
            label=scene_content.label(content) if isinstance(content, Single) else None,
            pair_id=scene_content.pair_id(content),
        )


def main(argv: list[str] | None = None) -> None:
    parser = command.make_parser("scenes", __doc__)
    command.add_output_flags(parser)
    parser.add_argument("--train", type=int, default=12_000, help="scenes of the split; default %(default)s")
    parser.add_argument("--validation", type=int, default=1_000, help="scenes of the split; default %(default)s")
    parser.add_argument("--compositional", type=int, default=1_000, help="scenes of the split; default %(default)s")
    parser.add_argument("--relations", type=int, default=1_000, help="scenes of the split; default %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    command.run(build, parser, argv)


def _content(kinds: list[Kind], pair_share: float, rng: np.random.Generator) -> Content:
    if rng.random() < pair_share:
        first, second = rng.choice(len(kinds), size=2, replace=False)
        return Pair(kinds[first], kinds[second], RELATIONS[rng.integers(len(RELATIONS))])
    kind = kinds[rng.integers(len(kinds))]
    count = int(rng.integers(1, scene_content.MAX_COUNT + 1))
    return Single(kind, count, int(rng.integers(len(SIZES))))


if __name__ == "__main__":
    main()
