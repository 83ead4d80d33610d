r"""A small model for comparing losses over batch sizes: docs/studies/losses.md.

    clipjax train --config=experiments/study_losses.py:emoji --workdir=runs/study

The argument is DATASET or DATASET,FOLDER: emoji or openclipart, and the folder that holds their records and tokenizers.
`python -m docs.studies.losses sweep` trains all batch sizes; SETTINGS has what depends on the batch size.
"""

import math

from ml_collections import ConfigDict

from clipjax.config import SourceConfig, default_config, to_config_dict
from clipjax.eval import RetrievalConfig

IMAGES_SEEN = 32_768  # by every run
BATCH_SIZES = (64, 128, 256, 512, 1024)
# dataset -> evaluator -> split
SPLITS = {
    "emoji": {"style": "test", "names": "names"},
    "openclipart": {"style": "artists", "names": "test"},
}


def settings(batch_size: int) -> dict[str, float]:
    """{field of the experiment: its value at a batch size}, fixed before any run, the same for all losses.

    The learning rate grows with the square root of the batch size, a tenth of the steps warm up, and the bias starts
    with the right share of positives, as SigLIP's does; softmax does not use it.
    """
    steps = IMAGES_SEEN // batch_size
    return {
        "global_batch_size": batch_size,
        "total_steps": steps,
        "optimizer.schedule.warmup_steps": round(steps / 10),
        "optimizer.learning_rate": round(3e-3 * math.sqrt(batch_size / 256), 5),
        "model.logit_bias_init": round(-math.log(batch_size), 2),
    }


def get_config(argument: str = "emoji") -> ConfigDict:
    dataset, folder = (argument.split(",") + ["data/study"])[:2]
    config = default_config()

    model = config.model
    model.embed_dim = 64
    model.logit_scale_init = 10.0
    model.image.update(
        image_size=32, patch_size=8, width=64, depth=2, num_heads=2, mlp_dim=128, pool="gap",
        pre_norm=False, patch_bias=True, activation="gelu_tanh", norm_eps=1e-6, scan_layers=False,
    )  # fmt: skip
    model.text.update(
        vocab_size=2048, context_length=10, width=64, depth=1, num_heads=2, mlp_dim=128, causal=False,
        pool="last", projection_bias=True, activation="gelu_tanh", norm_eps=1e-6, scan_layers=False,
    )  # fmt: skip

    config.optimizer.update(weight_decay=0.1, b2=0.95, grad_clip_norm=1.0)
    config.tokenizer.path = f"{folder}/{dataset}.model"
    config.data.train.path = f"{folder}/{dataset}"
    config.data.augment.update(scale=(0.5, 1.0), flip=0.0)
    config.data.num_threads = 1  # runs train side by side

    config.eval.evaluators = {
        name: to_config_dict(RetrievalConfig(source=SourceConfig(path=f"{folder}/{dataset}", split=split)))
        for name, split in SPLITS[dataset].items()
    }
    config.checkpoint.keep_last = 1
    config.log.update(every_steps=8, tensorboard=False, figures=False)
    for field, value in settings(256).items():
        *sections, name = field.split(".")
        section = config
        for part in sections:
            section = section[part]
        section[name] = value
    return config
