"""The files of deploy/, and the clipjax commands in them."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from clipjax.__main__ import COMMANDS

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
# What the variables of the files may be; the numbers are those of the first of two processes.
VALUES = {
    "BUCKET": "my-bucket",
    "DATA": "/shared/shards",
    "IMAGE": "registry.example/clipjax:1",
    "JOB_COMPLETION_INDEX": "0",
    "RUN": "siglip-b16",
    "SKYPILOT_NODE_RANK": "0",
    "SKYPILOT_NUM_NODES": "2",
    "TOKENIZER": "/shared/tokenizer.model",
    "WORKDIR": "gs://my-bucket/runs/siglip-b16",
    "head": "10.0.0.1",
}
_VARIABLE = re.compile(r"\$(?:\{(\w+)[^}]*\}|\((\w+)\)|(\w+))")
_COMMAND = re.compile(rf"\bclipjax(?::\w+)? +({'|'.join(COMMANDS)})\b((?:\s+-[^\n]*)?)")


def filled(text: str, values: Mapping[str, str] = VALUES) -> str:
    """The text with the values of its variables, as ${NAME}, $(NAME) or $NAME; unknown ones stay."""
    return _VARIABLE.sub(lambda match: values.get(next(filter(None, match.groups())), match[0]), text)


def manifests(path: Path) -> list[dict[str, Any]]:
    """The documents of a YAML file, with its variables filled in."""
    return list(yaml.safe_load_all(filled(path.read_text(encoding="utf-8"))))


def containers(node: Any) -> Iterator[dict[str, Any]]:
    """Every container in a manifest."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node if isinstance(node, list) else ()):
        if key == "containers":
            yield from value
        yield from containers(value)


def commands(path: Path) -> list[list[str]]:
    """The clipjax commands of a file, as lists of arguments, without those that have a "..." to fill in."""
    text = path.read_text(encoding="utf-8")
    found = []
    if path.parent.name == "kubernetes" and path.suffix == ".yaml":
        for container in (container for document in manifests(path) for container in containers(document)):
            command = [*container["command"], *container["args"]]
            found.append(command[command.index("clipjax") + 1 :])
    text = re.sub(r"^#+ ?", "", text.replace("\\\\\n", "\\\n"), flags=re.MULTILINE)  # the commands of comments too
    text = re.sub(r"\s*\\\n[# ]*", " ", text)
    for match in _COMMAND.finditer(filled(text)):
        name, rest = match.groups()
        words = []
        for word in re.split(r"\s+", re.sub(r"[\"']", "", rest).replace("`", " ").strip()):
            if not word.startswith("--"):
                break
            words.append(word)
        if "..." not in rest and words:
            found.append([name, *words])
    return found
