"""The Debian packages of the Open Clip Art Library: fetching them, and reading the metadata of an SVG."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.parsers import expat

from data_pipelines.archives import deb_members
from data_pipelines.command import PipelineError

ROOT = "usr/share/openclipart/"
PACKAGES = {"png": "openclipart-png", "svg": "openclipart-svg"}
_DUBLIN_CORE = "http://purl.org/dc/elements/1.1/"


@dataclass(frozen=True)
class Work:
    """The RDF block of one drawing; white space joined, missing fields empty."""

    title: str = ""
    description: str = ""
    tags: tuple[str, ...] = ()
    creator: str = ""
    licence: str = ""  # URL


class NoWork(ValueError):
    """An SVG whose RDF cannot be read; the message is short, to count by."""


def find_package(folder: Path, kind: str, fetch: bool) -> Path:
    """The newest .deb of a kind ("png" or "svg") in folder. fetch: if there is none, get it by `apt-get download`.

    Raises PipelineError where there is none.
    """
    name = PACKAGES[kind]
    found = sorted(folder.glob(f"{name}_*.deb"))
    if not found and fetch:
        _apt_download(folder, name)
        found = sorted(folder.glob(f"{name}_*.deb"))
    if not found:
        raise PipelineError(
            f"{folder} has no {name}_*.deb. Pass --fetch to have `apt-get download` fetch it (155 MB with its sister), "
            "or put the file there."
        )
    return found[-1]


def version_of(package: Path) -> str:
    return package.name.split("_")[1].replace("%3a", ":")


def read_works(package: Path, refused: Callable[[str, str], None]) -> dict[str, Work | NoWork]:
    """Path of a drawing below svg/, without suffix -> its metadata, or why it cannot be read."""
    works: dict[str, Work | NoWork] = {}
    prefix = ROOT + "svg/"
    for member in deb_members(package, lambda name: name.startswith(prefix) and name.endswith(".svg"), refused):
        try:
            works[member.name.removeprefix(prefix).removesuffix(".svg")] = parse_work(member.data)
        except NoWork as error:
            works[member.name.removeprefix(prefix).removesuffix(".svg")] = error
    return works


def parse_work(svg: bytes) -> Work:
    """The first cc:Work of an SVG; nothing after it is read. Raises NoWork.

    Entities are never expanded: a file that declares one is refused at the declaration.
    """
    reader = _Reader()
    parser = expat.ParserCreate(namespace_separator="}")
    parser.buffer_text = True
    parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
    parser.EntityDeclHandler = _refuse_entity
    parser.StartElementHandler, parser.EndElementHandler = reader.start, reader.end
    parser.CharacterDataHandler = reader.text
    try:
        parser.Parse(svg, True)
    except _Done:
        return reader.work()
    except expat.ExpatError as error:
        raise NoWork("SVG is not well-formed XML") from error
    raise NoWork("SVG says nothing of itself (no cc:Work)")


class _Done(Exception):
    pass


def _refuse_entity(*_: object) -> None:
    raise NoWork("SVG declares XML entities")


class _Reader:
    """Collects the text of the first Work's elements by their path below it."""

    def __init__(self) -> None:
        self.path: list[str] | None = None  # None: outside
        self.texts: dict[tuple[str, ...], list[str]] = {}
        self.licence = ""

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if self.path is None:
            self.path = [] if name.endswith("}Work") else None
            return
        self.path.append(name.removeprefix(_DUBLIN_CORE + "}").rpartition("}")[2])
        self.texts.setdefault(tuple(self.path), []).append("")
        if self.path == ["license"]:
            self.licence = next((value for key, value in attributes.items() if key.endswith("resource")), "")

    def end(self, name: str) -> None:
        if self.path == []:
            raise _Done
        if self.path:
            self.path.pop()

    def text(self, data: str) -> None:
        if self.path:
            self.texts[tuple(self.path)][-1] += data

    def work(self) -> Work:
        def all_of(*path: str) -> tuple[str, ...]:
            joined = (" ".join(text.split()) for text in self.texts.get(path, ()))
            return tuple(dict.fromkeys(text for text in joined if text))

        def one(*path: str) -> str:
            return next(iter(all_of(*path)), "")

        tags = (*all_of("subject", "Bag", "li"), *all_of("subject", "Seq", "li"))
        licence = re.sub(r"\s", "", self.licence)
        return Work(one("title"), one("description"), tags, one("creator", "Agent", "title"), licence)


def _apt_download(folder: Path, name: str) -> None:
    apt = shutil.which("apt-get")
    if apt is None:
        raise PipelineError(f"--fetch needs apt-get, of Debian or Ubuntu, to fetch {name}. Put the .deb into {folder}.")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".apt-") as temporary:
        done = subprocess.run([apt, "download", name], cwd=temporary, capture_output=True, text=True, check=False)
        fetched = list(Path(temporary).glob("*.deb"))
        if done.returncode != 0 or len(fetched) != 1:
            last = (done.stderr.strip().splitlines() or ["no message"])[-4:]
            raise PipelineError(f"`apt-get download {name}` failed:\n" + "\n".join(last))
        fetched[0].rename(folder / fetched[0].name)
