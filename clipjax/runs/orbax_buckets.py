"""What Orbax lacks to keep checkpoints in buckets, in one place: it is replaced in Orbax, and looked at once replaced.

Orbax 0.12 writes to gs:// by TensorStore, and knows nothing of s3://, for which TensorStore has a driver as well. Three
functions of Orbax decide which driver writes: they are taught s3:// here. A fourth asks for a property of the bucket
that needs a permission which those who may read and write its objects do not need; where it is denied, the answer is
that of almost all buckets.

A folder in a bucket cannot be renamed at once, so that a checkpoint is whole there when commit_success.txt is in it,
which Orbax writes last.
"""

from __future__ import annotations

import functools
import os
from pathlib import PurePath
from typing import Any

import orbax.checkpoint as ocp
from absl import logging

from clipjax import storage

MARKER = "commit_success.txt"
S3 = "s3://"


def bucket_options(directory: PurePath, *, cleanup: bool) -> dict[str, Any]:
    """The options of Orbax's manager for checkpoints in `directory`; also prepares Orbax for its scheme.

    cleanup: whether Orbax removes what killed runs have left unfinished; in buckets, clipjax.runs.steps does. Raises
    StorageError where this version of Orbax cannot be taught what it lacks.
    """
    if not storage.is_remote(directory):
        return {"cleanup_tmp_directories": cleanup}
    _tolerate_missing_permission()
    _follow_emulator()
    if str(directory).startswith(S3):
        teach_s3()
    # Orbax would remove every folder without a marker, also a checkpoint that was copied there without it.
    return {"temporary_path_class": ocp.path.atomicity.CommitFileTemporaryPath, "cleanup_tmp_directories": False}


@functools.cache
def teach_s3() -> None:
    """Makes Orbax write to and read from s3:// by TensorStore. Raises StorageError where Orbax has changed."""
    try:
        from orbax.checkpoint._src.path import gcs_utils
        from orbax.checkpoint._src.serialization import tensorstore_utils

        remote, normalised = tensorstore_utils._use_gcs_driver, tensorstore_utils._normalize_path
        spec = gcs_utils.get_kvstore_for_gcs
        tensorstore_utils._use_gcs_driver = lambda directory: directory.startswith(S3) or remote(directory)
        tensorstore_utils._normalize_path = lambda path: (
            S3 + os.path.normpath(path.removeprefix(S3)) if path.startswith(S3) else normalised(path)
        )
        gcs_utils.get_kvstore_for_gcs = lambda path: s3_spec(path) if str(path).startswith(S3) else spec(path)
        made = tensorstore_utils.build_kvstore_tspec(f"{S3}bucket/run/", use_ocdbt=True)
        alone = tensorstore_utils.build_kvstore_tspec(f"{S3}bucket/run", name="x", use_ocdbt=False)
        kept = tensorstore_utils.build_kvstore_tspec("gs://bucket/run", use_ocdbt=True)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise _changed(f"{type(error).__name__}: {error}") from error
    found = [(made.get("base"), "s3", "run"), (alone, "s3", "run/x"), (kept.get("base"), "gcs", "run")]
    for base, driver, path in found:
        base = base if isinstance(base, dict) else {}
        if (base.get("driver"), base.get("bucket"), str(base.get("path")).rstrip("/")) != (driver, "bucket", path):
            raise _changed(f"it opens {base} where {driver} was asked for")


def s3_spec(path: Any) -> dict[str, Any]:
    """TensorStore's kvstore for an s3:// path: at s3fs's server, in its region, with its kind of credentials."""
    bucket, _, key = str(path).removeprefix(S3).partition("/")
    spec: dict[str, Any] = {"driver": "s3", "bucket": bucket, "path": key}
    endpoint, region = _s3_server(str(path))
    if endpoint:
        spec |= {"endpoint": endpoint, "aws_region": region}
    if os.environ.get("AWS_ACCESS_KEY_ID") and not os.environ.get("AWS_PROFILE"):
        spec |= {"aws_credentials": {"type": "environment"}}
    return spec


def _s3_server(path: str) -> tuple[str, str]:
    """(the URL of a server other than Amazon's, "" for Amazon's; the region), as s3fs finds them."""
    client = storage.filesystem(path).s3.meta
    endpoint, region = client.endpoint_url or "", client.region_name
    amazon = endpoint.rstrip("/").endswith((".amazonaws.com", ".amazonaws.com.cn"))
    return "" if amazon else endpoint.rstrip("/"), region if region and region != "aws-global" else "us-east-1"


@functools.cache
def _tolerate_missing_permission() -> None:
    """Orbax asks whether a bucket has folders (a hierarchical namespace), which needs storage.buckets.get."""
    try:
        from orbax.checkpoint._src.path import gcs_utils

        asked = gcs_utils.is_hierarchical_namespace_enabled
    except (ImportError, AttributeError):  # then Orbax does not ask
        return

    @functools.cache
    def of_bucket(url: str) -> bool:
        try:
            return asked(url)
        except Exception as error:  # google.api_core's errors, and google.auth's
            logging.info("%s is taken for a bucket without folders: %s", url, error)
            return False

    def answer(path: Any) -> bool:
        scheme, _, rest = str(path).partition("://")
        return scheme == "gs" and of_bucket(f"gs://{rest.partition('/')[0]}/")

    gcs_utils.is_hierarchical_namespace_enabled = answer


def _follow_emulator() -> None:
    """An emulator of Google Cloud Storage that gcsfs is told of is TensorStore's, too, which has its own variable."""
    host = os.environ.get("STORAGE_EMULATOR_HOST", "").rstrip("/")
    if host and host not in ("default", "https://storage.googleapis.com"):
        os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", host if "://" in host else f"http://{host}")


def _changed(what: str) -> storage.StorageError:
    return storage.StorageError(
        f"Checkpoints cannot be kept in s3:// with orbax-checkpoint {ocp.__version__}: {what}. clipjax teaches Orbax "
        "s3:// (clipjax/runs/orbax_buckets.py), and this version of Orbax decides in another way where it writes. "
        "Install orbax-checkpoint 0.12.8, or use a gs:// bucket or a folder."
    )
