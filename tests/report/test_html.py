"""The report says where each number comes from, and contains its pictures."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from clipjax.config import EvalConfig, ExperimentConfig, SourceConfig, to_json_dict
from clipjax.eval import ZeroShotConfig
from clipjax.report.html import write_html

RESULTS = {
    "zoo": {
        "top1": 0.4, "top5": 0.9, "mean_per_class_recall": 0.38, "chance": 0.125, "top1_low": 0.35, "top1_high": 0.45,
        "classes": 8, "examples": 1200, "unlabelled": 3, "indistinguishable": 0,
    },
    "pairs": {"image_to_text_r1": 0.5, "image_to_text_median_rank": 1.0, "examples": 1200},
}  # fmt: skip


class Words(HTMLParser):
    """The text of a page, and its tags in order."""

    def __init__(self, page: str):
        super().__init__()
        self.words, self.tags = [], []
        self.feed(page)

    def handle_data(self, data):
        self.words.append(data)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def page_of(tmp_path, results=RESULTS, **others):
    zoo = ZeroShotConfig(
        source=SourceConfig(path="data/<zoo>", split="test"), templates=("a {}", 'a "{}" & co'), class_names="n.txt"
    )
    config = to_json_dict(ExperimentConfig(eval=EvalConfig(evaluators={"zoo": zoo})))
    path = tmp_path / "report.html"
    write_html(path, title="a run", results=results, config=config, notes={"fingerprint": {"pad": 0}}, **others)
    assert [p.name for p in tmp_path.glob("*.html")] == ["report.html"]
    return path.read_text(encoding="utf-8")


def test_report_says_what_was_asked_of_which_images_and_how_they_were_made(tmp_path):
    text = " ".join(Words(page_of(tmp_path)).words)
    assert "zero_shot on data/<zoo>, split test, class names from n.txt" in text
    assert 'a "{}" & co' in text
    assert "Images: squashed to 224 x 224 (bicubic), mean [0.5, 0.5, 0.5]" in text
    assert "Ties count against the model" in text
    assert '"pad": 0' in text, "the fingerprint"
    assert "1,200" in text


def test_interval_and_chance_stand_with_their_metric(tmp_path):
    page = page_of(tmp_path)
    row = next(row for row in page.split("<tr>") if ">top1<" in row)
    assert "40.00%" in row and "35.00% to 45.00%" in row and "left:12.50%" in row
    assert "left:62.50%" in next(row for row in page.split("<tr>") if ">top5<" in row), "five guesses, five chances"
    assert "top1_low" not in page
    assert "left:" not in next(row for row in page.split("<tr>") if "image_to_text_r1" in row)
    assert 'class="bar"' not in next(row for row in page.split("<tr>") if "median_rank" in row)


def test_page_is_well_formed_and_loads_nothing(tmp_path):
    page = page_of(tmp_path)
    for tag in ("table", "tr", "td", "div", "details", "pre", "p", "body", "html", "head"):
        assert len(re.findall(f"<{tag}[ >]", page)) == page.count(f"</{tag}>"), tag
    assert "http" not in page
    assert not [tag for tag, _ in Words(page).tags if tag in ("script", "link", "iframe")]


def test_pictures_are_inside_the_page(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a b&c.png")
    image = next(a for tag, a in Words(page_of(tmp_path, figures=[tmp_path / "a b&c.png"])).tags if tag == "img")
    assert image["alt"] == "a b&c.png"
    kind, data = image["src"].split(";base64,")
    assert kind == "data:image/png"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))), pixels)


def test_results_without_a_configuration_are_still_shown(tmp_path):
    write_html(tmp_path / "r.html", title="t", results=RESULTS, config={}, notes={})
    assert "38.00%" in (tmp_path / "r.html").read_text()
