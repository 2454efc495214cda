"""A small hub for tests: repositories in memory behind the parts of the hub's HTTP that downloads use.

Large files (`.safetensors`, `.pt`) are answered as the hub answers for files in large-file storage: a redirect to
another host, with commit, size and SHA-256 in headers. Others come directly, with git's hash as entity tag.

`python -m tests.hub_server ARGUMENTS...` is the command line of longtake with the networks of TOY_NETWORKS.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from longtake.model.networks import File, Licence, Network

COMMIT, LATER = "a" * 40, "b" * 40


@dataclass
class Seen:
    """A request, and how many bytes of content were sent for it."""

    method: str
    path: str
    range: str | None
    authorized: bool
    host: str
    sent: int = 0


@dataclass
class Hub:
    """What the server has, how it misbehaves, and what it was asked."""

    files: dict[str, bytes]
    repo: str = "someone/toy"
    commits: tuple[str, ...] = (COMMIT,)  # the last one is main
    token: str | None = None  # who comes without it is turned away
    gated: bool = False  # nobody gets past
    cut_after: list[int] = field(default_factory=list)  # one download each breaks off after so many bytes
    stall: bool = False  # when it breaks off, say nothing and keep the connection
    ranges: bool = True  # False: ranges are ignored, as some proxies do
    claims: dict[str, dict[str, str]] = field(default_factory=dict)  # headers of a file that are not true
    answer: int | None = None  # this status to everything
    seen: list[Seen] = field(default_factory=list)
    url: str = ""
    stalled: threading.Event = field(default_factory=threading.Event)

    def sent(self, name: str) -> int:
        return sum(request.sent for request in self.seen if request.path.endswith(name) and request.method == "GET")

    def gets(self) -> list[Seen]:
        return [request for request in self.seen if request.method == "GET" and request.path.startswith("/cdn/")]


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None: ...
        def do_HEAD(self) -> None:
            self.reply()

        def do_GET(self) -> None:
            self.reply()

        def reply(self) -> None:
            authorization = self.headers.get("Authorization")
            seen = Seen(
                method=self.command,
                path=self.path,
                range=self.headers.get("Range"),
                authorized=authorization is not None,
                host=self.headers["Host"].partition(":")[0],
            )
            hub.seen.append(seen)
            if self.path.startswith("/cdn/"):
                return self.content(hub.files[self.path.removeprefix("/cdn/")], {}, seen)
            asked = re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", self.path)
            if hub.answer:
                return self.refuse(hub.answer, None)
            if asked is None or asked[1] != hub.repo:
                return self.refuse(404, "RepoNotFound")
            if hub.gated:
                return self.refuse(403, "GatedRepo")
            if hub.token and authorization != f"Bearer {hub.token}":
                return self.refuse(401, "RepoNotFound")
            if asked[2] not in (*hub.commits, "main"):
                return self.refuse(404, "RevisionNotFound")
            if asked[3] not in hub.files:
                return self.refuse(404, "EntryNotFound")
            commit, name = hub.commits[-1] if asked[2] == "main" else asked[2], asked[3]
            data = hub.files[name]
            headers = {"X-Repo-Commit": commit}
            if name.endswith((".safetensors", ".pt")):
                headers |= {
                    "X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"',
                    "X-Linked-Size": str(len(data)),
                    "Location": f"{hub.url.replace('127.0.0.1', 'localhost')}/cdn/{name}",
                    "Content-Length": "0",
                }
                return self.head(302, headers | hub.claims.get(name, {}))
            git_hash = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            headers["ETag"] = f'"{git_hash}"'
            self.content(data, headers | hub.claims.get(name, {}), seen)

        def content(self, data: bytes, headers: dict[str, str], seen: Seen) -> None:
            begin, status = 0, 200
            if hub.ranges and seen.range:
                begin, status = int(seen.range.removeprefix("bytes=").rstrip("-")), 206
                headers = headers | {"Content-Range": f"bytes {begin}-{len(data) - 1}/{len(data)}"}
            self.head(status, {"Content-Length": str(len(data) - begin)} | headers)
            if self.command == "HEAD":
                return
            rest = data[begin:]
            cut = hub.cut_after.pop(0) if hub.cut_after and self.path.startswith("/cdn/") else None
            for i in range(0, len(rest[:cut]), 1 << 14):
                chunk = rest[:cut][i : i + (1 << 14)]
                self.wfile.write(chunk)
                seen.sent += len(chunk)
            if cut is not None:
                self.wfile.flush()
                if hub.stall:
                    hub.stalled.set()
                    self.rfile.read(1)  # until the other side is gone
                self.close_connection = True

        def refuse(self, status: int, code: str | None) -> None:
            self.head(status, {"Content-Length": "0"} | ({"X-Error-Code": code} if code else {}))

        def head(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None: ...  # a client that went away

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def toy(hub: Hub, *, on_record: bool = True, must_accept: bool = False, revision: str = COMMIT) -> Network:
    """A network of all files of the hub; `on_record` with their true sizes and hashes, else with estimates."""
    files = tuple(
        File(name, len(data), hashlib.sha256(data).hexdigest()) if on_record else File(name, 1000, exact=False)
        for name, data in hub.files.items()
    )
    words = "for toys only"
    return Network(
        name="toy",
        use="tests",
        repo=hub.repo,
        revision=revision,
        files=files,
        licence=Licence(name="Toy-1.0", url="https://example.org/toy", words=words, must_accept=must_accept),
        memory_bytes=1000,
    )


def main() -> None:
    from longtake.model import networks
    from longtake.pipelines import cli

    networks.NETWORKS.clear()
    for tree in json.loads(os.environ["TOY_NETWORKS"]):
        files = tuple(File(**file) for file in tree.pop("files"))
        licence = Licence(**tree.pop("licence"))
        networks.NETWORKS[tree["name"]] = Network(files=files, licence=licence, **tree)
    cli.main()


def as_environment(*networks: Network) -> str:
    return json.dumps([asdict(network) for network in networks])


if __name__ == "__main__":
    main()
