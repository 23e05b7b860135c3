"""Curves as SVG, which every browser and editor shows; no plotting library."""

import html

import numpy as np

WIDTH, HEIGHT = 640, 440
LEFT, RIGHT, TOP, BOTTOM = 78, 24, 24, 58


def curve_svg(points, labels, marked, x_name, y_name):
    """A line through labelled points, one of them marked: str.

    Args:
      points: N pairs (x, y), joined in this order.
      labels: N texts.
      marked: number of the selected point.
      x_name, y_name: of the axes.
    """
    out, at = _frame(points, x_name, y_name)
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
    out.append(f'<polyline points="{path}" fill="none" stroke="#3465a4"/>')
    for i, ((x, y), label) in enumerate(zip(at, labels, strict=True)):
        chosen = i == marked
        fill, label = ("#c00", f"{label} (selected)") if chosen else ("#3465a4", label)
        side, anchor = (8, "start") if x < (LEFT + WIDTH) / 2 else (-8, "end")
        out.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{4 + chosen}" fill="{fill}"/>'
        )
        out.append(_text(x + side, y - 6, label, anchor, f'fill="{fill}"'))
    return "\n".join([*out, "</svg>", ""])


def line_svg(points):
    """A line through points, its y axis logarithmic where that shows more: str.

    Args:
      points: N pairs (x, y) of finite numbers, joined in this order.
    """
    points = np.asarray(points, np.float64)
    low, high = points[:, 1].min(), points[:, 1].max()
    is_log = low > 0 and high > 30 * low
    if is_log:
        points = np.stack([points[:, 0], np.log10(points[:, 1])], axis=1)
    out, at = _frame(points, "", "", is_log, size=20)
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
    out.append(
        f'<polyline points="{path}" fill="none" stroke="#3465a4" stroke-width="2.5"/>'
    )
    if len(at) < 20:
        out += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="#3465a4"/>' for x, y in at
        ]
    return "\n".join([*out, "</svg>", ""])


def _frame(points, x_name, y_name, is_log=False, size=12):
    """(the lines of an SVG with axes and their names, where the points are on it).

    With `is_log` the y of the points are logarithms to the base 10. `size` is the
    letters'.
    """
    points = np.asarray(points, np.float64)
    x_axis, y_axis = (_axis(points[:, i]) for i in (0, 1))
    spans = ((LEFT, WIDTH - RIGHT), (HEIGHT - BOTTOM, TOP))

    def place(value, axis, span):
        share = (value - axis[0]) / (axis[-1] - axis[0])
        return span[0] + share * (span[1] - span[0])

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" '
        f'font-size="{size}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for tick in x_axis:
        x = place(tick, x_axis, spans[0])
        out.append(_line(x, TOP, x, HEIGHT - BOTTOM, "#ddd"))
        out.append(_text(x, HEIGHT - BOTTOM + 18, f"{tick:.4g}", "middle"))
    for tick in y_axis:
        y = place(tick, y_axis, spans[1])
        out.append(_line(LEFT, y, WIDTH - RIGHT, y, "#ddd"))
        out.append(_text(LEFT - 8, y + 4, f"{10**tick if is_log else tick:.3g}", "end"))
    out.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14, x_name, "middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = f'transform="rotate(-90 16 {middle:.1f})"'
    out.append(_text(16, middle, y_name, "middle", turned))
    at = [(place(x, x_axis, spans[0]), place(y, y_axis, spans[1])) for x, y in points]
    return out, at


def _axis(values, count=5):
    """Round tick values that enclose `values`."""
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-12 * max(abs(high), 1e-300):
        low, high = low - max(abs(low), 1.0) * 0.1, high + max(abs(high), 1.0) * 0.1
    raw = (high - low) / count
    step = 10.0 ** np.floor(np.log10(raw))
    step *= next(m for m in (1, 2, 5, 10) if m * step >= raw * 0.999)
    first, last = np.floor(low / step), np.ceil(high / step)
    return np.arange(first, last + 1) * step


def _line(x1, y1, x2, y2, colour):
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'stroke="{colour}"/>'
    )


def _text(x, y, text, anchor, more=""):
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>'
        f"{html.escape(str(text))}</text>"
    )
