"""Servers that fail, and buckets that refuse: retried where that helps, then one clear line; never half an object."""

import asyncio
import os

import fsspec.config
import pytest

from clipjax import files, storage
from tests.storage import servers
from tests.storage.faults import faulty

SERVERS = {"gs": servers.gcs_server, "s3": servers.s3_server}
WRITE = {"gs": ("POST", "/upload/"), "s3": ("PUT|POST", "/run/")}
READ = {"gs": ("GET", "alt=media"), "s3": ("GET", "/run/")}
LARGE = 7 << 20  # bytes above which both libraries upload in several requests


@pytest.fixture(params=sorted(SERVERS))
def place(request, monkeypatch):
    """(faults, "gs://bucket"), with the libraries' pauses between two tries left out."""
    real = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda seconds, *rest: real(min(seconds, 0.001), *rest))
    with faulty(SERVERS[request.param]()) as faults, servers.BUCKETS[request.param](faults.url) as bucket:
        yield faults, bucket


def scheme_of(bucket: str) -> str:
    return bucket.split(":")[0]


def one_line(error: BaseException, bucket: str) -> str:
    text = str(error)
    assert "\n" not in text and f"{bucket}/" in text and len(text) < 700, text
    return text


@pytest.mark.parametrize("how", [dict(status=503), dict(drop=True), dict(lose=True), dict(status=500)], ids=str)
def test_a_write_survives_two_failures(place, how):
    faults, bucket = place
    rule = faults.add(*WRITE[scheme_of(bucket)], times=2, **how)
    files.write_text(f"{bucket}/run/note", "whole")
    assert rule.seen == 2 and servers.objects(bucket) == {"run/note": b"whole"}


@pytest.mark.parametrize("how", [dict(status=503), dict(cut=True), dict(lose=True)], ids=str)
def test_a_read_survives_two_failures(place, how):
    faults, bucket = place
    storage.write_bytes(f"{bucket}/run/note", b"whole" * 1000)
    rule = faults.add(*READ[scheme_of(bucket)], times=2, **how)
    assert storage.read_bytes(f"{bucket}/run/note") == b"whole" * 1000
    assert rule.seen == 2


@pytest.mark.parametrize("how", [dict(status=503), dict(drop=True)], ids=str)
def test_a_server_that_goes_on_failing_ends_in_one_line_and_the_old_object_stays(place, how):
    faults, bucket = place
    files.write_text(f"{bucket}/run/note", "old")
    rule = faults.add(*WRITE[scheme_of(bucket)], times=-1, **how)
    with pytest.raises(storage.StorageError) as caught:
        files.write_text(f"{bucket}/run/note", "new")
    assert "failed or did not answer" in one_line(caught.value, bucket) and caught.value.kind == "server"
    assert 2 <= rule.seen <= 60
    rule.times = 0
    assert servers.objects(bucket) == {"run/note": b"old"}


def test_a_large_upload_that_breaks_off_leaves_the_old_object(place, tmp_path):
    faults, bucket = place
    (tmp_path / "large").write_bytes(os.urandom(LARGE))
    storage.write_bytes(f"{bucket}/run/large", b"old")
    rule = faults.add("PUT|POST", "upload_id=|/run/large", times=-1, drop=True)
    with pytest.raises(storage.StorageError):
        storage.upload_file(tmp_path / "large", f"{bucket}/run/large")
    assert rule.seen
    rule.times = 0
    assert servers.objects(bucket) == {"run/large": b"old"}
    storage.upload_file(tmp_path / "large", f"{bucket}/run/large")
    assert storage.read_bytes(f"{bucket}/run/large") == (tmp_path / "large").read_bytes()


def test_a_server_that_says_nothing_is_given_up_after_a_bound(place, monkeypatch):
    faults, bucket = place
    storage.write_bytes(f"{bucket}/run/note", b"x")
    monkeypatch.setattr(storage.connection, "SILENCE_SECONDS", 0.1)
    monkeypatch.setattr(storage.connection, "TRIES", 2)
    for scheme, defaults in (("gs", storage.connection._gcs_defaults), ("s3", storage.connection._s3_defaults)):
        monkeypatch.setitem(fsspec.config.conf, scheme, defaults())
    storage.forget_connections()
    faults.add(*READ[scheme_of(bucket)], times=-1, hang=True)
    with pytest.raises(storage.StorageError) as caught:
        storage.read_bytes(f"{bucket}/run/note")
    assert caught.value.kind == "server"
    one_line(caught.value, bucket)


DENIED = {
    "gs": b'{"error": {"code": 403, "message": "x@y.com does not have storage.objects.create access"}}',
    "s3": b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>",
}
UNKNOWN = {
    "gs": b'{"error": {"code": 401, "message": "Anonymous caller does not have storage.objects.create access"}}',
    "s3": b"<Error><Code>InvalidAccessKeyId</Code><Message>The key does not exist in our records.</Message></Error>",
}


def test_a_bucket_that_cannot_be_written_is_told_with_the_role_that_is_needed(place):
    faults, bucket = place
    faults.add(WRITE[scheme_of(bucket)][0], "", times=-1, status=403, body=DENIED[scheme_of(bucket)])
    with pytest.raises(storage.StorageError) as caught:
        storage.check_writable(f"{bucket}/run")
    assert "permission denied" in one_line(caught.value, bucket) and "the account needs" in str(caught.value)
    assert caught.value.kind == "permission"


def test_a_bucket_that_cannot_be_read_is_not_an_empty_one(place):
    faults, bucket = place
    faults.add("GET|HEAD", "", times=-1, status=403, body=DENIED[scheme_of(bucket)])
    for look in (
        lambda path: path.exists(),
        lambda path: path.is_dir(),
        lambda path: list(path.iterdir()),
        lambda path: path.read_bytes(),
        lambda path: list(path.glob("*")),
    ):
        with pytest.raises(storage.StorageError, match="permission denied"):
            look(storage.as_path(f"{bucket}/run"))


def test_credentials_that_do_not_count_are_told_with_the_cure(place):
    faults, bucket = place
    status = 401 if scheme_of(bucket) == "gs" else 403
    faults.add(".*", "", times=-1, status=status, body=UNKNOWN[scheme_of(bucket)])
    with pytest.raises(storage.StorageError) as caught:
        storage.check_writable(f"{bucket}/run")
    one_line(caught.value, bucket)
    assert caught.value.kind == "credentials" and ("gcloud auth" in str(caught.value) or "AWS_" in str(caught.value))


def test_no_credentials_at_all_are_told(monkeypatch, tmp_path):
    with servers.s3_bucket() as bucket:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        storage.forget_connections()
        with pytest.raises(storage.StorageError, match="no valid credentials.*AWS_ACCESS_KEY_ID"):
            storage.check_writable(f"{bucket}/run")


def test_a_file_of_credentials_that_is_missing_is_told(monkeypatch, tmp_path):
    with servers.gcs_bucket() as bucket:
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
        storage.forget_connections()
        try:
            storage.check_writable(f"{bucket}/run")
        except storage.StorageError as error:
            assert error.kind == "credentials" and "none.json" in one_line(error, bucket)


def test_a_server_that_is_not_there_is_told(monkeypatch):
    real = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda seconds, *rest: real(min(seconds, 0.001), *rest))
    for bucket in servers.BUCKETS.values():
        with bucket("http://127.0.0.1:9") as name, pytest.raises(storage.StorageError) as caught:
            storage.check_writable(f"{name}/run")
        assert "failed or did not answer" in one_line(caught.value, name)
