"""Plots as inline SVG: markup of numbers and escaped words, styled by classes (the page's policy allows no style attribute)."""

from collections.abc import Sequence

from markupsafe import Markup, escape

_WIDTH, _HEIGHT = 480, 132


def hours(pairs: Sequence[tuple[int, int]]) -> Markup:
    """Stacked bars of (opml, tee) jobs an hour."""
    most = max((a + b for a, b in pairs), default=0) or 1
    step = _WIDTH / len(pairs)
    parts = [_line(most)]
    for index, (opml, tee) in enumerate(pairs):
        ago = len(pairs) - index
        x, wide = index * step + 2, step - 4
        title = f"{ago} h to {ago - 1} h ago: {opml} opml, {tee} tee"
        low = _bar(x, 0, wide, opml / most, "one") + _bar(x, opml / most, wide, tee / most, "two")
        parts.append(Markup("<g>{}<title>{}</title>{}</g>").format(_hit(index * step, step), title, low))
    ticks = [(0.0, "24 h ago", "start"), (_WIDTH / 2, "12 h", "middle"), (float(_WIDTH), "now", "end")]
    return _svg("Jobs per hour, last 24 hours", parts, ticks)


def bars(named: Sequence[tuple[str, int]], label: str) -> Markup:
    """One bar a name, every second name written below."""
    most = max((count for _, count in named), default=0) or 1
    step = _WIDTH / max(1, len(named))
    parts, ticks = [_line(most)], []
    for index, (name, count) in enumerate(named):
        bar = _bar(index * step + 3, 0, step - 6, count / most, "one")
        parts.append(
            Markup("<g>{}<title>{}: {}</title>{}</g>").format(_hit(index * step, step), name, count, bar)
        )
        if index % 2 == 0:
            ticks.append((index * step + step / 2, name, "middle"))
    return _svg(label, parts, ticks)


def share(counts: Sequence[tuple[str, int]], label: str) -> Markup:
    """One bar of parts; classes ``part-0`` … in the order given, as the legend beside it has them."""
    whole = sum(count for _, count in counts) or 1
    x, parts = 0.0, []
    for index, (name, count) in enumerate(counts):
        wide = _WIDTH * count / whole
        parts.append(
            Markup(
                '<rect class="part part-{}" x="{}" y="0" width="{}" height="20"><title>{}: {}</title></rect>'
            ).format(index % 7, f"{x:.2f}", f"{max(0.5, wide - 1):.2f}", name, count)
        )
        x += wide
    return Markup(
        '<svg class="plot share" viewBox="0 0 {} 20" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>'
    ).format(_WIDTH, label, Markup().join(parts))


def against(selected: int, expected: int, scale: int) -> Markup:
    """Two thin bars, selected above expected, in thousandths of the draws answered; ``scale`` fills the rail."""
    upper, lower = (1000 * value // max(1, scale) for value in (selected, expected))
    return Markup(
        '<svg class="plot against" viewBox="0 0 1000 26" preserveAspectRatio="none" role="img" aria-label="{}">'
        '<rect class="rail" x="0" y="4" width="1000" height="18"/>'
        '<rect class="one" x="0" y="4" width="{}" height="9"/><rect class="two" x="0" y="13" width="{}" height="9"/></svg>'
    ).format(f"selected {selected} per mille, expected {expected} per mille", upper, lower)


def growth(points: Sequence[tuple[int, int]], begun: str, ended: str) -> Markup:
    """Steps through (seconds, size) points, ascending, from the first size to the last; at most one step a unit of width."""
    (start, base), (end, most) = points[0], points[-1]
    at: dict[int, int] = {}
    for time_s, size in points:
        x = _WIDTH * (time_s - start) // max(1, end - start)
        at[x] = _HEIGHT - _HEIGHT * (size - base) // max(1, most - base)
    steps = Markup("").join(Markup("H{}V{}").format(x, y) for x, y in at.items())
    curve = Markup("M0 {}{}H{}").format(_HEIGHT, steps, _WIDTH)
    lines = [
        Markup('<path class="area" d="{0}V{1}Z"/><path class="curve" d="{0}"/>').format(curve, _HEIGHT),
        _line(most),
    ]
    label = f"Leaves, from {base} at {begun} to {most} at {ended}"
    return _svg(label, lines, [(0.0, begun, "start"), (float(_WIDTH), ended, "end")])


def parts(count: int, chosen: int | None, label: str) -> Markup:
    """A strip of equal parts, the chosen one marked; at most 256."""
    step = _WIDTH / max(1, count)
    gap = min(2.0, step / 4)
    cells = Markup().join(
        Markup('<rect class="{}" x="{}" y="0" width="{}" height="14"/>').format(
            "one" if index == chosen else "rail", f"{index * step:.2f}", f"{step - gap:.2f}"
        )
        for index in range(count)
    )
    return Markup(
        '<svg class="plot parts" viewBox="0 0 {} 14" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>'
    ).format(_WIDTH, label, cells)


def _bar(x: float, base: float, wide: float, high: float, kind: str) -> Markup:
    if not high:
        return Markup()
    top, tall = _HEIGHT * (1 - base - high), _HEIGHT * high
    return Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}" rx="2"/>').format(
        kind, f"{x:.2f}", f"{top:.2f}", f"{wide:.2f}", f"{max(1.5, tall):.2f}"
    )


def _hit(x: float, wide: float) -> Markup:
    """An unseen bar of full height, so that the title shows over an hour without jobs too."""
    return Markup('<rect class="hit" x="{}" y="0" width="{}" height="{}"/>').format(
        f"{x:.2f}", f"{wide:.2f}", _HEIGHT
    )


def _line(most: int) -> Markup:
    return Markup(
        '<line class="axis" x1="0" y1="{0}" x2="{1}" y2="{0}"/><text class="most" x="0" y="-6">{2}</text>'
    ).format(_HEIGHT, _WIDTH, most)


def _svg(label: str, parts: Sequence[Markup], ticks: Sequence[tuple[float, str, str]]) -> Markup:
    below = Markup().join(
        Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(
            f"{x:.2f}", _HEIGHT + 18, anchor, escape(name)
        )
        for x, name, anchor in ticks
    )
    return Markup('<svg class="plot" viewBox="0 -18 {} {}" role="img" aria-label="{}">{}{}</svg>').format(
        _WIDTH, _HEIGHT + 42, label, Markup().join(parts), below
    )
