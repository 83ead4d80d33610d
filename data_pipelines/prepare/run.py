"""From flags to a finished folder."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from clipjax import signals
from clipjax.data.record_folders import behind_link, find_finished, publish
from clipjax.data.records import FORMAT, MANIFEST, SCHEMA, ManifestError
from data_pipelines.command import PipelineError, print_manifest
from data_pipelines.files import file_sha256
from data_pipelines.input_content import content_fields, file_state
from data_pipelines.prepare.check import check
from data_pipelines.prepare.options import Options
from data_pipelines.prepare.readers import READERS
from data_pipelines.prepare.report import account, write_report
from data_pipelines.prepare.staging import VERSION, model_files
from data_pipelines.prepare.steps import languages
from data_pipelines.prepare.types import Listing, Unit


def build(out: str | Path, *, beam_flags: Sequence[str] = (), overwrite: bool = False, **flags: Any) -> dict:
    """Writes the records, report.json and report.html to `out`, prints the counts, returns the manifest.

    flags: the fields of Options. beam_flags: such as "--runner=...". Finished work of a killed run is kept in
    .NAME.preparing beside `out`; the next run with the same input and options uses it. Raises PipelineError or
    ManifestError saying what is wrong.
    """
    options, out = Options(**flags), behind_link(Path(out))
    check(options)
    listing = READERS[options.reader].units(options)
    source = {
        "pipeline": "prepare",
        "version": VERSION,
        "input_sha256": _identity(listing),
        **_content(listing, out, overwrite),
        "made_with_sha256": _made_with(options),
        "options": {name: value for name, value in options.as_json().items() if name not in ("input", "image_root")},
    }
    work = out.with_name(f".{out.name}.preparing")
    found = find_finished(out, source, overwrite, print)
    if found:
        if work.exists():  # a run that was killed after it had published
            with _only_one(work):
                shutil.rmtree(work)
        print_result(out, found)
        return found
    with _only_one(work):
        for name in ("units", "shards", "made_of"):
            (work / name).mkdir(exist_ok=True)
        with signals.saying(f"stopped; what is finished is kept in {work}: the same command continues."):
            _run(listing, options, work, list(beam_flags))
        summary = json.loads((work / "summary.json").read_text(encoding="utf-8"))
        accounted = account(summary)
        if not accounted["written"]:
            causes = "; ".join(f"{e['count']:,} {e['step']}: {e['cause']}" for e in summary["events"])
            raise PipelineError(f"Nothing is left of {accounted['read']:,} examples. {causes or 'The input is empty'}.")
        manifest = _manifest(out.name, summary, listing, options, source)
        _remove_others(work / "shards", {shard["file"] for shard in summary["shards"]})
        write_report(work / "shards", out.name, accounted, options.as_json())
        publish(work / "shards", out, manifest)
        shutil.rmtree(work)
    print_result(out, manifest)
    return manifest


def print_result(out: Path, manifest: dict) -> None:
    print_manifest(out, manifest)
    print(f"  every step's counts and cases: {out / 'report.html'}")


def _run(listing: Listing, options: Options, work: Path, flags: list[str]) -> None:
    logging.disable(logging.WARNING)  # at its import Beam warns of missing clients for services not used here
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise PipelineError(f"Beam cannot be imported ({error}): pip install 'clipjax[pipelines]'.") from error
    finally:
        logging.disable(logging.NOTSET)
    from data_pipelines.prepare import graph

    if not any(flag.startswith("--runner") for flag in flags):
        # Runs in this process. DirectRunner may download another runner first.
        flags = ["--runner=FnApiRunner", *flags]
    for talkative in ("apache_beam", "absl"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    logging.getLogger("apache_beam.runners.common").addFilter(_has_more_to_say)
    (work / "summary.json").unlink(missing_ok=True)
    pipeline = beam.Pipeline(options=PipelineOptions(flags))
    graph.build(pipeline, listing.units, options, listing.class_names, work.resolve())
    try:
        pipeline.run().wait_until_finish()
    except Exception as error:  # each runner wraps a worker's exception in its own way
        lines = [line for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
        raise PipelineError(
            f"The pipeline failed: {lines[-1].strip()} What is finished is kept in {work}: the same command continues."
        ) from error
    if not (work / "summary.json").is_file():
        raise PipelineError(
            f"The pipeline ended without {work / 'summary.json'}: its workers must see {work.parent} under this path, "
            "for example on a shared file system."
        )


def _manifest(name: str, summary: dict, listing: Listing, options: Options, source: dict) -> dict:
    splits: dict[str, dict] = {}
    for part in options.splits.split(","):
        split = part.split("=")[0].strip()
        shards = [
            {key: shard[key] for key in ("file", "records", "bytes", "sha256")}
            for shard in summary["shards"]
            if shard["split"] == split
        ]
        splits[split] = {"records": sum(shard["records"] for shard in shards), "shards": shards}
    given = [{"source": name, "licence": options.licence}] if options.licence else []
    return {
        "format": FORMAT,
        "schema": SCHEMA,
        "name": name,
        "splits": splits,
        "class_names": summary["class_names"],
        # What a reader notes, such as files that are not there, never became an example that a step could drop.
        "skipped": {
            f"{e['step']}: {e['cause']}": e["count"] for e in summary["events"] if e["dropped"] or e["step"] == "read"
        },
        "licences": [*listing.licences, *given],
        "source": json.loads(json.dumps(source)),
    }


def _identity(listing: Listing) -> str:
    """A digest of the names, sizes and captions of the input, and of the class names.

    Alone it does not show that a file was edited: a corrected caption in a tar does not change the tar's size.
    """

    def of_unit(unit: Unit) -> list:
        return [unit.reader, unit.payload, [(Path(path).name, file_state(path)[0]) for path in unit.files]]

    content = [listing.class_names, *(of_unit(unit) for unit in listing.units)]
    return hashlib.sha256(repr(content).encode()).hexdigest()


def _content(listing: Listing, out: Path, overwrite: bool) -> dict[str, str]:
    """Digests of the input files. Their folder does not count, so that data may be moved."""
    paths = dict.fromkeys(Path(path) for unit in listing.units for path in unit.files)
    return content_fields(out, [(path.name, path) for path in paths], overwrite)


def _made_with(options: Options) -> dict[str, str]:
    """Digests of the files that options name, and versions of models, since their content may change."""
    files = [Path(name.partition(":")[0]) / MANIFEST for name in options.decontaminate]
    files += [Path(name) for name in (options.balance_entries, options.class_names) if name]
    result = {str(path): file_sha256(path) for path in files if path.is_file()}
    if options.clip_model:
        result[options.clip_model] = hashlib.sha256(
            repr(model_files(options.clip_model, times=False)).encode()
        ).hexdigest()
    if options.languages:
        result["languages"] = languages.model(options)
    return result


@contextlib.contextmanager
def _only_one(work: Path) -> Iterator[None]:
    """Reserves the folder for one run at a time; the lock ends with the process, however that ends."""
    work.mkdir(exist_ok=True)
    with open(work / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise PipelineError(
                f"Another process is at work in {work}. Wait for it, or choose another --out."
            ) from error
        yield


def _remove_others(folder: Path, files: set[str]) -> None:
    """Removes files that killed runs, or runs with other options, have left among the shards."""
    for path in folder.iterdir():
        if path.name not in files:
            path.unlink()


def _has_more_to_say(record: logging.LogRecord) -> bool:
    """Beam logs a step's exception with its traceback. The message of these says all, and is raised again."""
    return not (record.exc_info and isinstance(record.exc_info[1], (ManifestError, PipelineError)))
