"""What the servers and their libraries raise, as one clear line that names the path."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager


class StorageError(OSError):
    """Something in a bucket that cannot be read or written; the message names the path, the cause and the cure.

    kind: "path" (no such scheme or bucket's name), "extra" (a library is missing), "credentials", "permission",
    "bucket" (there is none), "server" (no answer, or errors after every try), "unfinished" (half a folder), "request".
    """

    def __init__(self, message: str, kind: str = "request") -> None:
        super().__init__(message)
        self.kind = kind


@contextmanager
def translating(path: str | os.PathLike[str], *, writing: bool = False) -> Iterator[None]:
    """Makes what a storage library raises in the block a StorageError about `path`.

    FileNotFoundError, FileExistsError, IsADirectoryError and NotADirectoryError stay what they are, with `path` as
    their file; in writing, where nothing needs to be there, FileNotFoundError means that the bucket is missing.
    """
    try:
        yield
    except StorageError:
        raise
    except _PLAIN as error:
        if isinstance(error, FileNotFoundError) and writing:
            raise no_bucket(str(path)) from error
        code = next(code for kind, code in _PLAIN_CODES.items() if isinstance(error, kind))
        raise type(error)(code, os.strerror(code), str(path)) from error
    except Exception as error:
        if (translated := describe(error, str(path))) is None:
            raise
        raise translated from error


def describe(error: BaseException, path: str) -> StorageError | None:
    """The StorageError for what a library raised about `path`; None for what comes from no library of storage."""
    if not isinstance(error, OSError) and type(error).__module__.split(".")[0] not in _LIBRARIES:
        if not isinstance(error, ValueError) or not str(error).startswith("Bad Request"):
            return None
    text, code = _text_of(error), code_of(error)
    scheme = path.split("://", 1)[0]
    names = {type(found).__name__ for found in _chain(error)}
    if code == 401 or names & _CREDENTIALS or "Anonymous caller" in text:
        cure = _CREDENTIALS_CURE.get(scheme, "give this machine credentials")
        return StorageError(f"{path}: no valid credentials for this bucket ({text}); {cure}.", "credentials")
    if code == "RequestTimeTooSkewed" or "Token must be a short-lived token" in text:
        return StorageError(f"{path}: this machine's clock is wrong ({text}); set it, and start again.", "credentials")
    if code in _BAD_KEYS:
        cure = _CREDENTIALS_CURE.get(scheme, "give this machine credentials")
        return StorageError(f"{path}: the server does not accept the credentials ({text}); {cure}.", "credentials")
    if code == "NoSuchBucket" or "bucket does not exist" in text:
        return no_bucket(path)
    if code == 403 or isinstance(error, PermissionError) or text.startswith("Forbidden"):
        cure = _PERMISSION_CURE.get(scheme, "let this account read and write there")
        return StorageError(f"{path}: permission denied ({text}); {cure}.", "permission")
    if names & _NO_ANSWER or isinstance(error, TimeoutError | ConnectionError) or _server_failed(error, code):
        return StorageError(
            f"{path}: the storage server failed or did not answer, also when asked again ({text}). Nothing is half "
            "written; run the same command again when the network and the server are back.",
            "server",
        )
    return StorageError(f"{path}: the storage server refused the request ({text}).", "request")


def no_bucket(path: str) -> StorageError:
    """The error for a path whose bucket is not there."""
    scheme, rest = path.split("://", 1)
    bucket = f"{scheme}://{rest.split('/', 1)[0]}"
    return StorageError(f"{path}: there is no bucket {bucket}. Correct the name, or create the bucket.", "bucket")


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen = 0
    while error is not None and seen < 8:
        yield error
        error, seen = error.__cause__ or error.__context__, seen + 1


def _text_of(error: BaseException) -> str:
    text = re.sub(r"\s+", " ", str(error)).strip()
    return (text[:300] or type(error).__name__).rstrip(".")


def code_of(error: BaseException) -> int | str | None:
    """The HTTP status, or S3's word for what went wrong, of an error or one that it came from."""
    for found in _chain(error):
        response = getattr(found, "response", None)
        if isinstance(response, dict):  # botocore's ClientError
            word = str(response.get("Error", {}).get("Code", ""))
            if word and not word.isdigit():
                return _S3_WORDS.get(word, word)
            return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        code = getattr(found, "code", None) or getattr(found, "status", None)
        if isinstance(code, int | str) and str(code).isdigit():
            return int(code)
    return None


def _server_failed(error: BaseException, code: int | str | None) -> bool:
    if isinstance(code, int):
        return code in (408, 429) or code >= 500
    if isinstance(code, str):
        return code in ("SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "503", "500")
    return isinstance(error, OSError) and error.errno in (errno.EIO, errno.ETIMEDOUT, errno.EBUSY, errno.ECONNRESET)


_PLAIN_CODES = {
    FileNotFoundError: errno.ENOENT,
    FileExistsError: errno.EEXIST,
    IsADirectoryError: errno.EISDIR,
    NotADirectoryError: errno.ENOTDIR,
}
_PLAIN = tuple(_PLAIN_CODES)
_LIBRARIES = frozenset(
    ("gcsfs", "s3fs", "fsspec", "aiohttp", "requests", "botocore", "aiobotocore", "google", "urllib3")
)
_S3_WORDS = {"AccessDenied": 403, "AllAccessDisabled": 403, "Forbidden": 403}
_BAD_KEYS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired")
_CREDENTIALS = frozenset(
    ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError",
     "ProfileNotFound",
     "UnauthorizedSSOTokenError", "SSOTokenLoadError", "DefaultCredentialsError", "RefreshError", "GoogleAuthError")
)  # fmt: skip
_NO_ANSWER = frozenset(
    ("ClientConnectorError", "ServerDisconnectedError", "ClientOSError", "ClientPayloadError", "ServerTimeoutError",
     "SocketTimeoutError", "ConnectionTimeoutError", "ClientConnectorDNSError", "EndpointConnectionError", "ProxyError",
     "ConnectTimeoutError", "ReadTimeoutError", "ConnectionClosedError", "HTTPClientError", "FSTimeoutError",
     "IncompleteReadError", "ResponseParserError", "ChecksumError", "TransportError")
)  # fmt: skip
_CREDENTIALS_CURE = {
    "gs": "run `gcloud auth application-default login`, set GOOGLE_APPLICATION_CREDENTIALS, or give the VM's service "
    "account the scope cloud-platform",
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, run `aws configure`, or give the machine a role",
}
_PERMISSION_CURE = {
    "gs": "the account needs the role roles/storage.objectUser on the bucket (roles/storage.objectViewer to read)",
    "s3": "the account needs s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket on the bucket",
}
