"""Trains on three artists' emoji and names a fourth's, in about half an hour of CPU time.

    python -m data_pipelines.emoji --out=data/emoji            # needs npm and pip install 'clipjax[pipelines]'
    python -m data_pipelines.train_tokenizer --records=data/emoji --vocab_size=4096 --out=data/emoji.model
    clipjax train --config=experiments/emoji.py --workdir=runs/emoji-softmax --config.loss.name=softmax
    clipjax train --config=experiments/emoji.py --workdir=runs/emoji-sigmoid --config.loss.name=sigmoid

The model trains on Noto, OpenMoji and Fluent. It is tested on Twemoji, a style that no training image has, and chooses
among all 1,911 names.
"""

from ml_collections import ConfigDict

from clipjax.config import SourceConfig, default_config
from clipjax.eval import RetrievalConfig, ZeroShotConfig

DATA = "data/emoji"
TEMPLATES = ("{}", "a {} emoji")


def get_config() -> ConfigDict:
    config = default_config()
    config.total_steps = 1300
    config.global_batch_size = 256

    model = config.model
    model.embed_dim = 128
    model.logit_scale_init = 10.0
    # Softmax does not use the bias. For sigmoid, -log(batch) starts with the right share of positives.
    model.logit_bias_init = -5.5
    model.image.update(
        image_size=64, patch_size=8, width=128, depth=4, num_heads=4, mlp_dim=512, pool="map",
        pre_norm=False, patch_bias=True, projection=False, activation="gelu_tanh", norm_eps=1e-6,
        scan_layers=False,
    )  # fmt: skip
    model.text.update(
        vocab_size=4096, context_length=24, width=128, depth=2, num_heads=4, mlp_dim=512, causal=False,
        pool="last", projection_bias=True, activation="gelu_tanh", norm_eps=1e-6, scan_layers=False,
    )  # fmt: skip

    config.optimizer.update(learning_rate=2e-3, weight_decay=0.1, b2=0.95, grad_clip_norm=1.0)
    config.optimizer.schedule.warmup_steps = 100

    config.tokenizer.path = "data/emoji.model"
    config.data.train.path = DATA
    # No flips: there are arrows, and captions such as "facing right". Crops go down to half the area, because artists
    # frame things differently.
    config.data.augment.update(scale=(0.5, 1.0), flip=0.0)

    config.eval.evaluators = {
        "held_out_style": ZeroShotConfig(source=_split("test"), templates=TEMPLATES),
        "retrieval": RetrievalConfig(source=_split("test")),
        "known_style": ZeroShotConfig(source=_split("validation"), templates=TEMPLATES),
    }
    config.eval.every_steps = 325
    config.checkpoint.every_steps = 325
    config.checkpoint.best_metric = "known_style/top1"  # the held-out style must not choose the checkpoint
    config.log.every_steps = 25
    return config


def _split(split: str) -> SourceConfig:
    return SourceConfig(path=DATA, split=split)
