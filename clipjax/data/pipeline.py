"""Records -> batches. The content of a batch is a pure function of the seed and the batch's number.

Batch s of process p is rows p*b .. (p+1)*b of the examples s*B .. (s+1)*B, where example i is a function of (seed, i)
alone (clipjax.data.examples). So threads, worker processes and the number of hosts change no batch, and a run resumes
at any step from the step's number.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence

import numpy as np
from absl import logging

from clipjax.config import DataConfig, PatchBudget, PixelConfig, require
from clipjax.data.bad_records import BadRecord, BadRecordCounts, DataError
from clipjax.data.examples import EvalExamples, TrainExamples
from clipjax.data.images.jpeg import choose_decoder
from clipjax.data.mixture import Mixture
from clipjax.data.read_ahead import Rows, read_batches
from clipjax.data.sources import Source
from clipjax.data.tokenizers import Tokenizer

MIN_READ = 100  # records read before the share of bad ones can stop a run
MAX_MET = 1000  # batches with bad records that are kept until bad_records_log takes them


def make_train_iterator(
    data: DataConfig,
    *,
    source: Source,
    tokenizer: Tokenizer,
    image_size: int,
    budget: PatchBudget | None = None,
    global_batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> TrainIterator:
    """The endless training stream of this process, a TrainIterator. A batch may span two epochs.

    budget: make patches instead of images of image_size; "image" and "spatial_shape" are then as in images/naflex.py.
    Raises ConfigError where the batch does not divide over the processes, DataError for an empty source.
    """
    rows = _rows_of_process("config.global_batch_size", global_batch_size, process_count)
    data = choose_decoder(data)
    examples = TrainExamples(data, source, tokenizer, image_size, seed, budget, global_batch_size)
    return TrainIterator(data, examples, global_batch_size, rows, rows * process_index)


class TrainIterator:
    """Iterator of (batch, state) for one process.

    batch: {"image": uint8 [b, H, W, 3], "text": int32 [b, L], "pair_id": int32 [b]} NumPy.
    state: the position after this batch, as JSON values: {"step", "read", "bad": {cause: count}, "first_row",
      "records", "sha256"}. "first_row" is this process's first of a batch; "records" is the source's size, on which the
      order depends; "sha256" are its checksums, if it has any.

    A bad record is replaced by another drawn from (seed, i), logged with its file and position, and counted. A share
    above data.max_bad_share of the records read raises DataError. met: (step, bad records) of the latest batches with
    bad records, for bad_records_log to take.
    """

    def __init__(self, data: DataConfig, examples: TrainExamples, global_batch_size: int, rows: int, offset: int):
        self.data, self.examples = data, examples
        self.global_batch_size, self.rows, self.offset = global_batch_size, rows, offset
        self.checksums = checksums(examples.source)
        self.set_state({"step": 0, "read": 0, "bad": {}})

    def get_state(self) -> dict:
        return {
            "step": self.step,
            "read": self.read,
            "bad": dict(self.bad.causes),
            "first_row": self.offset,
            "records": len(self.examples.source),
            "sha256": self.checksums,
        }

    def set_state(self, state: dict) -> None:
        """Continues after the batch that the state came with, without replaying anything.

        Raises DataError where the source had another number of records then.
        """
        check_records(state, self.examples.source)
        self.step, self.read = state["step"], state["read"]
        self.met: collections.deque[tuple[int, list[BadRecord]]] = collections.deque(maxlen=MAX_MET)
        self.bad = BadRecordCounts(state["bad"], "replaced")
        self.stream = read_batches(
            self.examples,
            rows=self.rows,
            first=self.step * self.global_batch_size + self.offset,
            stride=self.global_batch_size,
            num_threads=self.data.num_threads,
            worker_count=self.data.worker_count,
        )

    def progress(self, step: int) -> dict[str, float]:
        """Metrics of the data's order after `step` steps: epochs; for a mixture, epochs and examples of each part."""
        return self.examples.order.progress(step * self.global_batch_size)

    def __iter__(self) -> TrainIterator:
        return self

    def __next__(self) -> tuple[dict[str, np.ndarray], dict]:
        batch, bad = next(self.stream)
        self.step += 1
        self.read += self.rows + len(bad)
        self.bad.add(bad)
        if bad:
            self.met.append((self.step, bad))
        total = self.bad.causes.total()
        if self.read >= MIN_READ and total > self.data.max_bad_share * self.read:
            raise DataError(
                f"{total} of the {self.read} records read are bad ({dict(self.bad.causes)}), more than "
                f"config.data.max_bad_share={self.data.max_bad_share}. Worst files: {self.bad.worst_files() or '-'}. "
                "Repair or rebuild the data, or raise the share if this loss is acceptable."
            )
        return batch, self.get_state()


def check_records(state: dict, source: Source) -> None:
    """Raises DataError where a checkpoint's data state is of another number of records than `source` has."""
    records = len(source)
    if state.get("records", records) != records:
        raise DataError(
            f"The checkpoint was trained on {state['records']} records, but the data now has {records}: the "
            "order would change. Give the run the data it began with, or use a new --workdir with "
            "--config.init_from set to this one."
        )


def checksums(source: Source) -> dict[str, str]:
    """{part of a mixture, or "train": checksum of its records} of the sources that have recorded one."""
    parts = zip(source.names, source.sources, strict=True) if isinstance(source, Mixture) else [("train", source)]
    return {name: part.sha256() for name, part in parts if hasattr(part, "sha256")}


def changed_data(state: dict, source: Source) -> str:
    """A line that names the sources whose records are not those of a checkpoint's data state; "" if they are."""
    own = checksums(source)
    changed = [name for name, old in state.get("sha256", {}).items() if name in own and own[name] != old]
    if not changed:
        return ""
    return (
        f"The records of {', '.join(changed)} are not those that the checkpoint was trained on (their checksums "
        "differ): from this step on, the run trains on other data."
    )


def eval_batches(
    source: Source,
    *,
    tokenizer: Tokenizer,
    pixels: PixelConfig,
    image_size: int,
    budget: PatchBudget | None = None,
    batch_size: int,
    num_threads: int = 2,
    process_index: int = 0,
    process_count: int = 1,
    shares: Sequence[range] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """Every record once, in order, over all processes; all processes get the same number of batches.

    batch_size: global. Yields this process's rows, b = batch_size / process_count: {"image" uint8 [b, H, W, 3],
    "text" int32 [b, L] (first caption), "label", "pair_id", "index" int32 [b], "valid" bool [b]}. Rows beyond
    the last record have index -1; they and bad records (logged, counted) have valid=False.
    shares: the consecutive records that each process reads, instead of its rows of each batch of consecutive records.
    Raises ConfigError where the batch does not divide over the processes.
    """
    rows = _rows_of_process("config.eval.batch_size", batch_size, process_count)
    if shares is None:
        first, stop, stride, num_batches = rows * process_index, len(source), batch_size, -(-len(source) // batch_size)
    else:
        first, stop, stride = shares[process_index].start, shares[process_index].stop, rows
        num_batches = -(-max(map(len, shares)) // rows)
    stream = read_batches(
        EvalExamples(source, tokenizer, pixels, image_size, budget, stop),
        rows=rows,
        first=first,
        stride=stride,
        num_batches=num_batches,
        num_threads=num_threads,
    )
    return _valid_batches(stream)


def _valid_batches(stream: Iterator[Rows]) -> Iterator[dict[str, np.ndarray]]:
    bad = BadRecordCounts({}, "left out of the evaluation")
    for batch, records in stream:
        bad.add(records)
        yield batch
    if bad.causes:
        logging.warning("%d records were left out of the evaluation: %s", bad.causes.total(), dict(bad.causes))


def _rows_of_process(field: str, batch_size: int, process_count: int) -> int:
    require(
        batch_size > 0 and batch_size % process_count == 0,
        f"{field}={batch_size} does not divide over {process_count} processes; use a multiple of {process_count}.",
    )
    return batch_size // process_count
