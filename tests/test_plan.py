"""The plan of a run: what is counted, what is said, and the command from end to end."""

import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
import training_runs as runs

from concertormer_jax.models import costs, parameter_shapes
from concertormer_jax.ops.dispatch import traced_for
from concertormer_jax.planning import chips, compilation, fitting, profile, report
from concertormer_jax.planning.compilation import Collective, Plan, compile_apart, compile_task, too_large
from concertormer_jax.runtime.devices import data_mesh
from concertormer_jax.runtime.errors import UserError
from configs import common

V5E = chips.CHIPS["v5e"]
GIB = 2**30


def config_with(settings):
    return runs.override(common.get_config(), settings)


def target(name, count):
    return chips.Target(name, chips.CHIPS[name.partition(":")[0]], (None,) * count)


def plan_of(**changes):
    fields = {
        "kind": "train",
        "name": "phase 1 (128 px x 64)",
        "images": 64,
        "steps": 36_000,
        "compile_s": 12.34,
        "products": {"float32, default precision": 1.97e12},
        "memory_limit": 16 * GIB,
        "memory_total": 3 * GIB,
        "memory": {"weights": GIB, "optimiser": 2 * GIB},
        "program_bytes": 82_500_000,
        "bytes": 60.2e9,
        "hbm_bytes": 8.19e9,
        "cycles": 150e6,
        "instructions": 2093,
    }
    return Plan(**(fields | changes))


def flops_of(function, *shapes):
    return costs.flops(jax.jit(function).trace(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).jaxpr)


def test_products_count_two_operations_for_each_cell():
    assert flops_of(lambda a, b: a @ b, (5, 7), (7, 3)) == 2 * 5 * 7 * 3
    assert flops_of(lambda a, b: jnp.einsum("bij,bkj->bik", a, b), (2, 5, 7), (2, 3, 7)) == 2 * 2 * 5 * 7 * 3


def test_loops_multiply_and_recomputation_counts():
    def scanned(a, b):
        return jax.lax.scan(lambda carry, _: (carry @ b, None), a, None, length=4)[0].sum()

    once = 2 * 5 * 5 * 5
    assert flops_of(scanned, (5, 5), (5, 5)) == 4 * once
    assert flops_of(jax.grad(scanned), (5, 5), (5, 5)) == 4 * once + 4 * once


def test_what_is_computed_again_counts_again():
    def loss(function):
        return jax.grad(lambda b, a: function(a, b).sum())

    def products(a, b):
        return jnp.sin(a @ b) @ b

    kept, recomputed = (flops_of(loss(f), (5, 5), (5, 5)) for f in (products, jax.checkpoint(products)))
    assert recomputed == kept + 2 * 5 * 5 * 5


def test_convolutions_count_the_channels_of_their_group():
    def convolve(images, kernel, groups):
        return jax.lax.conv_general_dilated(
            images, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
        )

    cells = 4 * 3 * 3 * 6  # of the output
    assert flops_of(lambda x, k: convolve(x, k, 1), (4, 7, 7, 2), (3, 3, 2, 6)) == 2 * cells * 9 * 2
    assert flops_of(lambda x, k: convolve(x, k, 2), (4, 7, 7, 2), (3, 3, 1, 6)) == 2 * cells * 9


def test_the_costlier_branch_of_a_conditional_counts():
    def branched(a, b):
        return jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: (a @ b) @ b)

    assert flops_of(branched, (5, 5), (5, 5)) == 2 * 2 * 5 * 5 * 5


def test_programs_are_traced_for_their_target(monkeypatch):
    device, chip = SimpleNamespace(platform="tpu"), SimpleNamespace(memory_bytes=0)
    target = SimpleNamespace(devices=[device], chip=chip, compiler_options={})
    monkeypatch.setattr(compilation.chips, "target", lambda name: target)
    monkeypatch.setattr(compilation, "data_mesh", lambda devices: None)
    monkeypatch.setattr(compilation, "compile_task", lambda task, *_: task)
    monkeypatch.setattr(compilation.jax.config, "update", lambda *_: None)
    assert compilation._compile_for(lambda config, mesh: traced_for.value, None, "v5e:1x1", 0) == "tpu"


@pytest.mark.parametrize(
    ("message", "used", "available"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (49.77G) "
            "exceeds available HBM (15.75G).",
            49.77 * GIB,
            15.75 * GIB,
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 20.12G "
            "of 15.75G hbm. Exceeded hbm capacity by 4.37G.\n\nTotal hbm usage >= 20.38G:",
            20.12 * GIB,
            15.75 * GIB,
        ),
        ("RESOURCE_EXHAUSTED: something else\nmore", 0, 0),
    ],
)
def test_messages_about_memory_are_read(message, used, available):
    sentence, *sizes = too_large(message)
    assert sizes == [int(used), int(available)]
    assert "\n" not in sentence and not sentence.startswith("RESOURCE")


def test_other_messages_are_not_about_memory():
    assert too_large("INTERNAL: Mosaic failed, Used 1G of 2G hbm") is None


def test_suggestions_go_from_cheap_to_costly():
    config = config_with({"model.remat": False, "stages.batch": (64,)})
    found = [s.flags for s in fitting.suggestions_for_training(config, target("v5e:2x4", 8), excess=3.2)]
    assert found[:3] == [
        "--config.model.remat=True",
        "--config.train.accumulation=4",  # 8 images on each chip; 2 parts would not do
        "--config.model.remat=True --config.train.accumulation=2",
    ]
    assert found[-1] == "--config.model.remat=True --tpu=v5e:4x8"
    assert len(set(found)) == len(found)


def test_suggestions_do_not_repeat_what_is_set():
    settings = {"model.remat": True, "model.dtype": "bfloat16", "train.accumulation": 2, "stages.batch": (32,)}
    found = [s.flags for s in fitting.suggestions_for_training(config_with(settings), target("v5e:2x4", 8), excess=1.5)]
    assert found == ["--config.train.accumulation=4", "--tpu=v5e:4x4"]


@pytest.mark.parametrize(("batches", "parts"), [((8,), []), ((64, 16, 8), []), ((24,), [3]), ((64, 32), [2, 4])])
def test_suggestions_divide_the_batches_of_all_phases(batches, parts):
    stages = {"stages.batch": batches, "stages.steps": (2,) * len(batches), "stages.crop_px": (64,) * len(batches)}
    config = config_with({"model.remat": False, **stages})
    suggestions = fitting.suggestions_for_training(config, target("v5e:2x4", 8), excess=1.0)
    assert sorted({s.keys["train.accumulation"] for s in suggestions if "train.accumulation" in s.keys}) == parts
    for suggestion in suggestions:
        chosen = fitting.with_suggestion(config, suggestion)
        compilation.require_trainable(chosen, chips.count(suggestion.tpu or "v5e:2x4"))


def test_a_suggestion_changes_a_copy_of_the_config():
    config = config_with({"model.remat": False}).lock()
    other = fitting.with_suggestion(config, fitting.Suggestion({"model.remat": True, "train.accumulation": 4}))
    assert (other.model.remat, other.train.accumulation) == (True, 4)
    assert (config.model.remat, config.train.accumulation) == (False, 1)


@pytest.mark.parametrize("name", ["v5e", "v5e:2", "v5e:2x2x1", "v4:2x2", "v7:2x2", "v5e:0x1", "2x4"])
def test_an_unknown_tpu_is_one_sentence(name):
    with pytest.raises(UserError, match="v5e:2x4"):
        chips.tpu(name)


def test_larger_tpus_double():
    assert chips.larger("v5e:2x4", 64) == ["v5e:4x4", "v5e:4x8", "v5e:8x8"]
    assert chips.larger("v5p:2x2x1", 8) == ["v5p:2x2x2"]
    assert chips.larger("v5e:2x4", 8) == []


def test_times_follow_from_cycles_and_from_the_slower_of_arithmetic_and_memory():
    assert report.cycles_s(plan_of(), V5E) == pytest.approx(0.1)
    assert report.roofline_s(plan_of(), V5E) == pytest.approx(0.01)  # both at 10 ms
    assert report.roofline_s(plan_of(hbm_bytes=81.9e9), V5E) == pytest.approx(0.1)
    assert report.roofline_s(plan_of(products={"bfloat16": 19.7e12}), V5E) == pytest.approx(0.1)


def test_a_program_that_fits_is_described():
    collectives = (Collective("all-reduce", 3, 12.0, 2.5e9),)
    text = report.describe(plan_of(collectives=collectives, unknown_loops=("while.7",)), V5E)
    for part in (
        "phase 1 (128 px x 64): fits",
        "3.00 GiB of 16.00 GiB on each chip: weights 1.00 GiB, optimiser 2.00 GiB",
        "1.97 TFLOP",
        "60.2 GB on each chip, 8.19 GB of it",
        "3 all-reduce, run 12 times on 2.5 GB",
        "82.5 MB, compiled in 12.3 s",
        "150.00 million, the compiler's estimate",
        "estimates     100.0 ms a run by the cycles; 10.0 ms at best",
        "640.0 images/s by the cycles; 36,000 steps in 1.0 h (at best 0.1 h)",
        "while.7",
    ):
        assert part in text, text


def test_without_cycles_no_time_is_estimated():
    text = report.describe(plan_of(cycles=None), chips.Chip("cpu", 0))
    assert "estimate" not in text and "images/s" not in text


@pytest.mark.parametrize(
    "cycles, heading, row",
    [
        (4e6, "Mcycles     %       GB", "   3.000  75.0    1.000    0.500      2       6  dot"),
        (None, "    %       GB   HBM GB", " 25.0    1.000    0.500      2       6  dot"),
    ],
)
def test_shares_are_those_of_bytes_where_there_are_no_cycles(cycles, heading, row):
    rows = [profile.Row("dot", 2, 6.0, 3e6 if cycles else 0.0, 1e9, 0.5e9)]
    lines = report.tables(plan_of(cycles=cycles, bytes=4e9, tables={"kind": rows})).splitlines()
    assert heading in lines[0] and lines[0].endswith("by kind")
    assert lines[1] == row


def test_a_program_that_does_not_fit_names_reason_and_suggestions():
    text = report.describe(plan_of(reason="it needs 20 GiB"), V5E, ["try --config.model.remat=True"])
    assert "does NOT fit, it needs 20 GiB" in text
    assert "suggestion    try --config.model.remat=True" in text
    assert "images/s" not in text


def test_memory_is_told_by_kind_and_loops_are_counted():
    config = config_with(runs.TINY_RUN | runs.WITHOUT_ATTENTION | {"train.ema_decay": 0.9})
    task = compilation.training_task(config, data_mesh(jax.devices()[:1]), 2)
    plan = compile_task(task, 2**40, table_rows=3)
    weights = 4 * sum(leaf.size for leaf in jax.tree.leaves(parameter_shapes(compilation.module_from(config.model))))
    assert plan.fits and (plan.kind, plan.images, plan.steps) == ("train", 8, 4)
    assert plan.memory["weights"] == plan.memory["average of the weights"] == weights
    assert 2 * weights <= plan.memory["optimiser"] <= 2 * weights + 100
    assert plan.memory["batch"] == 2 * 8 * 32 * 32 * 3
    assert plan.memory_total == sum(plan.memory.values())
    assert not plan.unknown_loops
    assert compile_task(task, plan.memory_total - 1).reason


def test_a_batch_of_any_phase_that_does_not_divide_is_one_sentence():
    config = config_with(runs.TINY_RUN | {"stages.batch": (8, 9)})
    with pytest.raises(UserError, match="batch of 9 images of phase 2 does not divide over 2 devices"):
        compilation.training_task(config, data_mesh(jax.devices()[:2]), 1)


def killed(config, mesh):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_compiler_is_one_sentence():
    with pytest.raises(UserError, match="too little memory"):
        compile_apart(killed, None, "cpu")


OF_A_TINY_NETWORK = [
    "--config=configs/demo.py",
    *(
        f"--config.{key}={value}"
        for key, value in (runs.TINY_NETWORK | runs.WITHOUT_ATTENTION | runs.ONE_STAGE).items()
    ),
]


def python(*arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=runs.ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )


def command(*arguments):
    return python("-m", "concertormer_jax", "plan", *OF_A_TINY_NETWORK, *arguments)


def test_the_command_plans_for_this_machine(tmp_path):
    output = tmp_path / "plans" / "cpu.json"
    done = command("--device=cpu", "--evaluate=24x40", f"--output={output}", "--profile=2")
    assert done.returncode == 0, done.stderr
    train, evaluation = json.loads(output.read_text())["programs"]
    assert train["fits"] and evaluation["fits"]
    assert min(train["flops"], train["bytes"], evaluation["flops"], evaluation["bytes"]) > 0
    assert (train["steps"], evaluation["steps"]) == (2, None)
    assert "phase 1 (16 px x 8): fits" in done.stdout
    assert "evaluation (24x40, TLC windows of 64 px, protocol pairs): fits" in done.stdout
    assert "by kind" in done.stdout


SEVERAL_COMMANDS = """
import json, sys
from absl.testing import flagsaver
from concertormer_jax.commands import plan
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["plan", *arguments]  # where the keys of a config are looked for
    with flagsaver.flagsaver():
        try:
            plan.main()
        except SystemExit as stopped:
            print("exit status", stopped.code, file=sys.stderr)
"""


def test_a_wrong_flag_is_one_sentence():
    """One process for all, as most of the time goes into starting it."""
    wrong = {
        (): "one of --tpu=NAME:TOPOLOGY, --gpu=NAME and --device",
        ("--device=cpu", "--tpu=v5e:2x4"): "one of --tpu=NAME:TOPOLOGY, --gpu=NAME and --device",
        ("--gpu=rtx4091",): "--gpu=rtx4091 is unknown; give one of t4, l4",
        ("--device=cpu", "--forward=64x64", "--largest_batch"): "--largest_batch is that of the training",
        ("--device=cpu", "--schedule"): "--schedule is that of a TPU",
        ("--device=cpu", "--shard=on"): "--shard=on: value should be one of <auto|off>",
        ("--device=cpu", "--forward=256"): "--forward=256: must be WIDTHxHEIGHT",
        ("--device=cpu", "--tlc=100"): "--tlc=100: must be a multiple of 64 pixels",
        ("--device=cpu", "--forward=16x16", "--tlc=off", "--only=evaluate"): "--only and --tlc would do nothing beside",
        ("--device=cpu", "--only=train", "--evaluate=16x16"): "--evaluate would do nothing beside --only=train",
        ("--device=cpu", "--config.model.widht=3"): "no such key",
        ("--device=cpu", "--config.train.accumulation=3"): "does not divide over",
    }
    done = python("-c", SEVERAL_COMMANDS, json.dumps([[*OF_A_TINY_NETWORK, *arguments] for arguments in wrong]))
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 2 * len(wrong)
    for words, error, status in zip(wrong.values(), lines[::2], lines[1::2], strict=True):
        assert error.startswith("error: ") and words in error
        assert status == "exit status 2"


def test_a_tpu_that_is_not_there_is_compiled_for(tmp_path, monkeypatch):
    pytest.importorskip("libtpu", reason="pip install '.[plan]'")
    folder = tmp_path / "of_schedules"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    output = tmp_path / "plan.json"
    done = command("--tpu=v5e:1x1", "--forward=16x16", "--profile=3", "--schedule", f"--output={output}")
    assert done.returncode == 0, done.stderr
    assert "1 x TPU v5e" in done.stdout
    assert "roofline      schedule" in done.stdout and "by part, stages together" in done.stdout
    (program,) = json.loads(output.read_text())["programs"]
    assert program["estimated_step_s_by_schedule"] >= program["schedule"]["total"]["cycles"] / 1.5e9 > 0
    assert not list(folder.glob("schedule-*"))
    assert "the compiler's estimate" in done.stdout and "images/s by the cycles" in done.stdout
