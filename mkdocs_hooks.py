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

# Fonts do not stretch the bar that latex2mathml puts over a term; a border is as long as the term.
OVERLINE = re.compile(
    r"<mover>(<mrow>(?:(?!<mover>).)*</mrow>)<mo accent=\"true\">&#x02015;</mo></mover>"
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
        return _converted(match["inline"], "inline")
    return f'<div class="formula">{_converted(match["block"], "block")}</div>'


def _converted(formula: str, display: str) -> str:
    mathml = convert(html.unescape(formula).strip(), display=display)
    return OVERLINE.sub(r'<mrow class="overline">\1</mrow>', mathml)
