"""Evaluation sees every record exactly once, whatever the batch size and the number of processes."""

import numpy as np
import pytest
from absl import logging

from clipjax.config import ConfigError, PixelConfig
from clipjax.data.images.transforms import eval_image
from clipjax.data.pipeline import eval_batches
from tests.data.samples import FaultySource, LengthTokenizer, example, open_folder, write_folder

PIXELS = PixelConfig(resize="center_crop")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return open_folder(write_folder(tmp_path_factory.mktemp("data") / "set"))


def batches(source, size, process=(0, 1), **more):
    return list(
        eval_batches(
            source,
            tokenizer=LengthTokenizer(),
            pixels=PIXELS,
            image_size=16,
            batch_size=size,
            process_index=process[0],
            process_count=process[1],
            **more,
        )
    )


@pytest.mark.parametrize(("size", "processes"), [(8, 1), (8, 2), (12, 4), (37, 1), (64, 2), (2, 2), (128, 2)])
def test_every_record_is_seen_once_and_all_processes_get_as_many_batches(source, size, processes):
    parts = [batches(source, size, (p, processes)) for p in range(processes)]
    assert {len(part) for part in parts} == {-(-37 // size)}
    assert {len(b["image"]) for part in parts for b in part} == {size // processes}
    index = np.concatenate([b["index"][b["valid"]] for step in zip(*parts, strict=True) for b in step])
    assert index.tolist() == list(range(37))


@pytest.mark.parametrize("stops", [(20, 37), (0, 30, 37), (37, 37)])
def test_processes_with_shares_of_their_own_see_their_records_once_in_as_many_batches(source, stops):
    shares = [range(start, stop) for start, stop in zip((0, *stops), stops, strict=False)]
    parts = [batches(source, 4 * len(stops), (p, len(stops)), shares=shares) for p in range(len(stops))]
    assert {len(part) for part in parts} == {-(-max(map(len, shares)) // 4)}
    assert {len(b["image"]) for part in parts for b in part} == {4}
    for part, share in zip(parts, shares, strict=True):
        assert np.concatenate([b["index"][b["valid"]] for b in part]).tolist() == list(share)
        assert all((b["valid"] == (b["index"] >= 0)).all() for b in part)


def test_rows_are_the_records_and_padding_is_marked(source):
    found = batches(source, 20)
    rows = {name: np.concatenate([b[name] for b in found]) for name in found[0]}
    for i in range(37):
        expected = example(i)
        assert (rows["image"][i] == eval_image(expected["image"], 16, PIXELS)).all()
        assert rows["text"][i].tolist() == [0, i]  # the first caption
        assert (rows["label"][i], rows["pair_id"][i]) == (i % 2, i)
    assert rows["valid"].tolist() == [True] * 37 + [False] * 3
    assert rows["index"][37:].tolist() == [-1] * 3
    assert not rows["image"][37:].any()


def test_a_bad_record_is_an_invalid_row_named_and_counted(monkeypatch):
    lines = []
    monkeypatch.setattr(logging, "warning", lambda message, *args: lines.append(message % args))
    (batch,) = batches(FaultySource(6, bad={2, 4}), 8)
    assert batch["valid"].tolist() == [True, True, False, True, False, True, False, False]
    assert batch["index"].tolist() == [0, 1, 2, 3, 4, 5, -1, -1]
    assert lines == [
        "Bad record left out of the evaluation: shard0 record 2: made unreadable (corrupt image)",
        "Bad record left out of the evaluation: shard0 record 4: made unreadable (corrupt image)",
        "2 records were left out of the evaluation: {'corrupt image': 2}",
    ]


def test_a_batch_that_does_not_divide_over_the_processes_is_refused(source):
    with pytest.raises(ConfigError, match="eval.batch_size=9 does not divide over 2 processes"):
        batches(source, 9, (0, 2))
