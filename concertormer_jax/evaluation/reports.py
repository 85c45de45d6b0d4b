"""What an evaluation leaves in its folder: a table per image, JSON, a Markdown row, and a sheet of the worst ten."""

import csv
import io
import json
import math
from pathlib import Path

from concertormer_jax.data.images import read_rgb
from concertormer_jax.evaluation.evaluator import ORDERING_METRIC, Evaluation, difference
from concertormer_jax.evaluation.outputs import restored_path
from concertormer_jax.evaluation.pictures import comparison_sheet
from concertormer_jax.files import write_text, written_atomically

WORST = 10


def write_reports(evaluation: Evaluation, output) -> None:
    """Write `per_image.csv`, `results.json`, `results.md` and `worst_ten.png` into the folder `output`.

    The restored pictures must lie there (`evaluator.evaluate` puts them there) and the data where they were.
    Infinite values stand as the text `inf` or `-inf`, in JSON as a string, since JSON has no such number.
    """
    output = Path(output)
    write_text(output / "per_image.csv", per_image_csv(evaluation))
    write_text(output / "results.json", results_json(evaluation))
    write_text(output / "results.md", markdown_table([evaluation]))
    with written_atomically(output / "worst_ten.png") as temporary:
        worst_sheet(evaluation, output).save(temporary, format="PNG")


def per_image_csv(evaluation: Evaluation) -> str:
    """Return a table with one line per image: size, whether TLC could act, and every metric restored, input, gain."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    scores = [f"{which}_{metric}" for metric in evaluation.metrics for which in ("restored", "input", "gain")]
    writer.writerow(["name", "height", "width", "tlc_has_effect", *scores])
    for image in evaluation.images:
        tlc_has_effect = evaluation.tlc_window is not None and not image.window_covers
        row = [image.name, image.height, image.width, str(tlc_has_effect).lower()]
        for metric in evaluation.metrics:
            restored, degraded = image.restored[metric], image.input[metric]
            row += [_decimal(value) for value in (restored, degraded, difference(restored, degraded))]
        writer.writerow(row)
    return text.getvalue()


def results_json(evaluation: Evaluation) -> str:
    """Return the settings, the means and every image's scores as JSON."""
    content = {
        "checkpoint": evaluation.checkpoint,
        "data": evaluation.data,
        "images": len(evaluation.images),
        "tlc": {
            "setting": evaluation.tlc,
            "window_px": evaluation.tlc_window,
            "images_without_effect": sum(image.window_covers for image in evaluation.images),
        },
        "mean": {
            metric: {
                "restored": _json_number(evaluation.mean("restored", metric)),
                "input": _json_number(evaluation.mean("input", metric)),
                "gain": _json_number(evaluation.gain(metric)),
            }
            for metric in evaluation.metrics
        },
        "devices": evaluation.devices,
        "seconds": round(evaluation.seconds, 1),
        "per_image": [
            {
                "name": image.name,
                "height": image.height,
                "width": image.width,
                "restored": {metric: _json_number(image.restored[metric]) for metric in evaluation.metrics},
                "input": {metric: _json_number(image.input[metric]) for metric in evaluation.metrics},
            }
            for image in evaluation.images
        ],
    }
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def markdown_table(evaluations) -> str:
    """Return a Markdown table of evaluations by the same metrics, one row each, with its header."""
    metrics = evaluations[0].metrics
    titles = [f"{metric}{part}" for metric in metrics for part in ("", " of the input", " gain")]
    lines = [
        ["checkpoint", "data", "images", "TLC", *titles],
        ["---", "---", "---:", "---", *["---:"] * len(titles)],
    ]
    for evaluation in evaluations:
        cells = [evaluation.checkpoint, evaluation.data, str(len(evaluation.images)), tlc_description(evaluation)]
        for metric in metrics:
            cells += [
                _rounded(metric, evaluation.mean("restored", metric)),
                _rounded(metric, evaluation.mean("input", metric)),
                _rounded(metric, evaluation.gain(metric), sign="+"),
            ]
        lines.append([cell.replace("|", "\\|") for cell in cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def tlc_description(evaluation: Evaluation) -> str:
    """Return the TLC setting in words, with the number of images that one window covers, so that TLC did nothing."""
    if evaluation.tlc_window is None:
        return "off"
    window = f"{evaluation.tlc_window} px"
    text = f"auto, {window}" if evaluation.tlc == "auto" else window
    covered = sum(image.window_covers for image in evaluation.images)
    if covered == len(evaluation.images):
        return f"{text}: no effect, the window covers every image"
    return f"{text}: no effect on {covered}, which the window covers" if covered else text


def worst_sheet(evaluation: Evaluation, output):
    """Return a Pillow picture with input, output, target and error of the ten images of lowest PSNR, worst first."""
    worst = sorted(evaluation.images, key=lambda image: image.restored[ORDERING_METRIC])[:WORST]
    return comparison_sheet(
        (
            _caption(rank, image, evaluation.metrics),
            read_rgb(image.pair.input),
            read_rgb(restored_path(output, image.name)),
            read_rgb(image.pair.target),
        )
        for rank, image in enumerate(worst, start=1)
    )


def _caption(rank, image, metrics):
    scores = [
        f"{metric} {_rounded(metric, image.restored[metric])} (input {_rounded(metric, image.input[metric])})"
        for metric in dict.fromkeys([ORDERING_METRIC, *metrics])
    ]
    return f"{rank}.  {image.name}   {',   '.join(scores)}"


def _rounded(metric, value, sign=""):
    return f"{value:{sign}.{2 if metric.startswith('psnr') else 4}f}"


def _decimal(value):
    return f"{value:.6f}"


def _json_number(value):
    return value if math.isfinite(value) else str(value)
