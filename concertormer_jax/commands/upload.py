"""Upload weights to the Hugging Face Hub with a model card: `concertormer upload CKPT hf://USER/NAME`.

The repository gets `model.safetensors` (the published names, float32), `config.json` (the network and its largest
training crop) and `README.md` (the card); it is made, public, if it does not exist. The token comes from HF_TOKEN or
`hf auth login`. Everybody then restores with --ckpt=hf://USER/NAME.
"""

import json
from collections.abc import Iterable

import jax

from concertormer_jax.commands.flags import CKPT_HELP, make_parser, parse_arguments, running
from concertormer_jax.evaluation.table import results_file
from concertormer_jax.models import variant_name
from concertormer_jax.runtime.errors import UserError, printable
from concertormer_jax.weights import hub, torch_from_params, write_state_dict
from concertormer_jax.weights.checkpoints import LoadedModel, architecture_dict, load_model


def main(arguments: Iterable[object] | None = None) -> None:
    """Run the command described at the top of this file."""
    parser = make_parser(__doc__)
    parser.add_argument("ckpt", metavar="CKPT", help=CKPT_HELP)
    parser.add_argument("destination", metavar="hf://USER/NAME", help="the repository")
    parser.add_argument("--results", metavar="FILE", help="a results.json of evaluate, whose scores the card shows")
    parser.add_argument("--license", metavar="ID", help="of the weights, for the card, such as cc-by-4.0 or mit")
    flags = parse_arguments(parser, arguments)
    with running():
        hub.address(flags.destination, "DESTINATION")
        model = load_model(flags.ckpt, "CKPT")
        name = variant_name(model.module)
        scores = None if flags.results is None else _scores(flags.results, name)
        config = {
            "model_type": type(model.module).__name__.lower(),
            "variant": name,
            "architecture": architecture_dict(model.module),
            "train_crop_px": model.train_crop_px,
            "step": model.step,
        }
        state_dict = torch_from_params(model.params, model.module)
        page = hub.upload(
            flags.destination,
            lambda path: write_state_dict(path, state_dict, train_crop_px=model.train_crop_px),
            config,
            _card(model, config, flags.destination, scores, flags.license),
        )
        print(f"{flags.ckpt} -> {page}")


def _card(model: LoadedModel, config: dict, destination: str, scores: str | None, license_id: str | None) -> str:
    """The model card in Markdown, behind the header that the Hub reads."""
    header = ["library_name: concertormer_jax", "pipeline_tag: image-to-image"]
    if license_id:
        header.append(f"license: {json.dumps(license_id)}")
    header += ["tags:", "- image-restoration", "- deblurring", "- jax", "- concertormer", "- arxiv:2404.06135"]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(model.params))
    fields = {
        "network": f"{config['model_type']}, `{config['variant']}`",
        "parameters": f"{parameters:,}",
        "training step": f"{model.step:,}",
        "largest training crop": f"{model.train_crop_px or 'unknown'} px",
    } | {name: f"`{json.dumps(value)}`" for name, value in config["architecture"].items()}
    table = [f"| {name} | {value} |" for name, value in fields.items()]
    repository = hub.address(destination).repository
    scored = ["## Scores", "", scores, ""] if scores else ["No scores were given with these weights.", ""]
    return "\n".join(
        [
            "---",
            *header,
            "---",
            "",
            f"# {repository}",
            "",
            "Weights of Concertormer (ICCV 2025, [arXiv 2404.06135](https://arxiv.org/abs/2404.06135)) or of a network "
            "compared with it, written by `concertormer_jax`, whose command restores photographs with them:",
            "",
            "```bash",
            f"concertormer restore --ckpt={destination} photo.jpg restored.jpg",
            "```",
            "",
            *scored,
            "## Network",
            "",
            "| | |",
            "|---|---|",
            *table,
            "",
        ]
    )


def _scores(path: str, variant: str) -> str:
    """The means of a results.json as a Markdown table. Raises UserError unless they are of a network `variant`."""
    file = results_file(path)
    try:
        content = json.loads(file.read_text())
        sets = content["sets"] if "sets" in content else {content["set"]: content}
        rows = [
            f"| {content['protocol']} | {name} | {one['images']} | {metric} | {_number(mean['restored'])} "
            f"| {_number(mean['input'])} |"
            for name, one in sets.items()
            for metric, mean in one["mean"].items()
        ]
        scored = content["variant"]
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file; give a results.json of evaluate.py or its folder") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: is no results.json of evaluate.py; give one, or its folder") from error
    if scored != variant:
        raise UserError(f"{file}: has the scores of {scored or 'other software'}, and the weights are of {variant}")
    header = ["| protocol | set | images | metric | restored | input |", "|---|---|---:|---|---:|---:|"]
    return "\n".join(map(printable, header + rows))


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4f}"
