"""The work that benchmarks.quick times: a process of clipjax's and JAX's, and one of PyTorch's.

A contender is a function that does its work once and returns the seconds that it took: of the wall clock where all
cores work (steps, losses, compilation), of the processor where one thread works (input, readers), which other programs
disturb less. Those whose names end in "bytes" return a count instead.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

Contenders = dict[str, Callable[[], float]]
WORDS, CONTEXT = 2048, 77  # a small vocabulary: else the optimizer's update of the embedding table is most of a step


@dataclass(frozen=True)
class Size:
    """How much work each contender does."""

    batch: int  # of the train steps
    depth: int  # layers of each tower, at ViT-B/32's widths
    loss_batch: int
    compile_depth: int
    quickstart_batch: int
    product: int  # side of the matrices
    images: int  # of the input pipeline, a turn
    records: int  # of the readers, a turn
    steps: int = 1  # timed steps a turn


SIZES = {
    "standard": Size(8, 2, 4096, 6, 64, 1024, 96, 1200),
    "toy": Size(2, 1, 256, 2, 4, 64, 8, 40),
}


def open_clip_steps(size: Size, folder: Path) -> Contenders:
    """open_clip's train step, in float32 and under bfloat16 autocast."""
    from benchmarks.pytorch import import_torch

    torch, open_clip = import_torch(), import_torch("open_clip")
    vision = {"layers": size.depth, "width": 768, "patch_size": 32, "image_size": 224}
    text = {"layers": size.depth, "width": 512, "heads": 8, "vocab_size": WORDS, "context_length": CONTEXT}

    def step(autocast: bool) -> Callable[[], None]:
        model = open_clip.CLIP(512, vision, text, quick_gelu=True).train()
        loss_fn = open_clip.loss.ClipLoss()
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2)
        image, text_ids = (
            torch.tensor(pixels(size.batch)).permute(0, 3, 1, 2).contiguous(),
            torch.tensor(tokens(size.batch)),
        )

        def run() -> None:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                image_embedding, text_embedding, scale = model((image / 255.0 - 0.5) / 0.5, text_ids.long())[:3]
                loss = loss_fn(image_embedding, text_embedding, scale)
            loss.backward()
            optimizer.step()
            float(loss)

        return run

    dtypes = ("float32", "bfloat16")
    return {f"open_clip step {dtype}": wall(step(dtype == "bfloat16"), size.steps) for dtype in dtypes}


def train_steps(size: Size, folder: Path) -> Contenders:
    from clipjax.config import LossConfig

    batch = {"image": pixels(size.batch), "text": tokens(size.batch)}
    contenders: Contenders = {}
    for dtype in ("float32", "bfloat16"):
        config = experiment(
            size.batch, replace(towers(size.depth, scan=False), dtype=dtype), loss=LossConfig("softmax")
        )
        contenders[f"step {dtype}"] = wall(stepper(config, batch), size.steps)
    return contenders


def losses(size: Size, folder: Path) -> Contenders:
    """Value and gradients of the losses on one device: the textbook formula, and clipjax's tiles; and their bytes."""
    import jax

    from benchmarks.loss_memory import WIDTH, compiled_loss

    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(size.loss_batch, WIDTH)).astype(np.float32) for _ in range(2))
    contenders: Contenders = {}
    for name in ("softmax", "sigmoid"):
        for form, called in (("dense", "dense"), ("all_gather", "tiled")):
            step, rows, scalar = compiled_loss(name, form, size.loss_batch, jax.devices()[:1])
            arrays = [jax.device_put(a / np.linalg.norm(a, axis=1, keepdims=True), rows) for a in (x, y)]
            arrays += [jax.device_put(np.float32(value), scalar) for value in (10, -10)]
            run = functools.partial(step, *arrays)
            contenders[f"{name} {called}"] = wall(lambda run=run: jax.block_until_ready(run()), size.steps)
            contenders[f"{name} {called} bytes"] = lambda s=step: float(s.memory_analysis().temp_size_in_bytes)
    return contenders


def compilations(size: Size, folder: Path) -> Contenders:
    """Tracing and compiling the gradients of two small towers whose layers are scanned, or unrolled."""
    import jax

    from clipjax.models import DualEncoder

    batch = (pixels(2).astype(np.float32), tokens(2))

    def compiling(scan: bool) -> Callable[[], float]:
        model = towers(size.compile_depth, scan)
        small = {name: replace(getattr(model, name), width=64, num_heads=1, mlp_dim=256) for name in ("image", "text")}
        module = DualEncoder(replace(model, **small))

        def objective(params: Any, image: Any, text: Any) -> Any:
            out = module.apply(params, image=image, text=text)
            return (out.image_embedding * out.text_embedding).sum()

        def turn() -> float:
            jax.clear_caches()
            started = time.perf_counter()
            params = jax.eval_shape(
                lambda *inputs: module.init(jax.random.key(0), image=inputs[0], text=inputs[1]), *batch
            )
            jax.jit(jax.grad(objective)).lower(params, *batch).compile()
            return time.perf_counter() - started

        return turn

    return {"compile scanned": compiling(True), "compile unrolled": compiling(False)}


def quickstart(size: Size, folder: Path) -> Contenders:
    """experiments/quickstart.py's step, and XLA's plain matrix products, which tell how fast the processor is."""
    import jax

    from clipjax.config import from_config_dict
    from clipjax.training.step import batch_shapes
    from experiments.quickstart import get_config

    values = get_config()
    values.global_batch_size = size.quickstart_batch
    values.eval.evaluators = {}
    config = from_config_dict(values)
    rng = np.random.default_rng(0)
    batch = {name: rng.integers(0, 200, shape).astype(dtype) for name, (shape, dtype) in batch_shapes(config).items()}
    batch["image"] = rng.integers(0, 256, batch["image"].shape).astype(np.uint8)
    product = jax.jit(lambda a: a @ a)
    a = jax.numpy.ones((size.product, size.product))

    def products() -> None:
        for _ in range(20):
            product(a).block_until_ready()

    return {
        "quickstart step": wall(stepper(config, batch), 2 * size.steps),
        "matrix products": wall(products, size.steps),
    }


def frozen_tower(size: Size, folder: Path) -> Contenders:
    """A step of LiT that runs its frozen image tower, and one that reads the embeddings stored for it."""
    from clipjax.config import AugmentConfig, DataConfig
    from clipjax.optim.adamw import AdamWConfig

    contenders: Contenders = {}
    for name, stored in (("LiT step, tower run", ""), ("LiT step, embeddings stored", "stored")):
        data = DataConfig(augment=AugmentConfig(name="none"), image_embeddings=stored)
        optimizer = AdamWConfig(image_lr_multiplier=0.0)
        config = experiment(size.batch, towers(size.depth, scan=False), data=data, optimizer=optimizer)
        batch = {"text": tokens(size.batch)}
        batch |= (
            {"image_embedding": np.full((size.batch, 512), 0.04, np.float32)}
            if stored
            else {"image": pixels(size.batch)}
        )
        contenders[name] = processor(stepper(config, batch))
    return contenders


def input_pipeline(size: Size, folder: Path) -> Contenders:
    """Training input from decoded JPEGs, and the same crops by Pillow alone. Processor seconds of all threads."""
    import io

    from PIL import Image

    from benchmarks.photos import photo_jpeg
    from clipjax.config import AugmentConfig, DataConfig, SourceConfig
    from clipjax.data.pipeline import make_train_iterator
    from clipjax.data.records import encode_record
    from clipjax.data.sources import open_source
    from clipjax.data.write import write_records

    pictures = [photo_jpeg(seed, 500, 375) for seed in range(16)]
    records = [encode_record(picture, ["a picture"], key=f"{i}") for i, picture in enumerate(pictures)]
    write_records(folder / "pictures", {"train": records}, name="photos", source={"drawn": 1})
    batches = make_train_iterator(
        DataConfig(augment=AugmentConfig(scale=(0.9, 1.0)), num_threads=1),
        source=open_source(SourceConfig(path=str(folder / "pictures"))),
        tokenizer=NoWords(),
        image_size=224,
        global_batch_size=8,
        seed=0,
    )
    stream: Iterator[Any] = iter(batches)

    def ours() -> float:
        settle()
        started, taken = time.process_time(), 0
        while taken < size.images:
            batch, _ = next(stream)
            taken += len(batch["image"])
        settle()  # until what was taken has been made anew
        return (time.process_time() - started) / taken

    def pillow() -> float:
        settle()
        rng, started = np.random.default_rng(0), time.process_time()
        for i in range(size.images):
            image = Image.open(io.BytesIO(pictures[i % len(pictures)]))
            width, height = (int(side * rng.uniform(0.95, 1.0)) for side in image.size)
            np.asarray(image.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC, box=(0, 0, width, height)))
        return (time.process_time() - started) / size.images

    return {"input": ours, "Pillow": pillow}


def readers(size: Size, folder: Path) -> Contenders:
    """Records of each format in a random order, beside Python's tarfile on the same tars."""
    from benchmarks.readers import reads, tarfile_reads, write_all
    from clipjax.data.sources import open_source

    configs = write_all(folder, size.records)
    runs = {name: reads(open_source(config)) for name, config in configs.items()}
    runs["tarfile"] = tarfile_reads(folder / "tars", size.records)
    return {name: processor(lambda r=read: r(0, size.records)) for name, read in runs.items()}


def start_up(size: Size, folder: Path) -> Contenders:
    """Processor seconds of `clipjax --help` and of importing JAX, each in a process of its own; needs no worker."""
    import resource
    import subprocess

    def running(*arguments: str) -> Callable[[], float]:
        def turn() -> float:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

        return turn

    return {"clipjax --help": running("-m", "clipjax", "--help"), "import jax": running("-c", "import jax")}


class NoWords:
    """A tokenizer of nothing: the input is timed for its images."""

    vocab_size, pad_id, eos_id, sha256, config = 2, 0, 1, "", None

    def __call__(self, texts: Any) -> np.ndarray:
        return np.zeros((len(texts), 8), np.int32)


def towers(depth: int, scan: bool) -> Any:
    """ViT-B/32's CLIP with fewer layers and a small vocabulary."""
    from clipjax.models.presets import get_preset

    model = get_preset("clip_vit_b32")
    image = replace(model.image, depth=depth, scan_layers=scan)
    return replace(model, image=image, text=replace(model.text, depth=depth, scan_layers=scan, vocab_size=WORDS))


def experiment(batch: int, model: Any, **sections: Any) -> Any:
    from clipjax.config import ExperimentConfig

    return ExperimentConfig(global_batch_size=batch, model=model, **sections)


def stepper(config: Any, batch: dict[str, np.ndarray]) -> Callable[[], None]:
    """A function that runs one train step. Its first state is made without compiling an initializer."""
    import jax

    from clipjax.mesh import make_mesh
    from clipjax.training.state import abstract_state
    from clipjax.training.step import make_train_step

    mesh, rng = make_mesh(config.mesh), np.random.default_rng(0)
    abstract = abstract_state(config, mesh)
    step = make_train_step(config, mesh, abstract)

    def array(leaf: Any) -> Any:
        if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.device_put(jax.random.key(0), leaf.sharding)
        values = (
            0.02 * rng.random(leaf.shape) if jax.numpy.issubdtype(leaf.dtype, np.floating) else np.zeros(leaf.shape)
        )
        return jax.device_put(values.astype(leaf.dtype), leaf.sharding)

    state = jax.tree.map(array, abstract)

    def run() -> None:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))

    return run


def pixels(batch: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (batch, 224, 224, 3), dtype=np.uint8)


def tokens(batch: int) -> np.ndarray:
    """[batch, CONTEXT] int32: captions of 5 to 39 tokens and the end, which is the largest token; padded with zeros."""
    rng = np.random.default_rng(0)
    text = np.zeros((batch, CONTEXT), np.int32)
    for row in text:
        length = rng.integers(5, 40)
        row[: length + 1] = [*rng.integers(1, WORDS - 1, length), WORDS - 1]
    return text


def wall(run: Callable[[], Any], steps: int) -> Callable[[], float]:
    """A turn: once to warm up, as memory and caches were others' in between, then `steps` times. Seconds of one."""

    def turn() -> float:
        run()
        started = time.perf_counter()
        for _ in range(steps):
            run()
        return (time.perf_counter() - started) / steps

    return turn


def processor(run: Callable[[], Any]) -> Callable[[], float]:
    """As wall, once, in processor seconds of all threads."""

    def turn() -> float:
        run()
        started = time.process_time()
        run()
        return time.process_time() - started

    return turn


def settle(longest: float = 10.0) -> None:
    """Waits until this process's other threads have nothing to do, at most `longest` seconds."""
    end = time.monotonic() + longest
    while time.monotonic() < end:
        before = time.process_time()
        time.sleep(0.1)
        if time.process_time() - before < 0.01:
            return


# {process: {part: what it makes}}. Only the parts that are asked for are built.
WORK: dict[str, dict[str, Callable[[Size, Path], Contenders]]] = {
    "jax": {
        "losses": losses,
        "train steps": train_steps,
        "compilations": compilations,
        "quickstart": quickstart,
        "frozen tower": frozen_tower,
        "input": input_pipeline,
        "readers": readers,
    },
    "torch": {"open_clip steps": open_clip_steps},
}


def main() -> None:
    """A worker: prints its contenders' names, then answers each name on its input with seconds."""
    kind, size, *parts = sys.argv[1:]
    out = os.fdopen(os.dup(1), "w")  # what libraries print must not be taken for an answer
    os.dup2(2, 1)
    contenders: Contenders = {}
    with tempfile.TemporaryDirectory() as folder:
        for part in parts:
            contenders |= WORK[kind][part](SIZES[size], Path(folder))
        print(json.dumps(list(contenders)), file=out, flush=True)
        for line in sys.stdin:
            print(json.dumps(contenders[line.strip()]()), file=out, flush=True)


if __name__ == "__main__":
    main()
