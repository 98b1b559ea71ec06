"""Writes the version into the navigation, and formulas as MathML, which needs no script."""

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

VERSION = re.compile(r'^__version__ = "(.*)"$', re.MULTILINE)

FORMULA = re.compile(
    r'<(span|div) class="arithmatex">\s*(?:\\\((?P<inline>.*?)\\\)|\\\[(?P<block>.*?)\\\])\s*</\1>',
    re.DOTALL,
)


def on_config(config: Any) -> Any:
    """Called by MkDocs with the configuration; the name of the site heads the navigation."""
    package = Path(__file__).parent / "perceptual_losses" / "__init__.py"
    config.site_name += f" {VERSION.search(package.read_text())[1]}"
    return config


def on_page_content(content: str, **_: Any) -> str:
    """Called by MkDocs with the HTML of each page."""
    return FORMULA.sub(_mathml, content)


def _mathml(match: re.Match[str]) -> str:
    if match["inline"] is not None:
        return convert(html.unescape(match["inline"]).strip())
    formula = convert(html.unescape(match["block"]).strip(), display="block")
    return f'<div class="formula">{formula}</div>'
