"""What an evaluation leaves in its folder: a table per image, JSON, a Markdown row, a sheet of the worst ten, a page.

One set's files stand in the folder itself. Several sets have a folder each, and the tables over all of them stand in
the folder itself.
"""

import csv
import io
import json
import math
from pathlib import Path

import cv2

from concertormer_jax.data.images import read_rgb, to_uint8
from concertormer_jax.evaluation.evaluator import ORDERING_METRIC, worst_ten_path
from concertormer_jax.evaluation.scores import PROTOCOLS, Average, Evaluation, difference
from concertormer_jax.pages.comparison import PAGE_PICTURES, Compared, write_comparison
from concertormer_jax.photos.sheets import comparison_sheet
from concertormer_jax.runtime.errors import printable
from concertormer_jax.runtime.files import write_text, written_atomically

RESULTS_FILE = "results.json"
WORST = 10
PAGE_FILE = "comparison.html"
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


def write_reports(evaluation: Evaluation, output) -> None:
    """Write the files of one set into `output`: `per_image.csv`, `results.json`, `results.md`, `worst_ten.png` and
    `comparison.html`.

    The restored pictures and the data must lie where they were. Infinite values stand as the text `inf` or `-inf`, in
    JSON as a string, since JSON has no such number.
    """
    output = Path(output)
    write_text(output / "per_image.csv", per_image_csv(evaluation))
    write_text(output / RESULTS_FILE, results_json(evaluation))
    write_text(output / "results.md", markdown_table([evaluation]))
    with written_atomically(worst_ten_path(output)) as temporary:
        worst_sheet(evaluation).save(temporary, format="PNG")
    write_page(evaluation, output / PAGE_FILE)


def write_summary(evaluations, output) -> None:
    """Write `results.json` and `results.md` over several sets, with the protocol's average if it can be formed."""
    write_text(Path(output) / RESULTS_FILE, summary_json(evaluations))
    write_text(Path(output) / "results.md", markdown_table(evaluations))


def per_image_csv(evaluation: Evaluation) -> str:
    """Return a table with one line per image: size, whether TLC could act, and every metric restored, input, gain.

    With RealBlur's alignment, `aligned` says whether it converged for the restored picture and `input_aligned` for the
    input. A name that a spreadsheet would take for a formula, since it begins with =, +, -, @ or a control character,
    stands behind an apostrophe.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    scores = [f"{which}_{metric}" for metric in evaluation.metrics for which in ("restored", "input", "gain")]
    alignment = evaluation.unaligned("restored") is not None
    converged = ["aligned", "input_aligned"] if alignment else []
    writer.writerow(["name", "height", "width", "tlc_has_effect", *converged, *scores])
    for image in evaluation.images:
        tlc_has_effect = evaluation.tlc_window is not None and not image.window_covers
        row = [_text(image.name), image.height, image.width, _yes(tlc_has_effect)]
        row += [_yes(outcome) for outcome in image.converged or ()]
        for metric in evaluation.metrics:
            restored, degraded = image.restored[metric], image.input[metric]
            row += [_decimal(value) for value in (restored, degraded, difference(restored, degraded))]
        writer.writerow(row)
    return text.getvalue()


def results_json(evaluation: Evaluation) -> str:
    """Return the settings, the means and every image's scores as JSON."""
    content = {
        "checkpoint": evaluation.checkpoint,
        "variant": evaluation.variant,
        "protocol": evaluation.protocol,
        "set": evaluation.set.name,
        "images": len(evaluation.images),
        "tlc": {
            "setting": evaluation.tlc,
            "window_px": evaluation.tlc_window,
            "images_without_effect": sum(image.window_covers for image in evaluation.images),
        },
        "precision": evaluation.precision,
        "mean": _means(evaluation, evaluation.metrics),
        "images_not_aligned": {which: evaluation.unaligned(which) for which in ("restored", "input")},
        "opencv": cv2.__version__,  # on which RealBlur's alignment depends a little
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
    return _json(content)


def summary_json(evaluations) -> str:
    """Return the means of several sets, and their average or null, as JSON; the rest stands in each set's own file."""
    first = evaluations[0]
    average = PROTOCOLS[first.protocol].average(evaluations)
    content = {
        "checkpoint": first.checkpoint,
        "variant": first.variant,
        "protocol": first.protocol,
        "sets": {
            evaluation.set.name: {
                "images": len(evaluation.images),
                "tlc": {"setting": evaluation.tlc, "window_px": evaluation.tlc_window},
                "precision": evaluation.precision,
                "mean": _means(evaluation, first.metrics),
            }
            for evaluation in evaluations
        },
        "average": average
        and {"sets": [part.set.name for part in average.parts], "mean": _means(average, first.metrics)},
    }
    return _json(content)


def markdown_table(evaluations) -> str:
    """Return a Markdown table of evaluations by the same metrics, with its header: one row each, then the average."""
    metrics = evaluations[0].metrics
    titles = [f"{metric}{part}" for metric in metrics for part in ("", " of the input", " gain")]
    lines = [
        ["checkpoint", "protocol", "data", "images", "TLC", "precision", *titles],
        ["---", "---", "---", "---:", "---", "---", *["---:"] * len(titles)],
    ]
    for one in evaluations:
        precision = one.precision or "unknown"
        cells = [one.checkpoint, one.protocol, one.set.name, _images(one), tlc_description(one), precision]
        lines.append(cells + _score_cells(one, metrics))
    if average := PROTOCOLS[evaluations[0].protocol].average(evaluations):
        names = ", ".join(part.set.name for part in average.parts)
        cells = [evaluations[0].checkpoint, evaluations[0].protocol, f"average of {names}", "", "", ""]
        lines.append(cells + _score_cells(average, metrics))
    escaped = ([printable(cell).replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def tlc_description(evaluation: Evaluation) -> str:
    """Return the TLC setting in words, with the number of images that one window covers, so that TLC did nothing."""
    if evaluation.tlc_window is None:
        return "unknown" if evaluation.variant is None else "off"
    window = f"{evaluation.tlc_window} px"
    text = f"auto, {window}" if evaluation.tlc == "auto" else window
    covered = sum(image.window_covers for image in evaluation.images)
    if covered == len(evaluation.images):
        return f"{text}: no effect, the window covers every image"
    return f"{text}: no effect on {covered}, which the window covers" if covered else text


def worst_sheet(evaluation: Evaluation):
    """Return a Pillow picture with input, output, target and error of the ten images of lowest PSNR, worst first."""
    ranked = enumerate(_worst(evaluation, WORST), start=1)
    return comparison_sheet(
        (_caption(rank, image, evaluation.metrics), *_pictures(evaluation, image)) for rank, image in ranked
    )


def write_page(evaluation: Evaluation, path) -> None:
    """Write a page with a table and a slider for the images of lowest PSNR, at most 50, worst first."""
    metrics = tuple(dict.fromkeys([ORDERING_METRIC, *evaluation.metrics]))
    headings = [f"{metric}, {which}" for metric in metrics for which in ("restored", "input")]
    shown = _worst(evaluation, PAGE_PICTURES)

    def compared():
        for image in shown:
            degraded, restored, target = _pictures(evaluation, image)
            cells = [_rounded(metric, scores[metric]) for metric in metrics for scores in (image.restored, image.input)]
            yield Compared(printable(image.name), degraded, restored, target, cells)

    count = len(evaluation.images)
    selection = f"the {len(shown)} of lowest PSNR of {count} pictures" if count > len(shown) else f"{count} pictures"
    note = f"{evaluation.checkpoint}; {selection}, worst first. The restored files lie in restored/."
    write_comparison(path, evaluation.set.name, compared(), headings=headings, note=printable(note))


def _worst(evaluation, count):
    return sorted(evaluation.images, key=lambda image: image.restored[ORDERING_METRIC])[:count]


def _pictures(evaluation, image):
    """Input, restored and target of an image, uint8 [H, W, 3] each."""
    degraded, target = evaluation.set.read(image.index)
    return to_uint8(degraded), read_rgb(image.file), target


def _images(evaluation):
    count, unaligned = len(evaluation.images), evaluation.unaligned("restored")
    return f"{count} ({unaligned} not aligned)" if unaligned is not None else str(count)


def _score_cells(scores: Evaluation | Average, metrics):
    cells = []
    for metric in metrics:
        cells += [_rounded(metric, scores.mean(which, metric)) for which in ("restored", "input")]
        cells.append(_rounded(metric, scores.gain(metric), sign="+"))
    return cells


def _means(scores: Evaluation | Average, metrics):
    return {
        metric: {
            "restored": _json_number(scores.mean("restored", metric)),
            "input": _json_number(scores.mean("input", metric)),
            "gain": _json_number(scores.gain(metric)),
        }
        for metric in metrics
    }


def _json(content):
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def _caption(rank, image, metrics):
    scores = [
        f"{metric} {_rounded(metric, image.restored[metric])} (input {_rounded(metric, image.input[metric])})"
        for metric in dict.fromkeys([ORDERING_METRIC, *metrics])
    ]
    return f"{rank}.  {printable(image.name)}   {',   '.join(scores)}"


def _rounded(metric, value, sign=""):
    return f"{value:{sign}.{2 if metric.startswith('psnr') else 4}f}"


def _text(name):
    return f"'{name}" if name.startswith(_FORMULA_STARTS) else name


def _decimal(value):
    return f"{value:.6f}"


def _yes(flag):
    return str(bool(flag)).lower()


def _json_number(value):
    return value if math.isfinite(value) else str(value)
