"""Trains on drawings by hundreds of artists, with the artists' titles, descriptions and tags.

    python -m data_pipelines.openclipart --fetch --out=data/openclipart          # Debian's or Ubuntu's apt-get
    python -m data_pipelines.train_tokenizer --records=data/openclipart --vocab_size=4096 --out=data/openclipart.model
    clipjax train --config=experiments/openclipart.py --workdir=runs/openclipart

The model trains on 4,577 drawings, in about an hour of CPU time. It is tested on 262 others: by retrieval, and by
classification into the library's 19 categories.
"""

from ml_collections import ConfigDict

from clipjax.config import SourceConfig, default_config
from clipjax.eval import RetrievalConfig, ZeroShotConfig

DATA = "data/openclipart"
TEMPLATES = ("{}", "a drawing, {}")


def get_config() -> ConfigDict:
    config = default_config()
    config.total_steps = 1600
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
        vocab_size=4096, context_length=32, width=128, depth=2, num_heads=4, mlp_dim=512, causal=False,
        pool="last", projection_bias=True, activation="gelu_tanh", norm_eps=1e-6, scan_layers=False,
    )  # fmt: skip

    config.optimizer.update(learning_rate=2e-3, weight_decay=0.1, b2=0.95, grad_clip_norm=1.0)
    config.optimizer.schedule.warmup_steps = 100

    config.tokenizer.path = "data/openclipart.model"
    config.data.train.path = DATA
    config.data.augment.update(scale=(0.5, 1.0), flip=0.5)

    config.eval.evaluators = {
        "retrieval": RetrievalConfig(source=_split("test")),
        "categories": ZeroShotConfig(source=_split("test"), templates=TEMPLATES),
        "validation": RetrievalConfig(source=_split("validation")),
    }
    config.eval.every_steps = 400
    config.checkpoint.every_steps = 400
    config.checkpoint.best_metric = "validation/image_to_text_r1"
    config.log.every_steps = 25
    return config


def _split(split: str) -> SourceConfig:
    return SourceConfig(path=DATA, split=split)
