"""A Hugging Face Hub on loopback: as much of it as huggingface-hub needs to fetch files and to upload some."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_loopback"
_COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """repositories: {USER/NAME: {path: bytes}}; url: for HF_ENDPOINT."""

    def __init__(self, url):
        self.url = url
        self.repositories: dict[str, dict[str, bytes]] = {}


@contextlib.contextmanager
def served():
    """Serve a Hub without repositories; yields it."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def answer(self, status, content=b"", headers=()):
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in [("Content-Length", str(len(body))), *headers]:
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def refuse(self, status, code):
            self.answer(status, {"error": code}, [("X-Error-Code", code), ("X-Error-Message", code)])

        def do_GET(self):
            if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/main/([^?]+)(?:\?.*)?", self.path):
                files = hub.repositories.get(found[1])
                if files is None:
                    return self.refuse(401, "RepoNotFound")
                if found[2] not in files:
                    return self.refuse(404, "EntryNotFound")
                content = files[found[2]]
                tag = f'"{hashlib.sha1(content).hexdigest()}"'
                return self.answer(200, content, [("ETag", tag), ("X-Repo-Commit", _COMMIT)])
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/.*)?", self.path):
                files = hub.repositories.get(found[1])
                if files is None:
                    return self.refuse(401, "RepoNotFound")
                siblings = [{"rfilename": name} for name in sorted(files)]
                if (found[2] or "").startswith("/tree"):
                    return self.answer(
                        200, [{"type": "file", "path": n, "size": len(files[n]), "oid": "0"} for n in files]
                    )
                return self.answer(200, {"id": found[1], "sha": _COMMIT, "siblings": siblings})
            return self.refuse(404, "NotFound")

        do_HEAD = do_GET

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.refuse(401, "Unauthorized")
            if self.path == "/api/validate-yaml":
                return self.answer(200, {"errors": [], "warnings": []})
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}"
                hub.repositories.setdefault(name, {})
                return self.answer(200, {"url": f"{hub.url}/{name}", "name": name})
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", self.path):
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                    for file in json.loads(body)["files"]
                ]
                return self.answer(200, {"files": files})
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", self.path):
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        value = line["value"]
                        hub.repositories[found[1]][value["path"]] = base64.b64decode(value["content"])
                commit = {"commitUrl": f"{hub.url}/{found[1]}/commit/{_COMMIT}", "commitOid": _COMMIT}
                return self.answer(200, commit | {"pullRequestUrl": None})
            return self.refuse(404, "NotFound")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
