"""Which batches of which recipe train on GPUs of which memory: a Markdown table from `plan --gpu`, which needs no GPU.

    python -m benchmarks.gpu_memory PLANS            compile what PLANS lacks, one after the other; then the table
    python -m benchmarks.gpu_memory PLANS --table    only the table

PLANS is a folder of the plans as JSON, one for each variant, crop, type and batch. What was not compiled is marked: it
is on the line through the smallest and the largest batch that were, or, of a single one, on the line from the state
(weights, optimiser, average) and the gradients, which are as large as the weights, at batch 0.
"""

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

GPU = "rtx4090"
CARDS_GIB = (8, 16, 24, 80)
USABLE = 0.98 * 0.75  # of a card: what the driver leaves, of which JAX takes three quarters
CELLS = [  # variant, crop in pixels, batches
    ("pocket", 128, (8, 64)),
    ("lite", 256, (4, 32)),
    ("gopro", 256, (2, 8)),
]
TYPES = ("bfloat16", "float32")
STATE = ("weights", "optimiser", "average of the weights")  # kinds of memory, as the plan names them


def main(arguments=None) -> None:
    """Compile what is missing and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("plans", type=Path)
    parser.add_argument("--table", action="store_true", help="compile nothing")
    flags = parser.parse_args(arguments)
    flags.plans.mkdir(parents=True, exist_ok=True)
    if not flags.table:
        for dtype in TYPES:
            for variant, crop_px, batches in CELLS:
                for batch in batches:
                    compile_plan(flags.plans, variant, crop_px, dtype, batch)
    print(table(flags.plans))


def compile_plan(folder: Path, variant: str, crop_px: int, dtype: str, batch: int) -> None:
    """Write the plan of a training step to `folder`, unless it is there."""
    output = folder / f"{variant}-{crop_px}-{dtype}-{batch}.json"
    if output.exists():
        return
    recipe = "pocket.py:decay" if variant == "pocket" else "gopro.py"
    keys = {"model.variant": variant, "model.dtype": dtype, "stages.steps": (2000,)}
    keys |= {"stages.crop_px": (crop_px,), "stages.batch": (batch,)}
    command = [sys.executable, "-m", "concertormer_jax", "plan", f"--config=configs/{recipe}", f"--gpu={GPU}"]
    command += [f"--config.{key}={value}" for key, value in keys.items()]
    subprocess.run([*command, "--only=train", f"--output={output}"], check=True)


def table(folder: Path) -> str:
    """Return the table of the plans in `folder`."""
    found = defaultdict(dict)
    for path in folder.glob("*.json"):
        variant, crop_px, dtype, batch = path.stem.split("-")
        (program,) = json.loads(path.read_text())["programs"]
        found[variant, int(crop_px), dtype][int(batch)] = program
    header = ["network", "crop", "type", "compiled batch: GiB", "GiB for a batch of n"]
    lines = [[*header, *(f"{card} GB" for card in CARDS_GIB)], ["---"] * len(header) + ["---:"] * len(CARDS_GIB)]
    for variant, crop_px, _ in CELLS:
        for dtype in TYPES:
            if programs := found[variant, crop_px, dtype]:
                lines.append([variant, f"{crop_px} px", dtype, *_row(programs)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _row(programs: dict[int, dict]) -> list[str]:
    """What was compiled, the line through it, and the largest batch of each card; ~ marks those not compiled."""
    known = {batch: program["memory_total"] / 2**30 for batch, program in sorted(programs.items())}
    compiled = ", ".join(f"{batch}: {size:.2f}" for batch, size in known.items())
    last = max(known)
    first = min(known)
    if first == last:
        memory = programs[last]["memory"]
        first = 0
        known[0] = sum(memory.get(kind, 0) for kind in (*STATE, "weights")) / 2**30
    each = (known[last] - known[first]) / (last - first)
    fixed = known[first] - each * first
    largest = [max(0, int((card * USABLE - fixed) / each)) for card in CARDS_GIB]
    cells = [("" if batch in programs else "~") + str(batch) if batch else "none" for batch in largest]
    return [compiled, f"{fixed:.2f} + {each:.3f} n", *cells]


if __name__ == "__main__":
    main()
