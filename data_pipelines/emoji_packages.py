"""The npm packages with emoji drawings: where they are kept, how they are fetched, and their licences."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clipjax.files import hidden
from data_pipelines.command import PipelineError


@dataclass(frozen=True)
class Package:
    """One npm package with drawings, and the words in it that grant the drawings' licence."""

    name: str
    version: str
    drawings: str  # folder of the drawings in the package
    artwork: str  # the artists, as credits should name them
    licence: str  # SPDX
    url: str
    evidence: tuple[str, str]  # (file in the package, words in it)


# Rendering style -> package. Apple's and Facebook's drawings, in sister packages, are not free to use.
STYLES = {
    "google": Package(
        name="emoji-datasource-google",
        version="16.0.0",
        drawings="img/google/64/",
        artwork="Noto Emoji, Google",
        licence="Apache-2.0",
        url="https://github.com/googlefonts/noto-emoji",
        evidence=("README.md", "Noto images, are available under the [Apache License 2.0]"),
    ),
    "openmoji": Package(
        name="openmoji",
        version="17.0.0",
        drawings="color/svg/",
        artwork="OpenMoji, HfG Schwäbisch Gmünd and contributors",
        licence="CC-BY-SA-4.0",
        url="https://openmoji.org",
        evidence=("LICENSE.txt", "Attribution-ShareAlike 4.0 International"),
    ),
    "fluentui": Package(
        name="fluentui-emoji",
        version="1.3.0",
        # The "modern" drawings use SVG filters, which CairoSVG leaves out.
        drawings="icons/flat/",
        artwork="Fluent Emoji (flat), Microsoft",
        licence="MIT",
        url="https://github.com/microsoft/fluentui-emoji",
        evidence=("LICENSE", "MIT License"),
    ),
    "twitter": Package(
        name="emoji-datasource-twitter",
        version="16.0.0",
        drawings="img/twitter/64/",
        artwork="Twemoji, Twitter, Inc. and contributors",
        licence="CC-BY-4.0",
        url="https://github.com/jdecked/twemoji",
        evidence=("README.md", "Twitter images are available under the [Creative Commons Attribution 4.0 license]"),
    ),
}


def default_cache() -> Path:
    """Where packages are kept when --packages is not given."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clipjax" / "npm"


def read_package(folder: Path, name: str, version: str, keep: Callable[[str], bool]) -> dict[str, bytes]:
    """Path inside the package -> content, of package.json and the files for which keep(path).

    Looks in folder for NAME-VERSION.tgz, then for an unpacked NAME (as in node_modules), and else calls `npm pack`.
    """
    tarball = folder / f"{name}-{version}.tgz"
    unpacked = folder / name
    if not tarball.exists() and not (unpacked / "package.json").exists():
        _npm_pack(tarball, name, version)
    files = _read_tarball(tarball, keep) if tarball.exists() else _read_folder(unpacked, keep)
    if "package.json" not in files:
        raise PipelineError(f"{tarball} holds no package.json; remove it to have it fetched again.")
    return files


def version_of(files: dict[str, bytes]) -> str:
    return json.loads(files["package.json"])["version"]


def licence_entry(package: Package, files: dict[str, bytes]) -> dict[str, str]:
    """The manifest's licence entry, with the line of the package that grants it."""
    path, words = package.evidence
    lines = files.get(path, b"").decode("utf-8", "replace").splitlines()
    found = next((line.strip(" *#") for line in lines if words in line), None)
    if found is None:
        logging.warning(
            "%s %s does not say '%s' in %s: check its licence.", package.name, version_of(files), words, path
        )
    return {
        "source": f"{package.artwork} (npm {package.name} {version_of(files)})",
        "licence": package.licence,
        "url": package.url,
        "evidence": f"{path}: {found}" if found else "not found in the package",
    }


def _read_tarball(path: Path, keep: Callable[[str], bool]) -> dict[str, bytes]:
    files = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                # The first path component is "package" in most tarballs, but not in all.
                inside = member.name.partition("/")[2]
                if member.isfile() and (inside == "package.json" or keep(inside)):
                    files[inside] = tar.extractfile(member).read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise PipelineError(f"{path} is damaged ({error}); remove it to have it fetched again.") from error
    return files


def _read_folder(folder: Path, keep: Callable[[str], bool]) -> dict[str, bytes]:
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    wanted = [inside for inside in paths if not hidden(inside) and (inside == "package.json" or keep(inside))]
    return {inside: paths[inside].read_bytes() for inside in wanted}


def _npm_pack(tarball: Path, name: str, version: str) -> None:
    wanted = f"{name}@{version}"
    npm = shutil.which("npm")
    if npm is None:
        raise PipelineError(
            f"{tarball} is not there and npm, to fetch it with, is not installed. Install npm, or run "
            f"`npm pack {wanted}` on another machine and give the folder with --packages."
        )
    logging.info("Fetching %s from the npm registry into %s", wanted, tarball.parent)
    tarball.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=tarball.parent, prefix=".npm-") as temporary:
        command = [npm, "pack", wanted, "--pack-destination", temporary]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        packed = list(Path(temporary).glob("*.tgz"))
        if done.returncode != 0 or len(packed) != 1:
            last = (done.stderr.strip().splitlines() or ["no message"])[-8:]
            raise PipelineError(f"`npm pack {wanted}` failed:\n" + "\n".join(last))
        os.replace(packed[0], tarball)
