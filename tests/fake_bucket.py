"""A bucket on loopback: as much of Google Cloud Storage's JSON API as its clients use, over a dictionary.

Three clients talk to it, as they do to the real one: TensorFlow's file system (through an HTTPS proxy, since the host
is fixed in it), TensorStore (the arrays of a checkpoint) and google-cloud-storage (event files, Orbax's question for
folders). It checks no credentials and knows no conditions but those on generations.
"""

import base64
import email
import email.policy
import hashlib
import itertools
import json
import re
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import trustme

FORBIDDEN = "forbidden"  # a bucket to which nobody has access
HOSTS = ("www.googleapis.com", "storage.googleapis.com")


class FakeBucket(ThreadingHTTPServer):
    """Serves until the `with` block ends. objects: {bucket/name: content}; environment: what points clients here."""

    daemon_threads = True

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), _Handler)
        authority = trustme.CA()
        bundle = folder / "authority.pem"
        authority.cert_pem.write_to_path(bundle)
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(*HOSTS).configure_cert(self.tls)
        self.objects, self.generations, self.uploads = {}, {}, {}
        self.lock, self.number = threading.RLock(), itertools.count(1)
        address = f"http://127.0.0.1:{self.server_port}"
        self.environment = {
            "https_proxy": address,
            "CURL_CA_BUNDLE": str(bundle),
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
            "TENSORSTORE_GCS_HTTP_URL": address,
            "STORAGE_EMULATOR_HOST": address,
        }

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """Say nothing of clients that close their connection."""

    def put(self, key: str, content: bytes) -> dict:
        """Write an object and return what the API says of it."""
        with self.lock:
            self.objects[key], self.generations[key] = content, next(self.number)
            return self.described(key)

    def described(self, key: str) -> dict:
        """The resource of an object."""
        bucket, _, name = key.partition("/")
        content, generation = self.objects[key], str(self.generations[key])
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": name,
            "size": str(len(content)),
            "generation": generation,
            "metageneration": "1",
            "updated": "2026-01-01T00:00:00.000Z",
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "md5Hash": base64.b64encode(hashlib.md5(content).digest()).decode(),
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_CONNECT(self):
        """Be the host that the client wants to reach: go on with TLS on the same connection."""
        self.send_response(200)
        self.end_headers()
        self.wfile.flush()
        self.connection = self.server.tls.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb")
        self.close_connection = False

    def _serve(self):
        url = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        body = self._body()
        if FORBIDDEN in re.split(r"[/:]", url.path):
            return self._answer(403, {"error": {"code": 403, "message": "no permission for this bucket"}})
        with self.server.lock:
            for method, pattern, action in _ROUTES:
                match = re.fullmatch(pattern, url.path)
                if match and self.command == method:
                    return action(self, *map(unquote, match.groups()), query, body)
        return self._answer(501, {"error": {"message": f"{self.command} {self.path}"}})

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _serve

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, status: int, content=b"", **headers):
        if not isinstance(content, bytes):
            content, headers = json.dumps(content).encode(), {"Content-Type": "application/json"} | headers
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        self.wfile.flush()

    def _missing(self):
        self._answer(404, {"error": {"code": 404, "message": "No such object"}})

    def _conditions_hold(self, key: str, query: dict) -> bool:
        wanted = query.get("ifGenerationMatch")
        if wanted is None or int(wanted) == self.server.generations.get(key, 0):
            return True
        self._answer(412, {"error": {"code": 412, "message": "conditionNotMet"}})
        return False

    def bucket(self, bucket, _, __):
        self._answer(200, {"kind": "storage#bucket", "name": bucket, "location": "US", "storageClass": "STANDARD"})

    def listing(self, bucket, query, _):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, prefixes = [], set()
        for key in sorted(self.server.objects):
            name = key.removeprefix(f"{bucket}/")
            if not key.startswith(f"{bucket}/{prefix}") or name < query.get("startOffset", ""):
                continue
            if "endOffset" in query and name >= query["endOffset"]:
                continue
            inside = name[len(prefix) :]
            if delimiter and delimiter in inside:
                prefixes.add(prefix + inside.split(delimiter)[0] + delimiter)
            else:
                items.append(self.server.described(key))
        if limit := int(query.get("maxResults", 0)):
            items = items[:limit]
        self._answer(200, {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)})

    def read(self, bucket, name, query, _):
        key = f"{bucket}/{name}"
        if key not in self.server.objects:
            return self._missing()
        if query.get("alt") != "media":
            return self._answer(200, self.server.described(key))
        return self.media(bucket, name, query, _)

    def media(self, bucket, name, _, __):
        key = f"{bucket}/{name}"
        if key not in self.server.objects:
            return self._missing()
        content = self.server.objects[key]
        about = {"x_goog_generation": str(self.server.generations[key]), "Content_Type": "application/octet-stream"}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not wanted:
            return self._answer(200, content, **about)
        first, last = wanted.groups()
        start = int(first) if first else max(0, len(content) - int(last))
        end = min(int(last) + 1 if first and last else len(content), len(content))
        if start >= len(content):
            return self._answer(416, Content_Range=f"bytes */{len(content)}", **about)
        about["Content_Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        return self._answer(206, content[start:end], **about)

    def upload(self, bucket, query, body):
        kind = query["uploadType"]
        name = query.get("name")
        if kind == "multipart":
            head = b"Content-Type: " + self.headers["Content-Type"].encode() + b"\r\n\r\n"
            about, media = email.message_from_bytes(head + body, policy=email.policy.HTTP).iter_parts()
            name = name or json.loads(about.get_content())["name"]
            body = media.get_payload(decode=True)
        elif kind == "resumable":
            name = name or json.loads(body)["name"]
            upload = str(next(self.server.number))
            self.server.uploads[upload] = (f"{bucket}/{name}", bytearray())
            host = self.headers["Host"]
            scheme = "https" if host.split(":")[0] in HOSTS else "http"
            return self._answer(200, Location=f"{scheme}://{host}/upload/resume/{upload}")
        if self._conditions_hold(f"{bucket}/{name}", query):
            self._answer(200, self.server.put(f"{bucket}/{name}", body))

    def resume(self, upload, _, body):
        key, content = self.server.uploads[upload]
        content += body
        total = self.headers.get("Content-Range", "").rpartition("/")[2]
        if (total.isdecimal() and len(content) < int(total)) or total == "*":
            return self._answer(308, Range=f"bytes=0-{len(content) - 1}")
        return self._answer(200, self.server.put(key, bytes(content)))

    def rewrite(self, bucket, name, other, other_name, _, __):
        content = self.server.objects.get(f"{bucket}/{name}")
        if content is None:
            return self._missing()
        about = self.server.put(f"{other}/{other_name}", content)
        return self._answer(200, {"kind": "storage#rewriteResponse", "done": True, "resource": about})

    def delete(self, bucket, name, query, _):
        key = f"{bucket}/{name}"
        if key not in self.server.objects:
            return self._missing()
        if self._conditions_hold(key, query):
            del self.server.objects[key], self.server.generations[key]
            self._answer(204)


_OBJECT = r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)"
_ROUTES = [
    ("GET", r"/storage/v1/b/([^/]+)", _Handler.bucket),
    ("GET", r"/storage/v1/b/([^/]+)/o/?", _Handler.listing),
    ("GET", _OBJECT, _Handler.read),
    ("DELETE", _OBJECT, _Handler.delete),
    ("POST", rf"{_OBJECT}/rewriteTo/b/([^/]+)/o/([^/]+)", _Handler.rewrite),
    ("POST", r"/upload/storage/v1/b/([^/]+)/o", _Handler.upload),
    ("PUT", r"/upload/resume/(\d+)", _Handler.resume),
    ("GET", r"/(?!storage/|upload/|download/)([^/]+)/(.+)", _Handler.media),
]
