"""The picture of the rooms in docs/design.md, from the import graph: ``python -m tests.house_picture`` writes it."""

from xml.sax.saxutils import escape

from .house import FLOORS, ROOMS, ROOT, Graph, arrows, graph, rooms

PICTURE = ROOT / "docs" / "images" / "rooms.svg"

_WIDTH, _PAD, _TITLE = 1180, 14, 26
_BOX, _GAP, _ROW = 40, 10, 40  # a room's height, between rooms, between inner floors
_SIDE_BY_SIDE = {"simulations": ("simulations", "simulations/audit"), "fedrecall": ("fedrecall/cli",)}
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1d2733 } .floor { fill: #f3f5f8 } .title { font-weight: 600 }
.small { font-size: 10px; fill: #5b6b7b } .room { fill: #fff; stroke: #7b8fa6 } .folder { fill: #fff; stroke: #c9d3de }
.arrow { stroke: #9fb1c4; fill: none }
"""


def draw(graph: Graph) -> str:
    """Return an SVG: floors as bands, folders in them, their rooms by inner floor, and who imports whom of these.

    An arrow that follows from others is not drawn.
    """
    parts: list[str] = []
    top = float(_PAD)
    for floor in sorted(set(FLOORS.values()), reverse=True):
        folders = [sub for name, at in FLOORS.items() if at == floor for sub in _SIDE_BY_SIDE.get(name, (name,))]
        width = (_WIDTH - 2 * _PAD - (len(folders) - 1) * _PAD) / len(folders)
        height = max(_height(folder) for folder in folders)
        parts.append(_rect("floor", 0, top - _PAD / 2, _WIDTH, height + _PAD))
        for number, folder in enumerate(folders):
            parts += _folder(folder, graph, _PAD + number * (width + _PAD), top, width, height)
        top += height + 2 * _PAD
    size = f'width="{_WIDTH}" height="{top:.0f}" viewBox="0 0 {_WIDTH} {top:.0f}"'
    marker = (
        '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 1 L7 4 L0 7" class="arrow"/></marker>'
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{_STYLE}</style><defs>{marker}</defs>'
    return "\n".join([head, *parts, "</svg>", ""])


def _height(folder: str) -> float:
    rows = len(ROOMS.get(folder, ((),)))
    return _TITLE + rows * _BOX + (rows - 1) * _ROW + 2 * _PAD


def _folder(folder: str, graph: Graph, left: float, top: float, width: float, height: float) -> list[str]:
    held = rooms(folder, graph)
    parts = [_rect("folder", left, top, width, height)]
    parts.append(_text("title", left + _PAD, top + 18, f"{folder}/", "start"))
    count = sum(held.values())
    parts.append(_text("small", left + width - _PAD, top + 18, f"{count} files", "end"))
    if folder not in ROOMS:
        names = ", ".join(sorted(held))
        parts.append(_text("small", left + _PAD, top + _TITLE + _PAD + _BOX / 2, names, "start"))
        return parts
    place: dict[str, tuple[float, float, float]] = {}  # left, top, width of each room
    for number, names in enumerate(reversed(ROOMS[folder])):
        wide = min(150.0, (width - 2 * _PAD - (len(names) - 1) * _GAP) / len(names))
        begin = left + (width - len(names) * wide - (len(names) - 1) * _GAP) / 2
        for at, name in enumerate(names):
            place[name] = (begin + at * (wide + _GAP), top + _TITLE + _PAD + number * (_BOX + _ROW), wide)
    lines, boxes = [], []
    for own, other in _told(set(arrows(folder, graph))):
        (x0, y0, w0), (x1, y1, w1) = place[own], place[other]
        a, b, c, d = x0 + w0 / 2, y0 + _BOX, x1 + w1 / 2, y1
        bend = (d - b) / 2
        lines.append(
            f'<path class="arrow" marker-end="url(#tip)" '
            f'd="M{a:.1f} {b:.1f} C{a:.1f} {b + bend:.1f} {c:.1f} {d - bend:.1f} {c:.1f} {d:.1f}"/>'
        )
    for name, (x, y, w) in place.items():
        boxes.append(_rect("room", x, y, w, _BOX))
        boxes.append(_text("", x + w / 2, y + 17, name, "middle"))
        plural = "file" if held.get(name, 0) == 1 else "files"
        boxes.append(_text("small", x + w / 2, y + 31, f"{held.get(name, 0)} {plural}", "middle"))
    return [*parts, *lines, *boxes]


def _told(pairs: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """Leave out the arrows that follow from others (transitive reduction: rooms have no circles)."""
    reach = {own: {to for by, to in pairs if by == own} for own, _ in pairs}
    for _ in reach:
        reach = {own: found.union(*(reach.get(to, set()) for to in found)) for own, found in reach.items()}
    return sorted((a, b) for a, b in pairs if not any(b in reach.get(c, ()) for a2, c in pairs if a2 == a and c != b))


def _rect(kind: str, x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="6"/>'


def _text(kind: str, x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


if __name__ == "__main__":
    PICTURE.write_text(draw(graph()), encoding="utf-8")
