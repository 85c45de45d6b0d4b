"""One self-contained HTML file that sets pictures before and after restoring under a slider; it opens from the disk."""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import NamedTuple

import numpy as np
from PIL import Image

from concertormer_jax.runtime.files import write_text

PAGE_PICTURES = 50  # on one page: more would make it slow to open
LARGEST_SIDE_PX = 1280
QUALITY = 82  # of WebP


class Compared(NamedTuple):
    """A picture of the page. before, after, target: uint8 [H, W, 3]; target: None where there is none.

    cells: its row of the table, one text for each heading behind the name.
    """

    name: str
    before: np.ndarray
    after: np.ndarray
    target: np.ndarray | None = None
    cells: Sequence[str] = ()


def write_comparison(
    path, title: str, pictures: Iterable[Compared], *, headings: Sequence[str] = (), note: str = ""
) -> None:
    """Write the page: the table, then every picture in the order given. The pictures are needed one after the other.

    headings: of the table's columns behind the name; without any there is no table. note: text below the title.
    Pictures with a side of more than 1280 pixels are reduced to that.
    """
    rows, figures = [], []
    for number, picture in enumerate(pictures):
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in picture.cells)
        rows.append(f'<tr><td><a href="#p{number}">{html.escape(picture.name)}</a></td>{cells}</tr>')
        figures.append(_figure(number, picture))
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in ("picture", *headings))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>" if headings else ""
    content = [f"<h1>{html.escape(title)}</h1>", f"<p>{html.escape(note)}</p>" if note else "", table, *figures]
    write_text(path, page(title, "\n".join(content)))


def page(title: str, content: str, *, style: str = "", script: str = "", allowed: str = "") -> str:
    """A whole HTML page of this package's look that asks nothing of any server.

    allowed: what the page may do besides, as a source of a Content-Security-Policy.
    """
    # The policy makes the browser refuse whatever is not in the page or, for the application, on its own server.
    policy = f"default-src 'self' 'unsafe-inline' data: blob: {allowed}".strip()
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<link rel="icon" href="data:,">
<title>{html.escape(title)}</title>
<style>
{asset("slider.css")}{style}</style>
</head>
<body>
{content}
<script>
{asset("slider.js")}{script}</script>
</body>
</html>
"""


def slider(before: str, after: str, *, other: str = "", name: str = "") -> str:
    """The HTML of two pictures under a slider. before, after: their addresses; other: that of the target, or ""."""
    return (
        f'<div class="compare"><img class="before" alt="before" src="{before}" data-other="{other}">'
        f'<img class="after" alt="after" src="{after}"><div class="edge"></div>'
        '<span class="name left">input</span><span class="name right">restored</span>'
        f'<input type="range" min="0" max="100" step="0.1" value="50" aria-label="edge between input and restored'
        f'{html.escape(f" picture {name}", quote=True) if name else ""}"></div>'
    )


def _figure(number, picture):
    target = "" if picture.target is None else _address(picture.target)
    choice = '<label><input type="checkbox" class="show-target"> show the target</label>' if target else ""
    compared = slider(_address(picture.before), _address(picture.after), other=target, name=picture.name)
    caption = " · ".join([html.escape(picture.name), *map(html.escape, picture.cells), *filter(None, [choice])])
    return f'<figure id="p{number}">{compared}<figcaption>{caption}</figcaption></figure>'


def _address(picture: np.ndarray) -> str:
    """The picture itself as an address."""
    image = Image.fromarray(picture)
    image.thumbnail((LARGEST_SIDE_PX, LARGEST_SIDE_PX), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, format="WEBP", quality=QUALITY)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()


def asset(name: str) -> str:
    """The text of a file of this folder."""
    return resources.files("concertormer_jax.pages").joinpath(name).read_text(encoding="utf-8")
