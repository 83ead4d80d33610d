"""One small object that is replaced only by who has seen its last version, with the server's own clock beside it."""

from __future__ import annotations

import email.utils
import json
import os
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

from clipjax.storage.connection import filesystem
from clipjax.storage.errors import code_of, translating


@dataclass(frozen=True)
class Version:
    """What an object says now. name: of this version, for write; age, now: seconds, both by the server's clock."""

    value: dict[str, Any]
    name: str
    age: float
    now: float


class ChangedError(Exception):
    """Somebody else has written the object, or removed it, since the version that was named."""


def read_version(path: str | os.PathLike[str]) -> Version | None:
    """The object's value and version, in one request; None without it. Raises StorageError."""
    row, bucket, key = _row(path)
    try:
        with translating(path):
            text, name, changed, now = row.read(filesystem(path), bucket, key)
    except FileNotFoundError:
        return None
    try:
        value = json.loads(text)
    except ValueError:
        value = {}
    return Version(value if isinstance(value, dict) else {}, name, max(now - changed, 0.0), now)


def write_version(path: str | os.PathLike[str], value: dict[str, Any], seen: str | None) -> str:
    """Writes the object if its version is still `seen` (None: if there is no object) and gives the new version's name.

    value: JSON in ASCII, below 2 KB; it must differ from the last one. Raises ChangedError, StorageError.
    """
    row, bucket, key = _row(path)
    text = json.dumps(value)
    with translating(path, writing=True):
        try:
            return row.write(filesystem(path), bucket, key, text, seen)
        except Exception as error:
            if isinstance(error, FileExistsError) or code_of(error) in _CHANGED:
                raise ChangedError(str(path)) from error
            if isinstance(error, FileNotFoundError) and seen is not None and code_of(error) != "NoSuchBucket":
                raise ChangedError(str(path)) from error  # the object that should be replaced is gone
            raise


def knows_conditions(path: str | os.PathLike[str]) -> bool:
    """Whether every server of this scheme refuses a write whose condition does not hold."""
    return _row(path)[0].conditions


class _Gcs:
    """The value is also in the object's metadata, which come with its generation and times in one answer."""

    conditions = True

    @staticmethod
    def read(fs, bucket: str, key: str) -> tuple[str, str, float, float]:
        headers, content = fs.call("GET", "b/{}/o/{}", bucket, key)
        found = json.loads(content)
        changed = datetime.fromisoformat(found["updated"]).timestamp()
        text = (found.get("metadata") or {}).get(_FIELD, "{}")
        return text, str(found["generation"]), changed, _date(headers["Date"])

    @staticmethod
    def write(fs, bucket: str, key: str, text: str, seen: str | None) -> str:
        about = json.dumps({"name": key, "contentType": "application/json", "metadata": {_FIELD: text}})
        parts = (("application/json; charset=UTF-8", about), ("application/json", text))
        body = "".join(f"--{_BOUNDARY}\r\nContent-Type: {kind}\r\n\r\n{part}\r\n" for kind, part in parts)
        answer = fs.call(
            "POST",
            f"{fs.base.removesuffix('storage/v1/')}upload/storage/v1/b/{quote(bucket)}/o",
            uploadType="multipart",
            ifGenerationMatch=seen or "0",
            headers={"Content-Type": f'multipart/related; boundary="{_BOUNDARY}"'},
            data=f"{body}--{_BOUNDARY}--".encode(),
            json_out=True,
        )
        return str(answer["generation"])


class _S3:
    """The same with user metadata, the ETag, and conditional writes, which older servers like S3's ignore."""

    conditions = False

    @staticmethod
    def read(fs, bucket: str, key: str) -> tuple[str, str, float, float]:
        found = fs.call_s3("head_object", Bucket=bucket, Key=key)
        headers = found["ResponseMetadata"]["HTTPHeaders"]
        text = found.get("Metadata", {}).get(_FIELD, "{}")
        return text, found["ETag"], found["LastModified"].timestamp(), _date(headers["date"])

    @staticmethod
    def write(fs, bucket: str, key: str, text: str, seen: str | None) -> str:
        condition = {"IfNoneMatch": "*"} if seen is None else {"IfMatch": seen}
        answer = fs.call_s3(
            "put_object",
            Bucket=bucket,
            Key=key,
            Body=text.encode(),
            ContentType="application/json",
            Metadata={_FIELD: text},
            **condition,
        )
        return answer["ETag"]


def _row(path: str | os.PathLike[str]) -> tuple[type[_Gcs] | type[_S3], str, str]:
    scheme, rest = os.fspath(path).split("://", 1)
    bucket, _, key = rest.partition("/")
    return _ROWS[scheme], bucket, key


def _date(text: str) -> float:
    """Seconds since 1970 of an HTTP Date, which counts whole seconds."""
    return email.utils.parsedate_to_datetime(text).timestamp()


_ROWS = {"gs": _Gcs, "s3": _S3}
_FIELD = "lease"
_BOUNDARY = "==clipjax-lease=="
_CHANGED = (409, 412, "PreconditionFailed", "ConditionalRequestConflict")
