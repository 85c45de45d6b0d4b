"""A page that restores photographs by an exported ONNX file, in the browser itself."""

import html
import json
import urllib.parse
from pathlib import Path

from concertormer_jax.pages.comparison import asset, page, slider
from concertormer_jax.runtime.files import write_text

RUNTIME = "ort.wasm.min.js"  # of the npm package onnxruntime-web, which loads two more files from the same folder


def write_onnx_page(path: Path, network: Path, manifest: dict) -> None:
    """Write the page, to be served from the folder in which `network`, the ONNX file, and ONNX Runtime lie.

    manifest: the description of `network`.
    """
    given = manifest["input"]
    _, height, width, _ = given["shape"]
    constants = {
        "file": network.name,
        "address": urllib.parse.quote(network.name),
        "runtime": RUNTIME,
        "input": given["name"],
        "output": manifest["output"]["name"],
        "height": height,
        "width": width,
    }
    content = asset("onnx.html")
    for mark, text in (
        ("__NETWORK__", html.escape(manifest["weights"]["name"])),
        ("__SIZE__", f"{width}x{height}"),
        ("__RUNTIME__", RUNTIME),
        ("__SLIDER__", slider("", "")),
    ):
        content = content.replace(mark, text)
    # "<" is escaped, as a name with "</script>" in it would end the script.
    script = f"const NETWORK = {json.dumps(constants)};\n".replace("<", "\\u003c") + asset("drop.js") + asset("onnx.js")
    write_text(
        path,
        page("Sharper photographs", content, style=asset("app.css"), script=script, allowed="'wasm-unsafe-eval'"),
    )
