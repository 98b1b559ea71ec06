"""Formulas become MathML while the site is built: readers need no script for them."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\s*(?:\\\((?P<inline>.*?)\\\)|\\\[(?P<block>.*?)\\\])\s*</\1>',
    re.DOTALL,
)


def on_page_content(content: str, **_: Any) -> str:
    """Called by MkDocs with the HTML of each page."""
    return FORMULA.sub(_mathml, content)


def _mathml(match: re.Match[str]) -> str:
    if match["inline"] is not None:
        return convert(html.unescape(match["inline"]).strip())
    formula = convert(html.unescape(match["block"]).strip(), display="block")
    return f'<div class="formula">{formula}</div>'
