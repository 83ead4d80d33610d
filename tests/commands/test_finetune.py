"""experiments/finetune.py: two paths give a whole configuration, and the recipes of docs/finetuning.md run."""

import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from clipjax.__main__ import COMMANDS
from clipjax.commands import import_weights, train
from clipjax.commands.flags import read_config
from clipjax.config import ConfigError, flat
from clipjax.inference import evaluate
from clipjax.runs import open_run
from clipjax.training.check import check
from tests.eval_runs import fake_embed
from tests.interop.test_commands import publish
from tests.interop.test_names import tiny
from tests.runs import ROOT, build_data

EXPERIMENT = ROOT / "experiments" / "finetune.py"
COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40), "dark_blue": (10, 20, 120)}
SMALL = {
    "total_steps": 3, "global_batch_size": 8, "optimizer.schedule.warmup_steps": 1, "eval.batch_size": 8,
    "eval.every_steps": 0, "checkpoint.every_steps": 3, "log.every_steps": 1, "log.figures": False,
    "log.tensorboard": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """published/siglip, data/captions and data/old (drawn scenes), data/classes (folders of one colour each)."""
    folder = tmp_path_factory.mktemp("finetune")
    build_data(folder)
    (folder / "data").mkdir()
    for name in ("captions", "old"):
        (folder / "data" / name).symlink_to(folder / "scenes")
    for split, count in (("train", 6), ("validation", 2)):
        for name, colour in COLOURS.items():
            path = folder / "data" / "classes" / split / name
            path.mkdir(parents=True)
            for number in range(count):
                shade = tuple(min(255, channel + 9 * number) for channel in colour)
                Image.new("RGB", (20, 20), shade).save(path / f"{number}.png")
    model = tiny("siglip_b16")
    model = replace(model, text=replace(model.text, vocab_size=128, context_length=12))
    (folder / "published").mkdir()
    publish(folder / "published" / "siglip", model=model)
    shutil.copy(folder / "scenes.model", folder / "published" / "siglip" / "spiece.model")
    import_weights.run(folder / "published" / "siglip", folder / "weights" / "siglip", parity=False)
    publish(folder / "published" / "clip", family="hf_clip", model=tiny("clip_vit_b32"))
    import_weights.run(folder / "published" / "clip", folder / "weights" / "clip", parity=False)
    return folder


def config_of(folder, data="captions", words=(), checkpoint="siglip", **fields):
    argument = ",".join([f"{folder}/weights/{checkpoint}", f"{folder}/data/{data}", *words])
    return read_config(
        [f"--config={EXPERIMENT}:{argument}", *(f"--config.{name}={value}" for name, value in fields.items())]
    )


def test_two_paths_give_a_configuration_that_can_run(folder):
    config = config_of(folder)
    check(config, num_devices=1)
    with open_run(folder / "weights" / "siglip") as run:
        start = run.config
    assert (config.model, config.tokenizer, config.data.pixels) == (start.model, start.tokenizer, start.data.pixels)
    assert config.init_from == f"{folder}/weights/siglip" and config.init_temperature == "kept"
    assert (config.data.train.path, config.data.train.prompts) == (f"{folder}/data/captions", ())
    assert config.global_batch_size == 64 and config.total_steps == 20  # all 64 records once a step
    assert (config.loss.name, config.loss.repeats) == ("softmax", "positives")
    kinds = {name: (one.name, one.source.split) for name, one in config.eval.evaluators.items()}
    assert kinds == {name: (name, "validation") for name in ("zero_shot", "retrieval")}


def test_folders_of_classes_are_trained_on_and_evaluated_with_the_same_prompts(folder):
    config = config_of(folder, "classes")
    check(config, num_devices=1)
    assert config.data.train.captions == "folders" and len(config.data.train.prompts) == 3
    assert config.eval.evaluators["zero_shot"].templates == config.data.train.prompts
    assert config.global_batch_size == 16  # of 18 images
    assert config_of(folder, "captions", ["prompts"]).data.train.prompts == config.data.train.prompts
    assert config_of(folder, "classes", ["captions"]).data.train.prompts == ()


@pytest.mark.parametrize(
    ("word", "fields"),
    [
        ("full", {}),
        ("freeze_image", {"optimizer.image_lr_multiplier": 0.0}),
        ("freeze_text", {"optimizer.text_lr_multiplier": 0.0}),
        ("heads", {"optimizer.image_unlocked_blocks": 0, "optimizer.text_unlocked_blocks": 0}),
        ("last1", {"optimizer.image_unlocked_blocks": 1, "optimizer.text_unlocked_blocks": 1}),
        ("lora", {"lora.rank": 8}),
    ],
)
def test_a_method_is_a_few_fields(folder, word, fields):
    plain, config = flat(config_of(folder)), config_of(folder, words=[word])
    check(config, num_devices=1)
    changed = {name: value for name, value in flat(config).items() if value != plain[name]}
    changed.pop("optimizer.learning_rate", None)
    assert changed == fields


def test_sigmoid_begins_with_a_bias_where_the_checkpoint_has_none(folder):
    config = config_of(folder, words=["sigmoid"], checkpoint="clip")
    assert (config.model.logit_scale_init, config.model.logit_bias_init) == (10.0, -10.0)
    assert config.init_temperature == "restarted" and config.optimizer.temperature_lr_multiplier == pytest.approx(100)
    plain = config_of(folder, checkpoint="clip")
    assert plain.model.logit_bias_init is None and plain.init_temperature == "kept"
    assert config_of(folder, words=["sigmoid"]).init_temperature == "kept"  # SigLIP has its own


def test_a_wrong_word_checkpoint_or_folder_is_one_line(folder):
    for words, message in (
        (["lora8"], "'lora8' is no method, loss or kind of texts"),
        (["last"], "'last' is no method"),
        (
            ["freeze_image", "lora"],
            "'freeze_image' and 'lora' are two choices for the method, of which there can be",
        ),
        (["lora", "sigmoid", "heads"], "'lora' and 'heads' are two choices for the method"),
        (["softmax", "sigmoid"], "'softmax' and 'sigmoid' are two choices for the loss"),
        (["prompts", "full", "captions"], "'prompts' and 'captions' are two choices for the texts"),
    ):
        with pytest.raises(ConfigError, match=message):
            config_of(folder, words=words)
    with pytest.raises(ConfigError, match="holds no checkpoints"):
        config_of(folder, checkpoint="none")
    with pytest.raises(ConfigError, match="does not exist"):
        config_of(folder, "none")
    with pytest.raises(ConfigError, match="expected CHECKPOINT,DATA"):
        read_config([f"--config={EXPERIMENT}:weights"])


def recipes():
    """[(heading, its commands)] of docs/finetuning.md."""
    page = (ROOT / "docs" / "finetuning.md").read_text()
    found = []
    for section in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        blocks = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
        lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
        commands = [line.split("#")[0].strip() for line in lines if line.startswith("clipjax ")]
        if section.startswith("Recipe"):
            found.append((section.splitlines()[0], commands))
    return found


def test_there_are_three_recipes():
    assert [len(commands) > 2 for _, commands in recipes()] == [True] * 3


@pytest.mark.slow
@pytest.mark.parametrize("recipe", range(3))
def test_a_recipe_runs_as_it_is_written(folder, tmp_path, monkeypatch, recipe):
    for name in ("published", "data"):
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    monkeypatch.chdir(tmp_path)
    for module in (evaluate, train):  # evaluations compile nothing here; the steps are real
        monkeypatch.setattr(module, "make_embed", fake_embed)
    _, commands = recipes()[recipe]
    for line in commands:
        run_line(line)
    for run in Path("runs").iterdir():
        assert (run / "checkpoints" / "3").is_dir() and (run / "metrics.jsonl").is_file()


def run_line(line):
    """Runs one command of the page in this process, at toy size."""
    _, command, *arguments = shlex.split(line)  # "clipjax", its command and flags
    if command == "import":
        arguments = ["published/siglip", *arguments[1:], "--noparity"]
    if any(argument.startswith("--config=experiments/finetune.py") for argument in arguments):
        given = {argument.partition("=")[0] for argument in arguments}
        small = {f"--config.{name}": value for name, value in SMALL.items()}
        arguments += [f"{flag}={value}" for flag, value in small.items() if flag not in given]
    module = __import__(COMMANDS[command][0], fromlist=["main"])
    module.main([command, *arguments])
