"""Make the results table: the paper's figures, those of the published weights here, and those of weights trained here.

python -m concertormer_jax table RESULTS... [--published RESULTS...] [--output=FILE.md]

RESULTS is a results.json of evaluate.py or its folder. A cell without a result stays empty.
"""

from collections.abc import Iterable

from concertormer_jax.commands.flags import make_parser, parse_arguments, running
from concertormer_jax.evaluation.table import results_file, results_table
from concertormer_jax.runtime.files import write_text
from concertormer_jax.runtime.outputs import require_file_writable, require_separate
from concertormer_jax.runtime.paths import local_path


def main(arguments: Iterable[object] | None = None) -> None:
    """Run the command described at the top of this file."""
    parser = make_parser(__doc__)
    parser.add_argument("trained", nargs="*", metavar="RESULTS", help="results of weights that were trained here")
    parser.add_argument("--published", nargs="+", default=[], metavar="RESULTS", help="results of published weights")
    parser.add_argument("--output", metavar="FILE", help="write the table there too")
    flags = parse_arguments(parser, arguments)
    with running():
        output = None if flags.output is None else local_path(flags.output, "--output")
        if output:
            require_file_writable(output)
        table = results_table(flags.trained, flags.published)
        if output:
            require_separate([output], [results_file(path) for path in (*flags.trained, *flags.published)])
            write_text(output, table)
        print(table, end="")
