"""Compare variants of the network at a small equal budget: `python -m concertormer_jax ablation_study --output=DIR`.

Trains every ablation from several seeds with the size, data and steps of a config (--config, by default the tiny
configs/evidence.py), scores each on the same held-out pictures, and writes results.md, results.json and a chart of PSNR
against MACs (results.png, if matplotlib is installed). The same command goes on where it ended; finished runs are not
repeated, and more variants or seeds can be added.
"""

import re
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict
from tqdm import tqdm

from concertormer_jax.analysis.ablation_study import runs, tables
from concertormer_jax.commands.flags import define_config, parse_with_config, running
from concertormer_jax.models import ABLATIONS
from concertormer_jax.models.costs import Cost
from concertormer_jax.runtime import outputs
from concertormer_jax.runtime.devices import prepare_to_compile
from concertormer_jax.runtime.errors import UserError
from concertormer_jax.runtime.files import write_text
from concertormer_jax.runtime.outputs import require_writable
from concertormer_jax.runtime.paths import AnyPath, local_path
from concertormer_jax.training.config_limits import KEYS, require_valid
from concertormer_jax.training.setup import sources_from
from concertormer_jax.training.workdir import check_and_write_config, digests_of

CONFIG = define_config("A recipe or a file: sizes, data and training of every variant; default: evidence.")
VARIANTS = flags.DEFINE_list("variants", list(ABLATIONS), "The variants, separated by commas.")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "The seeds, separated by commas.")
STEPS = flags.DEFINE_integer(
    "steps", None, "Steps of every run, of configs with one phase.", lower_bound=1, upper_bound=10**9
)
OUTPUT = flags.DEFINE_string("output", None, "Folder of the runs and the results.", required=True)


def main() -> None:
    """Run the command described at the top of this file."""
    parse_with_config(__name__, default_config="evidence")
    with running():
        prepare_to_compile()
        config = CONFIG.value
        if STEPS.value is not None:
            if len(config.stages.steps) != 1:
                raise UserError(f"--steps={STEPS.value}: the config has several phases; set --config.stages.steps")
            config.stages.steps = (STEPS.value,)
        compare(config, VARIANTS.value, _numbers(SEEDS.value), OUTPUT.value)


def compare(config: ConfigDict, variants: list[str], seeds: list[int], output: AnyPath) -> None:
    """Make the runs that `output` lacks, all variants from one seed and then from the next, and write the results.

    The results include all runs in `output`, also those of earlier commands. Raises UserError for bad settings, for an
    output that was made with another config, and like `runs.run`.
    """
    require_valid(config)
    costs = {variant: runs.cost_of(config, variant) for variant in ABLATIONS}
    if unknown := [variant for variant in variants if variant not in costs]:
        raise UserError(f"--variants: {unknown[0]!r} is unknown; choose from {', '.join(ABLATIONS)}")
    output = local_path(output, "--output")
    require_writable(output)
    check_and_write_config(output, config, begun=True, flag="--output", data=digests_of(*sources_from(config, output)))
    if not outputs.charts_installed():
        print("note: there will be no chart, since matplotlib is not installed; pip install matplotlib draws it")
    wanted = [(variant, seed) for seed in seeds for variant in variants]
    for variant, seed in tqdm(wanted, unit="run", desc="runs", dynamic_ncols=True):
        folder = output / "runs" / f"{variant}-{seed}"
        if runs.finished(folder) is None:
            tqdm.write(f"{variant}, seed {seed}:")
            runs.run(config, variant, seed, folder)
            report(config, costs, output)
    report(config, costs, output)
    print(tables.markdown(*_table(costs, output), config))
    print(f"the results are in {output}")


def report(config: ConfigDict, costs: dict[str, Cost], output: Path) -> None:
    """Write the results of all finished runs in `output`, with the chart if matplotlib is installed."""
    table, results = _table(costs, output)
    write_text(output / "results.md", tables.markdown(table, results, config))
    write_text(output / "results.json", tables.results_json(table, results, config))
    if outputs.charts_installed():
        tables.draw(table, output / "results.png")


def _table(costs: dict[str, Cost], output: Path) -> tuple[list[tables.Row], list[runs.Result]]:
    results = [result for path in sorted((output / "runs").iterdir()) if (result := runs.finished(path))]
    return tables.rows(results, costs), results


def _numbers(texts: list[str]) -> list[int]:
    seed = KEYS["seed"]
    if not texts or not all(re.fullmatch("[0-9]{1,10}", text) and int(text) in seed for text in texts):
        raise UserError(f"--seeds={','.join(texts)}: must be {seed}, or several such as 0,1,2")
    return [int(text) for text in texts]
