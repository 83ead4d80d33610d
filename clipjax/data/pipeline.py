"""Records -> batches. What is in a batch is a pure function of the seed and its number.

Example i of a run is record order(i), where order is a seeded permutation per epoch; its caption and its
crop are drawn from a generator seeded by (seed, i). Batch s of process p is rows p*b .. (p+1)*b of the
examples s*B .. (s+1)*B. So neither threads, worker processes nor the number of hosts change a batch, and
resuming at any step needs only its number.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from absl import flags, logging

from clipjax.config import DataConfig, PixelConfig
from clipjax.data.images import eval_image, train_image
from clipjax.data.records import RecordError
from clipjax.data.sources import Source
from clipjax.data.text import Tokenizer

MAX_ATTEMPTS = 16  # replacements tried for one example before the data is given up
MIN_READ = 100  # records read before the share of bad ones can stop a run
MAX_WARNINGS = 20
ENDLESS = 1 << 40


class DataError(RuntimeError):
    """Too many records are bad."""


class TrainIterator:
    """Iterator of (batch, state) for one process.

    batch: {"image": uint8 [b, H, W, 3], "text": int32 [b, L], "pair_id": int32 [b]} NumPy.
    state: JSON-able, belongs to the position after this batch: {"step", "read", "bad": {cause: count}}.

    A bad record is replaced by another drawn from (seed, i), logged with its file and position, and counted;
    more than data.max_bad_share of the records read raises DataError.
    """

    def __init__(self, batches: TrainBatches, data: DataConfig):
        self.batches, self.data = batches, data
        self.set_state({"step": 0, "read": 0, "bad": {}})

    def set_state(self, state: dict) -> None:
        """Goes on after the batch the state came with; nothing is replayed."""
        self.step, self.read = state["step"], state["read"]
        self.bad = collections.Counter(state["bad"])
        self.warnings = 0
        self.stream = iterate(Shifted(self.batches, self.step), self.data)

    def __iter__(self) -> TrainIterator:
        return self

    def __next__(self) -> tuple[dict[str, np.ndarray], dict]:
        batch, bad = next(self.stream)
        self.step += 1
        self.read += len(batch["image"]) + len(bad)
        for cause, where in bad:
            self.bad[cause] += 1
            self.warn(f"Bad record skipped ({cause}): {where}")
        total = sum(self.bad.values())
        if self.read >= MIN_READ and total > self.data.max_bad_share * self.read:
            raise DataError(
                f"{total} of the {self.read} records read are bad ({dict(self.bad)}), more than "
                f"config.data.max_bad_share={self.data.max_bad_share}. The last one: {bad[-1][1] if bad else '-'}. "
                "Repair or rebuild the data, or raise the share if this loss is acceptable."
            )
        return batch, {"step": self.step, "read": self.read, "bad": dict(self.bad)}

    def warn(self, message: str) -> None:
        self.warnings += 1
        if self.warnings <= MAX_WARNINGS:
            logging.warning("%s%s", message, "; further ones are only counted" * (self.warnings == MAX_WARNINGS))


def make_train_iterator(
    data: DataConfig,
    *,
    source: Source,
    tokenizer: Tokenizer,
    image_size: int,
    global_batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> TrainIterator:
    """The endless training stream of this process; see TrainIterator."""
    rows = global_batch_size // process_count
    batches = TrainBatches(data, source, tokenizer, image_size, seed, rows, global_batch_size, rows * process_index)
    return TrainIterator(batches, data)


class TrainBatches:
    """batches[s] -> (batch, [(cause, where) of the bad records met on the way])."""

    def __init__(
        self,
        data: DataConfig,
        source: Source,
        tokenizer: Tokenizer,
        image_size: int,
        seed: int,
        rows: int,
        global_batch_size: int,
        offset: int,
    ):
        self.data, self.source, self.tokenizer, self.image_size = data, source, tokenizer, image_size
        self.seed, self.rows, self.global_batch_size, self.offset = seed, rows, global_batch_size, offset
        order = grain.MapDataset.range(len(source)).seed(seed).shuffle()
        self.order = order.repeat(None, reseed_each_epoch=True)

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, step: int) -> tuple[dict[str, np.ndarray], list[tuple[str, str]]]:
        bad: list[tuple[str, str]] = []
        first = step * self.global_batch_size + self.offset
        examples = [self.example(first + row, bad) for row in range(self.rows)]
        images, texts, pair_ids = zip(*examples, strict=True)
        batch = {
            "image": np.stack(images),
            "text": self.tokenizer(texts),
            "pair_id": np.array(pair_ids, np.int32),
        }
        return batch, bad

    def example(self, i: int, bad: list[tuple[str, str]]) -> tuple[np.ndarray, str, int]:
        rng = np.random.default_rng((self.seed, i))
        index = int(self.order[i])
        for _ in range(MAX_ATTEMPTS):
            try:
                record = self.source[index]
                image = train_image(record["image"], self.image_size, self.data.pixels, self.data.augment, rng)
                texts = record["texts"]
                return image, texts[int(rng.integers(len(texts)))], record["pair_id"]
            except RecordError as error:
                bad.append((error.cause, f"{self.source.where(index)}: {error}"))
                index = int(rng.integers(len(self.source)))
        raise DataError(f"{MAX_ATTEMPTS} records drawn in a row are bad; the last: {bad[-1][1]} ({bad[-1][0]}).")


def eval_batches(
    source: Source,
    *,
    tokenizer: Tokenizer,
    pixels: PixelConfig,
    image_size: int,
    batch_size: int,
    num_threads: int = 2,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Every record once, in order, over all processes; all processes get the same number of batches.

    batch_size: global. Yields this process's rows, b = batch_size / process_count: {"image" uint8 [b, H, W, 3],
    "text" int32 [b, L] (first caption), "label", "pair_id", "index" int32 [b], "valid" bool [b]}. Rows beyond
    the last record and bad records (logged) have valid=False.
    """
    rows = batch_size // process_count
    batches = EvalBatches(source, tokenizer, pixels, image_size, batch_size, rows, rows * process_index)
    bad = 0
    for batch, messages in iterate(batches, DataConfig(num_threads=num_threads)):
        for cause, where in messages:
            logging.warning("Bad record left out of the evaluation (%s): %s", cause, where)
        bad += len(messages)
        yield batch
    if bad:
        logging.warning("%d records were left out of the evaluation", bad)


class EvalBatches:
    """batches[s] -> (batch, [(cause, where) of bad records])."""

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        pixels: PixelConfig,
        image_size: int,
        batch_size: int,
        rows: int,
        offset: int,
    ):
        self.source, self.tokenizer, self.pixels, self.image_size = source, tokenizer, pixels, image_size
        self.batch_size, self.rows, self.offset = batch_size, rows, offset

    def __len__(self) -> int:
        return -(-len(self.source) // self.batch_size)

    def __getitem__(self, step: int) -> tuple[dict[str, np.ndarray], list[tuple[str, str]]]:
        bad: list[tuple[str, str]] = []
        rows, first = self.rows, step * self.batch_size + self.offset
        batch = {
            "image": np.zeros((rows, self.image_size, self.image_size, 3), np.uint8),
            "label": np.full(rows, -1, np.int32),
            "pair_id": np.full(rows, -1, np.int32),
            "index": np.full(rows, -1, np.int32),
            "valid": np.zeros(rows, bool),
        }
        texts = [""] * rows
        for row in range(max(0, min(rows, len(self.source) - first))):
            index = first + row
            try:
                record = self.source[index]
                batch["image"][row] = eval_image(record["image"], self.image_size, self.pixels)
            except RecordError as error:
                bad.append((error.cause, f"{self.source.where(index)}: {error}"))
                continue
            texts[row] = record["texts"][0]
            batch["label"][row], batch["pair_id"][row] = record["label"], record["pair_id"]
            batch["index"][row], batch["valid"][row] = index, True
        batch["text"] = self.tokenizer(texts)
        return batch, bad


class Shifted:
    """batches[start + s] as batches[s]."""

    def __init__(self, batches: TrainBatches, start: int):
        self.batches, self.start = batches, start

    def __len__(self) -> int:
        return len(self.batches) - self.start

    def __getitem__(self, step: int) -> Any:
        return self.batches[self.start + step]


def iterate(batches: Any, data: DataConfig) -> Iterator[Any]:
    """batches[0], batches[1], ... in order, made ahead by threads, or by data.worker_count processes.

    Whole batches are the elements: Grain's cost per element is paid once a batch.
    """
    options = grain.ReadOptions(num_threads=data.num_threads, prefetch_buffer_size=data.num_threads + 1)
    stream = grain.MapDataset.source(batches).to_iter_dataset(options)
    if data.worker_count:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags, which a library's user may never parse
        stream = stream.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=data.worker_count, per_worker_buffer_size=2)
        )
    return iter(stream)
