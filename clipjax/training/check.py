"""Do the parts of an experiment fit each other and the machine? Asked before anything is compiled."""

from __future__ import annotations

import math

from clipjax.config import DataConfig, ExperimentConfig, require
from clipjax.data.mixture import PERIOD
from clipjax.losses import check_loss
from clipjax.mesh import mesh_shape
from clipjax.models.dual_encoder import BATCH_NORM_TOWERS, CONV_TOWERS
from clipjax.models.towers.bert import check_bert
from clipjax.models.towers.efficientnet import block_shapes
from clipjax.optim import check_optimizer


def check(config: ExperimentConfig, *, num_devices: int, process_count: int = 1) -> None:
    """Refuses combinations that cannot run, before anything is compiled. Raises ConfigError."""
    shape = mesh_shape(config.mesh, num_devices)
    model, image, text = config.model, config.model.image, config.model.text
    batch_shards = shape[0] * shape[1]
    for name, value in (("total_steps", config.total_steps), ("global_batch_size", config.global_batch_size)):
        require(value > 0, f"config.{name} is {value}; it must be positive.")
    require(
        batch_shards % process_count == 0,
        f"config.mesh.tensor={shape[2]} leaves {batch_shards} part(s) of a batch, which {process_count} processes "
        "cannot share: each reads rows of its own. Use a tensor axis no longer than one process has devices.",
    )
    for name, size in (
        ("global_batch_size", config.global_batch_size),
        ("eval.batch_size", config.eval.batch_size),
    ):
        require(
            size % batch_shards == 0 and size % process_count == 0,
            f"config.{name}={size} does not divide over the mesh: data x fsdp = {shape[0]} x {shape[1]} = "
            f"{batch_shards} devices in {process_count} process(es). Use a multiple of {batch_shards}, "
            f"such as {max(1, round(size / batch_shards)) * batch_shards}.",
        )
    require(
        image.image_size % image.patch_size == 0 or image.image_size > image.patch_size,
        f"config.model.image.patch_size={image.patch_size} is larger than image_size={image.image_size}.",
    )
    for name, tower in (("image", image), ("text", text)):
        where = f"config.model.{name}"
        if tower.name in CONV_TOWERS:
            check_conv_tower(config)
            continue
        require(
            tower.width % tower.num_heads == 0,
            f"{where}.width={tower.width} is not a multiple of num_heads={tower.num_heads}.",
        )
        require(
            tower.num_heads % shape[2] == 0 and tower.mlp_dim % shape[2] == 0,
            f"config.mesh.tensor={shape[2]} does not divide {where}.num_heads={tower.num_heads} and "
            f"mlp_dim={tower.mlp_dim}; use a tensor axis that divides both.",
        )
        axes = (2 if name == "image" else 1) * 2
        require(
            not tower.rope or tower.width // tower.num_heads % axes == 0,
            f"{where}.rope=True needs heads of a multiple of {axes} channels, but width={tower.width} over "
            f"num_heads={tower.num_heads} gives {tower.width / tower.num_heads:g}.",
        )
        padded = tower.name in ("naflex", "bert") or name == "text" and tower.pool == "cls"
        require(
            tower.attention == "dense" or not padded,
            f"{where}.attention='flash' knows no padding, which name='{tower.name}' with pool='{tower.pool}' masks; "
            "use 'dense', with attention_chunk or remat='attention' to save memory.",
        )
        for field_name in ("dropout", "drop_path", *(["patch_dropout"] if name == "image" else [])):
            rate = getattr(tower, field_name)
            require(0 <= rate < 1, f"{where}.{field_name}={rate} must be in [0, 1).")
    if image.name == "naflex":
        check_naflex(config)
    require(
        text.projection != "none" or text.width == model.embed_dim,
        f"config.model.text.projection='{text.projection}' needs width == embed_dim, but width={text.width} and "
        f"config.model.embed_dim={model.embed_dim}; set projection='linear' or make them equal.",
    )
    by_attention = image.pool in ("attentional", "parallel", "cascade")
    require(
        not by_attention or (image.pooler_queries > 1 and model.embed_dim % image.pooler_heads == 0),
        f"config.model.image.pool='{image.pool}' needs pooler_queries of at least 2 (found {image.pooler_queries}) and "
        f"config.model.embed_dim={model.embed_dim} to be a multiple of pooler_heads={image.pooler_heads}.",
    )
    require(
        image.pool in ("cls", "gap") or not image.norm_after_pool,
        f"config.model.image.norm_after_pool=True goes with pool 'cls' or 'gap', not '{image.pool}'.",
    )
    require(
        by_attention or image.projection or image.width == model.embed_dim,
        f"config.model.image.projection=False needs width == embed_dim, but width={image.width} and "
        f"config.model.embed_dim={model.embed_dim}; set projection=True or make them equal.",
    )
    if text.name == "bert":
        check_bert(text, model.embed_dim)
    else:
        require(
            text.pool in ("eos", "last", "gap", "cls") and text.projection != "mlp" and not text.pooler,
            f"config.model.text.pool='{text.pool}', projection='{text.projection}', pooler={text.pooler}: 'mean', "
            "'pooler' and the projection 'mlp' are those of config.model.text.name='bert'.",
        )
    require(
        model.logit_scale_init > 0,
        f"config.model.logit_scale_init={model.logit_scale_init} must be positive.",
    )
    micro = config.accumulation_steps
    require(micro >= 1, f"config.accumulation_steps is {micro}; it must be at least 1.")
    require(
        config.global_batch_size % (batch_shards * micro) == 0,
        f"config.accumulation_steps={micro} does not divide the {config.global_batch_size // batch_shards} rows of one "
        f"device (global_batch_size={config.global_batch_size} over {batch_shards}); use a divisor of it.",
    )
    check_loss(config.loss, model, config.global_batch_size // batch_shards)
    decoder = model.decoder
    require(
        not decoder.depth or (text.causal and decoder.width == text.width and decoder.width % decoder.num_heads == 0),
        "config.model.decoder reads the text tower's tokens and predicts the next word: it needs "
        f"config.model.text.causal=True (found {text.causal}) and the text tower's width of {text.width} (found "
        f"{decoder.width}), a multiple of its num_heads={decoder.num_heads}.",
    )
    check_embeddings(config)
    for name in ("mean", "std"):
        values = getattr(config.data.pixels, name)
        require(len(values) == 3, f"config.data.pixels.{name}={values} needs three numbers (red, green, blue).")
    require(min(config.data.pixels.std) > 0, f"config.data.pixels.std={config.data.pixels.std} must be positive.")
    pixels = config.data.pixels
    require(
        pixels.antialias or (pixels.interpolation == "bilinear" and pixels.resize != "pad"),
        f"config.data.pixels.antialias=False is bilinear without padding; found interpolation='{pixels.interpolation}' "
        f"and resize='{pixels.resize}'.",
    )
    require(
        not pixels.scale_to or (pixels.scale_to >= image.image_size and pixels.resize != "pad"),
        f"config.data.pixels.scale_to={pixels.scale_to} must be at least config.model.image.image_size="
        f"{image.image_size}, which is then cut from the centre; 'pad' has nothing to cut.",
    )
    check_mixture(config.data)
    check_optimizer(config.optimizer, config.total_steps)
    best = config.checkpoint.best_metric
    require(
        not best or best.split("/")[0] in config.eval.evaluators,
        f"config.checkpoint.best_metric='{best}' must be 'evaluator/metric' with one of the evaluators "
        f"{sorted(config.eval.evaluators)}.",
    )
    require(
        not best or config.eval.every_steps > 0,
        "config.checkpoint.best_metric needs config.eval.every_steps > 0 to have something to compare.",
    )


def check_mixture(data: DataConfig) -> None:
    """Refuses weights that are none, and a mixture beside a source. Raises ConfigError."""
    where, weights = "config.data.mixture", {name: part.weight for name, part in data.mixture.items()}
    require(
        not weights or not data.train.path,
        f"{where} has the parts {', '.join(weights)}, and config.data.train.path='{data.train.path}' is set as well: "
        "training reads one or the other. Make it a part, or set config.data.train.path=''.",
    )
    for name, weight in weights.items():
        require(
            math.isfinite(weight) and weight > 0,
            f"{where}.{name}.weight={weight} must be a number above 0; leave a part out that shall not be read.",
        )
    for name, weight in weights.items():
        require(
            weight / sum(weights.values()) * PERIOD >= 1,
            f"{where}.{name}.weight={weight} of {sum(weights.values()):g} in all is less than one example in {PERIOD}; "
            "raise it, or leave the part out.",
        )


def check_naflex(config: ExperimentConfig) -> None:
    """Refuses settings of config.model.image that the naflex tower does not read. Raises ConfigError."""
    image, where = config.model.image, "config.model.image"
    require(image.max_patches >= 1, f"{where}.max_patches={image.max_patches} must be at least 1.")
    default = type(image)()
    unread = ("class_token", "norm_after_pool", "position", "rope", "patch_dropout", "norm")
    changed = [name for name in unread if getattr(image, name) != getattr(default, name)]
    require(
        image.pool in ("map", "gap") and not changed,
        f"{where}.name='naflex' with pool='{image.pool}'"
        + "".join(f", {name}={getattr(image, name)!r}" for name in changed)
        + f": it pools by 'map' or 'gap' and leaves {', '.join(unread)} at their defaults.",
    )


def check_conv_tower(config: ExperimentConfig) -> None:
    """Refuses settings of config.model.image that its convolutional tower has no use for. Raises ConfigError."""
    image, where = config.model.image, "config.model.image"
    of_tower = f"{where}.name='{image.name}'"
    require(
        not image.scan_layers and image.dropout == 0,
        f"{of_tower} with scan_layers={image.scan_layers} and dropout={image.dropout}: its blocks differ in shape, so "
        "they are not scanned, and it has no dropout. Set scan_layers=False and dropout=0.0 (drop_path is what "
        "efficientnet and convnext have).",
    )
    require(
        0 <= image.drop_path < 1 and (image.drop_path == 0 or image.name != "resnet"),
        f"{of_tower} with drop_path={image.drop_path}: it must be in [0, 1), and 0 for resnet, which has none.",
    )
    if image.name == "efficientnet":
        width = block_shapes(image)[-1].outputs
        require(
            image.width == width,
            f"{where}.width={image.width}, but with width_coefficient={image.width_coefficient} the last stage is "
            f"{width} wide; set width={width}.",
        )
    else:
        require(
            len(image.stages) == 4 and min(image.stages) > 0 and image.projection,
            f"{of_tower} needs four stages of blocks, such as stages=(3, 4, 6, 3), and projection=True, because its "
            f"head is what maps to embed_dim; found stages={image.stages}, projection={image.projection}.",
        )
        require(
            image.image_size % 32 == 0,
            f"{where}.image_size={image.image_size} must be a multiple of 32, the strides of '{image.name}'.",
        )
    require(
        image.name != "resnet" or 32 * image.width % image.num_heads == 0,
        f"{where}.num_heads={image.num_heads} does not divide 32 width = {32 * image.width}, what is pooled.",
    )
    require(
        image.name not in BATCH_NORM_TOWERS
        or config.accumulation_steps == 1
        or config.optimizer.image_lr_multiplier == 0,
        f"config.accumulation_steps={config.accumulation_steps} with {of_tower}: BatchNorm normalises by statistics of "
        "the whole batch, which a micro-batch does not have, so the gradient would be another one. Use "
        f"accumulation_steps=1 with {where}.remat='full' or more devices, a tower without BatchNorm (vit, convnext), "
        "or freeze it (config.optimizer.image_lr_multiplier=0).",
    )


def check_embeddings(config: ExperimentConfig) -> None:
    """Do the embeddings that config.data names stand for what a step would compute? Raises ConfigError."""
    data, image, augment = config.data, config.model.image, config.data.augment
    if not (data.image_embeddings or data.teacher_embeddings):
        return
    require(
        augment.name == "none" and augment.flip == 0,
        f"config.data.augment.name='{augment.name}', flip={augment.flip}: an embedding is of one view of an image, and "
        "training from embeddings sees no other. Set config.data.augment.name='none' and flip=0.0, or train without "
        "config.data.image_embeddings and teacher_embeddings.",
    )
    if data.image_embeddings:
        random = {name: getattr(image, name) for name in ("dropout", "drop_path", "patch_dropout")}
        require(
            config.optimizer.image_lr_multiplier == 0 and not any(random.values()) and not config.model.decoder.depth,
            "config.data.image_embeddings stands for a frozen image tower without anything random, and gives no tokens "
            "to a decoder: it needs config.optimizer.image_lr_multiplier=0 (found "
            f"{config.optimizer.image_lr_multiplier}), config.model.image without {', '.join(random)} (found {random}) "
            f"and config.model.decoder.depth=0 (found {config.model.decoder.depth}).",
        )
        require(
            not config.loss.teacher or bool(data.teacher_embeddings),
            "config.data.image_embeddings leaves no images for config.loss.teacher: set teacher_embeddings as well.",
        )
    require(
        not data.teacher_embeddings or bool(config.loss.teacher),
        "config.data.teacher_embeddings needs loss 'distill' and config.loss.teacher, whose embeddings they are.",
    )
