"""A small model for comparing losses over batch sizes: docs/studies/losses.md.

    clipjax train --config=experiments/study_losses.py:emoji,256 --workdir=runs/study

The argument is DATASET,BATCH or DATASET,BATCH,FOLDER: emoji or openclipart, the global batch size, and the folder that
holds the records and tokenizers.
"""

import math

from ml_collections import ConfigDict

from clipjax.config import SourceConfig, default_config
from clipjax.eval import RetrievalConfig

IMAGES_SEEN = 32_768  # by every run
BATCH_SIZES = (64, 128, 256, 512, 1024)
# dataset -> evaluator -> split
SPLITS = {
    "emoji": {"style": "test", "names": "names"},
    "openclipart": {"style": "artists", "names": "test"},
}


def get_config(argument: str = "emoji,256") -> ConfigDict:
    dataset, batch_size, folder = (argument.split(",") + ["data/study"])[:3]
    config = default_config()
    config.global_batch_size = batch = int(batch_size)
    config.total_steps = IMAGES_SEEN // batch
    # The rules for batch sizes were fixed before any run, and are the same for all losses.
    config.optimizer.schedule.warmup_steps = round(config.total_steps / 10)
    config.optimizer.learning_rate = 3e-3 * math.sqrt(batch / 256)

    model = config.model
    model.embed_dim = 64
    model.logit_scale_init = 10.0
    # The share of positives at the start, as SigLIP's -10 for 32,768. Softmax does not use it.
    model.logit_bias_init = -math.log(batch)
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
        name: RetrievalConfig(source=SourceConfig(path=f"{folder}/{dataset}", split=split))
        for name, split in SPLITS[dataset].items()
    }
    config.checkpoint.keep_last = 1
    config.log.update(every_steps=8, tensorboard=False, figures=False)
    return config
