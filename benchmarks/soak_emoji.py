"""The experiment of benchmarks.soak: experiments/emoji.py, small enough to be killed within a minute.

The argument names the folder with the data and its tokenizer: --config=benchmarks/soak_emoji.py:data
"""

from ml_collections import ConfigDict

from experiments.emoji import get_config as emoji


def get_config(data: str = "data") -> ConfigDict:
    return shrink(emoji(), data, "emoji")


def shrink(config: ConfigDict, data: str, name: str) -> ConfigDict:
    """Makes the experiment small, with the records of DATA/NAME, the tokenizer DATA/NAME.model, and a checkpoint
    every 50 steps."""
    config.total_steps, config.global_batch_size = 3000, 64
    config.model.image.update(patch_size=16, width=96, depth=2, mlp_dim=192)
    config.model.embed_dim = 96
    config.model.text.update(context_length=16, width=96, depth=1, mlp_dim=192)
    config.data.train.path = f"{data}/{name}"
    config.tokenizer.path = f"{data}/{name}.model"
    config.eval.every_steps = 0
    config.eval.evaluators = {"retrieval": config.eval.evaluators.retrieval}
    config.eval.evaluators.retrieval.source.path = f"{data}/{name}"
    config.checkpoint.update(every_steps=50, best_metric="", keep_last=2)
    config.log.update(every_steps=10, figures=False, tensorboard=False)
    return config
