"""The experiment of benchmarks.soak: experiments/quickstart.py, so small that most of a process's life is its start.

The argument names the folder with the data and its tokenizer: --config=benchmarks/soak_scenes.py:data
"""

from ml_collections import ConfigDict

from experiments.quickstart import get_config as quickstart


def get_config(data: str = "data") -> ConfigDict:
    config = quickstart("sigmoid")
    config.total_steps, config.global_batch_size = 6000, 16
    config.model.image.name = "vit"  # compiles in a fraction of the time of the quickstart's ResNet
    config.model.image.update(
        image_size=64, patch_size=16, width=32, depth=1, num_heads=4, mlp_dim=64, pool="map", pre_norm=False,
        patch_bias=True, activation="gelu_tanh", norm_eps=1e-6, scan_layers=False,
    )  # fmt: skip
    config.model.text.update(width=32, depth=1, mlp_dim=64)
    config.data.train.path = f"{data}/scenes"
    config.tokenizer.path = f"{data}/scenes.model"
    config.eval.evaluators = {}
    config.checkpoint.update(every_steps=20, best_metric="", keep_last=3)
    config.log.update(every_steps=1, figures=False, tensorboard=False)
    return config
