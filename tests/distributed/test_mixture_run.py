"""A run on a mixture of formats resumes at the same place, with each source's epochs in its metrics."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipjax.commands import train
from clipjax.config import MixturePart, SourceConfig, from_config_dict, to_config_dict
from clipjax.data.sources import ParquetConfig, WebDatasetConfig, open_source
from clipjax.mesh import make_mesh
from tests import runs
from tests.data.test_webdataset import write_tar


@pytest.mark.slow
def test_a_run_on_tars_parquet_and_records_resumes_with_the_same_losses_and_counts_epochs(tmp_path, monkeypatch):
    runs.build_data(tmp_path)
    records = list(open_source(SourceConfig(path=str(tmp_path / "scenes"))))
    files = []
    for i, r in enumerate(records[:20]):
        files += [(f"{i}.png", r["image"]), (f"{i}.json", json.dumps({"caption": r["texts"]}).encode())]
    write_tar(tmp_path / "00000.tar", files)
    rows = [{"image": {"bytes": r["image"], "path": None}, "caption": r["texts"]} for r in records[20:30]]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet", row_group_size=3)
    parts = {
        "records": MixturePart(SourceConfig(path=str(tmp_path / "scenes")), 2.0),
        "rows": MixturePart(ParquetConfig(path=str(tmp_path / "rows.parquet"), text_key="caption"), 1.0),
        "tars": MixturePart(WebDatasetConfig(path=f"{tmp_path}/{{00000..00000}}.tar"), 1.0),
    }
    tree = runs.run_config(tmp_path)
    tree.data.train.path = ""
    tree.data.mixture = {name: to_config_dict(part) for name, part in parts.items()}
    tree.total_steps = 6
    tree.eval.evaluators = {}
    config = from_config_dict(tree)
    compiled = train.compile_step(config, make_mesh(config.mesh), None)
    monkeypatch.setattr(train, "compile_step", lambda *_: compiled)  # once for both runs
    train.run(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole" / "checkpoints" / "3", tmp_path / "resumed" / "checkpoints" / "3")
    train.run(config, tmp_path / "resumed")
    whole, resumed = runs.losses(tmp_path / "whole"), runs.losses(tmp_path / "resumed")
    assert list(resumed) == list(range(4, 7))
    assert resumed == {step: whole[step] for step in resumed}
    last = json.loads((tmp_path / "resumed" / "metrics.jsonl").read_text().splitlines()[-1])
    shown = {name: value for name, value in last.items() if name.startswith(("epoch/", "examples/"))}
    assert last["step"] == 6 and shown == {
        "examples/records": 48, "examples/rows": 24, "examples/tars": 24,
        "epoch/records": 48 / 64, "epoch/rows": 2.4, "epoch/tars": 1.2,
    }  # fmt: skip
