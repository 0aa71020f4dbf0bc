"""Wall times as bars, drawn as SVG on a card of its own that reads the same on a white and on a dark page."""

from collections.abc import Iterator, Mapping, Sequence
from xml.sax.saxutils import escape

WIDTH = 760
_MARGIN, _LABELS, _VALUES = 20, 320, 70
_LINE, _BAR = 26, 16
# The palette of the report's bar: told apart with every common kind of colour blindness.
_OURS, _OTHERS = "#0072b2", "#bbbbbb"

Bar = tuple[str, float, bool]
"""A label, seconds, and whether it is ours."""


def draw(panels: Mapping[str, Sequence[Bar]], footnote: str) -> str:
    """One panel a size, each with a scale of its own."""
    parts: list[str] = []
    top = _MARGIN
    for title, bars in panels.items():
        parts += _panel(title, bars, top)
        top += _LINE * (len(bars) + 2)
    height = top + _LINE
    size = f'width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}"'
    font = 'font-family="system-ui, sans-serif" font-size="14" fill="#1f2328"'
    card = f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8" fill="#ffffff" stroke="#d0d7de"/>'
    note = f'<text x="{_MARGIN}" y="{top + 4}" font-size="12" fill="#59636e">{escape(footnote)}</text>'
    title = "<title>Wall time of a whole run</title>"
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size} {font}>'
    return "\n".join([opening, title, card, *parts, note, "</svg>"]) + "\n"


def _panel(title: str, bars: Sequence[Bar], top: int) -> Iterator[str]:
    yield f'<text x="{_MARGIN}" y="{top + _BAR}" font-weight="600">{escape(title)}</text>'
    begin, room = _MARGIN + _LABELS, WIDTH - 2 * _MARGIN - _LABELS - _VALUES
    longest = max(seconds for _, seconds, _ in bars)
    for place, (label, seconds, is_ours) in enumerate(bars, 1):
        line = top + place * _LINE
        width, weight = max(2.0, room * seconds / longest), ' font-weight="600"' if is_ours else ""
        yield f'<text x="{begin - 10}" y="{line + _BAR - 3}" text-anchor="end"{weight}>{escape(label)}</text>'
        colour = _OURS if is_ours else _OTHERS
        yield f'<rect x="{begin}" y="{line}" width="{width:.1f}" height="{_BAR}" rx="2" fill="{colour}"/>'
        yield f'<text x="{begin + width + 8:.1f}" y="{line + _BAR - 3}"{weight}>{seconds:.1f} s</text>'
