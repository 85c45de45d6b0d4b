"""The results table: what the paper says, the published weights give here, and weights trained here give."""

import dataclasses
import json
from pathlib import Path

from concertormer_jax.evaluation.reports import RESULTS_FILE
from concertormer_jax.evaluation.scores import PROTOCOLS, protocol_named
from concertormer_jax.runtime import errors
from concertormer_jax.runtime.errors import printable
from concertormer_jax.runtime.paths import AnyPath, local_path

_PAPER_FILE = Path(__file__).parent / "paper.json"
_EMPTY = "-"
_AVERAGE = "average"


@dataclasses.dataclass(frozen=True)
class Result:
    """A PSNR and SSIM of a network on a set, or on the average of the protocol's; remarks: what differs from it."""

    file: Path
    protocol: str
    set: str
    variant: str
    psnr: float
    ssim: float
    remarks: tuple[str, ...]


def results_table(trained, published=()) -> str:
    """Return the Markdown table; trained, published: paths of results.

    Raises UserError naming a file that is no results file, was not made by this program's network, lacks the protocol's
    metrics, or stands for a cell that another fills.
    """
    paper = json.loads(_PAPER_FILE.read_text())["rows"]
    columns = [_by_row(published), _by_row(trained)]
    rows = {(row["protocol"], row["set"], row["variant"]): row for row in paper}
    known = list(rows) + sorted({key for column in columns for key in column} - rows.keys())
    lines = ["| set | network | metrics | paper | published weights | trained here |", "|---|---|---|---:|---:|---:|"]
    for key in known:
        row = rows.get(key, {"psnr": None, "ssim": None})
        protocol, name, variant = key
        title = name if name == protocol else f"{protocol}: {name}"
        metrics = " / ".join(PROTOCOLS[protocol].metrics)
        cells = [title, variant, metrics, _numbers(row["psnr"], row["ssim"]), *(_cell(c.get(key)) for c in columns)]
        lines.append(f"| {' | '.join(printable(cell).replace('|', '/') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def read_results(path) -> list[Result]:
    """Return what a results.json (or the folder that holds one) says, one for each set and for the average.

    Raises UserError as `results_table` does.
    """
    file = results_file(path)
    try:
        content = json.loads(file.read_text())
        protocol, variant = protocol_named(content["protocol"]), content["variant"]
        sets = content["sets"] if "sets" in content else {content["set"]: content}
        average = content.get("average")
    except FileNotFoundError as error:
        raise errors.UserError(f"{file}: no such file; give a results.json of evaluate.py or its folder.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise errors.UserError(f"{file}: is no results.json of evaluate.py; give one, or its folder.") from error
    if variant is None:
        raise errors.UserError(f"{file}: scores pictures of other software, which have no column here; remove it.")
    if protocol.name == "pairs":
        raise errors.UserError(f"{file}: is of no benchmark; evaluate with --protocol, or remove it.")
    try:
        return _rows(file, protocol, str(variant), sets, average)
    except errors.UserError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise errors.UserError(f"{file}: is damaged, or no results.json of evaluate.py; evaluate anew.") from error


def results_file(path: AnyPath) -> Path:
    """Return the results.json that `path` is, or that lies in the folder `path`. Raises UserError for a bucket."""
    path = local_path(path, "RESULTS")
    return path / RESULTS_FILE if path.is_dir() else path


def _rows(file, protocol, variant, sets, average):
    results = []
    for name, scores in sets.items():
        remarks = _remarks(protocol, name, scores)
        results.append(Result(file, protocol.name, name, variant, *_headline(file, protocol, scores["mean"]), remarks))
    if average:
        remarks = tuple(dict.fromkeys(r for result in results if result.set in average["sets"] for r in result.remarks))
        headline = _headline(file, protocol, average["mean"])
        results.append(Result(file, protocol.name, _AVERAGE, variant, *headline, remarks))
    return results


def _headline(file, protocol, mean):
    missing = [metric for metric in protocol.metrics if metric not in mean]
    if missing:
        raise errors.UserError(f"{file}: lacks {missing[0]}, which {protocol.name} needs; evaluate without --metrics.")
    return [float(mean[metric]["restored"]) for metric in protocol.metrics]


def _remarks(protocol, name, scores):
    remarks = []
    images, published = scores["images"], protocol.sets.get(name)
    if published is not None and images != published:
        remarks.append(f"{images:,} of {published:,} images")
    if scores["tlc"]["window_px"] != protocol.tlc_window("auto", None):
        window = scores["tlc"]["window_px"]
        remarks.append(f"TLC {f'{window} px' if window else 'off'}")
    precision = scores.get("precision", "highest")  # which results of earlier versions do not say
    if precision != "highest":
        remarks.append(f"precision {precision}")
    if unaligned := scores.get("images_not_aligned", {}).get("restored"):
        remarks.append(f"{unaligned} not aligned")
    return tuple(remarks)


def _by_row(paths):
    found = {}
    for result in (result for path in paths for result in read_results(path)):
        key = (result.protocol, result.set, result.variant)
        if key in found:
            raise errors.UserError(
                f"{result.file}: and {found[key].file} are both of {result.variant} on {result.set}; give one of them."
            )
        found[key] = result
    return found


def _cell(result):
    if result is None:
        return _EMPTY
    remarks = f" ({'; '.join(result.remarks)})" if result.remarks else ""
    return _numbers(result.psnr, result.ssim) + remarks


def _numbers(psnr, ssim):
    return _EMPTY if psnr is None else f"{psnr:.2f} / {ssim:.3f}"
