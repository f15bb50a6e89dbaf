"""One self-contained HTML page: text escaped, pictures inline, nothing loaded from anywhere."""

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, Final

_CSS: Final = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1180px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .3rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { margin: .4rem 0; max-width: 75ch; }
img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 6px; padding: 6px;
  box-sizing: border-box; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .15rem 1.2rem .15rem 0; border-bottom: 1px solid #8884;
  vertical-align: top; }
td { overflow-wrap: anywhere; } th { font-weight: 600; white-space: nowrap; }
.warning { border-left: 4px solid #d55e00; padding: .3rem .8rem; margin: .5rem 0; background: #d55e0018; }
.muted { opacity: .75; }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """A whole page; ``title`` is text, ``parts`` are HTML from the functions below."""
    name = escape(title)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{name}</title>\n'
        f"<style>{_CSS}</style>\n</head>\n<body>\n<h1>{name}</h1>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def heading(text: str) -> str:
    """A section's heading."""
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str, *, muted: bool = False) -> str:
    """A paragraph of text."""
    return f'<p class="muted">{escape(text)}</p>' if muted else f"<p>{escape(text)}</p>"


def warning(text: str) -> str:
    """A marked paragraph."""
    return f'<p class="warning">{escape(text)}</p>'


def image(png: bytes, *, alt: str) -> str:
    """A picture inline."""
    data = base64.b64encode(png).decode("ascii")
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">'


def pairs(values: Mapping[str, Any]) -> str:
    """Names and values, one a row."""
    rows = "".join(
        f"<tr><th>{escape(str(k))}</th><td>{escape(shown(v))}</td></tr>" for k, v in values.items()
    )
    return f"<table>{rows}</table>"


def grid(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table with a header."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(shown(v))}</td>" for v in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def shown(value: Any) -> str:
    """A value as text: floats to four digits, mappings and sequences in words, None and NaN as a dash."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {shown(item)}" for name, item in value.items()) or "–"
    if isinstance(value, list | tuple):
        return ", ".join(shown(item) for item in value) or "–"
    return str(value)
