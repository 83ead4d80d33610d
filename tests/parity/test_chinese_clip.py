"""transformers' ChineseCLIPModel: the same embeddings, logits, gradients, tokens and pixels; in, and out again."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clipjax.commands import export, import_weights
from clipjax.config import ConfigError, MeshConfig, TokenizerConfig
from clipjax.data.tokenizers import make_tokenizer
from clipjax.interop import open_foreign
from clipjax.mesh import make_mesh
from clipjax.models import DualEncoder
from tests.torch_reference import import_torch

torch = import_torch()
transformers = import_torch("transformers")

PIECES = ["[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"杰尼龟妙蛙种子火小皮卡丘一只猫的照片，。"]
PIECES += ["a", "photo", "##s", "of", "two", "cats", "and", "red", "dog", "cafe", "'", "&", "!", "1", ",", "##e"]
SMALL = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
TEXTS = [
    "杰尼龟",
    "一只猫的照片，2 只 Cats!",
    "Café photos of a 皮卡丘。",
    "",
    "龘 unknown",
    "[SEP] inside [MASK]",
    "一" * 80,
]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A directory as OFA-Sys publishes it: weights, vocab.txt alone, and images squashed to a square."""
    folder = tmp_path_factory.mktemp("chinese") / "clip"
    text = SMALL | dict(vocab_size=len(PIECES), max_position_embeddings=64)
    vision = SMALL | dict(image_size=16, patch_size=8)
    config = transformers.ChineseCLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    torch.manual_seed(0)
    model = transformers.ChineseCLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    size = {"height": 16, "width": 16}
    processor = dict(feature_extractor_type="ChineseCLIPFeatureExtractor", do_center_crop=False, size=size, resample=3)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder, model


def test_vocab_txt_gives_transformers_ids(published):
    folder, _ = published
    ours = make_tokenizer(TokenizerConfig(name="hf", path=str(folder / "vocab.txt")), 52)
    reference = transformers.BertTokenizer.from_pretrained(folder)
    options = dict(padding="max_length", max_length=52, truncation=True, split_special_tokens=True)
    for text in TEXTS:
        assert ours([text])[0].tolist() == reference(text, **options)["input_ids"], text
    assert ours(["[SEP] inside [MASK]"])[0].tolist()[-1] == 0  # special tokens that are written out are text
    assert (ours(["[SEP]"])[0] == reference.sep_token_id).sum() == 1


def test_a_vocab_txt_of_another_kind_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(ConfigError, match=r"vocab\.txt' is not a BERT's vocabulary: it lacks \[UNK\], \[SEP\]"):
        make_tokenizer(TokenizerConfig(name="hf", path=str(tmp_path / "vocab.txt")), 52)


def test_embeddings_logits_and_gradients_are_transformers(published):
    folder, theirs = published
    foreign = open_foreign(str(folder))
    assert foreign.name == "hf_chinese_clip" and foreign.config.model.text.context_length == 52
    tokenizer = make_tokenizer(foreign.config.tokenizer, 52)
    ids = tokenizer(TEXTS[:3])
    pixels = np.random.default_rng(0).normal(size=(3, 16, 16, 3)).astype(np.float32)
    params = foreign.variables(make_mesh(MeshConfig(data=1), jax.devices()[:1]))["params"]

    def loss(params):
        out = DualEncoder(foreign.config.model).apply({"params": params}, image=pixels, text=ids)
        logits = out.logit_scale * out.image_embedding @ out.text_embedding.T
        return -jnp.trace(jax.nn.log_softmax(logits)), (out, logits)

    gradient, (out, logits) = jax.jit(jax.grad(loss, has_aux=True))(params)
    given = dict(input_ids=torch.tensor(ids).long(), attention_mask=torch.tensor(ids != 0).long())
    wanted = theirs(pixel_values=torch.tensor(pixels.transpose(0, 3, 1, 2)), **given)
    np.testing.assert_allclose(out.image_embedding, wanted.image_embeds.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(out.text_embedding, wanted.text_embeds.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(logits, wanted.logits_per_image.detach().numpy(), atol=1e-4)
    theirs.zero_grad()
    (-torch.trace(torch.log_softmax(wanted.logits_per_image, -1))).backward()
    words = theirs.text_model.embeddings.word_embeddings.weight
    for ours, parameter in (
        (gradient["logit_scale"], theirs.logit_scale),
        (gradient["text"]["projection"]["kernel"].T, theirs.text_projection.weight),
        (gradient["text"]["token_embedding"]["embedding"], words),
        (gradient["image"]["projection"]["kernel"].T, theirs.visual_projection.weight),
    ):
        wanted = parameter.grad.numpy()
        rows = slice(1, None) if parameter is words else ...  # transformers holds the padding's row fixed
        np.testing.assert_allclose(ours[rows], wanted[rows], atol=1e-4)


def test_an_import_agrees_end_to_end_and_is_exported_bit_for_bit(published, tmp_path):
    folder, _ = published
    from safetensors.torch import load_file

    import_weights.run(folder, tmp_path / "run")
    report = json.loads((tmp_path / "run" / "parity.json").read_text())
    assert report["agrees"] and report["end_to_end"]["picture"]["compared"], report
    assert all(each["tokens_equal"] for name, each in report["end_to_end"]["captions"].items() if name != "compared")
    assert (tmp_path / "run" / "vocab.txt").is_file()
    export.run(tmp_path / "run", tmp_path / "out", format="hf")
    assert type(transformers.AutoModel.from_pretrained(tmp_path / "out")).__name__ == "ChineseCLIPModel"
    ours, theirs = (load_file(path / "model.safetensors") for path in (tmp_path / "out", folder))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    tokenizers = [transformers.AutoTokenizer.from_pretrained(path) for path in (folder, tmp_path / "out")]
    assert tokenizers[0](TEXTS)["input_ids"] == tokenizers[1](TEXTS)["input_ids"]
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert type(processor).__name__.startswith("ChineseCLIPImageProcessor")
