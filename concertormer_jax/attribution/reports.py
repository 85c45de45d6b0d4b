"""What an attribution leaves in its folder beside the pictures: the index of every picture and their mean."""

import dataclasses
import json
import statistics

from concertormer_jax.terminal import printable

COMPLETENESS_TOLERANCE = 0.02


@dataclasses.dataclass(frozen=True)
class Row:
    """The outcome for one picture. height, width: of the part that the network saw; window: as on the command line."""

    name: str
    height: int
    width: int
    window: str
    diffusion_index: float
    completeness: float


def results_json(checkpoint: str, settings: dict, rows: list[Row]) -> str:
    """Return the settings, the mean index and every picture's outcome as JSON."""
    content = {
        "checkpoint": checkpoint,
        "settings": settings,
        "images": len(rows),
        "mean": {"diffusion_index": statistics.fmean(row.diffusion_index for row in rows)},
        "per_image": [dataclasses.asdict(row) for row in rows],
    }
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def markdown_table(checkpoint: str, rows: list[Row]) -> str:
    """Return a Markdown table with one row for every picture, and the mean of several with its standard deviation."""
    lines = [
        ["checkpoint", "picture", "pixels seen", "window", "diffusion index", "completeness"],
        ["---", "---", "---", "---", "---:", "---:"],
    ]
    for row in rows:
        seen = f"{row.width}x{row.height}"
        index = f"{row.diffusion_index:.2f}"
        lines.append([checkpoint, row.name, seen, row.window, index, f"{row.completeness:.1%}"])
    if len(rows) > 1:
        indices = [row.diffusion_index for row in rows]
        mean = f"{statistics.fmean(indices):.2f} ± {statistics.stdev(indices):.2f}"
        lines.append([checkpoint, f"mean of {len(rows)} ± standard deviation", "", "", mean, ""])
    escaped = ([printable(cell).replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def warnings(rows: list[Row]) -> list[str]:
    """Return sentences on what limits the meaning of the numbers."""
    sentences = []
    incomplete = [row for row in rows if abs(row.completeness - 1) > COMPLETENESS_TOLERANCE]
    if incomplete:
        sentences.append(
            f"the contributions of {len(incomplete)} of {len(rows)} pictures differ from the detector's change by more "
            f"than {COMPLETENESS_TOLERANCE:.0%}, the first is {incomplete[0].name}; give more --steps."
        )
    if len({(row.height, row.width) for row in rows}) > 1:
        sentences.append("the pictures differ in size, on which the index depends; give a --crop that all contain.")
    return sentences
