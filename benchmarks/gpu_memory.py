"""Which batches of which recipe train on GPUs of which memory: a Markdown table from `plan --gpu`, which needs no GPU.

    python -m benchmarks.gpu_memory PLANS            compile what PLANS lacks, one program after the other; then the table
    python -m benchmarks.gpu_memory PLANS --table    only the table

PLANS is a folder of the plans as JSON, one for each variant, crop, type and batch. Of every variant, crop and type two
batches are compiled; what lies beside them is on the line through both, and marked.
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
CELLS = [  # variant, crop in pixels, whether blocks are recomputed, the two batches
    ("pocket", 128, False, (8, 64)),
    ("lite", 128, True, (4, 16)),
    ("lite", 256, True, (2, 8)),
    ("gopro", 128, True, (4, 16)),
    ("gopro", 256, True, (2, 8)),
]
TYPES = ("bfloat16", "float32")


def main() -> None:
    """Compile what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plans", type=Path)
    parser.add_argument("--table", action="store_true", help="compile nothing")
    flags = parser.parse_args()
    flags.plans.mkdir(parents=True, exist_ok=True)
    if not flags.table:
        for dtype in TYPES:
            for variant, crop_px, remat, batches in CELLS:
                for batch in batches:
                    compile_plan(flags.plans, variant, crop_px, remat, dtype, batch)
    print(table(flags.plans))


def compile_plan(folder: Path, variant: str, crop_px: int, remat: bool, dtype: str, batch: int) -> None:
    """Write the plan of a training step to `folder`, unless it is there."""
    output = folder / f"{variant}-{crop_px}-{dtype}-{batch}.json"
    if output.exists():
        return
    recipe = "pocket.py:decay" if variant == "pocket" else "gopro.py"
    keys = {"model.variant": variant, "model.remat": remat, "model.dtype": dtype, "stages.steps": (2000,)}
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
        found[variant, int(crop_px), dtype][int(batch)] = program["memory_total"] / 2**30
    header = ["network", "crop", "type", "memory in GiB", *(f"{card} GB" for card in CARDS_GIB)]
    lines = [header, ["---", "---", "---", "---", *["---:"] * len(CARDS_GIB)]]
    for variant, crop_px, _, _ in CELLS:
        for dtype in TYPES:
            if len(known := found[variant, crop_px, dtype]) > 1:
                lines.append([variant, f"{crop_px} px", dtype, *_row(known)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _row(known: dict[int, float]) -> list[str]:
    """The line through the compiled batches, and the largest batch of each card; ~ marks those not compiled."""
    first, last = min(known), max(known)
    each = (known[last] - known[first]) / (last - first)
    fixed = known[first] - each * first
    largest = [max(0, int((card * USABLE - fixed) / each)) for card in CARDS_GIB]
    cells = [("" if batch in known else "~") + str(batch) if batch else "none" for batch in largest]
    return [f"{fixed:.2f} + {each:.3f} n", *cells]


if __name__ == "__main__":
    main()
