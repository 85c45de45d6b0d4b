"""The page of an exported network in a real browser: ONNX Runtime there restores what this software restores."""

import base64
import functools
import http.server
import io
import json
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_network import random_params, tiny_network

from concertormer_jax.commands import export
from concertormer_jax.pages.onnx_page import RUNTIME
from concertormer_jax.weights.checkpoints import load_model, save_converted

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "node_modules" / "onnxruntime-web" / "dist"
SIZE = (48, 64)
PICTURE = np.random.default_rng(0).integers(0, 256, (37, 64, 3), np.uint8)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The exported network, the page and ONNX Runtime."""
    if not PACKAGE.exists():
        pytest.skip("needs ONNX Runtime for browsers: npm install --no-save onnxruntime-web@1")
    folder = tmp_path_factory.mktemp("web")
    module = tiny_network(groups=("ripieno_channel", "concertino_channel"))
    params = random_params(module)
    params["ending"]["kernel"] *= 0.05
    save_converted(folder / "tiny", module, params, 96)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "prepare_to_compile", lambda: None)
        export.main([f"--ckpt={folder / 'tiny'}", "--size=64x48", "--page", str(folder / "tiny.onnx")])
    for name in (RUNTIME, "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"):
        shutil.copy(PACKAGE / name, folder)
    return folder


@pytest.fixture
def opened(folder, browser):
    """The browser with the page, and with none of the messages of what it showed before."""
    handler = functools.partial(Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for kind in ("performance", "browser"):
            browser.get_log(kind)
        browser.get(f"http://127.0.0.1:{server.server_address[1]}/tiny.html")
        yield browser
        server.shutdown()


def shown(browser, *names, timeout_s=120):
    """Wait until the page shows one of its elements `names`; returns that."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        for element in (browser.find_element("id", name) for name in names):
            if element.is_displayed():
                return element
        time.sleep(0.1)
    raise TimeoutError(browser.get_log("browser"))


def choose(browser, path, picture):
    Image.fromarray(picture).save(path)
    browser.find_element("id", "file").send_keys(str(path))


def downloaded(browser):
    """The picture behind the page's link."""
    content = browser.execute_async_script(
        "const done = arguments[0]; const reader = new FileReader(); reader.onload = () => done(reader.result);"
        "fetch(document.getElementById('download').href).then((r) => r.blob()).then((b) => reader.readAsDataURL(b));"
    )
    with Image.open(io.BytesIO(base64.b64decode(content.partition(",")[2]))) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_the_browser_restores_what_this_software_restores(opened, folder, tmp_path):
    choose(opened, tmp_path / "small.png", PICTURE)
    assert shown(opened, "result", "error").get_attribute("id") == "result"
    model = load_model(folder / "tiny")
    padded = np.pad(PICTURE, [(0, SIZE[0] - 37), (0, 0), (0, 0)], mode="reflect") / np.float32(255)
    expected = 255 * np.asarray(model.module.apply({"params": model.params}, padded[None])[-1][0, :37]).clip(0, 1)
    assert np.abs(expected - PICTURE).mean() > 5, "the network does something"
    assert np.abs(downloaded(opened) - expected).max() < 0.51
    assert opened.find_element("id", "download").get_attribute("download") == "small_restored.png"
    messages = (json.loads(entry["message"])["message"] for entry in opened.get_log("performance"))
    urls = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert not [url for url in urls if not url.startswith(("http://127.0.0.1:", "blob:", "data:"))]
    assert not [entry for entry in opened.get_log("browser") if entry["level"] == "SEVERE"]


def test_a_picture_that_is_too_large_is_one_sentence(opened, tmp_path):
    choose(opened, tmp_path / "large.png", np.zeros((49, 64, 3), np.uint8))
    said = shown(opened, "result", "error").text
    assert said.startswith("large.png: has 64x49 pixels, and tiny.onnx takes 64x48 at most; export the network")


def test_what_is_missing_is_one_sentence(browser, folder, tmp_path):
    shutil.copy(folder / "tiny.html", tmp_path)
    browser.get((tmp_path / "tiny.html").as_uri())
    assert "serve this folder" in shown(browser, "error").text
    browser.get_log("browser")
