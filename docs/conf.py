"""The documentation site, by `make docs`: the Markdown files of the repository where they lie, the notebook, and the
public functions.

    python -m sphinx --fresh-env --fail-on-warning -c docs . runs/docs

Warnings are errors, so every link between pages has to lead somewhere.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # this clone is documented, whatever is installed

import concertormer_jax

project = "concertormer_jax"
author = "The authors of concertormer_jax"
release = version = concertormer_jax.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "docs.docstrings", "docs.source_pages"]
root_doc = "docs/index"
include_patterns = [
    "README.md",
    "AGENTS.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "THIRD_PARTY_NOTICES.md",
    "benchmarks/*.md",
    "weights/*.md",
    "docs/*.md",
    "docs/*.ipynb",
]
exclude_patterns = [".*", "runs", "tests", "concertormer_jax"]

myst_heading_anchors = 4  # as the forge names them, so that links to sections work in both places
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = -1  # a busy machine may take long
nb_output_stderr = "remove"  # progress bars
nb_merge_streams = True
nb_render_markdown_format = "myst"  # which has tables

default_role = "code"  # docstrings have names between single backquotes
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = "concertormer_jax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_additional_pages = {"index": "redirect.html"}  # the first page is docs/index
templates_path = ["_templates"]
