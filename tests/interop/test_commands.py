"""Import, load, start training and export on eight devices; and what is refused, with nothing written."""

import dataclasses
import json
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import clipjax
from clipjax.commands import export, import_weights
from clipjax.config import MeshConfig
from clipjax.interop import parity
from clipjax.interop.convert import read_variables
from clipjax.interop.export import choose_family
from clipjax.interop.families import FAMILIES
from clipjax.interop.foreign import open_foreign
from clipjax.interop.names import InteropError, Meaning, flatten
from clipjax.interop.safetensors import open_safetensors, write_safetensors
from clipjax.mesh import make_mesh
from clipjax.models import DualEncoder
from clipjax.models.pixels import normalize_pixels
from clipjax.optim.adamw import AdamWConfig
from clipjax.runs import open_run
from clipjax.runs.checkpoint import open_checkpoints
from clipjax.runs.fingerprint import FingerprintError
from clipjax.runs.integrity import CheckpointError
from clipjax.runs.resume import restore_or_create
from clipjax.runs.weights import first_state
from clipjax.training.state import abstract_state, eval_variables
from tests.interop.test_names import random_file, shapes_of, tiny


def publish(folder, family="hf_siglip", preset="siglip_b16", without=(), model=None):
    """A directory of random weights as the family's library writes it."""
    model = model or tiny(preset)
    arrays = {name: 0.1 * array for name, array in random_file(family, model).items() if name not in without}
    folder.mkdir()
    for name, content in FAMILIES[family].write(Meaning(model, FAMILIES[family].pixels)).items():
        (folder / name).write_text(json.dumps(content))
    write_safetensors(folder / FAMILIES[family].weights, {n: a.shape for n, a in arrays.items()}, arrays.items())
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return publish(tmp_path_factory.mktemp("published") / "siglip")


@pytest.fixture(scope="module")
def imported(published, tmp_path_factory):
    path = tmp_path_factory.mktemp("imported") / "run"
    import_weights.run(published, path, parity=False)
    return path


def test_a_parity_report_says_why_the_original_cannot_be_imported(published, monkeypatch):
    foreign, raised = open_foreign(str(published)), []

    def broken(foreign):
        raise raised.pop()

    monkeypatch.setitem(parity.ORIGINALS, "hf", broken)
    text = "Could not import module 'SiglipModel'."  # what transformers says, with no name
    for error, why in (
        (ModuleNotFoundError(text), f"cannot be imported (ModuleNotFoundError: {text})"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), "the Python module torch is missing"),
    ):
        raised.append(error)
        document, line = parity.parity_report(foreign, {})
        assert why in document["why"] and why in line and "None" not in line
        assert "Install or update the original library" in line


def test_safetensors_are_the_packages(tmp_path):
    from safetensors.numpy import load_file, save_file

    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b.c": np.array(7, "f4"),
        "d": np.ones(3, "f4"),
    }
    write_safetensors(tmp_path / "ours", {n: a.shape for n, a in arrays.items()}, arrays.items())
    save_file({**arrays, "half": np.ones(2, "f2")}, tmp_path / "theirs")
    for name, array in load_file(tmp_path / "ours").items():
        np.testing.assert_array_equal(array, arrays[name])
    read = {name: tensor.read() for name, tensor in open_safetensors(tmp_path / "theirs").items()}
    assert read["half"].dtype == np.float16
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)


def damage_truncate(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


def damage_config(folder):
    (folder / "config.json").write_text('{"model_type": "siglip", ')


DAMAGES = {"truncated": damage_truncate, "not JSON": damage_config}


@pytest.mark.parametrize("message", DAMAGES)
def test_a_damaged_file_is_refused_and_nothing_is_written(message, tmp_path):
    source = publish(tmp_path / "source")
    DAMAGES[message](source)
    with pytest.raises(InteropError, match=message):
        import_weights.run(source, tmp_path / "run")
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_a_missing_tensor_is_named_and_nothing_is_written(tmp_path):
    lost = "text_model.encoder.layers.1.mlp.fc1.bias"
    source = publish(tmp_path / "source", without=(lost,))
    with pytest.raises(InteropError, match=f"missing: {lost} \\[24\\]"):
        import_weights.run(source, tmp_path / "run")
    assert [entry.name for entry in tmp_path.iterdir()] == ["source"]


def test_a_wrong_family_is_refused_and_nothing_is_written(published, tmp_path):
    with pytest.raises(InteropError, match="missing: visual_projection.weight"):
        import_weights.run(published, tmp_path / "run", family="hf_clip")
    with pytest.raises(InteropError, match="Did you mean 'hf_siglip'"):
        import_weights.run(published, tmp_path / "run", family="hf_sigip")
    assert not list(tmp_path.iterdir())


def test_pickle_is_not_executed(tmp_path):
    import pickle
    import zipfile

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps({"weight": Trap()}, protocol=2))
    with pytest.raises(InteropError, match="no tensors"):
        open_foreign(tmp_path / "model.pt")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.slow
def test_one_parameter_at_a_time_passes_through_the_host(tmp_path):
    """16 equal layers: of the file's tensors no more than a layer's are alive at once."""
    model = tiny("siglip_b16")
    wide = dict(width=128, mlp_dim=512, depth=16)
    model = dataclasses.replace(
        model,
        image=dataclasses.replace(model.image, **wide),
        text=dataclasses.replace(model.text, **wide),
        embed_dim=128,
    )
    foreign = open_foreign(publish(tmp_path / "source", model=dataclasses.replace(model)))
    unrolled = [dataclasses.replace(tower, scan_layers=False) for tower in (model.image, model.text)]
    config = dataclasses.replace(foreign.config, model=dataclasses.replace(model, image=unrolled[0], text=unrolled[1]))
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    target = eval_variables(abstract_state(config, mesh))
    live, most = [0], [0]

    def counted(tensor):
        def read():
            array = tensor.read()
            live[0] += array.nbytes
            most[0] = max(most[0], live[0])
            weakref.finalize(array, lambda size=array.nbytes: live.__setitem__(0, live[0] - size))
            return array

        return tensor._replace(read=read)

    found = {name: counted(tensor) for name, tensor in foreign.source.tensors.items()}
    variables = read_variables(foreign.family.tensors(model), config.model, found, target)
    sizes = [leaf.nbytes for leaf in jax.tree.leaves(variables)]
    kernel = variables["params"]["image"]["block_3"]["mlp"]["up"]["kernel"]
    assert kernel.sharding.spec[0] == "fsdp"
    assert most[0] <= 3 * max(sizes) < sum(sizes) / 30, (most, max(sizes), sum(sizes))


def training(imported, **changes):
    with open_run(imported) as run:
        trained = run.config
    return dataclasses.replace(
        trained, total_steps=20, global_batch_size=16, init_from=str(imported),
        optimizer=AdamWConfig(learning_rate=1e-3), **changes,
    )  # fmt: skip


@pytest.mark.slow
def test_layers_may_be_unrolled_where_the_source_is_scanned(imported):
    scanned = training(imported)
    assert scanned.model.image.scan_layers
    image = dataclasses.replace(scanned.model.image, scan_layers=False)
    config = dataclasses.replace(scanned, model=dataclasses.replace(scanned.model, image=image))
    mesh = make_mesh(config.mesh)
    fingerprint = import_weights.weights_fingerprint(config)
    a, b = (first_state(c, mesh, fingerprint).params for c in (scanned, config))
    kernel = np.asarray(a["image"]["blocks"]["mlp"]["up"]["kernel"])
    np.testing.assert_array_equal(kernel[1], np.asarray(b["image"]["block_1"]["mlp"]["up"]["kernel"]))


def test_other_shapes_and_another_activation_are_refused(imported):
    config = training(imported)
    mesh = make_mesh(config.mesh)
    model = config.model
    fingerprint = import_weights.weights_fingerprint(config)
    wide = dataclasses.replace(
        config, model=dataclasses.replace(model, text=dataclasses.replace(model.text, mlp_dim=8))
    )
    with pytest.raises(CheckpointError, match="text/blocks/mlp/up/kernel"):
        first_state(wide, mesh, fingerprint)
    with pytest.raises(FingerprintError, match="text.activation"):
        first_state(config, mesh, fingerprint | {"text.activation": "gelu"})


def test_training_does_not_go_on_from_weights_alone(imported):
    config = dataclasses.replace(training(imported), init_from="")
    with (
        open_checkpoints(imported, config.checkpoint) as manager,
        pytest.raises(CheckpointError, match="--config.init_from="),
    ):
        restore_or_create(manager, config, make_mesh(config.mesh), {}, None)


def test_a_model_that_the_format_cannot_say_is_refused(imported, tmp_path):
    with pytest.raises(InteropError, match="Unknown format 'onnx'"):
        export.run(imported, tmp_path / "out", format="onnx")
    with open_run(imported) as run:
        config = run.config
    image = dataclasses.replace(config.model.image, norm_eps=1e-3)
    meaning = Meaning(dataclasses.replace(config.model, image=image), config.data.pixels)
    with pytest.raises(InteropError, match="image.norm_eps=0.001"):
        choose_family(meaning, "big_vision", flatten(shapes_of(config.model)))


@pytest.mark.slow
def test_load_embeds_images_and_ids_of_a_run_and_of_foreign_files(imported, published):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    ids = rng.integers(0, 40, (5, 6), dtype=np.int32)
    run, foreign = clipjax.load(imported, batch_size=3), clipjax.load(published, batch_size=8)
    pixels = normalize_pixels(jnp.asarray(images), (0.5,) * 3, (0.5,) * 3)
    out = DualEncoder(run.config.model).apply({"params": run.params}, image=pixels, text=jnp.asarray(ids))
    for model in (run, foreign):
        np.testing.assert_allclose(model.embed_images(images), out.image_embedding, atol=1e-6)
        np.testing.assert_allclose(model.embed_images(list(images)), out.image_embedding, atol=1e-6)
        np.testing.assert_allclose(model.embed_texts(ids), out.text_embedding, atol=1e-6)
    with pytest.raises(ValueError, match="no tokenizer"):
        run.embed_texts(["a cat"])
