"""Compares clipjax's training input with PyTorch's DataLoader, WebDataset and open_clip's transform.

    python -m benchmarks.input_pipeline
    python -m benchmarks.input_pipeline --rounds=3 --sizes=500x375 --train_steps=0

All contenders read the same JPEG files, in ArrayRecord shards or in tar shards, with the same captions, the same
tokenizer (CLIP's), the same distribution of random crops, a bicubic resize to 224 x 224 and batches of 32. The pictures
are drawn (benchmarks.photos), not photographs. clipjax yields uint8, which the device normalises in its step;
open_clip's transform yields normalised float32.

Each contender has a process of its own, and they take turns. A turn first uses up what is buffered, then measures the
processor time of the contender's whole process tree and the wall time over --images images. Images per core second do
not depend on what else runs; wall time does. The script prints medians and ratios, and data_wait of a training run on
the same files. It writes benchmarks/results/input_pipeline.json. It needs `make parity`. tf.data takes part where
TensorFlow is installed (pip install tensorflow-cpu); its captions are not tokenised.
"""

from __future__ import annotations

import argparse
import collections
import importlib.util
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.machine import command, machine
from benchmarks.photos import SIZES, photo_jpeg

RESULT = Path(__file__).parent / "results" / "input_pipeline.json"
PICTURES, SHARDS, BATCH, SIZE, SEED = 64, 4, 32, 224, 0
BUFFERED = 640  # images; no contender has more of them ready


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=384, help="per turn")
    parser.add_argument("--sizes", default=",".join(f"{w}x{h}" for w, h in SIZES))
    parser.add_argument("--parallel", type=int, default=os.cpu_count(), help="threads or worker processes of each")
    parser.add_argument("--train_steps", type=int, default=8, help="of the run that data_wait is taken from; 0: none")
    parser.add_argument("--worker", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return serve(CONTENDERS[args.worker](Path(args.folder), args.parallel))

    result = {
        "pictures": "drawn, 1 / f^1.55 noise and ellipses, JPEG quality 90 4:2:0",
        "output": f"{SIZE} x {SIZE}, batches of {BATCH}",
        "parallel": args.parallel,
        "command": command("benchmarks.input_pipeline"),
        "machine": machine(),
        "sizes": {},
    }
    with tempfile.TemporaryDirectory() as scratch:
        for size in args.sizes.split(","):
            width, height = map(int, size.split("x"))
            folder = Path(scratch) / size
            build(folder, width, height)
            result["sizes"][size] = compare(folder, args)
        if args.train_steps:
            result["data_wait"] = data_wait(folder, args.train_steps)
            print(f"data_wait of a training run on {size}: {result['data_wait']}")
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(f"Wrote {RESULT}")


def build(folder: Path, width: int, height: int) -> None:
    """Writes the same pictures and captions to folder/records and to folder/*.tar."""
    from clipjax.data.records import encode_record
    from clipjax.data.write import write_records

    pictures = [photo_jpeg(seed, width, height) for seed in range(PICTURES)]
    captions = [f"a drawn picture, number {seed}, of noise and ellipses in many colours" for seed in range(PICTURES)]
    records = [encode_record(p, [c], key=f"{i}") for i, (p, c) in enumerate(zip(pictures, captions, strict=True))]
    write_records(
        folder / "records", {"train": records}, name="photos", records_per_shard=PICTURES // SHARDS, source={"drawn": 1}
    )
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for i in range(shard, PICTURES, SHARDS):
                for name, data in ((f"{i:05d}.jpg", pictures[i]), (f"{i:05d}.txt", captions[i].encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def clipjax_batches(folder: Path, parallel: int, **how) -> Iterator[int]:
    """Yields the size of each batch."""
    from benchmarks.pytorch import import_torch
    from clipjax.config import AugmentConfig, DataConfig, SourceConfig, TokenizerConfig
    from clipjax.data.pipeline import make_train_iterator
    from clipjax.data.sources import open_source
    from clipjax.data.tokenizers import make_tokenizer

    import_torch()
    vocabulary = Path(import_torch("open_clip").__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    batches = make_train_iterator(
        DataConfig(augment=AugmentConfig(scale=(0.9, 1.0)), **how),
        source=open_source(SourceConfig(path=str(folder / "records"))),
        tokenizer=make_tokenizer(TokenizerConfig(name="clip_bpe", path=str(vocabulary)), 77),
        image_size=SIZE,
        global_batch_size=BATCH,
        seed=SEED,
    )
    for batch, _ in batches:
        assert batch["image"].shape == (BATCH, SIZE, SIZE, 3)
        yield len(batch["image"])


def torch_batches(folder: Path, parallel: int) -> Iterator[int]:
    from benchmarks.pytorch import import_torch

    import_torch()
    open_clip = import_torch("open_clip")
    import webdataset as wds

    transform = open_clip.image_transform(SIZE, is_train=True, aug_cfg=open_clip.AugmentationCfg(scale=(0.9, 1.0)))
    tokenize = open_clip.get_tokenizer("ViT-B-32")
    dataset = wds.DataPipeline(
        wds.ResampledShards([str(path) for path in sorted(folder.glob("*.tar"))]),
        wds.tarfile_to_samples(),
        wds.shuffle(PICTURES // SHARDS),
        wds.decode("pilrgb"),
        wds.rename(image="jpg", text="txt"),
        wds.map_dict(image=transform, text=lambda text: tokenize(text)[0]),
        wds.to_tuple("image", "text"),
        wds.batched(BATCH),
    )
    loader = wds.WebLoader(dataset, batch_size=None, num_workers=parallel)
    for image, _ in loader:
        assert image.shape == (BATCH, 3, SIZE, SIZE)
        yield len(image)


def tensorflow_batches(folder: Path, parallel: int) -> Iterator[int]:
    """Crops and decodes in one operation, at full size; yields uint8 images without captions."""
    import tensorflow as tf

    from clipjax.config import SourceConfig
    from clipjax.data.sources import open_source

    source = open_source(SourceConfig(path=str(folder / "records")))
    with tf.io.TFRecordWriter(str(folder / "pictures.tfrecord")) as writer:
        for i in range(len(source)):
            writer.write(source[i]["image"])

    def example(data: tf.Tensor) -> tf.Tensor:
        begin, shape, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(data),
            tf.zeros([0, 0, 4]),
            area_range=(0.9, 1.0),
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.stack([begin[0], begin[1], shape[0], shape[1]])
        image = tf.io.decode_and_crop_jpeg(data, window, channels=3)
        image = tf.image.resize(image, (SIZE, SIZE), method="bicubic", antialias=True)
        return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)

    options = tf.data.Options()
    options.threading.private_threadpool_size = parallel
    dataset = tf.data.TFRecordDataset(str(folder / "pictures.tfrecord")).repeat().shuffle(PICTURES // SHARDS)
    dataset = dataset.map(example, num_parallel_calls=parallel).batch(BATCH).prefetch(2).with_options(options)
    for image in dataset:
        assert image.shape == (BATCH, SIZE, SIZE, 3)
        yield len(image)


def contenders() -> list[str]:
    """Names of the contenders; tf.data only where TensorFlow is installed."""
    return [name for name in CONTENDERS if name != "tf.data" or importlib.util.find_spec("tensorflow")]


CONTENDERS = {
    "clipjax, threads": lambda folder, n: clipjax_batches(folder, n, num_threads=n),
    "clipjax, processes": lambda folder, n: clipjax_batches(folder, n, num_threads=1, worker_count=n),
    "clipjax, threads, Pillow": lambda folder, n: clipjax_batches(folder, n, num_threads=n, decoder="pillow"),
    "PyTorch": torch_batches,
    "tf.data": tensorflow_batches,
}


def compare(folder: Path, args: argparse.Namespace) -> dict:
    """Returns {contender: {"images_per_core_second", "images_per_second", "turns", "ratio_to_pytorch"}}."""
    workers = {name: start(name, folder, args.parallel) for name in contenders()}
    samples = collections.defaultdict(list)
    for number in range(args.rounds):
        for name in workers if number % 2 == 0 else reversed(list(workers)):
            samples[name].append(ask(workers[name], args.images))
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    rows = {}
    for name, turns in samples.items():
        per_core, per_second = (statistics.median(column) for column in zip(*turns, strict=True))
        rows[name] = {"images_per_core_second": per_core, "images_per_second": per_second, "turns": turns}
    base = rows["PyTorch"]["images_per_core_second"]
    print(f"{folder.name}: files of {(folder / '0.tar').stat().st_size * SHARDS / PICTURES / 1024:.0f} KB")
    for name, row in rows.items():
        row["ratio_to_pytorch"] = row["images_per_core_second"] / base
        print(
            f"  {name:26} {row['images_per_core_second']:7.0f} images per core second  {row['ratio_to_pytorch']:5.2f}x"
            f"   {row['images_per_second']:6.0f} images/s",
            flush=True,
        )
    return rows


def data_wait(folder: Path, steps: int) -> list[float]:
    """Returns the metric data_wait of each step after the first: ViT-B/32 with three layers in each tower."""
    script = f"""
from pathlib import Path
from clipjax.config import SourceConfig, default_config, from_config_dict, to_config_dict
from clipjax.models.presets import get_preset
from clipjax.commands.train import run
from benchmarks.pytorch import import_torch
if __name__ == "__main__":
    import_torch()
    config = default_config()
    config.model = to_config_dict(get_preset("clip_vit_b32"))
    config.model.image.depth = config.model.text.depth = 3
    config.data.train.path = {str(folder / "records")!r}
    config.tokenizer.name = "clip_bpe"
    config.tokenizer.path = str(Path(import_torch("open_clip").__file__).parent / "bpe_simple_vocab_16e6.txt.gz")
    config.update(total_steps={steps}, global_batch_size=32)
    config.optimizer.schedule.warmup_steps = 1
    config.log.update(every_steps=1, tensorboard=False, figures=False)
    run(from_config_dict(config), {str(folder / "run")!r})
"""
    path = folder / "train.py"
    path.write_text(script)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, str(path)], env=env, check=True, stdout=subprocess.DEVNULL)
    lines = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    return [round(line["data_wait"], 5) for line in lines if "data_wait" in line][1:]


def serve(batches: Iterator[int]) -> None:
    """The worker's side: for each line with a number of images, prints images per core second and per second."""

    def take(count: int) -> int:
        taken = 0
        while taken < count:
            taken += next(batches)
        return taken

    take(BATCH)
    print("ready", flush=True)
    for line in sys.stdin:
        take(BUFFERED)
        used, started = tree_seconds(), time.perf_counter()
        taken = take(int(line))
        elapsed, used = time.perf_counter() - started, tree_seconds() - used
        print(json.dumps([taken / used, taken / elapsed]), flush=True)


def tree_seconds() -> float:
    """Processor seconds of this process and of its living descendants."""
    parents, seconds = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        pid = int(stat.parent.name)
        parents[pid], seconds[pid] = int(fields[1]), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def descends(pid: int) -> bool:
        while pid > 1 and pid != os.getpid():
            pid = parents.get(pid, 0)
        return pid == os.getpid()

    return sum(value for pid, value in seconds.items() if descends(pid))


def start(name: str, folder: Path, parallel: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "benchmarks.input_pipeline", f"--worker={name}", f"--folder={folder}"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "JAX_PLATFORMS": "cpu"}
    worker = subprocess.Popen(
        [*command, f"--parallel={parallel}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    )
    for line in worker.stdout:
        if line.strip() == "ready":
            return worker
    sys.exit(f"'{name}' ended before its first batch; is what it needs installed? See --help.")


def ask(worker: subprocess.Popen, images: int) -> list[float]:
    worker.stdin.write(f"{images}\n")
    worker.stdin.flush()
    return json.loads(worker.stdout.readline())


if __name__ == "__main__":
    main()
