"""Writes the version into the navigation, formulas as MathML, and where lines of code may break.

MathML needs no script.
"""

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

CELL = re.compile(r"<td[ >].*?</td>", re.DOTALL)
CODE = re.compile(r"(?<=<code>)[^<]+(?=</code>)")

# A browser breaks code at spaces and hyphens only, or anywhere. The first is not enough for long
# code in a narrow column, and the second makes names hard to read.
LONG = re.compile(r"\S{17,}")
PLACES = re.compile(
    r'(?<=[(\[{=])(?=[\w"])|(?<=[a-z]_)(?=[a-z])|(?<=\w)(?=\.[a-z])|(?<=\))(?=[.(\[])'
)

# mkdocstrings leaves a space before a bracket, and a line could begin with the bracket.
BRACKET = re.compile(r"(?<=</code>)\s+(?=\))")

# A line could end behind the dashes of an option.
OPTION = re.compile(r"(?<![\w-])--?[a-z][\w-]*")


def on_config(config: Any) -> Any:
    """Called by MkDocs with the configuration; the name of the site heads the navigation."""
    package = Path(__file__).parent / "perceptual_losses" / "__init__.py"
    config.site_name += f" {VERSION.search(package.read_text())[1]}"
    return config


def on_page_content(content: str, **_: Any) -> str:
    """Called by MkDocs with the HTML of each page."""
    content = BRACKET.sub("", FORMULA.sub(_mathml, content))
    content = CELL.sub(lambda cell: CODE.sub(_breakable, cell[0]), content)
    return CODE.sub(_unbreakable, content)


def _breakable(code: re.Match[str]) -> str:
    return LONG.sub(lambda word: PLACES.sub("<wbr>", word[0]), code[0])


def _unbreakable(code: re.Match[str]) -> str:
    return OPTION.sub(r'<span class="option">\g<0></span>', code[0])


def _mathml(match: re.Match[str]) -> str:
    if match["inline"] is not None:
        return _converted(match["inline"], "inline")
    return f'<div class="formula">{_converted(match["block"], "block")}</div>'


def _converted(formula: str, display: str) -> str:
    mathml = convert(html.unescape(formula).strip(), display=display)
    return OVERLINE.sub(r'<mrow class="overline">\1</mrow>', mathml)
