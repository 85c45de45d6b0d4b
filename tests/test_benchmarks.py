"""The benchmarks' statistics, tables and processes. (The PyTorch side is checked by benchmarks.check_peer.)"""

import importlib
import re
import shlex
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from benchmarks import (
    data_pipeline,
    growth,
    jax_worker,
    onnx_network,
    onnx_worker,
    params,
    profile_block,
    race,
    report,
    weights,
)
from benchmarks.jax_batches import Batches
from benchmarks.jobs import make_job
from benchmarks.sides import ROOT, Side
from concertormer_jax.models import VARIANTS, create, parameter_shapes
from concertormer_jax.models.blocks import Stage
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.weights import params_from_torch, read_state_dict

README = (ROOT / "benchmarks" / "README.md").read_text()


def start(**job):
    return Side("fake", sys.executable, "tests.fake_worker", {"call_s": 0.0, "megabytes": 1} | job, {})


def test_a_side_times_its_calls_and_reports_its_memory():
    with start(call_s=0.02, megabytes=50) as side:
        assert side.first_result_s > 0.02
        assert side.first_memory_bytes - side.import_memory_bytes > 40 * 2**20
        assert 0.02 <= side.seconds(20) < 0.2  # of one call, not of twenty
        assert side.describe()["calls"] == 21
        assert side.describe()["waits"] == 2  # once for each request, not for each call


@pytest.mark.parametrize(
    "job, message",
    [
        ({"raise": "no such thing\nat all"}, "fake failed: ValueError: no such thing"),
        ({"die": "last words"}, "last words"),
    ],
)
def test_a_side_that_fails_says_why(job, message):
    with pytest.raises(UserError) as caught:
        start(**job)
    assert str(caught.value).endswith(message)


def test_a_python_that_does_not_exist_is_named():
    with pytest.raises(UserError, match="no_such_python"):
        Side("peer", "no_such_python", "benchmarks.torch_worker", {}, {})


class Stopwatch:
    """A side in a race whose calls take `call_s`; `log` notes who was asked for how many calls."""

    def __init__(self, name, call_s, log):
        self.name, self.call_s, self.log = name, call_s, log

    def seconds(self, calls):
        self.log.append((self.name, calls))
        return self.call_s


class Bar:
    def update(self):
        pass


def test_sides_take_turns_in_changing_order():
    log = []
    sides = [Stopwatch("slow", 3.0, log), Stopwatch("quick", race.LEAST_REPETITION_S / 10, log)]
    seconds = race.take_turns(sides, 3, Bar())
    assert {name: len(values) for name, values in seconds.items()} == {"slow": 3, "quick": 3}
    assert [name for name, _ in log[2:]] == ["slow", "quick", "quick", "slow", "slow", "quick"]
    assert dict(log[2:]) == {"slow": 1, "quick": 10}  # calls of a turn: a slow side makes one


@pytest.mark.parametrize("flag", ["--repetitions=0", "--batch=0", "--size=100", "--threads=-1", "--onnx --batch=2"])
def test_flags_of_the_race_that_cannot_be_used_are_named(flag):
    with pytest.raises(UserError, match=flag.split()[0]):
        race.flags_of(flag.split())


def test_ratios_are_taken_turn_by_turn():
    ours, theirs = [1.0, 2.0, 10.0], [3.0, 6.0, 30.0]  # the machine slows down, alike for both
    assert report.spread(report.pairwise_ratios(theirs, ours)) == (3, 3, 3, 3, 3)
    assert report.spread([4, 1, 2, 3, 5]) == (1, 2, 3, 4, 5)
    with pytest.raises(ValueError):
        report.pairwise_ratios([1.0], [1.0, 2.0])


def test_flops_are_two_for_each_mac_and_three_forwards_for_a_step():
    lite = VARIANTS["lite"].gmacs
    assert report.flops_of_image(lite, 256 * 256, train=False) == pytest.approx(238.3e9)
    assert report.flops_of_image(lite, 128 * 128, train=True) == pytest.approx(238.3e9 * 3 / 4)
    assert report.peak_flops("NVIDIA H200", "bfloat16") == 989e12
    assert report.peak_flops("NVIDIA H100 80GB HBM3", "bfloat16") == 989e12
    assert report.peak_flops("cpu", "float32") is None


def test_differences_of_pictures_are_absolute_and_of_losses_relative():
    picture = np.full((1, 2, 2, 3), 0.5, np.float32)
    other = picture.copy()
    other[0, 1, 1, 2] = 0.25
    assert report.difference(picture, other) == 0.25
    assert report.difference(np.array([2.0, 4.0, 9.0]), np.array([2.0, 5.0])) == pytest.approx(0.2)
    assert np.isnan(report.difference(picture, picture * np.nan))


def side(seconds, memory_mib, **changes):
    record = {
        "seconds": seconds,
        "memory_bytes": memory_mib * 2**20,
        "import_memory_bytes": 100 * 2**20,
        "device_bytes": None,
        "first_result_s": 5.0,
        "compiling": None,
        "images_per_s": 0.5,
        "flops": 1e12,
        "share_of_peak": None,
        "difference": 1e-6,
    }
    return record | changes


def row_of(page, start):
    """The cells of the first table row whose text begins with `start`."""
    (row,) = [line for line in page.splitlines() if line.startswith(f"| {start} |")]
    return [cell.strip() for cell in row.strip("|").split("|")][1:]


def race_of(ours, theirs, notes=()):
    return {
        "date": "2030-01-01",
        "device": "cpu",
        "processor": "a processor",
        "versions": {"jax": "1.2.3"},
        "settings": {"variant": "lite", "dtype": "float32", "threads": 2, "repetitions": 3},
        "tasks": [
            {"task": "forward", "what": "forward", "sides": {report.OURS: ours, "peer": theirs}, "notes": list(notes)}
        ],
    }


def test_the_page_of_a_race_favours_the_side_that_needs_less():
    ours = side([2.5, 2.0, 4.0], 300, compiling={"memory_bytes": 900 * 2**20, "first_result_s": 40.0})
    theirs = side([4.8, 6.0, 12.0], 600, first_result_s=7.0)
    page = report.race_tables(race_of(ours, theirs, notes=["forward: torch.compile failed"]))
    assert row_of(page, "forward, against peer") == ["2.50 s", "6.00 s", "3.00 (1.92 to 3.00)", "2.40", "1.0e-06"]
    tables = page.split("\n\n")
    (memory,) = [table for table in tables if "peak memory" in table]
    (first,) = [table for table in tables if "first result" in table]
    assert row_of(memory, f"forward, {report.OURS}") == ["", "300", "200", "900", ""]
    assert row_of(memory, "forward, peer") == ["2.00", "600", "500", "", ""]
    assert row_of(first, f"forward, {report.OURS}") == ["40.0", "5.0"]  # without the cache, with it
    assert row_of(first, "forward, peer") == ["7.0", ""]
    assert "torch.compile failed" in page and "jax 1.2.3" in page and "2030-01-01" in page


def test_on_an_accelerator_its_memory_is_compared():
    gpu = {"device_bytes": 2**30, "share_of_peak": 0.25}
    page = report.race_tables(race_of(side([1.0], 900, **gpu), side([1.0], 300, **gpu | {"device_bytes": 2**31})))
    (memory,) = [table for table in page.split("\n\n") if "peak memory" in table]
    assert row_of(memory, "forward, peer")[0] == "2.00"
    assert row_of(page.split("throughput")[1], "forward, peer") == ["0.50", "1.00", "25.0 %"]


def test_cores_follow_from_processor_time():
    """Four threads that deliver 100 images/s in 4 core seconds per second: 25 images per core second."""
    batch = data_pipeline.BATCH
    record = {"storage": "RAM", "reader": "ours", "seconds": [batch / 100] * 3, "cpu_s": 4 * batch / 100}
    assert row_of(data_pipeline.table([record], 400.0), "RAM, ours") == ["100", "100 to 100", "25", "16.00"]
    assert row_of(data_pipeline.table([record], None), "RAM, ours") == ["100", "100 to 100", "25"]


@pytest.mark.parametrize("cached", [False, True])
def test_our_reader_delivers_batches(tmp_path, cached):
    for part in ("input", "target"):
        (tmp_path / part).mkdir()
        Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / part / "a.png")
    reader = Batches({"folder": str(tmp_path), "cached": cached, "crop_px": 32, "batch": 3})
    before = reader.describe()["cpu_s"]
    reader.run()
    assert {reader.batch[part].shape for part in ("input", "target")} == {(3, 32, 32, 3)}
    assert reader.describe()["cpu_s"] >= before


def test_pairs_for_the_data_pipeline_are_frames(tmp_path):
    data_pipeline.make_pairs(tmp_path, 1)
    pictures = [np.asarray(Image.open(tmp_path / part / "0000.png"), float) for part in ("input", "target")]
    assert pictures[0].shape == pictures[1].shape == (720, 1280, 3)
    sharpness = [np.abs(np.diff(picture, axis=1)).mean() for picture in pictures]
    assert sharpness[0] < 0.8 * sharpness[1]


def sizes(*costs):
    return [
        {"size_px": size, "seconds": [us * size**2 / 1e6] * 3, "memory_bytes": bytes_per_pixel * size**2}
        for size, us, bytes_per_pixel in costs
    ]


def test_growth_is_relative_to_512_pixels():
    table = growth.table(sizes((256, 1.0, 3000), (512, 2.0, 2000), (2048, 2.2, 2000)))
    assert row_of(table, "2048x2048")[1:3] == ["2.20", "1.10"]
    assert row_of(table, "256x256")[2::2] == ["0.50", "1.50"]


def test_growth_stops_before_the_memory_is_exhausted():
    measured = sizes((512, 1.0, 1000))
    assert growth.fits([], 512, available_bytes=0)
    assert growth.fits(measured, 1024, available_bytes=1000 * 1024**2)
    assert not growth.fits(measured, 1024, available_bytes=1000 * 1024**2 - 1)


PROGRAM = """
ENTRY %main (a: f32[2]) -> f32[2] {
  %dot.3 = f32[2,2]{1,0} dot(%a, %b), metadata={op_name="jit(f)/Net/encoders_0/blocks/ripieno_spatial/dot_general"}
  copy_add_fusion.12 = f32[2]{0} fusion(%dot.3), kind=kLoop, metadata={op_name="jit(f)/transpose(jvp(Net))/blocks/add"}
  %w.1 = (f32[2]{0}, s32[]) while(%t), body=%b, metadata={op_name="jit(f)/Net/encoders_0/while"}
  %element.1 = f32[2]{0} get-tuple-element(%w.1), index=0, metadata={op_name="jit(f)/Net/encoders_1/while"}
  %bitcast.1 = f32[4]{0} bitcast(%dot.3)
  %dot.4 = f32[4]{0} dot(%element.1, /*index=1*/%bitcast.1), lhs_contracting_dims={0}
  ROOT %reduce.1 = f32[] reduce(%x, %element.1), to_apply=%add
}
"""


def test_operations_of_a_program_are_grouped():
    found = profile_block.operations(PROGRAM)
    assert {name: operation.opcode for name, operation in found.items()} == {
        "dot.3": "dot",
        "copy_add_fusion.12": "fusion",
        "w.1": "while",
        "element.1": "get-tuple-element",
        "bitcast.1": "bitcast",
        "dot.4": "dot",
        "reduce.1": "reduce",
    }
    assert profile_block.kind_of(found["dot.3"]) == "dot"
    assert profile_block.kind_of(found["copy_add_fusion.12"]) == "copy_add_fusion"
    durations = [(found["dot.3"], 1.0), (found["reduce.1"], 2.0), (found["dot.3"], 3.0)]
    parts = profile_block.shares(durations, lambda operation: profile_block.part_of(operation.path))
    assert parts == [("Ripieno, spatial", 4.0), (profile_block.OUTSIDE, 2.0)]
    assert found["dot.4"].path == found["dot.3"].path, "what has no name is counted where its operands come from"


def test_of_every_execution_the_least_time_counts():
    """`a` runs twice in a call and was disturbed once in each; of `b` the profiler missed an execution."""
    calls = [{"a": [1.0, 9.0], "b": [2.0]}, {"a": [8.0, 2.0], "b": [5.0, 7.0]}, {}]
    assert profile_block.least_durations(calls) == {"a": 3.0, "b": 12.0}


def test_executions_are_read_from_a_trace_in_their_order(tmp_path):
    double = jax.jit(lambda x: jax.lax.fori_loop(0, 3, lambda _, x: jnp.sin(x) @ x, x)).lower(jnp.ones((64, 64)))
    program = double.compile()
    with jax.profiler.trace(tmp_path):
        jax.block_until_ready(program(jnp.ones((64, 64))))
    known = profile_block.operations(program.as_text())
    found = profile_block.traced_durations(tmp_path, known)
    assert not any(known[name].opcode in profile_block.CONTAINERS for name in found)
    assert 3 in map(len, found.values()), "what is in the loop runs three times"
    assert all(seconds > 0 for executions in found.values() for seconds in executions)


@pytest.mark.parametrize(
    "path, part, stage",
    [
        ("jit(f)/Net/decoders_1/while/body/blocks/norm/mul", "layer norm", "decoders_1"),
        ("jit(f)/transpose(jvp(Net))/middle/blocks/ripieno_channel/cdc/mul", "communication (CDC)", "middle"),
        ("jit(f)/Net/encoders_2/blocks/transpose(jvp(gdmlp))/dot_general", "gdMLP", "encoders_2"),
        ("jit(f)/Net/encoders_2/blocks/add", profile_block.REST_OF_BLOCK, "encoders_2"),
        ("jit(f)/Net/endings_0/conv_general_dilated", profile_block.OUTSIDE, "endings_0"),
        ("jit(f)/fft", profile_block.OUTSIDE, "outside the stages"),
    ],
)
def test_parts_and_stages_are_found_in_paths(path, part, stage):
    assert profile_block.part_of(path) == part
    assert profile_block.stage_of(path) == stage


def test_the_parts_are_scopes_of_the_program():
    stage = Stage(8, 1, 1, 2)
    x = jnp.zeros((1, 8, 8, 8))
    shapes = jax.eval_shape(stage.init, jax.random.key(0), x, x)
    program = jax.jit(jax.grad(lambda params: stage.apply(params, x, x).sum())).lower(shapes)
    scopes = {
        name
        for path in re.findall(r'loc\("([^"]+)"', program.as_text(debug_info=True))
        for name in re.findall(r"\w+", path)
    }
    assert set(profile_block.PARTS) <= scopes


@pytest.fixture(scope="module")
def folder_with_weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    weights.main(["demo", str(folder)])
    return folder


def test_both_sides_get_the_same_weights(folder_with_weights):
    module = create("demo")
    ours = params.read_params(folder_with_weights / "params.npz")
    theirs = params_from_torch(read_state_dict(folder_with_weights / "weights.pth"), module)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    assert jax.tree.structure(ours) == jax.tree.structure(parameter_shapes(module))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(ours["encoders_0"]["blocks"]["project"]))


def test_our_worker_restores(folder_with_weights, tmp_path, monkeypatch):
    monkeypatch.setattr(jax_worker, "prepare_to_compile", lambda: None)
    job = make_job(
        folder_with_weights, variant="demo", dtype="float32", device="cpu", batch=1, height=64, width=64, train=False
    )
    task = jax_worker.task_of(job)
    task.run()
    task.wait()
    task.save(tmp_path / "restored.npy")
    images = np.load(job["images"])["input"] / 255
    restored = np.load(tmp_path / "restored.npy")
    assert restored.shape == images.shape
    assert 1e-3 < np.abs(restored - images).max() < 10
    assert task.describe()["device_bytes"] is None


def test_onnx_runtime_restores_what_our_worker_does(folder_with_weights, tmp_path, monkeypatch):
    monkeypatch.setattr(jax_worker, "prepare_to_compile", lambda: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    size = {"height": 64, "width": 128}
    job = make_job(folder_with_weights, variant="demo", dtype="float32", device="cpu", batch=1, **size)
    onnx_network.main(["demo", str(folder_with_weights), "64", "128"])
    results = {}
    for name, task in (("ours", jax_worker.task_of(job)), ("theirs", onnx_worker.Restoration(job))):
        task.run()
        task.wait()
        task.save(tmp_path / f"{name}.npy")
        results[name] = np.load(tmp_path / f"{name}.npy")
    assert results["ours"].clip(0, 1).std() > 0.1
    np.testing.assert_allclose(results["theirs"], results["ours"].clip(0, 1), rtol=0, atol=1e-4)
    assert task.describe()["versions"].keys() == {"onnxruntime"}


def commands():
    return re.findall(r"`python -m (benchmarks\.\w+)([^`]*)`", README)


def test_the_readme_names_flags_that_exist(capsys):
    assert len(commands()) >= 7
    for module, arguments in commands():
        with pytest.raises(SystemExit) as ended:
            importlib.import_module(module).main(["--help"])
        assert ended.value.code == 0
        text = capsys.readouterr().out
        for argument in shlex.split(arguments):
            assert re.search(rf"{argument.partition('=')[0]}\b", text), argument


def test_files_linked_in_the_readme_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / "benchmarks" / target).exists(), target
