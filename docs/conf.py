"""The site: `make docs` builds it into docs/_build/html."""

from __future__ import annotations

import sys
from pathlib import Path

from lossbook import __version__

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS / "_extensions"))

from api import source_address  # noqa: E402

project = "lossbook"
author = "the authors of lossbook"
copyright = "the authors of lossbook"
version = release = __version__
language = "en"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.linkcode",
    "sphinx_copybutton",
    "api",
    "mathml",
    "repository",
]
exclude_patterns = ["_build"]
nitpicky = True

# Markdown.
myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 4
html_math_renderer = "mathml"
repository_address = "https://github.com/lossbook/lossbook"
#: Pages that show a file outside docs/; on GitHub each is a link to it.
repository_pages = {
    "benchmarks": "benchmarks/README.md",
    "changelog": "CHANGELOG.md",
    "contributing": "CONTRIBUTING.md",
}

# The API reference.
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
add_module_names = False
toc_object_entries_show_parents = "hide"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
linkcode_resolve = source_address
#: What autodoc takes for a name though it is a piece of one, or a name that only type checkers have.
nitpick_ignore_regex = [
    ("py:class", r".*\[.*"),
    ("py:class", r"types\.Annotated|Source|Console|Tensor|.*\.TrainerClass"),
]

# `make docs-links` asks other sites. The code's own address is checked in the repository (check_links.py).
linkcheck_ignore = [rf"{repository_address}/(?:blob|tree|raw)/main/.*", r"https://lossbook\.github\.io/.*"]
linkcheck_anchors = False
linkcheck_timeout = 20

# How it looks.
html_theme = "furo"
html_title = f"lossbook {release}"
html_baseurl = "https://lossbook.github.io/lossbook/"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/favicon.svg"
html_theme_options = {"top_of_page_buttons": [], "navigation_with_keys": True}
html_copy_source = False
pygments_style = "tango"
pygments_dark_style = "github-dark"

# The gallery: examples/gallery, run and rendered. A script whose claim does not hold fails the build.
extensions.append("sphinx_gallery.gen_gallery")
sphinx_gallery_conf = {
    "examples_dirs": "../examples/gallery",
    "gallery_dirs": "gallery",
    "filename_pattern": r"\.py$",
    "subsection_order": [
        f"../examples/gallery/{name}"
        for name in ("law", "policy", "preference", "supervised", "distillation", "embedding")
    ],
    "within_subsection_order": "FileNameSortKey",
    "reset_modules": ("gallery_style.apply",),
    "thumbnail_size": (400, 280),
    "default_thumb_file": str(DOCS / "overview.svg"),
    "download_all_examples": False,
    "show_signature": False,
    "remove_config_comments": True,
    "min_reported_time": 1e9,
    "write_computation_times": False,
}
