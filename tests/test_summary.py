"""The summary: its numbers add up, XLA's count repeats what is scanned, and what the command prints and refuses."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from concertormer_jax.commands import summary
from concertormer_jax.models import VARIANTS
from concertormer_jax.models.costs import OUTSIDE, counted_by_xla


@pytest.fixture(scope="module")
def demo():
    return summary.summarise("demo", 256, 256)


def test_parts_and_stages_add_up(demo):
    found = demo.as_json()
    assert found["parameters"] == VARIANTS["demo"].parameters
    assert round(found["macs"] / 1e9, 2) == VARIANTS["demo"].gmacs
    for key in ("parameters", "macs", "paper_macs"):
        assert found[key] == sum(part[key] for part in found["parts"].values())
        assert found[key] == sum(stage[key] for stage in found["stages"].values())
        for stage in found["stages"].values():
            assert stage[key] == sum(part[key] for part in stage["parts"].values())
    assert found["xla_macs"] == sum(stage["xla_macs"] for stage in found["stages"].values())
    assert list(found["stages"]) == [
        *(f"encoders_{level}" for level in range(3)), "middle", *(f"decoders_{index}" for index in range(3)), OUTSIDE
    ]  # fmt: skip
    assert found["communication"] == found["parts"]["communication (CDC)"]


def test_xla_counts_about_the_same_products(demo):
    """XLA adds sums, norms and softmax, and the channel groups multiply more than they need."""
    found = demo.as_json()
    assert 1 < found["xla_macs"] / found["macs"] < 1.25
    for stage in found["stages"].values():
        assert 0.85 < stage["xla_macs"] / stage["macs"] < 1.4


def test_scans_count_as_often_as_they_run():
    """A product of 2 * 3 * 4 * 4 FLOPs twice in each of 5 steps, with one of 7 in a loop inside, and one outside."""

    def function(x, matrix):
        def inner(x, _):
            return x @ matrix, None

        def outer(x, _):
            return jax.lax.scan(inner, x @ matrix, None, length=7)[0], None

        with jax.named_scope("stage"):
            x = jax.lax.scan(outer, x, None, length=5)[0]
        return x @ matrix

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((3, 4), (4, 4))]
    found = counted_by_xla(jax.jit(function).trace(*shapes))
    product = 2 * 3 * 4 * 4
    counters = 100  # of the loops, a few operations in each step
    assert found["stage"] == pytest.approx(5 * 8 * product, abs=counters)
    assert found[""] == pytest.approx(product, abs=counters / 10)


def test_the_command_prints_a_table(capsys, monkeypatch, demo):
    asked = []
    monkeypatch.setattr(summary, "summarise", lambda *arguments: asked.append(arguments) or demo)
    summary.main(["demo", "--size=300x200"])
    text = capsys.readouterr().out
    assert asked == [("demo", 300, 200)]
    assert "demo, one picture of 256x256" in text
    (line,) = [line for line in text.splitlines() if line.startswith("total")]
    _, parameters, paper, all_of_them, xla = line.split()
    assert parameters == "1,393,928"
    assert (paper, all_of_them) == ("3.790", "3.842")
    assert float(xla) == pytest.approx(sum(demo.xla_macs.values()) / 1e9, abs=1e-3)
    (line,) = [line for line in text.splitlines() if line.startswith("communication (CDC): ")]
    share = demo.as_json()["communication"]["macs"] / demo.total.macs
    assert f"{share:.2%} of all" in line


def test_the_command_prints_json(capsys, monkeypatch, demo):
    monkeypatch.setattr(summary, "summarise", lambda *_: demo)
    summary.main(["demo", "--json"])
    assert json.loads(capsys.readouterr().out) == demo.as_json()


def test_the_chart_has_a_bar_for_every_stage(tmp_path, monkeypatch, demo, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(summary, "summarise", lambda *_: demo)
    summary.main(["demo", f"--chart={tmp_path / 'new' / 'cost.png'}"])
    pixels = np.asarray(Image.open(tmp_path / "new" / "cost.png").convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 8  # the parts' colours
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["cost.png"]


def fails(capsys, *arguments):
    """Run the command, which must fail with one line; returns it."""
    with pytest.raises(SystemExit) as exit_status:
        summary.main(list(arguments))
    assert exit_status.value.code == 2
    captured = capsys.readouterr()
    assert not captured.out
    (line,) = captured.err.splitlines()
    return line


def test_the_command_says_what_is_wrong(capsys, monkeypatch, tmp_path):
    assert "'goproo' is unknown; choose one of gopro, " in fails(capsys, "goproo")
    for size in ("0", "12x", "256x0", "big"):
        assert f"--size={size}: must be a side or WIDTHxHEIGHT" in fails(capsys, "demo", f"--size={size}")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "--chart needs matplotlib; install it with" in fails(capsys, "demo", f"--chart={tmp_path / 'cost.png'}")
    assert not list(tmp_path.iterdir())
