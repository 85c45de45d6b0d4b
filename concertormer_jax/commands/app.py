"""Restore photographs in a browser: `python -m concertormer_jax app`, a page on this machine alone.

Drop a photograph, see it before and after under a slider, choose how strongly, and download the result. The page is
served on the loopback address; no picture and no request leaves the machine.
"""

import html
import webbrowser
from collections.abc import Iterable
from functools import partial

from concertormer_jax.commands.flags import add_ckpt, make_parser, parse_arguments, running, whole
from concertormer_jax.inference.compiled import PRECISION_HELP, PRECISIONS
from concertormer_jax.inference.restorer import Restorer
from concertormer_jax.pages.app import Studio, make_server
from concertormer_jax.runtime.devices import prepare_to_compile
from concertormer_jax.weights.checkpoints import load_model

PORT = 7860


def main(arguments: Iterable[object] | None = None) -> None:
    """Run the command described at the top of this file."""
    parser = make_parser(__doc__)
    add_ckpt(parser)
    parser.add_argument("--port", type=whole(0, 65535), default=PORT, help=f"default: {PORT}; 0 for any that is free")
    parser.add_argument("--tlc", default="auto", metavar="auto|off|N", help="window of the test-time local converter")
    parser.add_argument("--no-browser", action="store_true", help="only say the address, do not open it")
    parser.add_argument("--precision", choices=PRECISIONS, default=PRECISIONS[0], help=PRECISION_HELP)
    flags = parse_arguments(parser, arguments)
    with running():
        prepare_to_compile()
        model = load_model(flags.ckpt, "--ckpt")
        restorer = partial(Restorer, model, tlc=flags.tlc, precision=flags.precision)
        restorer()  # a bad flag is refused before the page opens
        studio = Studio(lambda tile: restorer(tile=tile))
        server = make_server(studio, html.escape(model.name), flags.port)
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        print(f"open {address} in a browser; Ctrl-C ends", flush=True)
        if not flags.no_browser:
            webbrowser.open(address)
        with server:
            server.serve_forever()
