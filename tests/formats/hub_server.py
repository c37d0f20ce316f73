"""A small hub on loopback, with the endpoints that `huggingface_hub` calls for a model's files, to download and to upload.

    POST     /api/repos/create                 a new model
    POST     /api/models/ID/preupload/REV      which files are large
    POST     /ID.git/info/lfs/objects/batch    where large ones go to, unless they are there: PUT /lfs/SHA256
    POST     /api/validate-yaml                what is wrong with a model card
    POST     /api/models/ID/commit/REV         a commit
    GET      /api/models/ID[/revision/REV]     the commit, the files, their sizes and hashes
    HEAD GET /ID/resolve/REV/FILE              a file; a large one is a redirect to
    HEAD GET /cdn/SHA256?address=N             on a host of another name, with ranges

What is asked is written down, and what can go wrong can be arranged.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import unquote, urlsplit

LARGE = 100_000
"""Bytes from which on a file is in LFS and comes from elsewhere."""


@dataclass(frozen=True)
class Stored:
    """A file of a repository."""

    data: bytes

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def blob_id(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    @property
    def large(self) -> bool:
        return len(self.data) >= LARGE

    def sibling(self, name: str) -> dict[str, Any]:
        lfs = {"sha256": self.sha256, "size": len(self.data), "pointerSize": 134}
        listed = {"rfilename": name, "size": len(self.data), "blobId": self.blob_id}
        return {**listed, "lfs": lfs} if self.large else listed


@dataclass
class Hub:
    """The server, its repositories, and what it is to do wrong."""

    commits: dict[tuple[str, str], str] = field(default_factory=dict)
    """(id, branch) -> commit."""
    trees: dict[tuple[str, str], dict[str, Stored]] = field(default_factory=dict)
    """(id, commit) -> the files by name."""
    token: str | None = None
    """What `Authorization` must bear, if anything."""
    listed: bool = False
    """Whether the list of the files is open even so, as where access is given on request."""
    status: int | None = None
    """The answer to everything."""
    cuts: dict[str, list[int]] = field(default_factory=dict)
    """File -> after how many bytes of each next answer the line is cut."""
    sent: dict[str, bytes] = field(default_factory=dict)
    """File -> what is sent in place of its contents."""
    etags: dict[str, str] = field(default_factory=dict)
    """File -> the ETag that is sent in place of its own."""
    statuses: dict[str, list[tuple[int, str | None]]] = field(default_factory=dict)
    """File -> the status of each next answer, and its Retry-After."""
    stalls: dict[str, list[int | None]] = field(default_factory=dict)
    """File -> after how many bytes of each next answer nothing more comes, though the line stays open."""
    ranges: bool = True
    """Whether parts of files are sent, and not always the whole."""
    lifetime: int | None = None
    """How often an address that a redirect led to is good."""
    used: dict[str, int] = field(default_factory=dict)
    """Address -> how often it was used."""
    delay: float = 0.0
    """Seconds before each answer begins."""
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    """(method, file name or `api`, range)."""
    authorizations: set[str | None] = field(default_factory=set)
    elsewhere: set[str | None] = field(default_factory=set)
    """The authorizations that the other host was shown."""
    connections: int = 0
    """How many were opened."""
    others: set[tuple[str, str]] = field(default_factory=set)
    """(`datasets` or `spaces`, id) of repositories of other types."""
    read_only: bool = False
    """Whether the token may only read."""
    blobs: dict[str, bytes] = field(default_factory=dict)
    """SHA-256 -> a large file that was uploaded."""
    uploads: list[str] = field(default_factory=list)
    """The SHA-256 of each large file that was sent."""
    uploads_taken: int | None = None
    """After how many large files the next is refused."""
    created: list[dict[str, Any]] = field(default_factory=list)
    """What was asked for with each new repository."""

    def __enter__(self) -> Self:
        hub = self
        self.closing = threading.Event()

        class Handler(_Handler):
            state = hub

        self.server = _Server(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self.closing.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def commit(self, id_: str, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Put a commit of these files on a branch; its hash."""
        stored = {name: Stored(data) for name, data in files.items()}
        commit = hashlib.sha1(repr([(name, file.blob_id) for name, file in stored.items()]).encode()).hexdigest()
        self.trees[id_, commit] = stored
        self.commits[id_, branch] = commit
        return commit

    def downloaded(self) -> list[str]:
        """The files whose contents were asked for, in order, since the last time this was called."""
        names = [name for method, name, _ in self.asked if method == "GET" and name != "api"]
        self.asked.clear()
        return names


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle of an answer is none."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # the body follows the headers in a write of its own
    state: Hub

    def setup(self) -> None:
        super().setup()
        self.state.connections += 1

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = unquote(urlsplit(self.path).path)
        if not self._welcome(path):
            return
        if self.state.read_only:
            self._refuse(403, None, "You have read access but not the required permissions.")
        elif path == "/api/validate-yaml":
            self._json({"warnings": [], "errors": []})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            files = json.loads(body)["files"]
            modes = [{"path": file["path"], "uploadMode": "lfs" if file["size"] >= LARGE else "regular"} for file in files]
            self._json({"files": [{**mode, "shouldIgnore": False, "oid": None} for mode in modes]})
        elif match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._json({"transfer": "basic", "objects": [self._place(entry) for entry in json.loads(body)["objects"]]})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            self._commit_files(match[1], [json.loads(line) for line in body.splitlines()])
        else:
            self._refuse(404)

    def do_PUT(self) -> None:
        hub, body = self.state, self.rfile.read(int(self.headers["Content-Length"]))
        sha256 = self.path.rpartition("/")[2]
        if hub.uploads_taken is not None and len(hub.uploads) >= hub.uploads_taken:
            self._refuse(400, None, "The line is cut.")
            return
        assert hashlib.sha256(body).hexdigest() == sha256
        hub.uploads.append(sha256)
        hub.blobs[sha256] = body
        self._send(200, {}, b"")

    def _create(self, asked: dict[str, Any]) -> None:
        self.state.created.append(asked)
        id_ = f"{asked['organization']}/{asked['name']}"
        self.state.commit(id_, {})
        self._json({"url": f"{self.state.url}/{id_}", "name": id_})

    def _place(self, entry: dict[str, Any]) -> dict[str, Any]:
        """An object of LFS, with the address that it is to be sent to if it is not there."""
        if entry["oid"] in self.state.blobs:
            return entry
        return {**entry, "actions": {"upload": {"href": f"{self.state.url}/lfs/{entry['oid']}"}}}

    def _commit_files(self, id_: str, operations: list[dict[str, Any]]) -> None:
        hub = self.state
        tree = {name: file.data for name, file in hub.trees[id_, hub.commits[id_, "main"]].items()}
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                tree[value["path"]] = hub.blobs[value["oid"]]
        commit = hub.commit(id_, tree)
        self._json({"commitUrl": f"{hub.url}/{id_}/commit/{commit}", "commitOid": commit, "pullRequestUrl": None})

    def _json(self, document: Any) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(document).encode())

    def log_message(self, *arguments: object) -> None:
        pass

    def _answer(self) -> None:
        hub = self.state
        path = urlsplit(self.path).path
        if hub.closing.wait(hub.delay):
            self.close_connection = True
        elif hub.status is not None:
            self._refuse(hub.status)
        elif match := re.fullmatch(r"/cdn/(\w+)", path):
            self._large(match[1], urlsplit(self.path).query)
        elif self._welcome(path):
            if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
                self._listing(match[1], unquote(match[2] or "main"))
            elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self._file(match[1], unquote(match[2]), unquote(match[3]))
            elif (match := re.fullmatch(r"/api/(datasets|spaces)/(.+)", path)) and match.groups() in hub.others:
                self._json({"id": match[2], "sha": "0" * 40, "private": False, "siblings": []})
            else:
                self._refuse(404, "RepoNotFound")

    def _welcome(self, path: str) -> bool:
        """Whether this client may ask; if not, it has been told."""
        hub = self.state
        authorization = self.headers["Authorization"]
        hub.authorizations.add(authorization)
        is_open = hub.token is None or (hub.listed and path.startswith("/api/"))
        if is_open or authorization == f"Bearer {hub.token}":
            return True
        if authorization is None:
            self._refuse(401, "GatedRepo", "Access to this model is restricted.")
        else:
            self._refuse(401, None, "Invalid credentials in Authorization header")
        return False

    def _commit(self, id_: str, revision: str) -> str | None:
        """The commit of a revision, None after the refusal of one that is not there."""
        hub = self.state
        commit = revision if (id_, revision) in hub.trees else hub.commits.get((id_, revision))
        if commit is None:
            known = any(id_ == other for other, _ in hub.trees)
            self._refuse(404, "RevisionNotFound" if known else "RepoNotFound", "Not found")
        return commit

    def _listing(self, id_: str, revision: str) -> None:
        self.state.asked.append((self.command, "api", None))
        commit = self._commit(id_, revision)
        if commit is not None:
            siblings = [file.sibling(name) for name, file in self.state.trees[id_, commit].items()]
            body = json.dumps({"id": id_, "sha": commit, "private": False, "siblings": siblings}).encode()
            self._send(200, {"Content-Type": "application/json"}, body)

    def _file(self, id_: str, revision: str, name: str) -> None:
        commit = self._commit(id_, revision)
        if commit is None:
            return None
        file = self.state.trees[id_, commit].get(name)
        if file is None:
            return self._refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        headers = {"X-Repo-Commit": commit}
        if file.large:
            etag = self.state.etags.get(name, file.sha256)
            linked = {"X-Linked-Size": str(len(file.data)), "X-Linked-Etag": f'"{etag}"'}
            address = f"address={len(self.state.used)}"
            self.state.used[address] = 0
            location = {"Location": f"http://localhost:{self.server.server_port}/cdn/{file.sha256}?{address}"}
            return self._send(302, {**headers, **linked, **location}, b"")
        return self._contents(name, file, {**headers, "ETag": f'"{self.state.etags.get(name, file.blob_id)}"'})

    def _large(self, sha256: str, address: str) -> None:
        hub = self.state
        hub.elsewhere.add(self.headers["Authorization"])
        hub.used[address] = hub.used.get(address, 0) + 1
        if hub.lifetime is not None and hub.used[address] > hub.lifetime:
            return self._refuse(403)
        for tree in self.state.trees.values():
            for name, file in tree.items():
                if file.sha256 == sha256:
                    sent = Stored(hub.sent[name]) if name in hub.sent else file
                    return self._contents(name, file, {"ETag": f'"{sent.blob_id[:8]} of the other server"'})
        return self._refuse(404)

    def _contents(self, name: str, file: Stored, headers: dict[str, str]) -> None:
        hub = self.state
        wanted = self.headers["Range"]
        hub.asked.append((self.command, name, wanted))
        if self.command == "GET" and hub.statuses.get(name):
            status, wait = hub.statuses[name].pop(0)
            return self._refuse(status, headers={} if wait is None else {"Retry-After": wait})
        data = hub.sent.get(name, file.data)
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "") if hub.ranges else None
        start, stop = (int(part[1]), int(part[2] or len(data)) + 1) if part else (0, len(data))
        if part and start >= len(data):
            return self._refuse(416, headers={"Content-Range": f"bytes */{len(data)}"})
        body = data[start:stop]
        if part:
            headers["Content-Range"] = f"bytes {start}-{start + len(body) - 1}/{len(data)}"
        arranged = [table.get(name, []) if self.command == "GET" else [] for table in (hub.cuts, hub.stalls)]
        cut, stall = (limits.pop(0) if limits else None for limits in arranged)
        return self._send(206 if part else 200, headers, body, cut=cut, stall=stall)

    def _refuse(
        self, status: int, code: str | None = None, message: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        said = {"X-Error-Code": code, "X-Error-Message": message or None}
        self._send(status, {**(headers or {}), **{key: text for key, text in said.items() if text}}, b"")

    def _send(
        self, status: int, headers: Mapping[str, str], body: bytes, cut: int | None = None, stall: int | None = None
    ) -> None:
        self.send_response(status)
        for key, text in {**headers, "Content-Length": str(len(body)), "Accept-Ranges": "bytes"}.items():
            self.send_header(key, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: cut if stall is None else stall])
        if stall is not None:
            self.wfile.flush()
            self.state.closing.wait(60)
        self.close_connection = self.close_connection or cut is not None or stall is not None
