"""A small Hugging Face on loopback."""

from __future__ import annotations

import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")  # stored with LFS, so that their SHA-256 is stated


class Hub(BaseHTTPRequestHandler):
    """The part of the protocol that a download needs: the list of a repository's files, and the files."""

    repositories: ClassVar[dict[str, dict[str, bytes]]] = {}
    altered: ClassVar[dict[str, bytes]] = {}  # name -> content that is sent instead of the listed one
    downloads: ClassVar[list[str]] = []  # name, and the range if one was asked for
    ranges = True  # whether the server honours them

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        owner, name, *rest = urlsplit(self.path).path.strip("/").removeprefix("api/models/").split("/")
        files = self.repositories.get(f"{owner}/{name}")
        if files is None:
            return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        if rest[:1] != ["resolve"]:
            content = {"id": f"{owner}/{name}", "sha": COMMIT, "siblings": [sibling(*file) for file in files.items()]}
            return self.answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})
        file = "/".join(rest[2:])
        data = self.altered.get(file, files[file])
        asked = self.headers.get("Range", "") if self.ranges else ""
        if self.command == "GET":
            self.downloads.append(f"{file} {asked}".strip())
        if match := re.fullmatch(r"bytes=(\d+)-", asked):
            first = int(match[1])
            return self.answer(206, data[first:], {"Content-Range": f"bytes {first}-{len(data) - 1}/{len(data)}"})
        return self.answer(200, data, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT})

    def answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Ignores clients that stop reading."""

    def handle_error(self, *_: object) -> None:
        pass


def sibling(name: str, data: bytes) -> dict:
    """A file in the list of a repository."""
    git_id = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    plain = {"rfilename": name, "size": len(data), "blobId": git_id}
    if name.endswith(LARGE):
        return plain | {"lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}}
    return plain
