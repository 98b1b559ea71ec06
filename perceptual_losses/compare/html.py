"""The metrics of all pairs as one page, which needs no other file and no network."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import __version__
from .._images.picture import NotReadError, Picture
from .._runtime.output import replacing
from .files import NotComparedError, Pair, Row
from .measure import Comparison
from .metrics import METRICS, compared_rows, statistics, worst_first
from .output import value_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

THUMBNAIL = 320
"""The longest side of a picture in pixels."""

PAGE = Template("""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>$title</title>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 68rem;
         padding: 0 1rem; color: #222; background: #fff; }
  h1 { font-size: 1.4rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
  .scroll { overflow-x: auto; }
  table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
  th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #ddd;
           white-space: nowrap; }
  th:first-child, td:first-child { text-align: left; }
  thead th { border-bottom: 2px solid #888; }
  thead button { all: unset; cursor: pointer; font-weight: 600; }
  thead button:focus-visible { outline: 2px solid #06c; }
  [aria-sort=ascending] button::after { content: " \\2191"; }
  [aria-sort=descending] button::after { content: " \\2193"; }
  .failed td { background: #fde8e4; }
  figure { margin: 1.5rem 0; } figcaption { margin-bottom: .4rem; }
  .row { display: flex; flex-wrap: wrap; gap: .6rem; }
  .row div { font-size: .85rem; color: #555; } img { display: block; max-width: 100%; }
</style>
<h1>$title</h1>
<p>$summary</p>
<div class="scroll"><table id="pairs">
<thead><tr>$head</tr></thead>
<tbody>
$body
</tbody>
</table></div>
$statistics
$problems
$worst
<script>
  const table = document.getElementById("pairs");
  table.querySelectorAll("thead th").forEach((th, column) => {
    th.firstChild.addEventListener("click", () => {
      const up = th.getAttribute("aria-sort") !== "ascending";
      table.querySelectorAll("thead th").forEach(other => other.removeAttribute("aria-sort"));
      th.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
        return up ? order : -order;
      });
      table.tBodies[0].append(...rows);
    });
  });
</script>
</html>
""")


def write_html(
    path: Path,
    rows: Sequence[Row],
    labels: Mapping[str, str],
    worst: Sequence[tuple[Pair, Picture, Picture, NDArray[Any]]],
    *,
    title: str,
) -> None:
    """Writes the page.

    Args:
        path: the file.
        rows: the results of all pairs.
        labels: the columns' titles, by the rows' keys.
        worst: pairs to show, each with its pictures and its SSIM map.
        title: the page's title.
    """
    compared = worst_first(rows)
    failed = [row for row in rows if row.get("fails")]
    shown = {pair.name: f"pair-{number}" for number, (pair, *_) in enumerate(worst)}
    head = "".join(
        f'<th{sort} scope="col"><button type="button">{html.escape(label)}</button></th>'
        for label, sort in [
            *(("file", ""), ("pixels", "")),
            *((label, ' aria-sort="ascending"' * (key == "ssim")) for key, label in labels.items()),
        ]
    )
    text = PAGE.substitute(
        title=html.escape(title),
        summary=f"{len(compared)} of {len(rows)} pairs compared; {len(failed)} failed. "
        f"perceptual-losses {__version__}.",
        head=head,
        body="\n".join(_table_row(row, labels, shown) for row in compared),
        statistics=_statistics(rows, labels),
        problems="".join(_problems(rows)),
        worst="".join(_worst(rows, worst, shown)),
    )
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def worst_pairs(
    rows: Sequence[Row], pairs: Sequence[Pair], comparison: Comparison, count: int
) -> Iterator[tuple[Pair, Picture, Picture, NDArray[Any]]]:
    """The pairs with the least SSIM, each with its pictures and its SSIM map."""
    by_name = {pair.name: pair for pair in pairs}
    for row in worst_first(rows)[:count]:
        pair = by_name[row["file"]]
        try:
            a, b = comparison.pictures(pair)
        except (NotReadError, NotComparedError):  # The files have changed since.
            continue
        yield pair, _small(a), _small(b), comparison.similarity_map(a, b).float().numpy()


def _table_row(row: Row, labels: Mapping[str, str], shown: Mapping[str, str]) -> str:
    name = html.escape(row["file"])
    if row["file"] in shown:
        name = f'<a href="#{shown[row["file"]]}">{name}</a>'
    pixels = row["width"] * row["height"]
    cells = f'<td>{name}</td><td data-value="{pixels}">{row["width"]}x{row["height"]}</td>'
    for key in labels:
        # JavaScript reads "Infinity".
        value = "Infinity" if row[key] == float("inf") else row[key]
        cells += f'<td data-value="{value}">{value_text(key, row[key])}</td>'
    reasons = row.get("fails")
    attributes = f' class="failed" title="{html.escape(reasons)}"' if reasons else ""
    return f"<tr{attributes}>{cells}</tr>"


def _statistics(rows: Sequence[Row], labels: Mapping[str, str]) -> str:
    """A table of the least, the median, the mean and the worst value of each metric."""
    keys = [key for key in labels if key in METRICS]
    if len(compared_rows(rows)) < 2:
        return ""
    head = "".join(f'<th scope="col">{html.escape(labels[key])}</th>' for key in keys)
    lines = "".join(
        f"<tr><td>{name}</td>"
        + "".join(f"<td>{value_text(key, values[key])}</td>" for key in keys)
        + "</tr>\n"
        for name, values in statistics(rows).items()
    )
    return f"<h2>Over all pairs</h2>\n<table><thead><tr><th></th>{head}</tr></thead>{lines}</table>"


def _problems(rows: Sequence[Row]) -> Iterator[str]:
    """Lists of the pairs that fail, and of those that were not compared."""
    lines = [f"{row['file']}: {row['fails']}" for row in rows if row.get("fails")]
    others = [f"{row['file']}: {row['problem']}" for row in rows if "problem" in row]
    for title, texts in (("Failed", lines), ("Not compared", others)):
        if texts:
            items = "".join(f"<li>{html.escape(text)}</li>\n" for text in texts)
            yield f"<h2>{title}</h2>\n<ul>{items}</ul>\n"


def _worst(
    rows: Sequence[Row],
    worst: Sequence[tuple[Pair, Picture, Picture, NDArray[Any]]],
    shown: Mapping[str, str],
) -> Iterator[str]:
    """The pictures of the worst pairs."""
    numbers = {row["file"]: row for row in compared_rows(rows)}
    if worst:
        yield "<h2>The pairs with the least SSIM</h2>\n"
        yield "<p>Map: the SSIM of each window, from 0 (dark) to 1 (bright).</p>\n"
    for pair, a, b, similarity in worst:
        row = numbers[pair.name]
        values = ", ".join(
            f"{METRICS[key]} {value_text(key, row[key])}" for key in METRICS if key in row
        )
        pictures = "".join(
            f'<div><img src="{source}" alt="{name}">{name}</div>'
            for name, source in (
                ("A", _embedded(_bytes(a), "JPEG")),
                ("B", _embedded(_bytes(b), "JPEG")),
                ("SSIM map", _embedded(_map_bytes(similarity), "PNG")),
            )
        )
        caption = f"<b>{html.escape(pair.name)}</b> {values}"
        yield (
            f'<figure id="{shown[pair.name]}"><figcaption>{caption}</figcaption>'
            f'<div class="row">{pictures}</div></figure>\n'
        )


def _small(picture: Picture) -> Picture:
    """The picture without most rows and columns, still larger than a thumbnail: to save memory."""
    step = max(1, max(picture.values.shape[:2]) // (2 * THUMBNAIL))
    return picture._replace(values=picture.values[::step, ::step].copy())


def _bytes(picture: Picture) -> NDArray[Any]:
    """The values as bytes from 0 to 255."""
    values = picture.values / picture.data_range * 255
    return np.round(values).astype(np.uint8)


def _map_bytes(similarity: NDArray[Any]) -> NDArray[Any]:
    """The map in Matplotlib's usual colours."""
    from matplotlib import colormaps

    return np.asarray(colormaps["viridis"](similarity.clip(0, 1), bytes=True))[..., :3]


def _embedded(values: NDArray[Any], kind: str) -> str:
    """An image as the text of a link that contains it, at most of a thumbnail's size."""
    from PIL import Image

    image = Image.fromarray(values[..., 0] if values.shape[2] == 1 else values)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    memory = io.BytesIO()
    image.save(memory, kind, quality=90)
    data = base64.b64encode(memory.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{data}"
