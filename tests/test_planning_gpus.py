"""GPUs that need not be there: their figures, the text for the compiler, rooflines, and the largest batch that fits."""

import dataclasses
import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
import training_runs as runs

from concertormer_jax.models import costs
from concertormer_jax.planning import chips, fitting, gpus, report
from concertormer_jax.planning.compilation import Plan
from concertormer_jax.planning.fitting import LargestBatch, find_largest
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.peaks import FLOAT32, SHORT, TF32
from configs import common

GIB = 2**30
RTX4090 = gpus.GPUS["rtx4090"]


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in (gpus.FRACTION, gpus.OLD_FRACTION):
        monkeypatch.delenv(name, raising=False)


def plan_of(**changes):
    fields = {"kind": "train", "name": "phase 1", "images": 8, "steps": 3600, "compile_s": 1.0, "products": {}}
    return Plan(**(fields | {"memory_limit": 16 * GIB, "memory_total": GIB} | changes))


def chip_of(gpu):
    return chips.Chip(gpu.name, gpus.usable_bytes(gpu), gpu.peak, note=gpus.memory_note(gpu))


def test_peaks_follow_from_cores_and_clock():
    peak = RTX4090.peak
    assert peak.float32_flops_per_s == pytest.approx(128 * 128 * 2 * 2.52e9)  # 82.6 TFLOP/s
    assert (peak.flops_per_s, peak.tf32_flops_per_s) == (165.2e12, 82.6e12)
    assert peak.bytes_per_s == 1008e9


@pytest.mark.parametrize(
    ("name", "tflops"),
    [("t4", 8.1), ("l4", 30.3), ("a100", 19.5), ("h100", 66.9), ("rtx3090", 35.6), ("rtx5090", 104.8)],
)
def test_float32_is_as_the_data_sheet_says(name, tflops):
    assert gpus.GPUS[name].peak.float32_flops_per_s / 1e12 == pytest.approx(tflops, rel=0.01)


def test_without_units_for_bfloat16_products_run_as_float32():
    peak = gpus.GPUS["t4"].peak
    assert peak.flops_per_s == peak.tf32_flops_per_s == peak.float32_flops_per_s


@pytest.mark.parametrize("name", gpus.GPUS)
def test_the_compiler_is_told_of_every_gpu(name):
    gpu = gpus.GPUS[name]
    text = gpus.target_config(gpu)
    numbers = dict(re.findall(r"(\w+): ([\d.]+)$", text, re.MULTILINE))
    assert int(numbers["core_count"]) == gpu.cores
    assert int(numbers["memory_bandwidth"]) == gpu.peak.bytes_per_s
    assert 0.97 * gpu.memory_gib < int(numbers["device_memory_size"]) / GIB < gpu.memory_gib
    assert int(numbers["shared_memory_per_block_optin"]) <= int(numbers["shared_memory_per_core"])
    assert f"cuda_compute_capability {{ major: {gpu.capability[0]} minor: {gpu.capability[1]} }}" in text
    assert text.count("{") == text.count("}") and f'name: "{gpu.name}"' in text


def test_jax_takes_a_part_of_the_memory(monkeypatch):
    assert gpus.usable_bytes(RTX4090) == pytest.approx(0.75 * 0.98 * 24 * GIB, rel=1e-6)
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        with monkeypatch.context() as environment:
            environment.setenv(name, "0.95")
            assert gpus.usable_bytes(RTX4090) == pytest.approx(0.95 * 0.98 * 24 * GIB, rel=1e-6)
            assert "24 GiB" in gpus.memory_note(RTX4090) and "95 %" in gpus.memory_note(RTX4090)


@pytest.mark.parametrize("name", [gpus.FRACTION, gpus.OLD_FRACTION])
@pytest.mark.parametrize("text", ["much", "0", "1.5", "nan"])
def test_a_wrong_part_of_the_memory_is_one_sentence(text, name, monkeypatch):
    monkeypatch.setenv(name, text)
    with pytest.raises(UserError, match=f"{name} is '{text}'"):
        gpus.usable_bytes(RTX4090)


def test_two_parts_of_the_memory_are_refused_as_jax_does(monkeypatch):
    for name in (gpus.FRACTION, gpus.OLD_FRACTION):
        monkeypatch.setenv(name, "0.9")
    with pytest.raises(UserError, match="are both set"):
        gpus.usable_bytes(RTX4090)


def test_products_are_counted_by_precision():
    def products(a, b):
        exact = jnp.matmul(a, b, precision="highest")
        return (a @ b + exact @ b).astype(jnp.bfloat16) @ b.astype(jnp.bfloat16)

    shapes = [jax.ShapeDtypeStruct((4, 4), jnp.float32)] * 2
    once = 2 * 4**3
    assert costs.flops_by_precision(jax.jit(products).trace(*shapes).jaxpr) == {
        FLOAT32: once,
        TF32: 2 * once,
        SHORT: once,
    }


def test_convolutions_and_loops_are_counted_by_precision():
    def convolved(images, kernel):
        def body(images, _):
            return jax.lax.conv_general_dilated(images, kernel, (1, 1), "SAME"), None

        return jax.lax.scan(body, images, None, length=3)[0]

    shapes = jax.ShapeDtypeStruct((1, 2, 4, 4), jnp.float32), jax.ShapeDtypeStruct((2, 2, 3, 3), jnp.float32)
    with jax.default_matmul_precision("highest"):
        traced = jax.jit(convolved).trace(*shapes)
    assert costs.flops_by_precision(traced.jaxpr) == {FLOAT32: 3 * 2 * 2 * 16 * 9 * 2}


def test_the_roofline_takes_every_precision_at_its_rate():
    chip = chip_of(RTX4090)
    products = {SHORT: 165.2e9, TF32: 82.6e9, FLOAT32: 128 * 128 * 2 * 2.52e6}  # a millisecond each
    assert report.roofline_s(plan_of(products=products), chip) == pytest.approx(3e-3)
    assert report.roofline_s(plan_of(products=products, hbm_bytes=1008e7), chip) == pytest.approx(10e-3)


def test_where_the_compiler_gives_no_cycles_the_roofline_is_said():
    chip = chip_of(RTX4090)
    text = report.describe(plan_of(products={SHORT: 165.2e10}, hbm_bytes=1e9), chip)
    assert "at least 10.0 ms a run (roofline: arithmetic binds), so at most 800.0 images/s" in text
    assert "3,600 steps in at least 0.0 h" in text and "1.652 TFLOP" in text
    text = report.describe(plan_of(products={SHORT: 165.2e9}, hbm_bytes=1008e9), chip)
    assert "at least 1000.0 ms a run (roofline: main memory binds)" in text


def test_the_heading_names_the_rates_and_what_jax_takes():
    text = report.heading(chips.Target("rtx4090", chip_of(RTX4090), (None,)))
    assert text.startswith(
        "rtx4090: 1 x NVIDIA GeForce RTX 4090 (each 17.64 GiB, 165 TFLOP/s bfloat16, 82.6 TFLOP/s TF32"
    )
    assert "JAX takes 75 %" in text.splitlines()[1]


def test_what_does_not_fit_says_where_the_memory_goes():
    plan = plan_of(
        reason="it needs 20.00 GiB of 16.00 GiB", memory={"weights": GIB, "activations and temporaries": 19 * GIB}
    )
    assert "weights 1.00 GiB, activations and temporaries 19.00 GiB" in report.describe(plan, chip_of(RTX4090))


def largest(memory_of, start, unit, limit, state=0):
    compiled = []

    def compile_batch(images):
        compiled.append(images)
        return plan_of(images=images, memory_total=memory_of(images), memory_limit=limit)

    first = plan_of(images=start, memory_total=memory_of(start), memory_limit=limit, memory={"weights": state})
    return find_largest(first, unit, compile_batch), compiled


def test_a_linear_batch_is_found_at_once():
    found, compiled = largest(lambda batch: 100 + 10 * batch, start=8, unit=1, limit=1005, state=100)
    assert found == LargestBatch(90, 1000, 91, 1010, next_compiled=False)
    assert compiled == [90]


def test_batches_are_multiples_of_the_devices_and_parts():
    found, compiled = largest(lambda batch: 100 + 10 * batch, start=64, unit=8, limit=505, state=90)
    assert (found.batch, found.bytes, found.next_batch, found.next_bytes) == (40, 500, 48, 580)
    assert all(images % 8 == 0 for images in compiled)


@pytest.mark.parametrize("start", [1, 8, 29, 30, 31, 64])
def test_of_a_curve_the_largest_batch_is_compiled_and_the_next_is_too_large(start):
    def memory_of(batch):
        return 100_000 + 10_000 * batch + 333 * batch**2

    found, compiled = largest(memory_of, start, unit=1, limit=705_000)
    assert (found.batch, found.bytes, found.next_batch) == (30, memory_of(30), 31)
    assert found.next_bytes == pytest.approx(memory_of(31), rel=0.01) and found.next_bytes > 705_000
    assert 30 in (start, *compiled) and len(compiled) <= 6


def test_not_even_one_image_fits():
    found, _ = largest(lambda batch: 100 + 10 * batch, start=8, unit=1, limit=105)
    assert found == LargestBatch(0, 0, 1, 110, next_compiled=True)
    assert report.describe_largest(found) == "  largest batch none fits: 1 would need 0.0 MiB (compiled as well)"


def test_without_a_limit_nothing_is_sought():
    found, compiled = largest(lambda batch: batch, start=8, unit=1, limit=0)
    assert found is None and not compiled
    assert "not found" in report.describe_largest(found)


def test_the_largest_batch_is_told():
    text = report.describe_largest(LargestBatch(37, 17 * GIB, 38, 18 * GIB, next_compiled=False))
    assert text == "  largest batch 37 (17.00 GiB, compiled); 38 would need 18.00 GiB (by the line through two batches)"


def test_the_batch_of_one_phase_changes_a_copy():
    config = common.get_config().lock()
    assert fitting.with_batch(config, 2, 5).stages.batch == (64, 5, 8)
    assert config.stages.batch == (64, 16, 8)


def test_the_plan_as_json_has_the_largest_batch():
    found = LargestBatch(37, 17, 38, 18, next_compiled=False)
    entry = json.loads(json.dumps(report.as_json(plan_of(products={SHORT: 5.0}), chip_of(RTX4090), [], found)))
    assert entry["largest_batch"] == dataclasses.asdict(found) and entry["flops"] == 5.0


def test_without_the_compiler_for_gpus_it_says_what_to_install(monkeypatch):
    def missing(**_):
        raise NotImplementedError("topology not implemented for cuda")

    monkeypatch.setattr(chips.topologies, "get_topology_desc", missing)
    with pytest.raises(UserError, match=re.escape(f'pip install "jax[cuda13]=={jax.__version__}"')):
        chips.gpu("rtx4090")


def test_a_gpu_that_is_not_there_is_compiled_for(tmp_path):
    pytest.importorskip("jax_plugins.xla_cuda13", reason="pip install '.[cuda]'")
    output = tmp_path / "plan.json"
    keys = runs.TINY_NETWORK | runs.WITHOUT_ATTENTION | runs.ONE_STAGE | {"model.dtype": "bfloat16"}
    done = subprocess.run(
        [sys.executable, "-m", "concertormer_jax", "plan", "--config=configs/demo.py", "--gpu=rtx4060", "--only=train"]
        + [f"--config.{key}={value}" for key, value in keys.items()]
        + [f"--output={output}"],
        cwd=runs.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "1 x NVIDIA GeForce RTX 4060" in done.stdout and "a run (roofline: " in done.stdout
    (program,) = json.loads(output.read_text())["programs"]
    assert program["fits"] and program["memory"]["optimiser"] >= 2 * program["memory"]["weights"]
    assert program["products"][SHORT] > 0 and program["hbm_bytes"] > program["memory"]["weights"]
    assert not program["unknown_loops"]
