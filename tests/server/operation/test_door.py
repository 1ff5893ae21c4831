"""The door passes what a node may call, as a new request, and nothing else reaches the SuperLink."""

import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from fedrecall.server.operation.certificates import Certificates, certificates
from fedrecall.server.operation.door import PATHS
from fedrecall.server.operation.superlink import free_port

MOST = 100_000


@dataclass
class Upstream:
    """A server behind the door that remembers each request, whatever it asks for."""

    port: int
    seen: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)


@dataclass
class Door:
    port: int
    upstream: Upstream
    outside: Certificates

    def client(self) -> httpx.Client:
        trust = ssl.create_default_context(cafile=str(self.outside.authority))
        return httpx.Client(base_url=f"https://127.0.0.1:{self.port}", verify=trust, trust_env=False)

    def raw(self, request: bytes) -> bytes:
        """Send bytes as they are, for what no client library would send."""
        trust = ssl.create_default_context(cafile=str(self.outside.authority))
        with (
            socket.create_connection(("127.0.0.1", self.port), 10) as plain,
            trust.wrap_socket(plain, server_hostname="127.0.0.1") as end,
        ):
            end.settimeout(0.5)
            end.sendall(request)
            answer = b""
            try:
                while chunk := end.recv(1 << 16):
                    answer += chunk
            except TimeoutError:
                pass
            return answer


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    folder = tmp_path_factory.mktemp("door")
    inside, outside = certificates(folder / "inside", ["127.0.0.1"]), certificates(folder / "outside", ["127.0.0.1"])

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            upstream.seen.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("set-cookie", "inner=1")
            self.end_headers()
            self.wfile.write(b"re:" + body)

        do_GET = do_PUT = do_DELETE = do_POST

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(inside.server, inside.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    upstream = Upstream(port=server.server_address[1])
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found = Door(port=free_port(), upstream=upstream, outside=outside)
    process = start(found.port, outside, f"https://127.0.0.1:{upstream.port}", inside.authority)
    yield found
    end(process)
    server.shutdown()
    server.server_close()


def start(port: int, outside: Certificates, upstream: str, authority: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "fedrecall.server.operation.door", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--certificate", str(outside.server), "--key", str(outside.key), "--max-bytes", str(MOST)]
    process = subprocess.Popen([*command, "--upstream", upstream, "--authority", str(authority)])
    ends = time.monotonic() + 30
    while time.monotonic() < ends:
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
            return process
        except OSError:
            time.sleep(0.05)
    raise TimeoutError("the door does not open")


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(20)


def test_a_fleet_call_passes_with_its_signature_and_without_anything_else(door: Door) -> None:
    headers = {"flwr-signature": "c2ln", "flwr-timestamp": "now", "content-type": "application/x-protobuf"}
    foreign = {"authorization": "Bearer x", "cookie": "a=b", "x-forwarded-for": "10.0.0.1", "te": "trailers"}
    with door.client() as client:
        for path in PATHS:
            door.upstream.seen.clear()
            answer = client.post(path, content=b"\x00body", headers=headers | foreign)
            assert (answer.status_code, answer.content) == (200, b"re:\x00body")
            assert "set-cookie" not in answer.headers
            ((method, seen, got, body),) = door.upstream.seen
            assert (method, seen, body) == ("POST", path, b"\x00body")
            assert headers.items() <= got.items()
            assert not set(foreign) & set(got)


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/control/start-run", "/v1/control/register-node", "/v1/control/list-nodes", "/v1/runtime/acquire-task"),
        *("/v1/fleet/register-node", "/v1/fleet/unregister-node", "/v1/fleet", "/v1/fleet/", "/", "/docs"),
        *("/v1/fleet/get-run/", "/openapi.json", "/health"),
    ],
)
def test_what_is_not_a_nodes_call_never_arrives(path: str, door: Door) -> None:
    door.upstream.seen.clear()
    with door.client() as client:
        for method in ("GET", "POST", "PUT"):
            assert client.request(method, path, content=b"x").status_code in (404, 405, 307)
        assert client.get(PATHS[0]).status_code == 405
    assert not door.upstream.seen


@pytest.mark.parametrize(
    "target",
    [
        b"/v1/fleet/../control/start-run",
        b"/v1/fleet/%2e%2e/control/start-run",
        b"/v1/fleet/..%2fcontrol%2fstart-run",
        b"//v1/control/start-run",
        b"/v1/fleet/get-run/../../control/start-run",
        b"/v1/fleet/get-run;/../control/start-run",
        b"http://127.0.0.1/v1/control/start-run",
        b"/v1/fleet/get-run\\..\\..\\control\\start-run",
    ],
)
def test_no_spelling_of_a_path_leads_elsewhere(target: bytes, door: Door) -> None:
    door.upstream.seen.clear()
    door.raw(b"POST " + target + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx")
    assert all(path in PATHS for _, path, _, _ in door.upstream.seen)
    assert not any("control" in path for _, path, _, _ in door.upstream.seen)


@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 60\r\n",
        b"Content-Length: 0\r\nContent-Length: 60\r\n",
        b"Transfer-Encoding: xchunked\r\nContent-Length: 5\r\n",
    ],
)
def test_a_request_hidden_in_another_one_never_arrives(framing: bytes, door: Door) -> None:
    door.upstream.seen.clear()
    hidden = b"POST /v1/control/start-run HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    door.raw(b"POST " + PATHS[0].encode() + b" HTTP/1.1\r\nHost: x\r\n" + framing + b"\r\n0\r\n\r\n" + hidden)
    assert all(path in PATHS for _, path, _, _ in door.upstream.seen)


def test_more_than_an_update_needs_is_refused_unread(door: Door) -> None:
    door.upstream.seen.clear()
    with door.client() as client:
        assert client.post(PATHS[0], content=bytes(MOST)).status_code == 200
        assert client.post(PATHS[0], content=bytes(MOST + 1)).status_code == 413
        assert client.post(PATHS[0], content=iter([bytes(MOST), b"x"])).status_code == 413
    assert [len(body) for *_, body in door.upstream.seen] == [MOST]


def test_a_superlink_that_is_down_or_another_is_a_pause_for_nodes(tmp_path: Path, door: Door) -> None:
    strange = certificates(tmp_path, ["127.0.0.1"])
    for upstream in (free_port(), door.upstream.port):
        port = free_port()
        process = start(port, door.outside, f"https://127.0.0.1:{upstream}", strange.authority)
        try:
            with Door(port=port, upstream=door.upstream, outside=door.outside).client() as client:
                assert client.post(PATHS[0], content=b"x").status_code == 503
        finally:
            end(process)
