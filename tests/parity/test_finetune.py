"""Fine-tuning by experiments/finetune.py beside the same in PyTorch: the losses of ten steps are equal.

Both start from one imported model of transformers and read the batches of one TrainIterator. PyTorch's side is written
out below: autograd, torch.optim.AdamW with decay on matrices alone, a cosine schedule with warm-up, clipping by norm.
Losses agree to 1e-4 of their size, and to 1e-5 in what they are now.
"""

import math
import os
import shutil

import jax
import numpy as np
import pytest

from clipjax.commands import import_weights
from clipjax.commands.preflight import open_batches
from clipjax.config import from_config_dict
from clipjax.data.mixture import open_train
from clipjax.data.tokenizers import make_tokenizer
from clipjax.mesh import batch_sharding, make_mesh
from clipjax.runs.fingerprint import fingerprint
from clipjax.runs.weights import first_state
from clipjax.training.check import check
from clipjax.training.step import batch_shapes, make_train_step
from experiments.finetune import get_config
from tests.runs import build_data
from tests.torch_reference import import_torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch = import_torch()
transformers = import_torch("transformers")

STEPS, TOLERANCE = 10, 1e-5
SIZE, PATCH, WIDTH, CONTEXT = 16, 8, 32, 16


def original(kind):
    """A random CLIPModel or SiglipModel of transformers, with biases and norms that are not 0 and 1."""
    shared = dict(hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2)
    vision = dict(image_size=SIZE, patch_size=PATCH, **shared)
    text = dict(vocab_size=128, max_position_embeddings=CONTEXT, **shared)
    torch.manual_seed(0)
    if kind == "clip":
        text |= dict(eos_token_id=1, bos_token_id=2, pad_token_id=0)
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)
        model = transformers.CLIPModel(config)
    else:
        text |= dict(projection_size=WIDTH)
        model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim:
                parameter.add_(0.05 * torch.randn_like(parameter))
        model.logit_scale.fill_(math.log(10.0))
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """data: records of drawn scenes; clip, siglip: imports of `original`."""
    folder = tmp_path_factory.mktemp("finetune")
    build_data(folder)
    for kind in ("clip", "siglip"):
        original(kind).save_pretrained(folder / f"{kind}_files")
        if kind == "siglip":
            shutil.copy(folder / "scenes.model", folder / "siglip_files" / "spiece.model")
        import_weights.run(folder / f"{kind}_files", folder / kind, parity=False)
    return folder


def configured(folder, kind, words, **optimizer):
    tree = get_config(",".join([str(folder / kind), str(folder / "scenes"), *words]))
    tree.update(total_steps=20, global_batch_size=32)
    tree.optimizer.update(learning_rate=1e-3, **optimizer)
    tree.optimizer.schedule.warmup_steps = 3
    tree.data.augment.name = "none"
    if kind == "clip":  # which came without a tokenizer and pools at the end of a text, piece 1
        tree.tokenizer.update(name="sentencepiece", path=str(folder / "scenes.model"), add_eos=True)
    config = from_config_dict(tree)
    check(config, num_devices=1)
    return config


def our_losses(config):
    """(the losses, the batches, the adapters before the first) of STEPS steps of `clipjax train`."""
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    tokenizer = make_tokenizer(config.tokenizer, config.model.text.context_length)
    state = first_state(config, mesh, fingerprint(config, tokenizer))
    step = make_train_step(config, mesh, state)
    batches = open_batches(config, tokenizer, open_train(config.data))
    adapters = jax.tree.map(np.array, state.params.get("lora", {}))
    losses, seen = [], []
    for _ in range(STEPS):
        batch, _ = next(batches)
        batch = {name: batch[name] for name in batch_shapes(config)}
        state, metrics = step(state, jax.device_put(batch, batch_sharding(mesh)))
        losses.append(float(metrics["loss"]))
        seen.append(batch)
    return np.array(losses), seen, adapters


def their_losses(config, model, batches, loss, trains):
    """The losses of the same steps in PyTorch; trains: whether the parameter of a name does."""
    optimizer = config.optimizer
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trains(name))
    trained = [(name, parameter) for name, parameter in model.named_parameters() if trains(name)]
    groups = [
        {"params": [p for name, p in trained if decays(name, p)], "weight_decay": optimizer.weight_decay},
        {"params": [p for name, p in trained if not decays(name, p)], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=1.0, betas=(optimizer.b1, optimizer.b2), eps=optimizer.eps)
    losses = []
    for number, batch in enumerate(batches):
        rate = optimizer.learning_rate * min((number + 1) / 3, 1.0)
        rate *= 0.5 * (1 + math.cos(math.pi * max(number - 3, 0) / (config.total_steps - 3)))
        for group in adamw.param_groups:
            group["lr"] = rate
        image = torch.tensor(batch["image"].transpose(0, 3, 1, 2)).float() / 255
        mean, std = (torch.tensor(getattr(config.data.pixels, n)).view(3, 1, 1) for n in ("mean", "std"))
        out = model(input_ids=torch.tensor(batch["text"]).long(), pixel_values=(image - mean) / std)
        value = loss(model, out.image_embeds, out.text_embeds, positives(batch["pair_id"]))
        adamw.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in trained], optimizer.grad_clip_norm)
        adamw.step()
        if config.model.logit_scale_max:
            with torch.no_grad():
                model.logit_scale.clamp_(max=math.log(config.model.logit_scale_max))
        losses.append(value.item())
    return np.array(losses)


def decays(name, parameter):
    """Matrices decay, and what is one except in shape does not: biases, norms, the class token, the pooling query."""
    return parameter.ndim >= 2 and not name.endswith("probe")


def positives(pair_id):
    pair_id = torch.tensor(pair_id)
    return torch.eye(len(pair_id), dtype=bool) | ((pair_id[:, None] == pair_id) & (pair_id >= 0))


def softmax(model, image, text, positive):
    logits = model.logit_scale.exp() * image @ text.T
    target = positive.float() / positive.sum(1, keepdim=True)
    entropy = torch.nn.functional.cross_entropy
    return (entropy(logits, target) + entropy(logits.T, target)) / 2


def sigmoid(model, image, text, positive):
    logits = model.logit_scale.exp() * image @ text.T + model.logit_bias
    return -torch.nn.functional.logsigmoid(torch.where(positive, logits, -logits)).sum() / len(logits)


@pytest.mark.parametrize(
    ("kind", "words", "loss", "frozen"),
    [
        ("clip", [], softmax, ""),
        pytest.param("siglip", ["sigmoid"], sigmoid, "", marks=pytest.mark.slow),
        pytest.param("siglip", ["freeze_image"], softmax, "vision_model", marks=pytest.mark.slow),
    ],
    ids=["clip-softmax", "siglip-sigmoid", "siglip-frozen-image-softmax"],
)
def test_losses_of_ten_steps_equal_pytorchs(folder, kind, words, loss, frozen):
    config = configured(folder, kind, words)
    ours, batches, _ = our_losses(config)
    theirs = their_losses(config, original(kind), batches, loss, lambda name: not (frozen and name.startswith(frozen)))
    assert theirs[-1] < theirs[0]  # it learns, so a wrong update would show
    np.testing.assert_allclose(ours, theirs, rtol=TOLERANCE)


@pytest.mark.slow
def test_losses_of_ten_steps_with_adapters_equal_pefts(folder):
    peft = import_torch("peft")
    config = configured(folder, "siglip", ["lora", "sigmoid"])
    ours, batches, adapters = our_losses(config)
    lora = peft.LoraConfig(r=config.lora.rank, lora_alpha=config.lora.alpha, target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(original("siglip"), lora)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                parameter.copy_(torch.tensor(ours_of(name, adapters).T))
    theirs = their_losses(config, model, batches, sigmoid, lambda name: "lora_" in name or "logit_" in name)
    assert theirs[-1] < theirs[0]
    np.testing.assert_allclose(ours, theirs, rtol=TOLERANCE)


def ours_of(name, adapters):
    """Our A, [in, rank], of peft's ...vision_model.encoder.layers.1.self_attn.q_proj.lora_A.default.weight."""
    tower = adapters["image" if "vision_model" in name else "text"]
    layer = int(name.split(".layers.")[1].split(".")[0])
    matrix = "query" if "q_proj" in name else "value"
    block = tower["blocks"] if "blocks" in tower else tower[f"block_{layer}"]
    a = block["attention"][matrix]["a"]
    return a[layer] if "blocks" in tower else a
