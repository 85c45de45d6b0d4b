"""The application: a page on this machine's loopback address that restores the photograph dropped on it."""

import dataclasses
import http.server
import io
import json
import sys
import tempfile
import threading
import time
import urllib.parse
from collections import OrderedDict
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path

import numpy as np
from PIL import Image

from concertormer_jax.inference.restorer import CANVASES_PX
from concertormer_jax.pages.comparison import asset, page, slider
from concertormer_jax.photos.photo_io import FORMATS, Photo, losses, read_photo, require_fits, write_photo
from concertormer_jax.runtime.errors import UserError

HOST = "127.0.0.1"
LARGEST_UPLOAD_BYTES = 2**30
_PREVIEW_SIDE_PX = 2000
_KEPT_PICTURES = 4
_TILES = ("auto", *map(str, CANVASES_PX))


@dataclasses.dataclass(frozen=True)
class _Picture:
    name: str
    photo: Photo
    restored: np.ndarray  # float32 [H, W, 3] in [0, 1]


class Studio:
    """Restores uploaded pictures, one after the other, and keeps the last few.

    make_restorer: from a tile setting to a `Restorer`; one is made for every setting that is used.
    """

    def __init__(self, make_restorer: Callable):
        self._make_restorer = make_restorer
        self._restorers = {}
        self._pictures = OrderedDict()
        self._count = 0
        self._working = threading.Lock()
        self.progress = (0, 0)

    def restore(self, name: str, content: bytes, tile: str) -> dict:
        """Restore the file `content`; say where it is, and what was done. Raises UserError for what is no picture."""
        if tile not in _TILES:
            raise UserError(f"tile={tile}: must be one of {', '.join(_TILES)}.")
        name = Path(name.replace("\\", "/")).name or "picture"
        with self._working:
            start = time.perf_counter()
            self.progress = (0, 0)
            photo = _read(name, content)
            if tile not in self._restorers:
                self._restorers[tile] = self._make_restorer(tile)
            result = self._restorers[tile](photo.rgb, progress=self._note)
            self._count += 1
            self._pictures[self._count] = _Picture(name, photo, result.rgb)
            while len(self._pictures) > _KEPT_PICTURES:
                self._pictures.popitem(last=False)
        height, width = photo.rgb.shape[:2]
        tiles = f", {result.tiles} tiles" if result.tiles > 1 else ""
        download = _result_name(name, photo)
        notes = [*photo.notes, *losses(photo, download), *result.notes]
        facts = [f"{width}x{height}{tiles}, {time.perf_counter() - start:.1f} s", *notes]
        return {"address": f"picture/{self._count}", "facts": "; ".join(facts), "download": download}

    def preview(self, number: int, which: str) -> bytes:
        """The picture `before` or `after`, reduced to the size of a screen, as WebP. Raises KeyError if it is gone."""
        picture = self._pictures[number]
        rgb = {"before": picture.photo.rgb, "after": picture.restored}[which]
        image = Image.fromarray(np.rint(255 * rgb).astype(np.uint8))
        image.thumbnail((_PREVIEW_SIDE_PX, _PREVIEW_SIDE_PX), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        image.save(stream, format="WEBP", quality=90)
        return stream.getvalue()

    def download(self, number: int, strength: float) -> bytes:
        """The file of a result, `strength` of it and the rest of the input. Raises KeyError if it is gone."""
        picture = self._pictures[number]
        blended = picture.photo.rgb + np.float32(strength) * (picture.restored - picture.photo.rgb)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "picture").with_suffix(Path(_result_name(picture.name, picture.photo)).suffix)
            write_photo(path, dataclasses.replace(picture.photo, rgb=blended))
            return path.read_bytes()

    def _note(self, done, total):
        self.progress = (done, total)


def _read(name, content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "picture")
        path.write_bytes(content)
        try:
            photo = read_photo(path)
            require_fits(photo, _result_name(name, photo))
        except UserError as error:
            raise UserError(str(error).replace(str(path), name)) from error
    return photo


def _result_name(name, photo):
    """The name of the result: that of the picture, or with .png where its format is not written."""
    path = Path(name)
    suffix = path.suffix if path.suffix.lower() in FORMATS else ".png"
    return f"{path.stem}_restored{suffix}"


def _share(text):
    """A number from 0 to 1; ValueError for any other text."""
    share = float(text)
    if not 0 <= share <= 1:
        raise ValueError(f"strength={text} must lie in [0, 1]")
    return share


def make_server(studio: Studio, model: str, port: int) -> http.server.ThreadingHTTPServer:
    """Return the application's server on the loopback address; port 0 takes a free one. model: its description.

    Raises UserError if the port is in use.
    """
    tiles = "".join(f"<option>{tile}</option>" for tile in _TILES)
    content = asset("app.html").replace("__TILES__", tiles).replace("__SLIDER__", slider("", ""))
    script = asset("drop.js") + asset("app.js")
    html = page("Sharper photographs", content.replace("__MODEL__", model), style=asset("app.css"), script=script)
    try:
        return _Server((HOST, port), _handler(studio, html.encode()))
    except OSError as error:
        raise UserError(f"--port={port}: cannot be listened on ({error.strerror}); choose another one.") from error


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):  # a browser that hung up is no fault
            super().handle_error(request, client_address)


def _handler(studio, html):
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            if not self._for_this_machine():
                return
            address = urllib.parse.urlsplit(self.path)
            parts = address.path.strip("/").split("/")
            try:
                if parts == [""]:
                    self._send(html, "text/html; charset=utf-8")
                elif parts == ["progress"]:
                    done, total = studio.progress
                    self._send_json({"done": done, "total": total})
                elif len(parts) == 3 and parts[0] == "picture" and parts[2] in ("before", "after"):
                    self._send(studio.preview(int(parts[1]), parts[2]), "image/webp")
                elif len(parts) == 3 and parts[0] == "picture" and parts[2] == "download":
                    given = urllib.parse.parse_qs(address.query).get("strength", ["1"])[0]
                    strength = _share(given)
                    self._send(studio.download(int(parts[1]), strength), "application/octet-stream")
                else:
                    self._send_json({"error": "no such page"}, HTTPStatus.NOT_FOUND)
            except UserError as error:
                self._send_json({"error": str(error)}, HTTPStatus.INTERNAL_SERVER_ERROR)
            except (KeyError, ValueError):
                self._send_json({"error": "this picture is gone; restore it again"}, HTTPStatus.NOT_FOUND)

        def do_POST(self):
            if not self._for_this_machine():
                return
            address = urllib.parse.urlsplit(self.path)
            length = self.headers.get("Content-Length", "")
            # A page of another origin cannot set this header without asking first, which is never granted.
            if address.path != "/restore" or not self.headers.get("X-Restore") or not length.isdecimal():
                self._refuse("no such page", HTTPStatus.NOT_FOUND)
            elif int(length) > LARGEST_UPLOAD_BYTES:
                self._refuse(
                    "the file has more than 1 GiB; restore it on the command line", HTTPStatus.REQUEST_ENTITY_TOO_LARGE
                )
            else:
                content, query = self.rfile.read(int(length)), urllib.parse.parse_qs(address.query)
                try:
                    told = studio.restore(query.get("name", [""])[0], content, query.get("tile", ["auto"])[0])
                except UserError as error:
                    self._send_json({"error": str(error)}, HTTPStatus.UNPROCESSABLE_ENTITY)
                except Exception as error:  # also one that nobody foresaw: the page waits for an answer
                    reason = f"could not be restored ({type(error).__name__}: {error})"
                    self._send_json({"error": reason}, HTTPStatus.INTERNAL_SERVER_ERROR)
                else:
                    self._send_json(told)

        def _for_this_machine(self):
            """Whether the request names this machine: a foreign name that resolves to it is turned away."""
            host, _, port = self.headers.get("Host", "").partition(":")
            if host in (HOST, "localhost") and (not port or port.isdecimal()):
                return True
            self._refuse("this page is for this machine only", HTTPStatus.FORBIDDEN)
            return False

        def _refuse(self, reason, status):
            self.close_connection = True  # what the request still holds is not read
            self._send_json({"error": reason}, status)

        def _send_json(self, content, status=HTTPStatus.OK):
            self._send(json.dumps(content).encode(), "application/json", status)

        def _send(self, content, kind, status=HTTPStatus.OK):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format, *args):
            pass

    return Handler
