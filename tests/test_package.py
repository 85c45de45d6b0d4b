"""The package as pip installs it: from a wheel, away from the clone."""

import subprocess
import sys
import zipfile

import pytest
from training_runs import ROOT

from concertormer_jax.__main__ import COMMANDS
from concertormer_jax.runtime.paths import bundled, recipes


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the content of the wheel."""
    folder = tmp_path_factory.mktemp("package")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        f"--wheel-dir={folder}",
        str(ROOT),
    ]
    subprocess.run(build, check=True, timeout=600)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(installed, folder, *arguments):
    """Run `python ARGUMENTS` in `folder` with the wheel's package alone."""
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=folder, env={"PYTHONPATH": str(installed), "PATH": ""}, capture_output=True, text=True, timeout=300
    )


def test_the_wheel_brings_recipes_photographs_pages_and_types(installed):
    package = installed / "concertormer_jax"
    for name in ("photos/test", "photos/train", "configs"):
        assert {path.name for path in (package / "bundled" / name).iterdir()} >= {
            path.name for path in bundled(name).iterdir() if path.is_file()
        }
    for name in ("py.typed", "pages/app.html", "pages/onnx.js", "pages/slider.js", "evaluation/paper.json"):
        assert (package / name).is_file(), name


def test_recipes_and_photographs_are_found_from_another_folder(installed, tmp_path):
    # The folder has a configs of its own, which must not hide the recipes that build on each other.
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.py").write_text(
        "from configs import demo\n\n\ndef get_config():\n    config = demo.get_config()\n    config.seed = 7\n"
        "    return config\n"
    )
    program = (
        "import sys\n"
        "from absl import flags\n"
        "from concertormer_jax.commands import flags as ours\n"
        "from concertormer_jax.runtime.paths import local_path\n"
        "ours.define_config()\n"
        "sys.argv = ['x', f'--config={sys.argv[1]}']\n"
        "ours.parse_with_config('concertormer_jax.commands.flags')\n"
        "config = flags.FLAGS.config\n"
        "print(config.seed, len(list(local_path(config.data.source).iterdir())))\n"
    )
    photographs = len(list(bundled("photos/train").iterdir()))
    for recipe, seed in (("demo", 0), ("configs/mine.py", 7)):
        done = run(installed, tmp_path, "-c", program, recipe)
        assert done.stdout.split() == [str(seed), str(photographs)], done.stderr


def test_every_command_says_what_it_does(installed, tmp_path):
    done = run(installed, tmp_path, "-m", "concertormer_jax", "--help")
    assert done.returncode == 0 and all(f"  {name} " in done.stdout for name in COMMANDS)
    assert {path.stem for path in (installed / "concertormer_jax" / "commands").glob("*.py")} == {
        *COMMANDS,
        "__init__",
        "flags",
    }
    done = run(installed, tmp_path, "-m", "concertormer_jax", "summery")
    assert done.returncode == 2
    assert done.stderr == "error: 'summery' is no command; did you mean summary?; concertormer --help lists them\n"
    done = run(installed, tmp_path, "-m", "concertormer_jax", "train", "--config=nothing", "--workdir=x")
    assert done.returncode == 2
    assert (
        done.stderr
        == f"error: --config=nothing: nothing is no file and no recipe; the recipes are {', '.join(recipes())}\n"
    )
