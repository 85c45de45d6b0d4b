"""One command line for everything: `concertormer NAME ...`, or `python -m concertormer_jax NAME ...`."""

import difflib
import importlib
import sys

from concertormer_jax.runtime import errors

COMMANDS = {
    "restore": "restore photographs and folders of them",
    "app": "restore photographs in a browser",
    "train": "train a network by a recipe",
    "evaluate": "restore and score a benchmark or a folder of pairs",
    "convert": "convert weights between this software and PyTorch",
    "export": "export a network as StableHLO, ONNX or TFLite, for other software to run",
    "upload": "upload weights to the Hugging Face Hub, with a model card",
    "prepare": "check and prepare a data set",
    "synthesize": "make pairs for evaluation from sharp photographs",
    "contact_sheet": "show what a degradation does to photographs",
    "plan": "compile a recipe for a chip that need not be there: memory, time, what fits",
    "summary": "count parameters and multiply-accumulates of a network",
    "table": "set results beside the paper's",
    "attribution": "show what a network looks at (LAM and the diffusion index)",
    "attention_maps": "show where the attention of one position goes",
    "receptive_field": "show which pixels can reach one position",
    "ablation_study": "train the forms of the network at a small equal budget and compare them",
}


def main() -> None:
    """Run the command that the first argument names with the others."""
    errors.exit_on_signals()
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help", "--version"):
        print(_version() if name == "--version" else _help())
    else:
        run(name, sys.argv[2:])


def run(name: str, arguments: list[str]) -> None:
    """Run one command as all that this process does. An unknown name ends the process with a sentence."""
    name = name.replace("-", "_")
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        said = f"{name!r} is no command" + (f"; did you mean {near[0]}?" if near else "")
        print(f"error: {said}; concertormer --help lists them", file=sys.stderr)
        raise SystemExit(2)
    sys.argv = [f"concertormer {name}", *arguments]  # where absl and argparse look
    importlib.import_module(f"concertormer_jax.commands.{name}").main()


def _help():
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(["usage: concertormer NAME ...", "", *lines, "", "concertormer NAME --help says more of one"])


def _version():
    from concertormer_jax import __version__

    return f"concertormer_jax {__version__}"


if __name__ == "__main__":
    main()
