"""What clipjax replaces in Orbax to keep checkpoints in buckets is still what Orbax asks."""

import os
from pathlib import Path

import pytest

from clipjax import storage
from clipjax.runs import orbax_buckets
from tests.storage.servers import s3_bucket


@pytest.fixture
def untaught(monkeypatch):
    """Orbax's functions are put back afterwards."""
    from orbax.checkpoint._src.path import gcs_utils
    from orbax.checkpoint._src.serialization import tensorstore_utils

    for module, name in (
        (tensorstore_utils, "_use_gcs_driver"),
        (tensorstore_utils, "_normalize_path"),
        (gcs_utils, "get_kvstore_for_gcs"),
        (gcs_utils, "is_hierarchical_namespace_enabled"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))
    orbax_buckets.teach_s3.cache_clear()
    orbax_buckets._tolerate_missing_permission.cache_clear()
    yield tensorstore_utils, gcs_utils
    orbax_buckets.teach_s3.cache_clear()
    orbax_buckets._tolerate_missing_permission.cache_clear()


def test_orbax_can_be_taught_s3_and_still_knows_gs_and_folders(untaught):
    utils, _ = untaught
    with s3_bucket() as bucket:
        orbax_buckets.teach_s3()
        spec = utils.build_kvstore_tspec(f"{bucket}/run/3/params/", use_ocdbt=True)["base"]
        assert spec["driver"] == "s3" and f"s3://{spec['bucket']}" == bucket and spec["path"] == "run/3/params"
        assert spec["endpoint"].startswith("http://127.0.0.1") and spec["aws_region"] == "us-east-1"
    assert utils.build_kvstore_tspec("gs://bucket/run/3", use_ocdbt=True)["base"]["driver"] == "gcs"
    assert utils.build_kvstore_tspec("/run/3", use_ocdbt=True)["base"]["driver"] == "file"


@pytest.mark.parametrize("name", ["_use_gcs_driver", "build_kvstore_tspec"])
def test_an_orbax_that_decides_in_another_way_is_told_of_in_one_clear_error(untaught, monkeypatch, name):
    utils, _ = untaught
    if name == "build_kvstore_tspec":
        monkeypatch.setattr(utils, name, lambda *args, **options: {"base": {"driver": "file", "path": "/s3:/bucket"}})
    else:
        monkeypatch.delattr(utils, name)
    with (
        s3_bucket(),
        pytest.raises(storage.StorageError, match="cannot be kept in s3:// with orbax-checkpoint.*0.12.8"),
    ):
        orbax_buckets.teach_s3()


def test_amazons_own_server_is_left_to_tensorstore(monkeypatch):
    monkeypatch.setattr(orbax_buckets, "_s3_server", lambda path: ("", "eu-west-1"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    assert orbax_buckets.s3_spec("s3://name/run/1") == {"driver": "s3", "bucket": "name", "path": "run/1"}
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    assert orbax_buckets.s3_spec("s3://name/run/1")["aws_credentials"] == {"type": "environment"}
    monkeypatch.setenv("AWS_PROFILE", "mine")
    assert "aws_credentials" not in orbax_buckets.s3_spec("s3://name/run/1")


def test_tensorstore_is_told_of_gcsfs_emulator(monkeypatch, untaught):
    for host, url in (
        ("http://127.0.0.1:1/", "http://127.0.0.1:1"),
        ("localhost:2", "http://localhost:2"),
        ("default", ""),
    ):
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", "")  # put back after the test
        monkeypatch.delenv("TENSORSTORE_GCS_HTTP_URL")
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", host)
        options = orbax_buckets.bucket_options(storage.as_path("gs://bucket/run"), cleanup=True)
        assert options["cleanup_tmp_directories"] is False and "temporary_path_class" in options
        assert os.environ.get("TENSORSTORE_GCS_HTTP_URL", "") == url
    assert orbax_buckets.bucket_options(Path("/run"), cleanup=True) == {"cleanup_tmp_directories": True}


def test_who_may_not_ask_about_the_bucket_may_still_keep_checkpoints_in_it(untaught, monkeypatch):
    _, gcs_utils = untaught
    asked = []

    def forbidden(path):
        asked.append(path)
        raise PermissionError("403 storage.buckets.get denied")

    monkeypatch.setattr(gcs_utils, "is_hierarchical_namespace_enabled", forbidden)
    orbax_buckets._tolerate_missing_permission()
    for path in ("gs://name/run/1", "gs://name/run/2", "s3://name/run", "/run"):
        assert gcs_utils.is_hierarchical_namespace_enabled(path) is False
    assert asked == ["gs://name/"], "once for a bucket"
