"""The experiment file that `clipjax init` writes: sizes by the data and the machine, and the text."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from clipjax.commands.init_look import PROMPTS, Looked
from clipjax.config import SourceConfig
from clipjax.data.sources import HeldOutConfig
from clipjax.storage import is_remote

EPOCHS = 30  # of data that are not large
FEW_STEPS = 100
CPU_IMAGES = 330_000  # that the smallest model trains on in about half an hour of a laptop


class Size(NamedTuple):
    """Sizes of a model in SigLIP's shape, and of its training."""

    image_size: int
    patch_size: int
    width: int
    depth: int
    num_heads: int
    text_depth: int
    batch: int
    steps: int
    learning_rate: float
    dtype: str
    why: str  # for people

    @property
    def words(self) -> str:
        return f"images of {self.image_size} pixels, width {self.width}, batch {self.batch}, {self.steps:,} steps"


# Records at least -> image_size, patch_size, width, depth, num_heads, text_depth, batch at most per device, learning
# rate at a batch of 256.
SIZES = {
    0: (128, 16, 256, 6, 4, 4, 512, 1e-3),
    100_000: (224, 16, 384, 12, 6, 6, 256, 7e-4),
    2_000_000: (224, 16, 768, 12, 12, 12, 128, 3e-4),
}
CPU_SIZE = (64, 8, 128, 4, 4, 2, 256, 2e-3)


def choose_size(records: int, platform: str, devices: int) -> Size:
    """The size for a number of training records on this machine; docs/own_data.md states the rule.

    platform: jax.Device.platform. A CPU gets the smallest model; an accelerator a larger one for more records. The
    batch is at most a quarter of the records. Steps make EPOCHS passes, fewer for large data or on a CPU. The learning
    rate falls with the square root of the batch below 256.
    """
    cpu = platform == "cpu"
    row = CPU_SIZE if cpu else SIZES[max(least for least in SIZES if least <= records)]
    *sizes, most, rate = row
    share = max(records // 4, 8) // devices
    batch = devices * 2 ** int(math.log2(max(1, min(share, most if not cpu else max(1, most // devices)))))
    passes = EPOCHS if records < 2_000_000 else 5
    images = min(records * passes, CPU_IMAGES) if cpu else records * passes
    steps = max(FEW_STEPS, round_off(images / batch))
    rate = float(f"{rate * min(1.0, math.sqrt(batch / 256)):.2g}")
    device = "a CPU" if cpu else f"{devices} {platform.upper()} device{'s' * (devices > 1)}"
    return Size(*sizes, batch, steps, rate, "float32" if cpu else "bfloat16", f"{records:,} records and {device}")


def round_off(number: float) -> int:
    """A number with two digits that count, upwards: 1289.06 -> 1300."""
    unit = 10 ** max(0, int(math.log10(max(number, 1))) - 1)
    return math.ceil(number / unit) * unit


def experiment_text(looked: Looked, size: Size, model: str, pieces: int, longest: int, data: str, out: Path) -> str:
    """The file. model: the tokenizer's name beside it; data: the path to write, from the file's folder or absolute."""

    def path_of(path: str) -> str:
        if os.path.isabs(data) or is_remote(path):
            return _quoted(path)
        return f"str(HERE / {_quoted(os.path.relpath(os.path.abspath(path), os.path.abspath(out.parent)))})"

    evaluators = looked.evaluators
    every = max(1, size.steps // 4)
    values = {
        **_data_lines(looked, path_of),
        "STEM": out.stem,
        "FOUND": _comment(f"{looked.found.what}; {looked.trained:,} records to train on"),
        "EVALUATOR_IMPORTS": ", ".join(sorted({type(evaluator).__name__ for evaluator in evaluators.values()})),
        "NOTES": _notes(looked),
        "EVALUATORS": "".join(f"        {_quoted(name)}: {_evaluator(one)},\n" for name, one in evaluators.items()),
        "BEST": _quoted("zero_shot/top1" if "zero_shot" in evaluators else _best_of(evaluators)),
        "MODEL": _quoted(model),
        "PIECES": f"{pieces:,}",
        "VOCAB": -(-pieces // 64) * 64,
        "CONTEXT": min(64, -(-max(longest, 4) // 8) * 8),
        "WARMUP": size.steps // 10,
        "BIAS": -round(math.log(size.batch), 1),
        "MLP": 4 * size.width,
        "EVERY": every,
        "LOG": max(1, size.steps // 50),
        **{name.upper(): value for name, value in size._asdict().items()},
    }
    return re.sub("<([A-Z_]+)>", lambda mark: str(values[mark[1]]), HEAD + BODY)


def _data_lines(looked: Looked, path_of: Callable[[str], str]) -> dict[str, str]:
    """The parts of the file that name the data."""
    train, held_out = looked.train, looked.evaluated
    paths = {train.path: "DATA"}
    kinds = sorted({type(one).__name__ for source in (train, held_out) for one in _nested(source)})
    others = ", ".join(kind for kind in kinds if kind != "SourceConfig")
    lines = {
        "CONFIG_IMPORTS": "SourceConfig, default_config" if "SourceConfig" in kinds else "default_config",
        "SOURCE_IMPORTS": f"from clipjax.data.sources import {others}\n" if others else "",
        "DATA": path_of(train.path),
    }
    if isinstance(train, HeldOutConfig):
        return lines | {
            "SPLIT": f"{looked.split.capitalize()} is held out, to evaluate on. `records` says how to read them.",
            "RECORDS": f"    records = {_literal(train.source, paths, path_of)}\n",
            "TRAIN": f"HeldOutConfig(path=DATA, every={train.every}, source=records)",
            "HELD_OUT": f'HeldOutConfig(path=DATA, split="{held_out.split}", every={train.every}, source=records)',
        }
    return lines | {
        "SPLIT": "One split of the data is trained on, another one is evaluated on.",
        "RECORDS": "",
        "TRAIN": _literal(train, paths, path_of),
        "HELD_OUT": _literal(held_out, paths, path_of),
    }


def _notes(looked: Looked) -> str:
    notes = []
    if getattr(_nested(looked.train)[-1], "captions", "") == "folders" or _nested(looked.train)[-1].prompts:
        notes.append(REPEATS)
    if bad := len(looked.bad):
        limit = min(0.9, math.ceil((2 * looked.bad_share + 0.01) * 100) / 100)
        notes.append(BAD.format(bad=bad, read=looked.read, limit=limit))
    if looked.trained < 1000:
        notes.append(FEW)
    return "".join(notes)


def _nested(source: SourceConfig) -> list[SourceConfig]:
    return [source, source.source] if isinstance(source, HeldOutConfig) else [source]


def _best_of(evaluators: dict[str, Any]) -> str:
    name, evaluator = next(iter(evaluators.items()))
    preferred = ("image_to_text_r1", "top1")
    return f"{name}/{next((metric for metric in preferred if metric in evaluator.metrics), evaluator.metrics[0])}"


def _literal(source: SourceConfig, paths: dict[str, str], path_of: Callable[[str], str]) -> str:
    """The Python that makes a source: its path, and what differs from the defaults."""
    parts = []
    for field in dataclasses.fields(source):
        value, default = getattr(source, field.name), getattr(type(source)(), field.name)
        if field.name == "path":
            parts += [f"path={paths.get(value) or path_of(value)}"] if value else []
        elif field.name == "data_dir" and value:
            parts.append(f"data_dir={path_of(value)}")
        elif field.name != "name" and value != default:
            parts.append(f"{field.name}={_quoted(value)}")
    return f"{type(source).__name__}({', '.join(parts)})"


def _evaluator(evaluator: Any) -> str:
    options = {"all_captions": True} if getattr(evaluator, "all_captions", False) else {}
    options |= {"templates": PROMPTS} if hasattr(evaluator, "templates") else {}
    given = "".join(f", {name}={_quoted(value)}" for name, value in options.items())
    return f"{type(evaluator).__name__}(source=held_out{given})"


def _quoted(value: Any) -> str:
    """A Python literal, with double quotes where that is plain."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_quoted, value))}{',' * (len(value) == 1)})"
    plain = isinstance(value, str) and value.isprintable() and not {'"', "\\"} & set(value)
    return f'"{value}"' if plain else ascii(value)


def _comment(text: str) -> str:
    return text.encode("unicode_escape").decode() if not text.isprintable() else text


REPEATS = """    # Images of a class have the same caption: in a batch they are right for each other.
    config.loss.repeats = "positives"

"""
BAD = """    # {bad} of {read} records that were looked at cannot be used; a run stops above this share.
    config.data.max_bad_share = {limit}

"""
FEW = """    # So few records teach a model little: fine-tuning published weights gives more (docs/finetuning.md).
"""

HEAD = '''"""Trains a dual encoder on your own images and captions.

    clipjax check --config=<STEM>.py                            # reads the data, shows samples, lists errors
    clipjax train --config=<STEM>.py --workdir=runs/<STEM>
    clipjax eval --checkpoint=runs/<STEM> --step=best
    clipjax export runs/<STEM> exported --format=hf             # for transformers

Written by clipjax init; all of it may be changed. `clipjax config --config=<STEM>.py` lists every field.
"""

from pathlib import Path

from clipjax.config import <CONFIG_IMPORTS>
<SOURCE_IMPORTS>from clipjax.eval import <EVALUATOR_IMPORTS>

HERE = Path(__file__).parent
# Found: <FOUND>.
DATA = <DATA>


'''

BODY = """def get_config():
    config = default_config()

    # <SPLIT>
<RECORDS>    config.data.train = <TRAIN>
    held_out = <HELD_OUT>

    # A tokenizer of <PIECES> pieces, trained on the captions. Another one needs its number of pieces below.
    config.tokenizer.path = str(HERE / <MODEL>)
    config.model.text.vocab_size = <VOCAB>
    config.model.text.context_length = <CONTEXT>  # 99% of the captions and all prompts fit

    # Sizes for <WHY>. Larger images show more, wider and deeper towers learn more; both cost time.
    config.global_batch_size = <BATCH>  # a larger one has more wrong captions to tell apart; it needs memory
    config.total_steps = <STEPS>
    config.optimizer.learning_rate = <LEARNING_RATE>
    config.optimizer.schedule.warmup_steps = <WARMUP>
    config.optimizer.update(weight_decay=0.1, b2=0.95, grad_clip_norm=1.0)
    config.model.update(
        embed_dim=<WIDTH>, dtype="<DTYPE>", logit_scale_init=10.0, logit_bias_init=<BIAS>
    )
    config.model.image.update(
        image_size=<IMAGE_SIZE>, patch_size=<PATCH_SIZE>, width=<WIDTH>, depth=<DEPTH>,
        num_heads=<NUM_HEADS>, mlp_dim=<MLP>, pool="map", pre_norm=False, patch_bias=True, projection=False,
        activation="gelu_tanh", norm_eps=1e-6,
    )  # fmt: skip
    config.model.text.update(
        width=<WIDTH>, depth=<TEXT_DEPTH>, num_heads=<NUM_HEADS>, mlp_dim=<MLP>, causal=False,
        pool="last", projection_bias=True, activation="gelu_tanh", norm_eps=1e-6,
    )  # fmt: skip

    # Crops of half the area or more. Flips stay off: captions may say left and right, or quote text.
    config.data.augment.update(scale=(0.5, 1.0), flip=0.0)

<NOTES>    config.eval.evaluators = {
<EVALUATORS>    }
    config.eval.every_steps = <EVERY>
    config.checkpoint.every_steps = <EVERY>
    config.checkpoint.best_metric = <BEST>
    config.log.every_steps = <LOG>
    return config
"""
