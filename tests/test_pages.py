"""The page of comparisons in a real browser: it opens from the disk, asks no server, and its slider moves."""

import json

import numpy as np
import pytest
from PIL import Image

from concertormer_jax.pages.comparison import Compared, write_comparison
from concertormer_jax.pages.onnx_page import write_onnx_page

RED, GREEN, BLUE = ([255, 0, 0], [0, 255, 0], [0, 0, 255])


def plain(color, height=200, width=300):
    return np.full((height, width, 3), color, np.uint8)


def screenshot(browser, tmp_path, css):
    path = tmp_path / "element.png"
    browser.find_element("css selector", css).screenshot(str(path))
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def requested(browser):
    messages = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    return {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}


def set_slider(browser, value):
    browser.execute_script(
        "const range = document.querySelector('.compare input[type=range]'); range.value = arguments[0];"
        "range.dispatchEvent(new Event('input', {bubbles: true}));",
        value,
    )


@pytest.mark.parametrize("at", [20, 80])
def test_the_slider_shows_the_input_left_and_the_result_right_of_its_edge(browser, tmp_path, at):
    pictures = [Compared("a <b>.png", plain(RED), plain(GREEN), plain(BLUE), ("31.20 dB",))]
    write_comparison(tmp_path / "page.html", "Title", pictures, headings=("PSNR",))
    browser.get_log("performance")
    browser.get((tmp_path / "page.html").as_uri())
    set_slider(browser, at)
    row = screenshot(browser, tmp_path, ".compare")[100]
    edge = at * len(row) // 100
    assert np.abs(row[10 : edge - 10] - RED).max() < 20
    assert np.abs(row[edge + 10 : -10] - GREEN).max() < 20
    browser.find_element("css selector", "input.show-target").click()
    assert np.abs(screenshot(browser, tmp_path, ".compare")[100, 10 : edge - 10] - BLUE).max() < 20
    assert browser.find_element("css selector", "td a").text == "a <b>.png"
    assert not [url for url in requested(browser) if url.startswith(("http", "ws"))]
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_fifty_pictures_stay_under_thirty_megabytes(tmp_path):
    """Photographs of 1280x720, with grain, are as hard as pictures of a camera."""
    with Image.open("photos/test/sklearn_china.jpg") as photo:
        scene = np.asarray(photo.convert("RGB").resize((1280, 720)), np.int16)
    grain = np.random.default_rng(0).normal(scale=3, size=scene.shape)
    noisy = np.clip(scene + grain, 0, 255).astype(np.uint8)
    write_comparison(tmp_path / "one.html", "One", [Compared("one", noisy, noisy)])
    write_comparison(tmp_path / "two.html", "Two", [Compared("one", noisy, noisy)] * 2)
    each = (tmp_path / "two.html").stat().st_size - (tmp_path / "one.html").stat().st_size
    assert 50 * each < 30e6


def test_a_large_picture_is_reduced(tmp_path):
    write_comparison(tmp_path / "page.html", "Large", [Compared("large", plain(RED, 100, 5000), plain(RED, 100, 5000))])
    assert (tmp_path / "page.html").stat().st_size < 20_000


def test_the_page_of_an_exported_network_finds_it_under_any_name(tmp_path):
    tensor = {"name": "image", "shape": [1, 8, 16, 3]}
    manifest = {"input": tensor, "output": tensor, "weights": {"name": "w"}}
    write_onnx_page(tmp_path / "page.html", tmp_path / "50%, #1 ü.onnx", manifest)
    assert '"address": "50%25%2C%20%231%20%C3%BC.onnx"' in (tmp_path / "page.html").read_text(encoding="utf-8")
