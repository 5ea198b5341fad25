"""Math as MathML, which browsers lay out by themselves: no script, no picture, and the colour of the text around it."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

_LOG = logging.getLogger(__name__)
_DIGITS = re.compile(r"\\([dt]?frac)\s*(\d)\s*(\d)")
_OPERATOR = re.compile(r"\\(log|ln|exp|min|max|cos)(?![A-Za-z_^])\s*(?=[A-Za-z]|\\(?!left|[,;:!|]))")


def mathml(tex: str, *, block: bool = False) -> str:
    r"""The MathML of a LaTeX formula, with TeX's thin space between \log and what it is of."""
    tex = _DIGITS.sub(r"\\frac{\2}{\3}", tex)
    return tex2mathml(_OPERATOR.sub(r"\\\1\\,", tex), as_block=block)


def _written(node: nodes.Element, *, block: bool) -> str:
    try:
        return mathml(node.astext(), block=block)
    except MathError as error:
        _LOG.warning("%s in the formula %s", error, node.astext(), location=node)
        return ""


def _inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(_written(node, block=False))
    raise nodes.SkipNode


def _block(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="math">{_written(node, block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls this."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
