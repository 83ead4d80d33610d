"""Compares a LiT step that runs its frozen image tower with one that reads the embeddings `clipjax embed` stored.

    python -m benchmarks.frozen_tower                      # ViT-B/16, three layers in each tower, batch 32

The two steps take turns. The script prints the median processor seconds of each, which do not depend on what else runs,
their ratio, and the ratio expected from the towers' FLOPs. It writes benchmarks/results/frozen_tower.json. Decoding
images, which only the first needs, is not part of it: see benchmarks.input_pipeline.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from benchmarks.machine import command, machine
from benchmarks.train_step import tokens
from clipjax.config import AugmentConfig, DataConfig, ExperimentConfig, MeshConfig
from clipjax.mesh import make_mesh
from clipjax.models.presets import get_preset
from clipjax.optim.adamw import AdamWConfig
from clipjax.training.state import abstract_state, create_state
from clipjax.training.step import batch_shapes, lower_step

RESULT = Path(__file__).parent / "results" / "frozen_tower.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="clip_vit_b16")
    parser.add_argument("--depth", type=int, default=3, help="layers of each tower")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    model = get_preset(args.preset)
    image, text = (replace(tower, depth=args.depth, scan_layers=False) for tower in (model.image, model.text))
    model = replace(model, image=image, text=text)
    runs = {
        name: make_run(model, args.batch, DataConfig(augment=AugmentConfig(name="none"), image_embeddings=folder))
        for name, folder in (("image tower run", ""), ("from embeddings", "stored"))
    }
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(args.rounds + 1):
        for name, run in runs.items():
            started = time.process_time()
            run()
            if number:  # the first warms up
                samples[name].append(time.process_time() - started)
    seconds = {name: statistics.median(values) for name, values in samples.items()}
    ratio = seconds["image tower run"] / seconds["from embeddings"]
    image_flops, text_flops = forward_flops(model)
    by_flops = 1 + image_flops / (3 * text_flops)  # training the text tower costs three times its forward pass
    for name, value in seconds.items():
        print(f"{name:16} {value:7.3f} processor seconds a step")
    print(f"ratio {ratio:.2f}, by the towers' FLOPs {by_flops:.2f}")
    result = {
        "model": f"{args.preset}, {args.depth} layers a tower, batch {args.batch}, float32, LiT",
        "command": command("benchmarks.frozen_tower"),
        "machine": machine(),
        "processor_seconds": seconds,
        "ratio": ratio,
        "ratio_by_flops": by_flops,
        "samples": samples,
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(f"Wrote {RESULT}")


def make_run(model, batch: int, data: DataConfig):
    """Returns a function that runs one step."""
    optimizer = AdamWConfig(image_lr_multiplier=0.0)
    config = ExperimentConfig(global_batch_size=batch, model=model, optimizer=optimizer, data=data)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    step = lower_step(config, mesh, abstract_state(config, mesh), None).compile()
    rng, columns = np.random.default_rng(0), {}
    for name, (shape, dtype) in batch_shapes(config).items():
        columns[name] = rng.normal(size=shape).astype(np.float32) / shape[-1] ** 0.5
        if name != "image_embedding":
            columns[name] = rng.integers(0, 256, shape).astype(dtype)
    columns["text"] = tokens(batch)
    state = create_state(config, mesh)

    def run() -> None:
        nonlocal state
        state, metrics = step(state, columns)
        jax.block_until_ready((state, metrics))

    return run


def forward_flops(model) -> tuple[float, float]:
    """FLOPs of the matrix products of the image tower and the text tower for one example, forward."""
    patches = (model.image.image_size // model.image.patch_size) ** 2
    lengths = {"image": patches + (model.image.pool == "cls"), "text": model.text.context_length}
    flops = []
    for name, length in lengths.items():
        tower = getattr(model, name)
        flops.append(tower.depth * (24 * length * tower.width**2 + 4 * length**2 * tower.width))
    flops[0] += 2 * patches * 3 * model.image.patch_size**2 * model.image.width
    return flops[0], flops[1]


if __name__ == "__main__":
    main()
