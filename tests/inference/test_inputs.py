"""Whatever an image is given as, the model sees one picture; one image or text is one row, none is none."""

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, features

from clipjax.config import AugmentConfig, MeshConfig, PatchBudget, PixelConfig
from clipjax.data.examples import EvalExamples
from clipjax.data.images import train_image
from clipjax.data.records import RecordError
from clipjax.inference.inputs import check_columns, image_columns, text_ids
from clipjax.inference.load import load
from clipjax.mesh import make_mesh
from clipjax.training.state import abstract_state, eval_variables
from tests.data.samples import LengthTokenizer, encoded, picture
from tests.tiny import CONTEXT, IMAGE_SIZE, VOCAB, tiny_config

SIZE, PIXELS, BUDGET = 16, PixelConfig(resize="center_crop"), PatchBudget(4, 16)
IMAGE = picture(3, 60, 40)
ARRAY = np.asarray(IMAGE)


def turned(format: str, **options) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(IMAGE, format, exif=exif, **options)


def files() -> dict[str, bytes]:
    grey16 = Image.fromarray(np.asarray(IMAGE.convert("L")) * np.uint16(257))
    kinds = {
        "turned.jpg": turned("JPEG"),
        "turned.png": turned("PNG"),
        "turned.webp": turned("WEBP"),
        "turned.tif": turned("TIFF"),
        "cmyk.jpg": encoded(IMAGE.convert("CMYK"), "JPEG"),
        "lab.tif": encoded(IMAGE.convert("LAB"), "TIFF"),
        "grey16.png": encoded(grey16),
        "grey16.tif": encoded(grey16, "TIFF"),
        "int32.tif": encoded(IMAGE.convert("L").convert("I"), "TIFF"),
        "float.tif": encoded(IMAGE.convert("F"), "TIFF"),
        "palette.png": encoded(IMAGE.quantize(16), transparency=3),
        "alpha.png": encoded(IMAGE.convert("RGBA")),
        "bits.png": encoded(IMAGE.convert("1")),
        "animated.gif": encoded(IMAGE, "GIF", save_all=True, append_images=[picture(4, 60, 40)]),
        "pages.tif": encoded(IMAGE, "TIFF", save_all=True, append_images=[picture(4, 60, 40)]),
    }
    kinds |= {"turned.avif": turned("AVIF")} if features.check("avif") else {}
    return kinds | ({"lossless.jp2": encoded(IMAGE, "JPEG2000")} if features.check("jpg_2000") else {})


def columns(images, budget=None):
    return image_columns(images, SIZE, budget, PIXELS)


@pytest.mark.parametrize("budget", [None, BUDGET], ids=["square", "patches"])
@pytest.mark.parametrize("name", files())
def test_a_path_bytes_and_pillows_image_are_what_evaluation_and_training_see(name, budget, tmp_path):
    data = files()[name]
    path = tmp_path / name
    path.write_bytes(data)
    seen = EvalExamples([], LengthTokenizer(), PIXELS, SIZE, budget).image(data)
    loaded = Image.open(path)
    loaded.load()
    given = [data, bytearray(data), memoryview(data), str(path), path, Image.open(path), Image.open(io.BytesIO(data))]
    for image in (*given, loaded, loaded):
        for column, values in columns(image, budget).items():
            assert (values == seen[column][None]).all(), column
    rows = columns(given, budget)
    assert all((rows[column] == np.stack([seen[column]] * len(given))).all() for column in seen)
    if not budget:
        plain = AugmentConfig(name="none")
        assert (train_image(data, SIZE, PIXELS, plain, np.random.default_rng(0)) == seen["image"]).all()


def test_an_array_is_the_image_that_holds_it():
    expected = columns(IMAGE)["image"]
    for array in (ARRAY, ARRAY[:, ::-1][:, ::-1], np.asfortranarray(ARRAY), jnp.asarray(ARRAY), [ARRAY], iter([ARRAY])):
        assert (columns(array)["image"] == expected).all()
    grey = np.asarray(IMAGE.convert("L"))
    assert (columns(grey)["image"] == columns(IMAGE.convert("L"))["image"]).all()
    assert (columns([np.asarray(IMAGE.convert("RGBA"))])["image"] == expected).all()
    assert (columns([np.asarray(IMAGE.convert("LA"))])["image"] == columns(grey)["image"]).all()
    stack = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
    assert (columns(stack)["image"] == stack).all() and (columns(jnp.asarray(stack))["image"] == stack).all()
    assert columns(np.stack([ARRAY, ARRAY]), BUDGET)["image"].shape == (2, 16, 48)


def test_one_image_is_one_row_and_mixed_kinds_keep_their_order(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(picture(1)))
    for one in (IMAGE, encoded(IMAGE), str(path), path, ARRAY):
        assert columns(one)["image"].shape == (1, SIZE, SIZE, 3)
    mixed = [path, picture(2), encoded(picture(3)), np.asarray(picture(4)), str(path)]
    expected = np.concatenate([columns(picture(i))["image"] for i in (1, 2, 3, 4, 1)])
    paths = np.array([path, str(path)], object)
    assert (columns(paths)["image"] == expected[[0, 0]]).all()
    for images in (mixed, tuple(mixed), (image for image in mixed)):
        assert (columns(images)["image"] == expected).all()


def test_no_images_are_no_rows():
    for none in ([], (), iter(()), np.array([]), np.zeros((0, SIZE, SIZE, 3), np.uint8)):
        assert columns(none)["image"].shape == (0, SIZE, SIZE, 3)
    patches = columns([], BUDGET)
    assert patches["image"].shape == (0, 16, 48) and patches["spatial_shape"].shape == (0, 2)


class Unknown:
    pass


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (None, TypeError, "images is None; expected a path, the bytes"),
        (3, TypeError, "images is 3; expected"),
        ({"image": IMAGE}, TypeError, "images is of type dict; expected"),
        (io.BytesIO(b"x"), TypeError, "images is of type BytesIO; expected"),
        ([IMAGE, None], TypeError, r"images\[1\] is None; expected a path"),
        ([IMAGE, 3], TypeError, r"images\[1\] is 3"),
        ([[IMAGE]], TypeError, r"images\[0\] is of type list"),
        ([Unknown()], TypeError, r"images\[0\] is of type Unknown"),
        (
            [ARRAY, ARRAY / 255],
            ValueError,
            r"images\[1\] is an array of float64 \[40, 60, 3\]; expected uint8 \[H, W, 3\]",
        ),
        (ARRAY.astype(np.int32), ValueError, r"images\[0\] is an array of int32"),
        (ARRAY[..., 0].astype(np.uint16), ValueError, "is an array of uint16"),
        (ARRAY[..., 0] > 9, ValueError, "is an array of bool"),
        (ARRAY.transpose(2, 0, 1), ValueError, r"is an array of uint8 \[3, 40, 60\]; expected uint8 \[H, W, 3\]"),
        (np.zeros((2, 8, 9, 3), np.uint8), ValueError, r"expected uint8 \[B, 16, 16, 3\], or a list of uint8 arrays"),
        (np.zeros((2, 16, 16, 3), np.float32), ValueError, r"images are float32 \(2, 16, 16, 3\)"),
        ([IMAGE, "no/such.jpg"], FileNotFoundError, r"images\[1\]: there is no file 'no/such.jpg' \(looked from /"),
        (Path("no/such.jpg"), FileNotFoundError, r"images\[0\]: there is no file 'no/such.jpg'"),
        ([str(Path(__file__).parent)], OSError, r"images\[0\]: '.*inference' cannot be read: .*directory"),
        ("nul\0l", OSError, "cannot be read: embedded null byte"),
        ([IMAGE, b""], RecordError, r"images\[1\]: empty image: the image has zero bytes"),
        ([b"<html>"], RecordError, r"images\[0\]: not an image: none of JPEG"),
        (np.zeros((0, 5, 3), np.uint8), RecordError, "5 x 0 pixels"),
        ([__file__], RecordError, r"images\[0\], .*test_inputs.py: not an image"),
        ([encoded(IMAGE)[:-40]], RecordError, r"images\[0\]: corrupt image: PNG chunk"),
    ],
)
def test_what_is_no_image_is_named_by_its_place_and_kind(images, error, message):
    with pytest.raises(error, match=message):
        columns(images)


def test_an_image_whose_file_was_closed_too_early_says_so(tmp_path):
    IMAGE.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        pass
    with pytest.raises(RecordError, match=r"images\[0\]: .*its file was closed before its pixels were read"):
        columns(image)


class Words:
    """Ids [B, 4]: the length of each text, then zeros."""

    def __call__(self, texts):
        return np.array([[len(text), 0, 0, 0] for text in texts], np.int32)


def ids(texts, tokenizer=Words()):  # noqa: B008
    return text_ids(texts, tokenizer, 4, 50)


def test_one_text_is_one_row():
    expected = [[5, 0, 0, 0]]
    for one in (
        "a dog",
        ["a dog"],
        ("a dog",),
        iter(["a dog"]),
        np.array("a dog"),
        np.array(["a dog"]),
        np.str_("a dog"),
    ):
        assert ids(one).tolist() == expected
    assert ids(np.array(["a dog", "cats"], object)).tolist() == [[5, 0, 0, 0], [4, 0, 0, 0]]
    assert ids("").tolist() == [[0, 0, 0, 0]]


def test_no_texts_are_no_rows_with_or_without_a_tokenizer():
    for none in ([], (), np.array([]), np.zeros((0, 4), np.int32), iter(())):
        assert ids(none, None).shape == (0, 4) and ids(none).dtype == np.int32


def test_ids_are_taken_as_they_are():
    given = np.array([[1, 2, 3, 0], [4, 0, 0, 0]])
    for same in (given, given.astype(np.uint8), given.tolist(), list(given), jnp.asarray(given), map(list, given)):
        result = ids(same, None)
        assert result.dtype == np.int32 and result.tolist() == given.tolist()
    assert ids(given[:, :2]).shape == (2, 2)
    assert ids([1, 2, 3]).tolist() == ids(given[0, :3]).tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        (None, TypeError, "texts is None; expected a string, a sequence of strings, or int32 ids"),
        (7.5, TypeError, "texts is 7.5; expected"),
        (b"a dog", TypeError, "texts is of type bytes; expected a string"),
        ({"a dog": 1}, TypeError, "texts is of type dict"),
        (["a dog", None], TypeError, r"texts\[1\] is None; expected a string"),
        (["a dog", b"cat"], TypeError, r"texts\[1\] is of type bytes; expected a string"),
        (["a dog", 3], TypeError, r"texts\[1\] is 3; texts\[0\] is of type str"),
        ([["a dog", "a cat"]], TypeError, r"texts\[0\] is of type list; expected a string"),
        ([[1, 2], "a dog"], TypeError, r"texts\[1\] is of type str; texts\[0\] is of type list"),
        ([1, [2]], TypeError, r"texts\[1\] is of type list; texts\[0\] is 1"),
        ([[]], TypeError, r"texts\[0\] is of type list; expected"),
        ([[1.5, 2.0]], TypeError, r"texts\[0\] is of type list"),
        (np.zeros((2, 4), np.float32), TypeError, r"texts\[0\] is an array of float32 \[4\]"),
        ([[1, 2], [1, 2, 3]], ValueError, "ids of 2 to 3 tokens; pad them to one length"),
        (np.zeros((2, 5), np.int32), ValueError, r"texts are ids \[2, 5\]; expected \[B, L\] with L from 1 to 4"),
        (np.zeros((1, 1, 4), np.int32), ValueError, r"texts are ids \[1, 1, 4\]"),
        ([[1, 2], [1, 50]], ValueError, r"texts\[1\] has ids from 1 to 50; the vocabulary is 0 to 49"),
        (["a", "a\ud83d"], ValueError, r"texts\[1\] is not Unicode: 'a.ud83d' has half a surrogate pair"),
        ([[-1, 2]], ValueError, r"texts\[0\] has ids from -1 to 2"),
    ],
)
def test_what_is_no_text_is_named_by_its_place_and_kind(texts, error, message):
    with pytest.raises(error, match=message):
        ids(texts)


def test_strings_need_a_tokenizer():
    with pytest.raises(ValueError, match=r"no tokenizer: give ids \[B, 4\] int32, not strings"):
        ids("a dog", None)


def config_of(**text):
    config = tiny_config()
    return replace(config, model=replace(config.model, text=replace(config.model.text, **text)))


def test_ids_without_their_padding_are_refused_where_the_tower_reads_it():
    short = np.array([[5, 6, 3], [4, 3, 0]])
    causal = config_of(causal=True, pool="eos", eos_id=3, pad_id=0)
    check_columns(short, causal, None)
    for config, why in (
        (config_of(causal=False, pool="last", pad_id=0), r"causal=False.*Pad them to \[2, 8\].* padding, 1\."),
        (config_of(causal=True, pool="last"), "pool='last' reads the padding"),
        (config_of(causal=True, pool="cls", eos_id=3, pad_id=0), "reads the padding after a text"),
    ):
        with pytest.raises(ValueError, match=why):
            check_columns(short, config, SimpleNamespace(pad_id=1))
        check_columns(np.pad(short, ((0, 0), (0, 5))), config, None)
    check_columns(short[1:], config, None)  # it has the column of padding that the class token sees


class TinyWeights:
    """Opened weights of a tiny model, random numbers."""

    config = tiny_config()

    def variables(self, mesh):
        rng = np.random.default_rng(0)
        fill = lambda leaf: jax.device_put(np.float32(rng.normal(0, 0.1, leaf.shape)), leaf.sharding)  # noqa: E731
        return jax.tree.map(fill, eval_variables(abstract_state(self.config, mesh)))


@pytest.fixture(scope="module")
def model():
    return load(TinyWeights(), mesh=make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1]), batch_size=4)


def test_a_loaded_model_is_shown_in_one_line(model):
    size = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    dim = model.config.model.embed_dim
    assert repr(model) == f"Loaded(image vit, text transformer, embed_dim={dim}, {size:,} parameters)"


def test_a_loaded_model_embeds_one_image_or_text_as_a_row_of_many(model):
    dim = model.config.model.embed_dim
    data = turned("JPEG")
    opened = Image.open(io.BytesIO(data))
    forms = [data, opened, IMAGE.convert("CMYK"), IMAGE.convert("HSV"), IMAGE.convert("F")]
    rows = model.embed_images(forms)
    assert rows.shape == (5, dim) and (rows[0] == rows[1]).all()
    assert model.embed_images(opened).shape == model.embed_images(data).shape == (1, dim)
    np.testing.assert_allclose(model.embed_images(opened), rows[:1], atol=1e-6)
    ids = np.arange(2 * CONTEXT).reshape(2, CONTEXT) % VOCAB
    assert model.embed_texts(ids).shape == (2, dim)
    np.testing.assert_allclose(model.embed_texts(ids[0]), model.embed_texts(ids)[:1], atol=1e-6)
    for none in (model.embed_images([]), model.embed_texts([])):
        assert none.shape == (0, dim) and none.dtype == np.float32
    assert model.embed_images(np.zeros((2, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)).shape == (2, dim)


@pytest.mark.slow
def test_no_images_give_outputs_and_hidden_states_without_rows(model):
    images, texts = model.encode_images([], hidden_layers=(-1,)), model.encode_texts([])
    assert images.pooled.shape == texts.pooled.shape == (0, model.config.model.embed_dim)
    assert images.hidden[0].state.shape == (0, (IMAGE_SIZE // 4) ** 2, 32)
