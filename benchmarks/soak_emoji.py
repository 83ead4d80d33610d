"""experiments/emoji.py with a model small enough for a process that lives less than a minute; for benchmarks.soak.

The argument is the folder with the data and its tokenizer: --config=benchmarks/soak_emoji.py:data
"""

from ml_collections import ConfigDict

from experiments.emoji import get_config as emoji


def get_config(data: str = "data") -> ConfigDict:
    return shrink(emoji(), data, "emoji")


def shrink(config: ConfigDict, data: str, name: str) -> ConfigDict:
    """The experiment on data/NAME with data/NAME.model, small, a checkpoint every 50 steps."""
    config.total_steps, config.global_batch_size = 3000, 64
    config.model.image.update(patch_size=16, width=96, depth=2, mlp_dim=192)
    config.model.text.update(context_length=16, width=96, depth=1, mlp_dim=192)
    config.data.train.path = f"{data}/{name}"
    config.tokenizer.path = f"{data}/{name}.model"
    config.eval.every_steps = 0
    config.eval.evaluators = {"retrieval": config.eval.evaluators.retrieval}
    config.eval.evaluators.retrieval.source.path = f"{data}/{name}"
    config.checkpoint.update(every_steps=50, best_metric="", keep_last=2)
    config.log.update(every_steps=10, figures=False, tensorboard=False)
    return config
