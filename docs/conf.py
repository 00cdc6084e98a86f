"""Sphinx configuration. Builds without torch: ``tox -e docs``."""

from __future__ import annotations

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

project = "xferbench"
author = "the xferbench authors"
project_copyright = author
version = release = installed_version("xferbench")

extensions = [
    "myst_parser",  # the pages are Markdown
    "sphinx.ext.autodoc",  # the Python reference comes from docstrings
    "sphinx.ext.napoleon",  # which have sections in Google's style
    "generated_pages",  # docs/_ext: pages that are written from the package at build time
]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # an included table may begin at any level
smartquotes = False  # quotes and dashes of commands stay what they are
exclude_patterns = ["_build", "_ext", "generated/parts"]

autodoc_mock_imports = ["torch", "torchvision", "timm", "safetensors", "lightning", "transformers", "sklearn", "PIL"]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_class_signature = "separated"
add_module_names = False
nitpick_ignore_regex = [(r"py:.*", r".*")]  # types of other packages, and internals that docstrings name

html_theme = "pydata_sphinx_theme"
html_title = f"xferbench {release}"
html_static_path = ["_static"]
html_css_files = ["xferbench.css"]
html_show_sourcelink = False
html_theme_options = {
    "show_prev_next": True,
    "navigation_with_keys": False,
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_sidebars = {"index": [], "getting-started": []}  # pages without pages below them
