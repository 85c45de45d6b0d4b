"""Reading compiled programs as text."""

import pytest

from concertormer_jax.planning import hlo, profile

# An inner loop of 3 runs (from 2 to 11 in steps of 3, as its condition says) in an outer loop of 4 runs (written down).
LOOPS = """HloModule loops, is_scheduled=true, entry_computation_layout={(f32[8]{0:T(128)})->f32[8]{0:T(128)}}

FileNames
1 "/home/me/train.py"
2 "/home/me/concertormer_jax/ops/attention.py"
3 "/usr/lib/python3/jax/numpy.py"

FunctionNames
1 "f"

FileLocations
1 {file_name_id=1 function_name_id=1 line=10 end_line=10 column=4 end_column=9}
2 {file_name_id=2 function_name_id=1 line=48 end_line=48 column=4 end_column=9}
3 {file_name_id=3 function_name_id=1 line=7 end_line=7 column=4 end_column=9}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}
4 {file_location_id=1 parent_frame_id=1}

%inner_condition (p: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(11)
  %p = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%inner_body (p.1: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p.1 = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %three = s32[]{:T(128)} constant(3)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %copied = s32[]{:T(128)S(6)} copy(%i.1)
  %next = s32[]{:T(128)} add(%copied, %three)
  %x.1 = f32[8]{0:T(128)} get-tuple-element(%p.1), index=1
  %work = f32[8]{0:T(128)} negate(%x.1), metadata={op_name="jit(f)/jit(main)/inner/neg" stack_frame_id=3}, backend_config={"window_config":{"estimated_cycles":"100"}}
  ROOT %tuple.1 = (s32[]{:T(128)}, f32[8]{0:T(128)}) tuple(%next, %work)
}

%outer_condition (p.2: (s32[], f32[8])) -> pred[] {
  %p.2 = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  ROOT %anything = pred[]{:T(512)} custom-call(%p.2), custom_call_target="Opaque"
}

%outer_body (p.3: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p.3 = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %two = s32[]{:T(128)} constant(2)
  %x.3 = f32[8]{0:T(128)} get-tuple-element(%p.3), index=1
  %start = (s32[]{:T(128)}, f32[8]{0:T(128)}) tuple(%two, %x.3)
  ROOT %inner = (s32[]{:T(128)}, f32[8]{0:T(128)}) while(%start), condition=%inner_condition, body=%inner_body
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0:T(128)} parameter(0), metadata={op_name="x"}
  %zero = s32[]{:T(128)} constant(0)
  %start.1 = (s32[]{:T(128)}, f32[8]{0:T(128)}) tuple(%zero, %x)
  %outer = (s32[]{:T(128)}, f32[8]{0:T(128)}) while(%start.1), condition=%outer_condition, body=%outer_body, backend_config={"known_trip_count":{"n":"4"}}
  %end = f32[8]{0:T(128)} get-tuple-element(%outer), index=1
  ROOT %result = f32[8]{0:T(128)} negate(%end), backend_config={"window_config":{"estimated_cycles":"7"}}
}
"""  # noqa: E501

# A slice of a large array in a fusion, an update in place, a branch, copies between memories, and exchanges.
TRAFFIC = """HloModule traffic

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %a_plus_b = f32[] add(%a, %b)
}

%sliced (large: f32[100,256], at: s32[]) -> f32[256] {
  %large = f32[100,256]{1,0} parameter(0)
  %at = s32[] parameter(1)
  %nought = s32[] constant(0)
  %row = f32[1,256]{1,0} dynamic-slice(%large, %at, %nought), dynamic_slice_sizes={1,256}
  ROOT %flat = f32[256]{0} bitcast(%row)
}

%updated (stack: f32[100,256], new: f32[1,256], where: s32[]) -> f32[100,256] {
  %stack = f32[100,256]{1,0} parameter(0)
  %new = f32[1,256]{1,0} parameter(1)
  %where = s32[] parameter(2)
  %nought.1 = s32[] constant(0)
  ROOT %update = f32[100,256]{1,0} dynamic-update-slice(%stack, %new, %where, %nought.1)
}

%reduced (y: f32[256]) -> f32[256] {
  %y = f32[256]{0} parameter(0)
  ROOT %exchange = f32[256]{0} all-reduce(%y), to_apply=%sum
}

%cheap (c: f32[256]) -> f32[256] {
  %c = f32[256]{0} parameter(0)
  ROOT %cheap_result = f32[256]{0} negate(%c), backend_config={"window_config":{"estimated_cycles":"10"}}
}

%dear (d: f32[256]) -> f32[256] {
  %d = f32[256]{0} parameter(0)
  ROOT %dear_result = f32[256]{0} exponential(%d), backend_config={"window_config":{"estimated_cycles":"30"}}
}

ENTRY %main (input: f32[100,256], which: s32[]) -> f32[100,256] {
  %input = f32[100,256]{1,0} parameter(0)
  %which = s32[] parameter(1)
  %slice_fusion = f32[256]{0} fusion(%input, %which), kind=kLoop, calls=%sliced
  %copy-start.1 = (f32[256]{0:S(1)}, f32[256]{0}, u32[]{:S(2)}) copy-start(%slice_fusion)
  %copy-done.1 = f32[256]{0:S(1)} copy-done(%copy-start.1)
  %near = f32[256]{0:S(1)} negate(%copy-done.1)
  %choice = f32[256]{0} conditional(%which, %near, %near), branch_computations={%cheap, %dear}
  %exchange_fusion = f32[256]{0} fusion(%choice), kind=kCustom, calls=%reduced
  %all-reduce.9 = (f32[256]{0}, f32[2,256]{1,0}) all-reduce(%exchange_fusion, %input), to_apply=%sum
  %again = f32[1,256]{1,0} bitcast(%exchange_fusion)
  ROOT %update_fusion = f32[100,256]{1,0} fusion(%input, %again, %which), kind=kLoop, calls=%updated
}
"""
ROW = 256 * 4


def runs_of(text):
    runs, unknown = hlo.executed(hlo.parse(text))
    return {run.instruction.name: run for run in runs}, unknown


def test_nested_loops_multiply():
    runs, unknown = runs_of(LOOPS)
    assert runs["work"].times == 3 * 4
    assert sum(run.times * (run.instruction.cycles or 0) for run in runs.values()) == 12 * 100 + 7
    assert not unknown


@pytest.mark.parametrize(
    ("old", "new", "times"),
    [
        ("constant(11)", "constant(12)", 4),  # 2, 5, 8, 11
        ("constant(11)", "constant(2)", 0),
        ("constant(2)", "constant(10)", 1),
        ("constant(3)", "constant(1)", 9),
    ],
)
def test_trips_follow_from_start_step_and_limit(old, new, times):
    assert runs_of(LOOPS.replace(old, new))[0].get("work", None).times == times * 4


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("direction=LT", "direction=NE"),
        ("add(%copied, %three)", "multiply(%copied, %three)"),
        ("while(%start)", "while(%p.3)"),  # so that what it counts from is not seen
    ],
)
def test_a_loop_that_cannot_be_counted_is_named_and_counts_once(old, new):
    runs, unknown = runs_of(LOOPS.replace(old, new))
    assert unknown == ["inner"]
    assert runs["work"].times == 4


def test_a_text_without_entry_is_refused():
    with pytest.raises(ValueError, match="entry"):
        hlo.parse(LOOPS.replace("ENTRY ", ""))


@pytest.mark.parametrize(
    ("dtype", "dims", "layout", "size"),
    [
        ("f32", (3, 5), "1,0:T(8,128)", 8 * 128 * 4),
        ("f32", (3, 200), "0,1:T(8,128)", 200 * 128 * 4),  # the first axis lies along the lanes
        ("bf16", (2, 9, 24), "2,1,0:T(8,128)(2,1)S(1)", 2 * 16 * 128 * 2),
        ("f32", (130,), "0:T(128)", 256 * 4),
        ("s32", (), ":T(128)", 4),
        ("f32", (3, 5), "1,0", 60),
        ("pred", (3,), "", 3),
    ],
)
def test_sizes_include_the_padding_of_tiles(dtype, dims, layout, size):
    assert hlo.Shape(dtype, dims, layout).bytes == size


def test_a_slice_reads_the_slice_and_an_update_writes_the_update():
    runs, _ = runs_of(TRAFFIC)
    scalar = 4
    assert runs["slice_fusion"].bytes == ROW + scalar + ROW
    assert runs["update_fusion"].bytes == ROW + scalar + ROW


def test_memory_on_the_chip_is_told_from_main_memory():
    runs, _ = runs_of(TRAFFIC)
    assert (runs["near"].bytes, runs["near"].hbm_bytes) == (2 * ROW, 0)
    assert (runs["copy-start.1"].bytes, runs["copy-start.1"].hbm_bytes) == (2 * ROW, ROW)
    assert runs["copy-done.1"].bytes == 0


def test_branches_share_one_run():
    runs, _ = runs_of(TRAFFIC)
    assert runs["cheap_result"].times == runs["dear_result"].times == 0.5


def test_exchanges_are_found_in_fusions_too():
    program = hlo.parse(TRAFFIC)
    found = {
        run.instruction.name: [sum(s.bytes for s in c.shapes) for c in hlo.collectives(program, run.instruction)]
        for run in hlo.executed(program)[0]
    }
    assert found["exchange_fusion"] == [ROW]
    assert found["all-reduce.9"] == [3 * ROW]
    assert found["near"] == found["slice_fusion"] == []


def test_lines_of_the_package_are_named():
    program = hlo.parse(LOOPS)
    assert [line.rpartition("/")[2] for line in program.sources[3]] == ["train.py:10", "attention.py:48", "numpy.py:7"]
    assert program.sources[4] == ("/home/me/train.py:10",)
    rows = {row.name: row for row in profile.tables(program, hlo.executed(program)[0], 10)["line"]}
    assert rows["ops/attention.py:48"].cycles == 1200


def test_tables_add_up_and_are_sorted():
    program = hlo.parse(LOOPS)
    runs, _ = hlo.executed(program)
    for rows in profile.tables(program, runs, 10).values():
        assert sum(row.cycles for row in rows) == 1207
        assert [row.cycles for row in rows] == sorted((row.cycles for row in rows), reverse=True)
    assert len(profile.tables(program, runs, 1)["instruction"]) == 1


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("jit(f)/Net/encoders_0/while/body/closed_call/blocks.apply/blocks/norm/add", "Net/encoders_0/blocks/norm/add"),
        ("jit(step)/transpose(jvp(Net))/middle/while/body/blocks/mul", "backward Net/middle/blocks/mul"),
        ("jit(step)/jvp(Net)/ending/add", "Net/ending/add"),
        ("", ""),
    ],
)
def test_places_leave_loops_and_transformations_out(scope, expected):
    assert profile.place(scope) == expected


def test_the_working_memory_of_gpu_libraries_is_no_traffic():
    text = """HloModule product

ENTRY %main (a: bf16[4,8], b: bf16[8,2]) -> bf16[4,2] {
  %a = bf16[4,8]{1,0} parameter(0)
  %b = bf16[8,2]{1,0} parameter(1)
  %call = (bf16[4,2]{1,0}, s8[4194304]{0}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul"
  ROOT %product = bf16[4,2]{1,0} get-tuple-element(%call), index=0
}
"""
    (run,), _ = hlo.executed(hlo.parse(text))
    assert run.bytes == run.hbm_bytes == 2 * (4 * 8 + 8 * 2 + 4 * 2)
