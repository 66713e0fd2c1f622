"""Sphinx settings. Build with ``python -m sphinx -W -b html docs docs/_build/html``."""

import configparser
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

_metadata = configparser.ConfigParser()
_metadata.read(ROOT / "setup.cfg", encoding="utf-8")

project = "kernelpot"
author = "the kernelpot developers"
copyright = f"2026, {author}"
version = release = _metadata["metadata"]["version"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["amsmath", "deflist", "dollarmath"]
myst_heading_anchors = 3

napoleon_google_docstring = False
napoleon_use_rtype = False
# Docstrings state the types, and a test compares them with the signatures.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True

html_theme = "alabaster"
html_theme_options = {
    "description": "Interatomic potentials from a few hundred DFT calculations",
    "fixed_sidebar": True,
    "page_width": "1100px",
}
html_show_sourcelink = False
