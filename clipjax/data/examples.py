"""Records -> rows of a batch, each a pure function of its position."""

from __future__ import annotations

from typing import Any

import numpy as np

from clipjax.config import DataConfig, PatchBudget, PixelConfig
from clipjax.data.bad_records import BadRecord, DataError, bad_record, first_good
from clipjax.data.embeddings import open_embeddings
from clipjax.data.images.naflex import eval_patches, train_patches
from clipjax.data.images.transforms import eval_image, train_image
from clipjax.data.mixture import fetch_ahead, make_order
from clipjax.data.read_ahead import Rows
from clipjax.data.records import RecordError
from clipjax.data.sources import Source
from clipjax.data.tokenizers import Tokenizer


class TrainExamples:
    """examples(first, count) -> Rows with the columns image, text, pair_id, for training.

    With data.captions_per_image K > 1, text is [count, K, L]: K different texts of each image, drawn at random. An
    image that has fewer comes with all of them, each as often as the others or once more.

    With data.image_embeddings, a column image_embedding takes the place of image. data.teacher_embeddings adds
    teacher_image_embedding and teacher_text_embedding.

    pair_id: the record's, or for one without, a number below -1 that is its own: a record that comes twice in a batch,
    as after the end of an epoch or in a small part of a mixture, has equal ids.

    batch_size: of the global batch, all images of which are cut into patches within one budget.

    Example i is record order[i] (clipjax.data.mixture.make_order). Its caption and its crop are drawn from a generator
    seeded by (seed, i), and so is the record that replaces it when it is bad.
    """

    def __init__(
        self,
        data: DataConfig,
        source: Source,
        tokenizer: Tokenizer,
        image_size: int,
        seed: int,
        budget: PatchBudget | None = None,
        batch_size: int = 1,
    ):
        if not len(source):
            raise DataError("The training source has no records.")
        self.images, self.teacher = (
            open_embeddings(folder, len(source)) for folder in (data.image_embeddings, data.teacher_embeddings)
        )
        self.data, self.source, self.tokenizer, self.image_size = data, source, tokenizer, image_size
        self.seed, self.budget, self.batch_size = seed, budget, batch_size
        self.order = make_order(source, seed)

    def __call__(self, first: int, count: int) -> Rows:
        bad: list[BadRecord] = []
        indices = [self.order[i] for i in range(first, first + count)]  # for few records, drawing one takes long
        fetch_ahead(self.source, indices)
        examples = [self.example(first + row, index, bad) for row, index in enumerate(indices)]
        images, texts, pair_ids = zip(*examples, strict=True)
        rows = {name: np.stack([columns[name] for columns in images]) for name in images[0]}
        text = self.tokenizer([text for own in texts for text in own])
        if self.data.captions_per_image > 1:
            text = text.reshape(count, self.data.captions_per_image, -1)
        return rows | {"text": text, "pair_id": np.array(pair_ids, np.int32)}, bad

    def example(self, i: int, index: int, bad: list[BadRecord]) -> tuple[dict[str, np.ndarray], list[str], int]:
        """(the image's columns, data.captions_per_image texts, pair_id) of example i, which is record `index`."""
        rng, budget = np.random.default_rng((self.seed, i)), self.budget_of(i // self.batch_size)

        def make(index: int, record: dict[str, Any]) -> tuple[dict[str, np.ndarray], list[str], int]:
            columns = self.image(index, record, rng, budget)
            texts = record["texts"]
            chosen = choose_captions(len(texts), self.data.captions_per_image, rng)
            columns |= self.of_teacher(index, record, chosen[0])
            own = -2 - index if index < 2**31 - 1 else -1
            pair_id = record["pair_id"] if record["pair_id"] >= 0 else own
            return columns, [texts[caption] for caption in chosen], pair_id

        return first_good(self.source, index, make, lambda bad: self.order.replacement(bad, rng), bad)

    def budget_of(self, batch: int) -> PatchBudget | None:
        """The budget of all images of a batch, drawn from (seed, batch) where there are several."""
        if not (self.budget and self.budget.training):
            return self.budget
        drawn = np.random.default_rng((self.seed, batch, 1)).choice(self.budget.training)
        return self.budget._replace(max_patches=int(drawn))

    def image(
        self, index: int, record: dict[str, Any], rng: np.random.Generator, budget: PatchBudget | None
    ) -> dict[str, np.ndarray]:
        if self.images:
            embedding = self.images.image(index, record["key"])
            rng.random()  # the draw for a flip, so that captions are drawn as in a run on images
            return {"image_embedding": embedding}
        data = record["image"]
        how = self.data.pixels, self.data.augment, rng, self.data.decoder
        if budget:
            return train_patches(data, budget, *how)
        return {"image": train_image(data, self.image_size, *how)}

    def of_teacher(self, index: int, record: dict[str, Any], caption: int) -> dict[str, np.ndarray]:
        if not self.teacher:
            return {}
        image = self.teacher.image(index, record["key"])
        text = self.teacher.text(index, record["key"], record["texts"], caption)
        return {"teacher_image_embedding": image, "teacher_text_embedding": text}


def choose_captions(available: int, count: int, rng: np.random.Generator) -> list[int]:
    """`count` random indices below `available`; none comes again before all have come."""
    if count == 1:
        return [int(rng.integers(available))]
    return np.resize(rng.permutation(available), count).tolist()


class EvalExamples:
    """examples(first, count) -> Rows with the columns image, text, label, pair_id, index, valid, for evaluation.

    Row i is record i. Rows from `stop` on (None: after the last record) have index -1; they and bad records have valid
    False.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        pixels: PixelConfig,
        image_size: int,
        budget: PatchBudget | None = None,
        stop: int | None = None,
    ):
        self.budget, self.stop = budget, len(source) if stop is None else stop
        self.source, self.tokenizer, self.pixels, self.image_size = source, tokenizer, pixels, image_size

    def __call__(self, first: int, count: int) -> Rows:
        bad: list[BadRecord] = []
        rows: dict[str, Any] = {
            **self.no_images(count),
            "label": np.full(count, -1, np.int32),
            "pair_id": np.full(count, -1, np.int32),
            "index": np.full(count, -1, np.int32),
            "valid": np.zeros(count, bool),
        }
        texts = [""] * count
        fetch_ahead(self.source, range(first, min(first + count, self.stop)))
        for row in range(max(0, min(count, self.stop - first))):
            index = rows["index"][row] = first + row
            try:
                record = self.source[index]
                for name, value in self.image(record["image"]).items():
                    rows[name][row] = value
            except RecordError as error:
                bad.append(bad_record(self.source, index, error))
                continue
            texts[row] = record["texts"][0]
            rows["label"][row], rows["pair_id"][row], rows["valid"][row] = record["label"], record["pair_id"], True
        rows["text"] = self.tokenizer(texts)
        return rows, bad

    def image(self, data: bytes) -> dict[str, np.ndarray]:
        if self.budget:
            return eval_patches(data, self.budget, self.pixels)
        return {"image": eval_image(data, self.image_size, self.pixels)}

    def no_images(self, count: int) -> dict[str, np.ndarray]:
        """The columns of rows without an image; spatial_shape is then one patch."""
        if self.budget:
            shape = (count, self.budget.max_patches, 3 * self.budget.patch_size**2)
            return {"image": np.zeros(shape, np.uint8), "spatial_shape": np.ones((count, 2), np.int32)}
        return {"image": np.zeros((count, self.image_size, self.image_size, 3), np.uint8)}
