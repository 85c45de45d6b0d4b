"""The README's example commands run as they stand there, with short runs and small folders."""

import importlib
import re
import shlex
import subprocess
import sys

import jax
import numpy as np
import pytest
import training_runs as runs
from tiny_network import random_params, tiny_network

from concertormer_jax.data.images import read_rgb
from concertormer_jax.data.synthesize import synthesize
from concertormer_jax.weights import load_weights_file
from concertormer_jax.weights.checkpoints import save_converted

README = (runs.ROOT / "README.md").read_text()


def command_with(text: str) -> str:
    """The one-line command in the README's bash blocks that starts with `text`."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    found = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    (command,) = [line for line in found if line.startswith(text)]
    return command


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with photographs, pairs, and the checkpoint that the README's training command made of them."""
    folder = tmp_path_factory.mktemp("readme")
    runs.write_photos(folder / "photos")
    synthesize(folder / "photos", folder / "pairs")
    command = command_with("python train.py --config=configs/custom.py")
    command = command.replace("runs/mine", str(folder / "run")).replace("FOLDER", str(folder / "photos"))
    settings = runs.TINY_RUN | runs.WITHOUT_ATTENTION | runs.ONE_STAGE
    extra = [a for a in runs.command("", settings)[2:] if not a.startswith(("--config=", "--workdir="))]
    run([*shlex.split(command), *extra])
    return folder


def run(arguments: list[str]) -> str:
    """Run a command of the README with this Python."""
    assert arguments[0] == "python"
    return runs.finish(runs.start([sys.executable, *arguments[1:]], devices=1))


def run_here(arguments: list[str], monkeypatch) -> None:
    """Run a command `python -m MODULE` of the README in this process, whose settings it leaves alone."""
    assert arguments[:3] == ["python", "-m", "concertormer_jax"]
    module = importlib.import_module(f"concertormer_jax.commands.{arguments[3]}")
    monkeypatch.setattr(module, "prepare_to_compile", lambda: None, raising=False)
    module.main(arguments[4:])


def test_evaluate(folder):
    command = command_with("python evaluate.py").replace("runs/mine", str(folder / "run"))
    command = command.replace("FOLDER", str(folder / "pairs")).replace("results", str(folder / "results"))
    output = run(shlex.split(command))
    assert "psnr_rgb" in output
    names = {path.name for path in (folder / "results").iterdir()}
    assert names >= {"restored", "per_image.csv", "results.json", "results.md", "worst_ten.png"}
    assert len(list((folder / "results" / "restored").iterdir())) == 6


def test_restore_a_file(folder, monkeypatch):
    command = command_with("python -m concertormer_jax restore photo.jpg")
    photo = next((folder / "photos").iterdir())
    command = command.replace("restored.jpg", str(folder / "restored.jpg")).replace("photo.jpg", str(photo))
    run_here([*shlex.split(command), f"--ckpt={folder / 'run'}"], monkeypatch)
    assert read_rgb(folder / "restored.jpg").shape == read_rgb(photo).shape


def test_convert(tmp_path, monkeypatch):
    command = command_with("python -m concertormer_jax convert runs/mine")
    module = tiny_network()  # the run above has no attention, which no published file has names for
    params, weights = random_params(module), tmp_path / "mine.safetensors"
    save_converted(tmp_path / "mine", module, params, train_crop_px=16)
    command = command.replace("runs/mine", str(tmp_path / "mine")).replace("mine.safetensors", str(weights))
    run_here(shlex.split(command), monkeypatch)
    jax.tree.map(np.testing.assert_array_equal, load_weights_file(weights).params, params)


EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_python_example(folder):
    code = EXAMPLES[0]
    images = np.random.default_rng(0).random((1, 20, 30, 3), np.float32)
    namespace = {"images": images}
    exec(code.replace("runs/mine", str(folder / "run")).replace("tlc_window=448", "tlc_window=16"), namespace)
    assert namespace["restored"].shape == images.shape


def test_attention_in_another_network():
    namespace = {}
    exec(EXAMPLES[1], namespace)
    features = jax.random.normal(jax.random.key(0), (1, 16, 8, 6))
    mixed, _ = jax.jit(namespace["Mixer"]().init_with_output)(jax.random.key(1), features)
    assert mixed.shape == features.shape
    assert np.abs(mixed - features).max() > 0.01


def test_every_file_and_make_target_named_in_the_readme_exists():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (runs.ROOT / target).exists(), target
    targets = ["demo", "train-demo", "test"]
    made = subprocess.run(["make", "-n", *targets], cwd=runs.ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
