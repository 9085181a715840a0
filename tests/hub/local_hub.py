"""A small Hub on 127.0.0.1: the endpoints that the real `huggingface_hub` client calls to publish and to load models.

Files are content-addressed and every commit is an immutable mapping from paths to blobs, as in git. Weights go through
the LFS form (batch, upload, commit by SHA-256), everything else travels inside the commit. `drop` closes the connection
on chosen requests, as a failing network would.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".png")


@dataclass
class Blob:
    content: bytes
    lfs: bool

    @property
    def git_oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git_oid


@dataclass
class Repo:
    private: bool = False
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    pull_requests: int = 0

    def commit(self, ref: str, files: dict[str, Blob], title: str) -> str:
        listing = json.dumps({path: blob.sha256 for path, blob in sorted(files.items())})
        oid = hashlib.sha1(f"{len(self.commits)} {self.refs.get(ref)} {title} {listing}".encode()).hexdigest()
        self.commits[oid], self.titles[oid] = files, title
        self.refs[ref] = oid
        return oid

    def resolve(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.refs.get(revision)


@dataclass
class LocalHub:
    """The state of the Hub, and the switches of a test."""

    repos: dict[str, Repo] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)  # LFS objects by SHA-256
    drop: str | None = None  # close the connection on these requests: preupload, lfs, commit or commit-answer
    hold: threading.Event | None = None  # let a commit wait for this, having told `held`
    held: threading.Event = field(default_factory=threading.Event)
    committing: threading.Thread = field(default_factory=threading.current_thread)  # that answers the held commit
    requests: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)  # that the requests came with
    url: str = ""

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        repo = self.repos[repo_id]
        return {path: blob.content for path, blob in repo.commits[repo.resolve(revision) or ""].items()}

    def log(self, repo_id: str) -> list[str]:
        return list(self.repos[repo_id].titles.values())

    def everything_received(self) -> bytes:
        """Return every byte of every file ever sent, committed or not."""
        contents = [b.content for r in self.repos.values() for files in r.commits.values() for b in files.values()]
        return b"\n".join([*contents, *self.uploads.values()])

    def tamper(self, repo_id: str, path: str, content: bytes) -> None:
        """Replace one file in a new commit, as somebody with access to the repository could."""
        repo = self.repos[repo_id]
        files = dict(repo.commits[repo.refs["main"]])
        files[path] = Blob(content, files[path].lfs)
        repo.commit("main", files, f"Update {path}")


@contextmanager
def serve() -> Iterator[LocalHub]:
    """Run a Hub on a free port until the block ends."""
    hub = LocalHub()

    class BoundHandler(Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), BoundHandler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        if hub.hold is not None:
            hub.hold.set()
        server.shutdown()
        server.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: LocalHub

    def route(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        self.state.requests.append(f"{self.command} {path}")
        if token := (self.headers.get("Authorization") or "").removeprefix("Bearer "):
            self.state.tokens.add(token)
        for pattern, action in self.ROUTES.items():
            method, _, expression = pattern.partition(" ")
            if self.command in method.split("|") and (match := re.fullmatch(expression, path)):
                action(self, body, query, *(unquote(group) for group in match.groups()))
                return
        self.answer({"error": "no such endpoint"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = route  # noqa: N815  # the names that http.server calls

    # -- answers ---------------------------------------------------------------------------------------------------

    def answer(self, data: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        content = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def missing(self, code: str) -> None:
        self.answer({"error": code}, 404, {"X-Error-Code": code, "X-Error-Message": code})

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.close()

    def found(self, repo_id: str, revision: str) -> tuple[Repo, str] | None:
        """Look up a repository and a revision, answering the request where there is none."""
        repo = self.state.repos.get(repo_id)
        oid = repo.resolve(revision) if repo else None
        if repo is None:
            self.missing("RepoNotFound")
        elif oid is None:
            self.missing("RevisionNotFound")
        return (repo, oid) if repo and oid else None

    # -- endpoints -------------------------------------------------------------------------------------------------

    def create_repo(self, body: bytes, query: dict) -> None:
        request = json.loads(body)
        repo_id = f"{request.get('organization') or 'me'}/{request['name']}"
        answer = {"url": f"{self.state.url}/{repo_id}", "name": repo_id, "id": repo_id}
        if repo_id in self.state.repos:
            self.answer({**answer, "error": "You already created this model repo"}, 409)
            return
        self.state.repos[repo_id] = repo = Repo(private=request.get("visibility") == "private")
        repo.commit("main", {".gitattributes": Blob(b"*.safetensors filter=lfs\n", lfs=False)}, "initial commit")
        self.answer(answer)

    def who_am_i(self, body: bytes, query: dict) -> None:
        self.answer({"type": "user", "name": "me", "orgs": []})

    def validate_yaml(self, body: bytes, query: dict) -> None:
        header = json.loads(body)["content"].split("---")[1]
        metadata, errors = yaml.safe_load(header), []
        for key in ("base_model", "datasets"):
            values = metadata.get(key) or []
            for value in [values] if isinstance(values, str) else values:
                if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", value):
                    errors.append({"message": f'"{key}" with value "{value}" is not valid'})
        self.answer({"errors": errors, "warnings": []}, 400 if errors else 200)

    def create_branch(self, body: bytes, query: dict, repo_id: str, branch: str) -> None:
        repo = self.state.repos[repo_id]
        if branch in repo.refs:
            self.answer({"error": "Reference already exists"}, 409)
            return
        repo.refs[branch] = repo.refs["main"]
        self.answer({})

    def preupload(self, body: bytes, query: dict, repo_id: str, revision: str) -> None:
        if self.state.drop == "preupload":
            self.hang_up()
            return
        if not (target := self.found(repo_id, revision)):
            return
        repo, oid = target
        files = []
        for file in json.loads(body)["files"]:
            known = repo.commits[oid].get(file["path"])
            mode = "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular"
            entry = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            files.append({**entry, "oid": known.etag} if known else entry)
        self.answer({"files": files})

    def lfs_batch(self, body: bytes, query: dict, repo_id: str) -> None:
        objects = []
        for item in json.loads(body)["objects"]:
            action = {"upload": {"href": f"{self.state.url}/lfs/{item['oid']}"}}
            known = item["oid"] in self.state.uploads
            objects.append({**item, "authenticated": True, **({} if known else {"actions": action})})
        self.answer({"transfer": "basic", "objects": objects})

    def lfs_upload(self, body: bytes, query: dict, oid: str) -> None:
        if self.state.drop == "lfs":
            self.hang_up()
        elif hashlib.sha256(body).hexdigest() != oid:
            self.answer({"error": "content does not match its hash"}, 422)
        else:
            self.state.uploads[oid] = body
            self.answer({})

    def commit(self, body: bytes, query: dict, repo_id: str, revision: str) -> None:
        if self.state.hold is not None:
            self.state.committing = threading.current_thread()
            self.state.held.set()
            self.state.hold.wait()
        if self.state.drop == "commit":
            self.hang_up()
            return
        if not (target := self.found(repo_id, revision)):
            return
        repo, parent = target
        lines = [json.loads(line) for line in body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, parent):
            self.answer({"error": "A commit has happened since. Please refresh and try again."}, 412)
            return
        files = dict(repo.commits[parent])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), lfs=False)
            elif line["key"] == "lfsFile":
                files[value["path"]] = Blob(self.state.uploads[value["oid"]], lfs=True)
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        answer = {}
        if query.get("create_pr") == ["1"]:
            repo.pull_requests += 1
            revision = f"refs/pr/{repo.pull_requests}"
            answer["pullRequestUrl"] = f"{self.state.url}/{repo_id}/discussions/{repo.pull_requests}"
        oid = repo.commit(revision, files, header["summary"])
        if self.state.drop == "commit-answer":
            self.hang_up()
            return
        self.answer({"commitUrl": f"{self.state.url}/{repo_id}/commit/{oid}", "commitOid": oid, **answer})

    def info(self, body: bytes, query: dict, repo_id: str, revision: str = "main") -> None:
        if target := self.found(repo_id, revision):
            repo, oid = target
            siblings: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(repo.commits[oid])]
            for sibling in siblings if "blobs" in query else ():
                blob = repo.commits[oid][sibling["rfilename"]]
                sibling |= {"size": len(blob.content), "blobId": blob.git_oid}
                if blob.lfs:
                    sibling["lfs"] = {"sha256": blob.sha256, "size": len(blob.content), "pointerSize": 130}
            answer = {"id": repo_id, "modelId": repo_id, "sha": oid, "private": repo.private, "siblings": siblings}
            self.answer({**answer, "tags": [], "downloads": 0, "likes": 0})

    def models(self, body: bytes, query: dict) -> None:
        """List the models whose card names the base that the filter asks for."""
        wanted = query["filter"][0].removeprefix("base_model:")
        found = []
        for name, repo in sorted(self.state.repos.items()):
            card = repo.commits[repo.refs["main"]].get("README.md")
            metadata = yaml.safe_load(card.content.decode().split("---")[1]) if card else {}
            if metadata.get("base_model") == wanted:
                found.append({"id": name, "modelId": name, "private": repo.private, "tags": []})
        self.answer(found)

    def discussions(self, body: bytes, query: dict, repo_id: str) -> None:
        repo = self.state.repos.get(repo_id)
        if repo is None:
            self.missing("RepoNotFound")
            return
        shared = {"status": "open", "isPullRequest": True, "createdAt": "2026-01-01T00:00:00.000Z"}
        shared |= {"author": {"name": "me"}, "repo": {"name": repo_id, "type": "model"}}
        numbers = range(1, repo.pull_requests + 1)
        found = [{**shared, "num": n, "title": repo.titles[repo.refs[f"refs/pr/{n}"]]} for n in numbers]
        self.answer({"discussions": found, "count": len(found), "start": 0})

    def tree(self, body: bytes, query: dict, repo_id: str, revision: str) -> None:
        if target := self.found(repo_id, revision):
            repo, oid = target
            entries = []
            for path, blob in sorted(repo.commits[oid].items()):
                entry: dict[str, Any] = {"type": "file", "path": path, "size": len(blob.content), "oid": blob.git_oid}
                if blob.lfs:
                    entry["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": 130}
                entries.append(entry)
            self.answer(entries)

    def resolve(self, body: bytes, query: dict, repo_id: str, revision: str, path: str) -> None:
        if target := self.found(repo_id, revision):
            repo, oid = target
            blob = repo.commits[oid].get(path)
            if blob is None:
                self.missing("EntryNotFound")
                return
            headers = {"X-Repo-Commit": oid, "ETag": f'"{blob.etag}"', "Content-Type": "application/octet-stream"}
            start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
            content = blob.content[int(start[1]) :] if start else blob.content
            self.answer(content, 206 if start else 200, headers)

    ROUTES: ClassVar = {
        r"POST /api/repos/create": create_repo,
        r"GET /api/whoami-v2": who_am_i,
        r"GET /api/models": models,
        r"POST /api/validate-yaml": validate_yaml,
        r"POST /api/models/([^/]+/[^/]+)/branch/([^/]+)": create_branch,
        r"POST /api/models/([^/]+/[^/]+)/preupload/([^/]+)": preupload,
        r"POST /api/models/([^/]+/[^/]+)/commit/([^/]+)": commit,
        r"POST /([^/]+/[^/]+)\.git/info/lfs/objects/batch": lfs_batch,
        r"PUT /lfs/([0-9a-f]{64})": lfs_upload,
        r"GET /api/models/([^/]+/[^/]+)": info,
        r"GET /api/models/([^/]+/[^/]+)/revision/([^/]+)": info,
        r"GET /api/models/([^/]+/[^/]+)/discussions": discussions,
        r"GET /api/models/([^/]+/[^/]+)/tree/([^/]+)": tree,
        r"GET|HEAD /([^/]+/[^/]+)/resolve/([^/]+)/(.+)": resolve,
    }

    def log_message(self, format: str, *arguments: Any) -> None:
        """Keep the test's output quiet."""
