"""Data and checkpoints are read, never executed, and their text is escaped where it is shown."""

import ast
from html.parser import HTMLParser
from pathlib import Path

import pytest

from clipjax.report.html import write_html
from tests.runs import ROOT

# Calls that execute what they read, and those that do unless told not to.
EXECUTES = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "cPickle.load",
    "dill.load",
    "dill.loads",
    "cloudpickle.load",
    "cloudpickle.loads",
    "joblib.load",
    "marshal.load",
    "marshal.loads",
    "shelve.open",
    "yaml.load",
    "yaml.unsafe_load",
    "os.system",
    "os.popen",
}
# Function -> (argument, the value it must be given).
MUST_HAVE = {"torch.load": ("weights_only", True)}
MUST_NOT_HAVE = {"allow_pickle": True, "trust_remote_code": True, "shell": True}


def dangers(source: str) -> list[str]:
    """What a module's calls may execute, as "line: call"."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "dill", "cloudpickle", "marshal", "joblib"):
            found.append(f"{node.lineno}: from {node.module} import")
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if name in EXECUTES:
            found.append(f"{node.lineno}: {name}")
        if name in MUST_HAVE and given.get(MUST_HAVE[name][0]) != str(MUST_HAVE[name][1]):
            found.append(f"{node.lineno}: {name} without {MUST_HAVE[name][0]}")
        found += [f"{node.lineno}: {name} with {k}" for k, v in MUST_NOT_HAVE.items() if given.get(k) == str(v)]
    return found


MODULES = sorted(path for package in ("clipjax", "data_pipelines") for path in (ROOT / package).rglob("*.py"))


def test_nothing_executes_what_it_reads():
    found = {str(path.relative_to(ROOT)): dangers(path.read_text(encoding="utf-8")) for path in MODULES}
    assert {path: lines for path, lines in found.items() if lines} == {}
    assert len(found) > 80


@pytest.mark.parametrize(
    "line",
    [
        "eval(caption)",
        "pickle.loads(data)",
        "from pickle import loads",
        "np.load(path, allow_pickle=True)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "yaml.load(text, Loader=yaml.Loader)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "subprocess.run(line, shell=True)",
    ],
)
def test_the_search_finds_each_kind(line):
    assert len(dangers(line)) == 1


@pytest.mark.parametrize(
    "line", ["np.load(path)", "torch.load(path, weights_only=True)", "re.compile(x)", "json.loads(x)", "model.eval()"]
)
def test_the_search_leaves_what_is_safe(line):
    assert dangers(line) == []


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen = []

    def handle_starttag(self, tag, attrs):
        self.seen += [tag, *(name for name, _ in attrs)]


def test_reports_show_captions_names_and_paths_as_text(tmp_path):
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>\"' &amp;"
    figure = tmp_path / "a'b\"<i>.png"
    figure.write_bytes(b"\x89PNG")
    write_html(
        tmp_path / "report.html",
        title=evil,
        results={evil: {"top1": 0.5, evil: 0.25, "top1_low": 0.4, "top1_high": 0.6}},
        config={
            "eval": {
                "evaluators": {
                    evil: {
                        "name": "zero_shot",
                        "templates": (evil,),
                        "class_names": evil,
                        "source": {"path": evil, "split": evil},
                    }
                }
            },
            "data": {"pixels": {"resize": evil, "interpolation": evil, "mean": [0.5], "std": [0.5]}},
            "model": {"image": {"image_size": evil}},
        },
        notes={evil: {"captions": [evil], evil: evil}},
        figures=[figure],
    )
    page = Path(tmp_path / "report.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert "script" not in tags.seen and "onerror" not in tags.seen
    assert tags.seen.count("img") == 1, "the figure's"
    assert page.count("&lt;script&gt;") >= 9
