r"""Trains a small dual encoder on drawn scenes, in minutes on a laptop: `make train`.

    python -m data_pipelines.scenes --out=data/scenes
    python -m data_pipelines.train_tokenizer --records=data/scenes --vocab_size=256 --model_type=bpe \
      --out=data/scenes.model
    clipjax train --config=experiments/quickstart.py --workdir=runs/quickstart
    clipjax train --config=experiments/quickstart.py:sigmoid --workdir=runs/quickstart-sigmoid

The argument after the colon names the loss: softmax (default) or sigmoid.
"""

from ml_collections import ConfigDict

from clipjax.config import SourceConfig, default_config
from clipjax.eval import RetrievalConfig, ZeroShotConfig

DATA = "data/scenes"


def get_config(loss: str = "softmax") -> ConfigDict:
    config = default_config()
    config.total_steps = 700
    # Colours and counts are learnt soon; shapes only from the few other pairs of a batch that share both.
    config.global_batch_size = 128

    config.loss.name = loss
    config.loss.repeats = "positives"  # a batch may show the same content twice
    model = config.model
    model.embed_dim = 128
    model.logit_scale_init = 50.0
    model.logit_bias_init = -4.85  # -log(batch), the share of positives; for sigmoid, softmax is the same with any
    # A convolutional tower, because patches of 16 pixels miss what small objects look like.
    model.image.name = "resnet"
    model.image.update(image_size=64, width=16, stages=(1, 1, 1, 1), num_heads=8)
    model.text.update(
        vocab_size=256, context_length=16, width=128, depth=1, num_heads=4, mlp_dim=512, causal=False,
        pool="last", projection_bias=True, activation="gelu_tanh", norm_eps=1e-6, scan_layers=False,
    )  # fmt: skip

    config.optimizer.update(learning_rate=2e-3, weight_decay=0.05, b2=0.95, grad_clip_norm=1.0)
    config.optimizer.schedule.warmup_steps = 100

    config.tokenizer.path = "data/scenes.model"
    config.tokenizer.clean = True  # as open_clip does with every text, so that the run can be exported to it
    config.data.train.path = DATA
    config.data.augment.name = "none"

    config.eval.evaluators = {
        # Colours and shapes that never met in training: does the model compose what it learnt?
        "compositional": ZeroShotConfig(source=_split("compositional"), templates=TEMPLATES),
        "validation": ZeroShotConfig(source=_split("validation"), templates=TEMPLATES),
        "retrieval": RetrievalConfig(source=_split("validation")),
    }
    config.eval.every_steps = 100
    config.checkpoint.every_steps = 350
    config.checkpoint.best_metric = "compositional/top1"
    config.log.every_steps = 50
    return config


TEMPLATES = ("{}", "a picture of {}")


def _split(split: str) -> SourceConfig:
    return SourceConfig(path=DATA, split=split)
