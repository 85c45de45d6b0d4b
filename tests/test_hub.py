"""Weights on the Hugging Face Hub: fetched, uploaded, refused; with huggingface-hub against a Hub on loopback."""

import json
import os
import re
import subprocess
import sys

import command_lines
import fake_hub
import numpy as np
import pytest
import training_runs as runs
from tiny_network import random_params, tiny_network

from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.outputs import results_path
from concertormer_jax.weights import hub, torch_from_params, write_state_dict
from concertormer_jax.weights.checkpoints import load_model, save_converted

_LOAD = """
import sys
import time
time.sleep = lambda seconds: None  # between the client's tries
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.weights.checkpoints import load_model
for address in sys.argv[1:]:
    try:
        model = load_model(address, "--ckpt")
        print(model.name, model.train_crop_px, float(model.params["intro"]["kernel"].sum()))
    except UserError as error:
        print(f"error: {error}")
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    module = tiny_network()
    save_converted(folder, module, random_params(module), 96)
    return folder


@pytest.fixture
def loopback(tmp_path, monkeypatch):
    """A Hub on loopback that the commands of a test use, with a cache and a token's place of their own."""
    pytest.importorskip("huggingface_hub", reason="pip install huggingface-hub to test it (the extra `hub`)")
    with fake_hub.served() as served:
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
        monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        yield served


def loaded(*addresses):
    """What each of `addresses` loads as, or the error, in one process."""
    command = [sys.executable, "-W", "ignore", "-c", _LOAD, *addresses]
    done = subprocess.run(command, cwd=runs.ROOT, env=os.environ, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith(("hf://", "error: "))]


def uploaded(lines, folder):
    return command_lines.run_all("concertormer_jax.commands.upload", lines, folder)


def test_what_is_uploaded_is_what_is_loaded(checkpoint, loopback, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", fake_hub.TOKEN)
    results = {
        "protocol": "gopro",
        "set": "gopro",
        "variant": "custom",
        "images": 3,
        "mean": {"psnr_rgb": {"restored": 30.125, "input": 25.5, "gain": 4.625}},
    }
    (tmp_path / "results.json").write_text(json.dumps(results))
    flags = [f"--results={tmp_path / 'results.json'}", "--license=cc-by-4.0"]
    ((status, said),) = uploaded([[str(checkpoint), "hf://me/tiny", *flags]], tmp_path)
    assert status == 0, said
    files = loopback.repositories["me/tiny"]
    assert set(files) == {"model.safetensors", "config.json", "README.md"}
    card = files["README.md"].decode()
    header = card.split("---\n")[1]
    assert 'license: "cc-by-4.0"' in header and "library_name: concertormer_jax" in header
    assert "| gopro | gopro | 3 | psnr_rgb | 30.1250 | 25.5000 |" in card
    assert "--ckpt=hf://me/tiny" in card and "| largest training crop | 96 px |" in card

    model = load_model(checkpoint)
    kernel = float(np.sum(model.params["intro"]["kernel"]))
    for address, crop in (("hf://me/tiny", 96), ("hf://me/tiny/model.safetensors", 96)):
        name, crop_px, total = loaded(address)[0].split()
        assert (name, int(crop_px)) == (address, crop)
        assert float(total) == pytest.approx(kernel, rel=1e-6)


def test_a_file_of_another_name_is_fetched_and_kept_for_when_there_is_no_network(
    checkpoint, loopback, tmp_path, monkeypatch
):
    model = load_model(checkpoint)
    write_state_dict(tmp_path / "weights.pth", torch_from_params(model.params, model.module))
    loopback.repositories["me/other"] = {"deep/weights.pth": (tmp_path / "weights.pth").read_bytes()}
    address = "hf://me/other/deep/weights.pth"
    (line,) = loaded(address)
    assert line.startswith(f"{address} 256 "), "the crop of published weights, as nothing says another"
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    again, never = loaded(address, "hf://me/never")
    assert again == line
    assert re.fullmatch("error: hf://me/never: the Hub cannot be reached, nor is this in the cache; .*", never)


def test_what_cannot_be_fetched_is_one_sentence(loopback):
    loopback.repositories["me/other"] = {"deep/weights.pth": b"", "b.safetensors": b"{}"}
    asked = ["hf://me/other", "hf://me/nothing", "hf://me/other/b.safetensors", "hf://me/a--b"]
    no_file, no_repository, damaged, no_name = loaded(*asked)
    files = "(b.safetensors, deep/weights.pth)"
    assert no_file == f"error: hf://me/other: has no file model.safetensors; name one of its files {files}"
    assert no_repository.startswith("error: hf://me/nothing: there is no such repository, or it is private or gated")
    assert damaged.startswith("error: ") and "b.safetensors" in damaged
    assert no_name.startswith("error: hf://me/a--b: is no name of a repository (")


def test_what_cannot_be_uploaded_is_one_sentence(checkpoint, loopback, tmp_path, monkeypatch):
    (tmp_path / "others.json").write_text(
        '{"protocol": "gopro", "set": "gopro", "variant": "lite", "images": 1, "mean": {}}'
    )
    (tmp_path / "none.json").write_text("[]")
    lines = {
        "hf://me": "error: DESTINATION=hf://me: must be hf://USER/NAME or hf://USER/NAME/FILE",
        "hf://me/x/y": "error: hf://me/x/y: names a file; give the repository, hf://me/x",
        "hf://me/x --results=others.json": "error: .*others.json: has the scores of lite, and the weights .* custom",
        "hf://me/x --results=none.json": "error: .*none.json: is no results.json of evaluate.py; .*",
        "hf://me/x --results=nowhere": "error: .*nowhere: no such file; .*",
        "hf://me/x": "error: hf://me/x: there is no token; run `hf auth login` or set HF_TOKEN .*",
    }
    said = uploaded([[str(checkpoint), *line.split()] for line in lines], tmp_path)
    for (status, sentence), expected in zip(said, lines.values(), strict=True):
        assert (status, bool(re.fullmatch(expected, sentence.strip()))) == (2, True), sentence
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_reader")
    ((status, sentence),) = uploaded([[str(checkpoint), "hf://me/x"]], tmp_path)
    assert status == 2 and re.fullmatch(r"error: hf://me/x: .*token.*", sentence.strip()), sentence
    assert loopback.repositories == {}


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for use in (lambda: load_model("hf://me/tiny"), lambda: hub.upload("hf://me/tiny", None, {}, "")):
        with pytest.raises(UserError, match=r"pip install 'huggingface-hub>=1.0' \(the extra `hub`\)"):
            use()


@pytest.mark.parametrize(
    "text", ["hf://", "hf://me", "hf://me/", "hf:///x", "hf://me/a/../b", "hf://me/x y", "hf://me/x/"]
)
def test_other_addresses_are_refused(text, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", type(sys)("huggingface_hub"))
    with pytest.raises(UserError, match=r"--ckpt=hf://.*: must be hf://USER/NAME or hf://USER/NAME/FILE"):
        hub.address(text, "--ckpt")


def test_results_of_weights_on_the_hub_need_a_place():
    with pytest.raises(UserError, match=r"hf://me/tiny is on the Hub .* give a folder by --output"):
        results_path(None, "hf://me/tiny", "evaluation")
