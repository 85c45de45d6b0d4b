"""The compiler's final schedule: how often bundles run, whose they are, and what they add up to."""

import dataclasses
import json
import multiprocessing
import os
import re
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh

from concertormer_jax.planning import bundles, chips, compilation, hlo, schedule, schedule_report
from concertormer_jax.planning.compilation import Task
from concertormer_jax.runtime.devices import replicated
from concertormer_jax.runtime.errors import UserError

GOLDEN = Path(__file__).parent / "golden" / "schedule"
V5E = chips.CHIPS["v5e"]

# A pipeline of 3 turns, the first of which only starts a copy: its counter is kept in memory meanwhile. Within it, a
# loop of min(5, 9 - 5 i) turns in the pipeline's turn i (5 and 4 from the second on, as the counter is one ahead).
NESTED = """
     0   :  { %s1_s0 = smov 0 /* copy for cssa */ } /* Start region 9 */
   0x1 LB: > { %s2_s0 = sphi %s1_s0, %s9_s0 /* phi copy */ } /* Start region 1 :: Start region 5 */
   0x2   : > { %s3_s1 = sadd.s32 4294967295, %s2_s0  ;;  %90 = sst [smem:[#allocation2_spill]] %s2_s0 }
   0x3   : > { %s4_s2 = smul.u32 5, %s3_s1  ;;  %p1_p0 = scmp.lt.s32.totalorder %s2_s0, 1 }
   0x4   : > { %s5_s2 = ssub.s32 9, %s4_s2  ;;  %10 = sbr.rel (%p1_p0) target = $region2 }
   0x5   : > { %p2_p1 = scmp.lt.s32.totalorder %s5_s2, 5 }
   0x6   : > { %s6_s2 = smov (!%p2_p1, %s5_s2), 5  ;;  %s7_s3 = smov 0 }
   0x7   :  {}
   0x8   :  {}
   0x9 LB: >> { %s8_s3 = sphi %s7_s3, %s10_s3 } /* Start region 3 */
   0xa   : >> { %s10_s3 = sadd.s32 1, %s8_s3 }
   0xb   : >> { %p3_p2 = scmp.ge.s32.totalorder %s10_s3, %s6_s2 /* loop exit test */ }
   0xc   : >> { %11 = sbr.rel (!%p3_p2) target = $region3 }
   0xd   :  {}
   0xe   :  {}
   0xf   :  {}
  0x10   :  {} /* End region 3 */
  0x11   : > { %v1_v0 = vld [vmem:[#allocation0] sm:$0xff] }
  0x12 PF: > { %s11_s4 = sld [smem:[#allocation2_spill]] } /* Start/End empty region 2 */
  0x13   : > { %s9_s0 = sadd.s32 1, %s11_s4 }
  0x14   : > { %p4_p3 = scmp.ge.s32.totalorder %s9_s0, 3 /* loop exit test */ }
  0x15   :  { %12 = sbr.rel (!%p4_p3) target = $region1 }
  0x16   :  {}
  0x17   :  {}
  0x18   :  {}
  0x19   :  {} /* End region 1 */
  0x1a   :  { %20 = vsyncpa [#allocation3], 1 } /* exit bundle: %copy.1 = copy(%x) */
"""


def golden(name, folder=None):
    """The schedule of a stored dump, with what it is of: (schedule, program, runs)."""
    program = hlo.parse((GOLDEN / name / "hlo.txt").read_text())
    runs, unknown = hlo.executed(program)
    assert not unknown
    return schedule.read(folder or GOLDEN / name, program, runs), program, runs


def test_bundles_run_as_often_as_their_loops_turn():
    times, unknown = bundles.executions(bundles.split(NESTED))
    assert unknown == 0
    assert times == [
        *(1,),  # before the pipeline
        *(3,) * 8,  # its turns, with the four bundles behind the branch
        *(9,) * 8,  # the inner loop: 5 turns and 4
        *(2,),  # skipped in the first turn
        *(3,) * 8,
        *(1,),
    ]


def test_a_spill_slot_keeps_one_register_after_another():
    """In a first write that no load reads, and in the loop's counter."""
    first = "0x1 LB: > { %s2_s0 = sphi"
    again = NESTED.replace(first, "0x1   :  { %20 = sst [smem:[#allocation2_spill]] %s1_s0 }\n   " + first)
    times, unknown = bundles.executions(bundles.split(again))
    assert unknown == 0
    assert times == [1, *bundles.executions(bundles.split(NESTED))[0]]


def test_a_counter_that_only_a_spill_slot_keeps_is_not_known():
    text = """
     0   :  { %1 = sst [smem:[#allocation2_spill]] %s1_s0  ;;  %s1_s0 = smov 0 }
   0x1 LB: > { %s2_s0 = sld [smem:[#allocation2_spill]] } /* Start region 1 */
   0x2   : > { %s3_s0 = sadd.s32 1, %s2_s0 }
   0x3   : > { %2 = sst [smem:[#allocation2_spill]] %s3_s0  ;;  %p1_p0 = scmp.ge.s32.totalorder %s3_s0, 3 }
   0x4   :  { %3 = sbr.rel (!%p1_p0) target = $region1 }
"""
    assert bundles.executions(bundles.split(text)) == ([1] * 5, 1)


def test_only_empty_bundles_are_empty():
    empty = [i for i, bundle in enumerate(bundles.split(NESTED)) if bundles.is_empty(bundle)]
    assert empty == [7, 8, 13, 14, 15, 16, 22, 23, 24, 25]


def test_a_loop_of_unknown_length_counts_once_and_is_named():
    unclear = NESTED.replace("smul.u32 5, %s3_s1", "smul.u32 5, %s99_s9")
    times, unknown = bundles.executions(bundles.split(unclear))
    assert unknown == 1
    assert times[9:17] == [2] * 8  # once in each of the two turns that reach it
    assert times[1] == 3


def test_a_branch_of_unknown_condition_skips_nothing():
    unclear = NESTED.replace("scmp.lt.s32.totalorder %s2_s0, 1", "scmp.lt.s32.totalorder %s99_s9, 1")
    assert bundles.executions(bundles.split(unclear))[0][17] == 3


def test_a_kernel_counts_with_its_grid():
    """The bundles of the file: 0 to 4 before the pipeline, 5 to 0x44 in it, 0x45 to 0x48 behind it.

    The grid has 4 steps, so that the pipeline turns 6 times. In the first and the last turn it skips 0x26 to 0x38; in
    these is the loop of 64 turns from 0x29 to 0x36, whose branch is at 0x32.
    """
    found, program, runs = golden("kernel")
    inner = 0x36 - 0x29 + 1
    skipped = 0x38 - 0x26 + 1 - inner
    always = 0x44 - 0x05 + 1 - skipped - inner
    work = found.works["inner_loop.1"]
    assert work.cycles == 5 + 6 * always + 4 * skipped + 4 * 64 * inner + 4 == 3883
    assert work.slots["EUP"] == 4 * 64  # one exponential in each turn
    assert work.slots["MXU"] == 0
    assert found.between.cycles == 122
    summed = schedule_report.summed(program, runs, found, top=1)
    assert [row.name for row in summed.tables["part, stages together"]] == ["inner_loop", schedule_report.BETWEEN]
    assert summed.total.cycles == 3883 + 122


def test_stages_count_as_often_as_their_loop_turns():
    """Two stages of 3 equal blocks, each a copy of 4 bundles and a fusion of 29, written for the first stage only."""
    found, program, runs = golden("stages")
    assert {name: work.cycles for name, work in found.works.items()} == {
        "convert.10": 57,
        "copy.20": 4,
        "fusion.25": 29,
        "copy.1": 36,
        "reshape.1": 49,
        "copy.21": 4,
        "fusion.28": 29,
    }
    # 285 bundles; the stages' loops go from 0x96 to 0xbc and from 0xdd to 0x103 and turn 3 times.
    assert found.between.cycles == 285 + 2 * 2 * (0xBC - 0x96 + 1)
    assert found.missing == ()
    summed = schedule_report.summed(program, runs, found, top=3)
    stages = {row.name: row.work.cycles for row in summed.tables["stage"]}
    assert stages["encoders_0"] == stages["decoders_0"] == 3 * 29
    assert summed.total.slots["MXU"] == 2 * 3 * 9
    assert summed.total.cycles == 57 + 2 * 3 * (4 + 29) + 36 + 49 + found.between.cycles == 781


@pytest.mark.parametrize("top", [1, 100])
@pytest.mark.parametrize("name", ["kernel", "stages"])
def test_every_table_adds_up_to_the_total(name, top):
    found, program, runs = golden(name)
    summed = schedule_report.summed(program, runs, found, top)
    expected = found.between + sum(
        (found.works[run.instruction.name].times(run.times) for run in runs if run.instruction.name in found.works),
        schedule.NOTHING,
    )
    assert summed.total == expected
    for rows in summed.tables.values():
        assert sum((row.work for row in rows), schedule.NOTHING) == expected
        assert sum(row.times for row in rows) == sum(run.times for run in runs)


def test_equal_operations_have_equal_signatures():
    _, program, _ = golden("stages")
    home = {name: computation for computation in program.computations.values() for name in computation.instructions}
    signatures = {
        name: schedule.signature(program, home[name], home[name].instructions[name])
        for name in ("fusion.25", "fusion.28", "copy.20", "copy.21", "copy.1")
    }
    assert signatures["fusion.25"] == signatures["fusion.28"]
    assert signatures["copy.20"] == signatures["copy.21"]
    assert len(set(signatures.values())) == 3


def test_what_is_not_found_is_said(tmp_path):
    for path in (GOLDEN / "stages").iterdir():
        if "fusion.25" not in path.name:
            shutil.copy(path, tmp_path)
    found, program, runs = golden("stages", tmp_path)
    assert found.missing == ("fusion.25", "fusion.28")
    summed = schedule_report.summed(program, runs, found, top=3)
    text = schedule_report.describe(summed, schedule_report.roofline(summed, 1e9, 1e6, V5E.peak), images=1)
    assert "whose schedule was not found: fusion.25, fusion.28" in text


def test_the_largest_limit_binds():
    found, program, runs = golden("stages")
    summed = schedule_report.summed(program, runs, found, top=3)
    clock = 781 / 1.5e9
    for flops, size, binds, seconds in (
        (0, 0, "the schedule", clock),
        (197e12, 0, "the matrix units", 1.0),
        (197e12, 2 * 819e9, "main memory", 2.0),
    ):
        bounds = schedule_report.roofline(summed, flops, size, V5E.peak)
        assert (bounds.binds, bounds.step_s) == (binds, pytest.approx(seconds))
    text = schedule_report.describe(summed, bounds, images=4)
    assert "main memory 2000.00 ms: main memory binds" in text and "2.0 images/s" in text
    assert "waiting for main memory" in text


def test_percentages_are_of_the_slots_that_there_are():
    found, program, runs = golden("kernel")
    text = schedule_report.tables(schedule_report.summed(program, runs, found, top=1))
    heading, row = text.splitlines()[:2]
    values = dict(zip(heading.split(), row.split(), strict=False))
    assert values["kcycles"] == "3.9"
    assert values["EUP"] == f"{100 * 256 / 3883:.1f}"  # one slot a cycle


def test_no_files_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"libtpu .* wrote no schedule .* plan without --schedule"):
        golden("stages", tmp_path)


def leaves(config, mesh):
    """What libtpu does when it does not know a flag."""
    os._exit(1)


def test_refused_flags_are_one_sentence():
    with pytest.raises(UserError, match=r"libtpu .* does not take the flags"):
        compilation.compile_apart(leaves, None, "cpu", with_schedule=True)


def traced(function, mesh, *shapes):
    one = replicated(Mesh(mesh.devices[:1], mesh.axis_names))
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=one) for shape in shapes]
    return Task("forward", "a program", 1, 1, jax.jit(function).trace(*arguments))


def three_blocks(config, mesh):
    def block(x, w):
        return jnp.exp(x @ w), None

    return traced(lambda x, w: jax.lax.scan(block, x, w)[0].T, mesh, (16, 128), (3, 128, 128))


def kernel_of_four_steps(config, mesh):
    from jax.experimental import pallas as pl

    def kernel(x, result):
        def turn(i, product):
            return product * jnp.exp(x[pl.ds(8 * i, 8), :])

        result[...] = jax.lax.fori_loop(0, 64, turn, jnp.ones((8, 128)))

    call = pl.pallas_call(
        kernel,
        grid=(4,),
        in_specs=[pl.BlockSpec((512, 128), lambda i: (i, 0))],
        out_specs=pl.BlockSpec((8, 128), lambda i: (i, 0)),
        out_shape=jax.ShapeDtypeStruct((32, 128), jnp.float32),
        name="product",
    )
    return traced(call, mesh, (2048, 128))


def compiled(make, folder):
    """The schedule of a program for a TPU that is not there; libtpu's files stay in `folder`."""
    pytest.importorskip("libtpu", reason="pip install '.[plan]'")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(compilation._compile_for, make, None, "v5e:2x2", 0, folder).result()


def lines_of(folder, name="[^<>]+"):
    """The bundles of the files of operations of this name, each as one line."""
    return {
        found.group(1): [line for line in path.read_text().splitlines() if re.match(r" *(0x[0-9a-f]+|0) ", line)]
        for path in sorted(folder.iterdir())
        if (found := re.fullmatch(rf"\d+-({name})-\d\d-final_bundles.txt", path.name))
    }


def positions(lines, text):
    return [i for i, line in enumerate(lines) if text in line]


def test_a_program_is_counted_as_by_hand(tmp_path):
    found = compiled(three_blocks, tmp_path).schedule
    program, *others = lines_of(tmp_path, "TLP").values()
    assert not others
    (first,) = positions(program, "LB:")
    last = positions(program, "sbr.rel")[-1] + 4
    expected = len(program) + 2 * (last - first + 1) + sum(map(len, lines_of(tmp_path, "<.+>").values()))
    body = "\n".join(program[first : last + 1])
    operations = {name: lines for name, lines in lines_of(tmp_path).items() if name != "TLP"}
    assert len(operations) > 1
    for name, lines in operations.items():
        assert not positions(lines, "LB:")
        expected += len(lines) * (3 if f"%{name} =" in body else 1)
    assert found.total.cycles == expected
    assert found.missing == found.uncertain == ()
    json.dumps(dataclasses.asdict(found))


def test_a_pallas_kernel_is_counted_as_by_hand(tmp_path):
    plan = compiled(kernel_of_four_steps, tmp_path)
    (lines,) = lines_of(tmp_path, r"product[.\d]*").values()
    outer, inner = positions(lines, "LB:")
    skip, inner_end, outer_end = positions(lines, "sbr.rel")
    (fallthrough,) = positions(lines, "PF:")
    inside = inner_end + 4 - inner + 1
    skipped = fallthrough - (skip + 5) - inside
    always = outer_end + 4 - outer + 1 - skipped - inside
    around = len(lines) - always - skipped - inside
    (row,) = [row for row in plan.schedule.tables["operation"] if row.name.startswith("product")]
    assert row.work.cycles == around + 6 * always + 4 * skipped + 4 * 64 * inside
    assert row.work.slots["EUP"] == 4 * 64


def test_a_folder_that_libtpu_would_cut_at_a_space_is_refused(monkeypatch):
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--given=1")
    with pytest.raises(UserError, match=r"cannot write to /tmp/a b; set TMPDIR"):
        schedule.request(Path("/tmp/a b"))
    assert os.environ["LIBTPU_INIT_ARGS"] == "--given=1"
