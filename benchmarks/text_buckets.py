"""Compares a train step whose texts are cut to the batch with one that pads them to the whole context.

    python -m benchmarks.text_buckets                                 # ViT-B/32, three layers in each tower, batch 32
    python -m benchmarks.text_buckets --records=data/emoji --depth=0  # all layers, captions of a folder of records
    python -m benchmarks.text_buckets --captions=captions.txt --batch=64

Captions come from a folder of records, from a file with one a line, or, by default, are drawn: 5 to 22 words, one in a
hundred of them longer than the context. The script first counts: how many tokens a text has, and how many are computed
in batches of several sizes, with one length and with two. Then it measures: the steps take turns on the same batches,
and the medians of processor seconds, which do not depend on what else runs, give the ratio beside the one expected from
the towers' FLOPs. It writes benchmarks/results/text_buckets.json. The tokenizer is CLIP's, from open_clip (`make
parity`).
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.machine import command, machine
from clipjax.config import DataConfig, ExperimentConfig, MeshConfig, SourceConfig, TokenizerConfig
from clipjax.data.cut import REST
from clipjax.data.sources import open_source
from clipjax.data.tokenizers import make_tokenizer
from clipjax.files import read_text, split_lines
from clipjax.mesh import make_mesh
from clipjax.models.presets import get_preset
from clipjax.planning.flops import step_flops
from clipjax.training.cut import cut_batches, text_cut
from clipjax.training.state import abstract_state, create_state
from clipjax.training.step import lower_step, mean_length

RESULT = Path(__file__).parent / "results" / "text_buckets.json"
WAYS = {"whole": None, "one length": 0.0, "two lengths": 0.75}  # config.data.short_texts; None: nothing is cut


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="clip_vit_b32")
    parser.add_argument("--depth", type=int, default=3, help="layers of each tower; 0: all")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--records", help="a folder of records, whose captions are used")
    parser.add_argument("--captions", help="a text file with one caption a line")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    model = get_preset(args.preset)
    if args.depth:
        image, text = (replace(tower, depth=args.depth, scan_layers=False) for tower in (model.image, model.text))
        model = replace(model, image=image, text=text)
    ids = clip_tokenizer(model.text.context_length)(captions_of(args.records, args.captions))
    ids = np.random.default_rng(0).permutation(ids)
    configs = {name: config_of(model, args.batch, short) for name, short in WAYS.items()}
    counts = count(configs["one length"], ids)
    result = {
        "captions": args.records or args.captions or "drawn",
        "model": f"{args.preset}, {args.depth or 'all'} layers a tower, batch {args.batch}, float32",
        "command": command("benchmarks.text_buckets"),
        "machine": machine(),
        **counts,
        **measure(configs, ids, args.rounds),
    }
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"Wrote {args.out}")


def captions_of(records: str | None, file: str | None) -> Sequence[str]:
    if file:
        return [line for line in split_lines(read_text(file)) if line.strip()]
    if records:
        source = open_source(SourceConfig(path=records))
        return [source[i]["texts"][0] for i in range(len(source))]
    rng = np.random.default_rng(0)
    words = "a photo of the red cat on old street with two small dogs and blue sky near white house".split()
    lengths = np.where(rng.random(4096) < 0.01, 90, rng.integers(5, 23, 4096))
    return [" ".join(rng.choice(words, length)) for length in lengths]


def clip_tokenizer(context_length: int) -> Any:
    folder = Path(importlib.util.find_spec("open_clip").origin).parent
    return make_tokenizer(
        TokenizerConfig(name="clip_bpe", path=str(folder / "bpe_simple_vocab_16e6.txt.gz")), context_length
    )


def config_of(model: Any, batch: int, short: float | None) -> ExperimentConfig:
    given = {"text_buckets": (model.text.context_length,)} if short is None else {"short_texts": short}
    return ExperimentConfig(global_batch_size=batch, model=model, data=DataConfig(**given))


def count(config: ExperimentConfig, ids: np.ndarray) -> dict[str, Any]:
    """Lengths of the texts, and the columns computed for a text on average, by batch size."""
    cut, mesh = text_cut(config), one_device()
    needed, lengths = cut.needed(ids), {}
    quantiles = {f"{q:g}": int(np.quantile(needed, q, method="higher")) for q in (0.5, 0.75, 0.9, 0.99, 1.0)}
    print(f"{len(ids):,} texts, tokens at most: " + ", ".join(f"{float(q):.0%} {n}" for q, n in quantiles.items()))
    for size in (32, 256, 1024):
        if len(ids) < size:
            continue
        lengths[size] = {}
        for name, short in list(WAYS.items())[1:]:
            one = replace(config, global_batch_size=size, data=replace(config.data, short_texts=short))
            batches = (({"text": ids[i : i + size]}, None) for i in range(0, len(ids) - size + 1, size))
            lengths[size][name] = statistics.mean(mean_length(b) for b, _ in cut_batches(one, mesh, None, batches))
        shown = ", ".join(f"{name} {value:.1f}" for name, value in lengths[size].items())
        print(f"batches of {size}: columns a text, of {cut.lengths[-1]}: {shown}")
    return {"tokens_at_quantile": quantiles, "columns_a_text": lengths}


def measure(configs: dict[str, ExperimentConfig], ids: np.ndarray, rounds: int) -> dict[str, Any]:
    """Median processor seconds of a step in each way, their ratios, and the ratios by FLOPs."""
    mesh, whole = one_device(), configs["whole"]
    size, side = whole.global_batch_size, whole.model.image.image_size
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (size, side, side, 3), dtype=np.uint8)
    chosen = itertools.cycle([ids[i : i + size] for i in range(0, min(len(ids), 4 * size) - size + 1, size)])
    batches = [{"image": images, "text": next(chosen)} for _ in range(rounds + 1)]
    samples: dict[str, list[float]] = {name: [] for name in configs}
    columns: dict[str, list[float]] = {name: [] for name in configs}
    steps = {name: make_step(config, mesh) for name, config in configs.items()}
    for number, batch in enumerate(batches):
        for name, config in configs.items():
            ((cut, _),) = cut_batches(config, mesh, None, iter([(batch, None)]))
            seconds = steps[name](cut)
            if number:  # the first warms up
                samples[name].append(seconds)
                columns[name].append(mean_length(cut))
    seconds = {name: statistics.median(values) for name, values in samples.items()}
    flops = {name: flops_of(whole, statistics.mean(values)) for name, values in columns.items()}
    ratios = {name: seconds["whole"] / value for name, value in seconds.items()}
    by_flops = {name: flops["whole"] / value for name, value in flops.items()}
    for name, value in seconds.items():
        print(
            f"{name:12} {value:8.3f} processor seconds a step, {ratios[name]:.2f} times as fast "
            f"({by_flops[name]:.2f} by FLOPs, {statistics.mean(columns[name]):.1f} columns a text)"
        )
    return {"processor_seconds": seconds, "ratio": ratios, "ratio_by_flops": by_flops, "samples": samples}


def make_step(config: ExperimentConfig, mesh: Any):
    """step(batch) -> processor seconds; a program is compiled before its first batch is timed."""
    state, programs = create_state(config, mesh), {}

    def step(batch: dict[str, np.ndarray]) -> float:
        nonlocal state
        shapes = {name: (column.shape, column.dtype) for name, column in batch.items()}
        key = tuple(batch[name].shape for name in ("text", REST) if name in batch)
        if key not in programs:
            programs[key] = lower_step(config, mesh, abstract_state(config, mesh), None, shapes).compile()
            state, _ = jax.block_until_ready(programs[key](state, batch))
        started = time.process_time()
        state, metrics = programs[key](state, batch)
        jax.block_until_ready((state, metrics))
        return time.process_time() - started

    return step


def flops_of(config: ExperimentConfig, columns: float) -> float:
    """FLOPs of a step whose texts have `columns` columns on average. Attention's are counted as if all had the mean."""
    flops, share = step_flops(config), columns / config.model.text.context_length
    return sum(
        value * {"text tower": share, "text attention": share**2}.get(name, 1.0) for name, value in flops.items()
    )


def one_device() -> Any:
    return make_mesh(MeshConfig(), jax.devices()[:1])


if __name__ == "__main__":
    main()
