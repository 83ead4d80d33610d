"""The experiment of benchmarks.kills: soak_scenes, in 24 steps that evaluate and save often, on partly damaged data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from benchmarks.soak_scenes import get_config as soak_scenes
from clipjax.config import SourceConfig, to_config_dict
from clipjax.data.records import decode_record, encode_record
from clipjax.data.write import write_records
from clipjax.eval import RetrievalConfig
from data_pipelines import scene_content, scenes, train_tokenizer

DAMAGED = 29  # every 29th record has half a picture


def get_config(data: str = "data") -> ConfigDict:
    """data: the folder that build_data filled."""
    config = soak_scenes(data)
    config.total_steps, config.global_batch_size = 24, 8
    config.optimizer.schedule.warmup_steps = 4
    config.model.image.update(image_size=16, patch_size=8)
    config.data.max_bad_share = 0.5
    validation = SourceConfig(path=f"{data}/scenes", split="validation")
    config.eval.update(every_steps=6, batch_size=24)
    config.eval.evaluators = {"retrieval": to_config_dict(RetrievalConfig(source=validation))}
    config.checkpoint.update(every_steps=3, keep_last=2, keep_best=1, best_metric="retrieval/image_to_text_r5")
    return config


def damaged(records: Iterator[bytes]) -> Iterator[bytes]:
    """The records, every DAMAGED-th with half of its picture."""
    for index, data in enumerate(records):
        record = decode_record(data)
        image = record["image"]
        if index % DAMAGED == 0:
            image = image[: len(image) // 2]
        yield encode_record(image, record["texts"], key=record["key"], pair_id=record["pair_id"])


def build_data(folder: Path) -> None:
    """Writes folder/scenes (200 records for training, some damaged) and folder/scenes.model, unless they are there."""
    if not (folder / "scenes").exists():
        splits = {"train": damaged(scenes.records("train", 200, 0)), "validation": scenes.records("validation", 24, 0)}
        write_records(
            folder / "scenes",
            splits,
            name="scenes",
            class_names=scene_content.class_names(),
            licences=[{"source": "drawn by clipjax", "licence": "CC0-1.0"}],
            source={"pipeline": "benchmarks.kills_experiment"},
        )
    if not (folder / "scenes.model").exists():
        train_tokenizer.build(folder / "scenes.model", records=folder / "scenes", vocab_size=128, model_type="bpe")
