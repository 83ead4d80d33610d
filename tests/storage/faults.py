"""An HTTP proxy in front of an object store that fails as told: errors, silence, and connections cut in the middle.

with faulty(gcs_server()) as faults, gcs_bucket(faults.url) as bucket:
    faults.add("POST", "/upload/", status=503, times=2)
"""

import contextlib
import dataclasses
import http.client
import http.server
import re
import socket
import threading
from collections.abc import Iterator
from urllib.parse import unquote


@dataclasses.dataclass
class Fault:
    """One rule. method, path: patterns that a request must match; times: how often it acts, -1: always.

    status, body: the answer instead of the server's. drop: the connection is cut after half of the request has come,
    and the server sees nothing of it. lose: the server gets the request, and its answer is lost. cut: half of the
    answer's body is sent. hang: no answer comes until the proxy ends.
    """

    method: str
    path: str
    times: int = 1
    status: int = 0
    body: bytes = b""
    drop: bool = False
    lose: bool = False
    cut: bool = False
    hang: bool = False
    seen: int = 0


class Faults:
    """The rules of one proxy, and the requests that it has seen: (method, path)."""

    def __init__(self) -> None:
        self.rules: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.url = ""
        self.ended = threading.Event()
        self._lock = threading.Lock()

    def add(self, method: str, path: str, **how) -> Fault:
        self.rules.append(Fault(method, path, **how))
        return self.rules[-1]

    def take(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self.requests.append((method, path))
            for rule in self.rules:
                if rule.times and re.fullmatch(rule.method, method) and re.search(rule.path, path):
                    rule.times -= 1
                    rule.seen += 1
                    return rule
        return None


@contextlib.contextmanager
def faulty(upstream: str) -> Iterator[Faults]:
    """A proxy on loopback before the server at `upstream`, an http:// address."""
    faults = Faults()
    host = upstream.removeprefix("http://")

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            fault = faults.take(self.command, unquote(self.path))
            length = int(self.headers.get("Content-Length", 0))
            if fault and fault.drop:
                self.rfile.read(length // 2)
                return self.cut()
            body = self.rfile.read(length)
            if fault and fault.hang:
                faults.ended.wait(60)
                return self.cut()
            if fault and fault.status:
                return self.answer(fault.status, [("Content-Type", "application/json")], fault.body)
            server = http.client.HTTPConnection(host, timeout=60)
            headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
            server.request(self.command, self.path, body if length else None, headers)
            response = server.getresponse()
            content = response.read().replace(upstream.encode(), faults.url.encode())
            server.close()
            if fault and fault.lose:
                return self.cut()
            rows = [(name, value.replace(upstream, faults.url)) for name, value in response.getheaders()]
            self.answer(response.status, rows, content, half=bool(fault and fault.cut))

        def answer(self, status: int, headers: list[tuple[str, str]], body: bytes, half: bool = False) -> None:
            self.send_response_only(status)
            length = str(len(body))
            for name, value in headers:
                if name.lower() in ("content-length", "transfer-encoding", "connection"):
                    length = value if name.lower() == "content-length" and self.command == "HEAD" else length
                else:
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body[: len(body) // 2] if half else body)
            if half:
                self.cut()

        def cut(self) -> None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, *_) -> None:
            pass

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = handle_any

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request, address) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    faults.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield faults
    finally:
        faults.ended.set()
        server.shutdown()
        server.server_close()
