"""Stand-ins on this machine: Hugging Face keeps what is uploaded, a proxy gives out what lies at other hosts."""

import base64
import contextlib
import hashlib
import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import trustme

COMMIT = "c0ffee" * 6 + "c0ff"


class Service(BaseHTTPRequestHandler):
    """Answers by the ``answer`` of its server; notes method, path and token of each request."""

    def reply(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server, address = self.server, urlparse(self.path)
        server.requests.append((self.command, address.path))
        server.tokens.add(self.headers.get("Authorization"))
        status, content, headers = server.answer(self.command, address.path, parse_qs(address.query), body)
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json", "Content-Length": len(content)} | headers).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = reply

    def log_message(self, *words: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """A service; ``files`` holds what was uploaded, path to bytes; while it ``fails`` it finds nothing."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Service)
        self.requests, self.tokens, self.files, self.tags, self.fails = [], set(), {}, [], False
        self.address = f"http://127.0.0.1:{self.server_port}"


class Hub(Server):
    """A repository of Hugging Face that takes every file within the commit (the real one wants large files apart)."""

    def answer(self, method: str, path: str, query: dict, body: bytes) -> tuple[int, object, dict]:
        if self.fails:
            return 404, {"message": "Not Found"}, {}
        place = path.removeprefix("/api/models/owner/name")
        if path == "/api/repos/create":
            return 200, {"url": f"{self.address}/owner/name", "id": "owner/name"}, {}
        if path == "/api/validate-yaml":  # of the card
            return 200, {"errors": [], "warnings": []}, {}
        if place == "/refs":
            tags = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": COMMIT} for tag in self.tags]
            return 200, {"branches": [], "converts": [], "tags": tags}, {}
        if place.startswith("/preupload/"):
            wanted = [entry["path"] for entry in json.loads(body)["files"]]
            return (
                200,
                {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in wanted]},
                {},
            )
        if place.startswith("/commit/"):
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return 200, {"commitUrl": f"{self.address}/owner/name/commit/{COMMIT}", "commitOid": COMMIT}, {}
        if place.startswith("/tag/") and method == "POST":
            self.tags.append(json.loads(body)["tag"])
            return 200, {}, {}
        if place.startswith("/tag/") and place.removeprefix("/tag/") in self.tags:
            self.tags.remove(place.removeprefix("/tag/"))
            return 200, {}, {}
        if place.startswith("/revision/") and (place.removeprefix("/revision/") in (*self.tags, COMMIT)):
            return (
                200,
                {"id": "owner/name", "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.files]},
                {},
            )
        if place.startswith("/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": _etag(content)}
                for name, content in self.files.items()
            ]
            return 200, entries, {}
        name = path.removeprefix(f"/owner/name/resolve/{COMMIT}/")
        if name in self.files:
            return 200, self.files[name], {"ETag": f'"{_etag(self.files[name])}"', "X-Repo-Commit": COMMIT}
        return 404, {"error": "not found"}, {"X-Error-Code": "RevisionNotFound"}


class Proxy(ThreadingHTTPServer):
    """An HTTPS proxy that answers itself, in the names of the hosts it is asked for.

    Args:
        files: host/path to the bytes that lie there; everything else is not found.
        authority: what signs for the hosts.
    """

    def __init__(self, files: dict[str, bytes], authority: trustme.CA) -> None:
        super().__init__(("127.0.0.1", 0), Tunnel)
        self.files, self.authority = files, authority

    def variables(self, folder: Path) -> dict[str, str]:
        """Return the environment in which requests and urllib come here and trust what they get."""
        self.authority.cert_pem.write_to_path(str(folder / "authority.pem"))
        trusted = dict.fromkeys(("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"), str(folder / "authority.pem"))
        return trusted | {"HTTPS_PROXY": f"http://127.0.0.1:{self.server_port}", "NO_PROXY": ""}


class Tunnel(BaseHTTPRequestHandler):
    """One request to one host of a :class:`Proxy`."""

    def do_CONNECT(self) -> None:
        host = self.path.split(":")[0]
        self.send_response(200)
        self.end_headers()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server.authority.issue_cert(host).configure_cert(context)
        with context.wrap_socket(self.connection, server_side=True) as stream:
            path = stream.recv(65536).split()[1].decode()
            content = self.server.files.get(host + path)
            status = "404 Not Found" if content is None else "200 OK"
            content = content or b""
            head = f"HTTP/1.1 {status}\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n"
            stream.sendall(head.encode() + content)
        self.close_connection = True

    def log_message(self, *words: object) -> None:
        """Say nothing."""


def _etag(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


@contextlib.contextmanager
def running(service: ThreadingHTTPServer) -> Iterator[ThreadingHTTPServer]:
    """Serve until the block ends."""
    threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield service
    finally:
        service.shutdown()
        service.server_close()
