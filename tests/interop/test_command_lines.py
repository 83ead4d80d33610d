"""clipjax import, eval and export as they are typed."""

import json
import shutil
from dataclasses import replace

import pytest

from clipjax.commands import eval as evaluate
from clipjax.commands import export, import_weights
from tests import runs
from tests.interop.test_commands import publish, tiny

EVALUATION = """
from pathlib import Path

from clipjax.config import to_config_dict
from clipjax.runs import open_run
from tests.runs import run_config


def get_config():
    config = run_config(Path("{folder}"))
    with open_run("{run}") as run:
        imported = to_config_dict(run.config)
    config.model, config.tokenizer, config.data.pixels = imported.model, imported.tokenizer, imported.data.pixels
    del config.eval.evaluators["retrieval"]
    return config
"""


@pytest.mark.slow
def test_import_evaluate_and_export(tmp_path, capsys):
    runs.build_data(tmp_path)
    model = tiny("siglip_b16")
    model = replace(model, text=replace(model.text, vocab_size=128))
    source, run, out = (tmp_path / name for name in ("source", "run", "out"))
    publish(source, "hf_siglip", model=model)
    shutil.copy(tmp_path / "scenes.model", source / "spiece.model")

    import_weights.main(["import", str(source), str(run), "--noparity"])
    shown = capsys.readouterr().out
    assert "Imported hf_siglip" in shown and str(run) in shown

    experiment = tmp_path / "evaluation.py"
    experiment.write_text(EVALUATION.format(folder=tmp_path, run=run))
    evaluate.main(["eval", f"--checkpoint={run}", f"--config={experiment}"])
    results = json.loads((run / "eval" / "0" / "results.json").read_text())["results"]
    assert 0 <= results["zero_shot"]["top1"] <= 1

    export.main(["export", str(run), str(out), "--format=hf"])
    written = {file.name for file in out.iterdir()}
    tokenizer = {"spiece.model", "tokenizer_config.json"}
    assert written == {"config.json", "preprocessor_config.json", "model.safetensors"} | tokenizer
    assert (out / "model.safetensors").stat().st_size == (source / "model.safetensors").stat().st_size

    with pytest.raises(SystemExit) as end:
        import_weights.main(["import", str(source), str(run), "--noparity"])
    assert end.value.code == 1
    assert "exists already" in capsys.readouterr().err
