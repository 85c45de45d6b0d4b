"""The application in a real browser, whose network reaches this machine alone: drop, look, blend, download."""

import http.client
import io
import json
import socket
import struct
import threading
import time
import urllib.parse

import numpy as np
import pytest
from fake_model import fake_model
from PIL import Image

from concertormer_jax.inference.restorer import Restorer
from concertormer_jax.pages import app
from concertormer_jax.pages.app import Studio, make_server
from concertormer_jax.runtime.errors import UserError


@pytest.fixture(scope="module")
def server():
    """The application with a network that makes pictures darker by a tenth."""
    studio = Studio(lambda tile: Restorer(fake_model(0.9), tlc="off", tile=tile, log=lambda line: None))
    with make_server(studio, "fake", 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


def encoded(rgb, file_format="PNG"):
    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, file_format)
    return stream.getvalue()


def decoded(content):
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image).astype(float)


def ask(server, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection(*server.server_address)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content


def restore(server, content, name="photo.png", tile="auto"):
    return ask(server, "POST", f"/restore?name={name}&tile={tile}", content, {"X-Restore": "1"})


GREY = np.full((50, 70, 3), 200, np.uint8)


@pytest.mark.parametrize(("strength", "expected"), [(1, 180), (0.5, 190), (0, 200)])
def test_the_result_is_blended_with_the_input_as_asked(server, strength, expected):
    status, content = restore(server, encoded(GREY))
    told = json.loads(content)
    assert (status, told["download"]) == (200, "photo_restored.png")
    status, content = ask(server, "GET", f"/{told['address']}/download?strength={strength}")
    assert status == 200
    np.testing.assert_allclose(decoded(content), expected, atol=1)


def test_what_the_result_cannot_hold_is_said(server):
    holes = np.dstack([GREY, GREY[:, :, 0]])
    _, content = restore(server, encoded(holes), "photo.jpg")
    assert "JPEG has no alpha channel; it is left out." in json.loads(content)["facts"]


@pytest.mark.parametrize(
    ("content", "name", "tile", "reason"),
    [
        (b"no picture", "a.png", "auto", "a.png"),
        (b"", "a.png", "auto", "a.png"),
        (encoded(GREY), "a.png", "7", "tile=7: must be one of auto, 384, 768"),
    ],
)
def test_what_cannot_be_restored_is_said_in_one_sentence(server, content, name, tile, reason):
    status, answer = restore(server, content, name, tile)
    assert status == 422
    assert reason in json.loads(answer)["error"]
    assert "/tmp" not in json.loads(answer)["error"]


@pytest.mark.parametrize("name", ["字" * 83 + ".png", "x." + "a" * 250, "a%00b.png", "a.p%00ng"])
def test_any_name_is_restored_and_downloaded(server, name):
    status, content = restore(server, encoded(GREY), urllib.parse.quote(name, safe="%"))
    assert status == 200, content
    status, content = ask(server, "GET", f"/{json.loads(content)['address']}/download?strength=1")
    assert status == 200, content
    assert decoded(content).shape == GREY.shape


def test_a_failure_that_nobody_foresaw_is_one_sentence(server, monkeypatch):
    monkeypatch.setattr(Restorer, "__call__", lambda *_, **__: 1 / 0)
    status, content = restore(server, encoded(GREY))
    assert (status, json.loads(content)["error"]) == (
        500,
        "could not be restored (ZeroDivisionError: division by zero)",
    )


def test_a_result_that_cannot_be_written_is_not_said_to_be_gone(server, monkeypatch):
    told = json.loads(restore(server, encoded(GREY))[1])

    def full(path, photo):
        raise UserError("no space is left")

    monkeypatch.setattr(app, "write_photo", full)
    status, content = ask(server, "GET", f"/{told['address']}/download?strength=1")
    assert (status, json.loads(content)["error"]) == (500, "no space is left")


def test_a_browser_that_hangs_up_leaves_no_traceback(server, monkeypatch, capfd):
    begun, hung_up = threading.Event(), threading.Event()

    def slow(*_, **__):
        begun.set()
        assert hung_up.wait(10)
        raise UserError("too late")

    monkeypatch.setattr(Studio, "restore", slow)
    connection = socket.create_connection(server.server_address)
    head = "POST /restore HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Restore: 1\r\nContent-Length: 1\r\n\r\n."
    connection.sendall(head.encode())
    assert begun.wait(10)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # ends with a reset
    connection.close()
    hung_up.set()
    time.sleep(0.2)
    assert ask(server, "GET", "/")[0] == 200
    assert capfd.readouterr().err == ""


def test_a_browser_leaves_the_usual_port_out(server):
    assert ask(server, "GET", "/", headers={"Host": "127.0.0.1"})[0] == 200


def test_only_this_machine_and_this_page_are_answered(server):
    for host in ("evil.example:80", "evil.example", "127.0.0.1:80@evil.example", ""):
        assert ask(server, "GET", "/", headers={"Host": host})[0] == 403, host
    assert ask(server, "POST", "/restore?name=a.png", encoded(GREY))[0] == 404, "without the page's header"
    assert ask(server, "GET", "/picture/99/after")[0] == 404
    assert ask(server, "GET", "/picture/1/download?strength=nan")[0] == 404
    assert ask(server, "GET", "/../../etc/passwd")[0] == 404
    assert server.server_address[0] == "127.0.0.1"


def test_a_port_in_use_is_one_sentence(server):
    port = server.server_address[1]
    with pytest.raises(UserError, match=f"--port={port}: cannot be listened on"):
        make_server(Studio(None), "fake", port)


def test_a_photograph_is_dropped_looked_at_and_downloaded(server, browser, tmp_path):
    path = tmp_path / "dropped.png"
    path.write_bytes(encoded(GREY))
    browser.get_log("performance")
    browser.get(f"http://127.0.0.1:{server.server_address[1]}/")
    browser.find_element("id", "file").send_keys(str(path))
    result = browser.find_element("id", "result")
    deadline = time.monotonic() + 60
    while not result.is_displayed() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert result.is_displayed()
    assert "70x50" in browser.find_element("id", "facts").text
    link = browser.find_element("id", "download")
    assert link.get_attribute("download") == "dropped_restored.png"
    browser.execute_script(
        "const strength = document.getElementById('strength'); strength.value = 40;"
        "strength.dispatchEvent(new Event('input'));"
    )
    assert link.get_attribute("href").endswith("/download?strength=0.4")
    assert browser.find_element("css selector", ".compare .after").value_of_css_property("opacity") == "0.4"
    messages = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    urls = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert not [url for url in urls if url.startswith("http") and not url.startswith("http://127.0.0.1:")]
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
