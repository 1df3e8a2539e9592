"""Draws the pictures of concepts.md: `python notebooks/pictures/draw.py` writes the SVG files."""

from pathlib import Path

BLUE, ORANGE, GREEN, GREY, INK = "#3b6fb6", "#d9822b", "#4d9a6a", "#8a8f98", "#22262b"
PALE = {BLUE: "#e4ecf7", ORANGE: "#fbeddc", GREEN: "#e3f1e8", GREY: "#eff0f2"}


def svg(width, height, *parts):
    """A picture on a white ground, so that it is readable on a dark page too."""
    arrow = (
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        f'markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z" fill="{INK}"/></marker></defs>'
    )
    ground = f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
    font = 'font-family="Helvetica, Arial, sans-serif">'
    return "\n".join([head + font, arrow, ground, *parts, "</svg>"]) + "\n"


def text(x, y, words, size=14, colour=INK, anchor="middle", weight="normal"):
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" fill="{colour}" text-anchor="{anchor}" '
        f'font-weight="{weight}">{words}</text>'
    )


def box(x, y, width, height, colour, rounded=5):
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="{rounded}" '
        f'fill="{PALE[colour]}" stroke="{colour}" stroke-width="1.5"/>'
    )


def arrow(x1, y1, x2, y2):
    return (
        f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{INK}" stroke-width="1.4" '
        'marker-end="url(#arrow)"/>'
    )


def stack():
    """Three levels over an environment."""
    levels = [
        ("level 0: planner", "plans subgoals", BLUE, "subgoal"),
        ("level 1: goal-reaching policy", "picks skills", ORANGE, "skill"),
        ("level 2: skills", "act", GREEN, "action"),
    ]
    parts = []
    for i, (name, does, colour, sends) in enumerate(levels):
        y = 20 + 95 * i
        parts += [
            box(170, y, 250, 55, colour),
            text(295, y + 24, name, weight="bold"),
            text(295, y + 43, does, 13),
            arrow(295, y + 56, 295, y + 94),
            text(305, y + 80, sends, 13, anchor="start"),
            box(470, y, 150, 55, GREY),
            text(545, y + 17, "learner (shared)", 12),
            text(545, y + 33, "memory (per instance)", 12),
            text(545, y + 49, "buffer of its rows", 12),
            f'<line x1="420" y1="{y + 27}" x2="470" y2="{y + 27}" stroke="{GREY}" '
            'stroke-width="1.4" stroke-dasharray="4 3"/>',
            arrow(110, y + 27, 168, y + 27),
        ]
    line = f'fill="none" stroke="{INK}" stroke-width="1.4"'
    parts += [
        box(170, 305, 250, 45, GREY),
        text(295, 332, "environment instances", weight="bold"),
        f'<path d="M170 327 H110 V47" {line}/>',
        text(100, 190, "observation,", 13, anchor="end"),
        text(100, 208, "reward", 13, anchor="end"),
    ]
    return svg(640, 370, *parts)


def rows():
    """Rows of two levels over twelve environment steps, with the end of an episode after ten."""
    left, step = 130, 46
    x = lambda t: left + step * t  # noqa: E731
    parts = [text(left - 12, 38, "environment step", 13, anchor="end")]
    parts += [text(x(t) + step / 2, 38, t, 13) for t in range(12)]
    parts.append(text(left - 12, 72, "reward", 13, anchor="end"))
    rewards = [1, 0, 2, 1, 0, 0, 3, 2, 2, 4, 0, 1]
    parts += [text(x(t) + step / 2, 72, r, 13, GREY) for t, r in enumerate(rewards)]
    parts += [
        text(left - 12, 118, "rows of level 1", 13, anchor="end"),
        text(left - 12, 178, "rows of level 0", 13, anchor="end"),
    ]
    for t, reward in enumerate(rewards):
        parts += [
            box(x(t) + 2, 95, step - 4, 36, ORANGE),
            text(x(t) + step / 2, 118, reward, 13),
        ]
    for first, last in ((0, 4), (4, 8), (8, 10), (10, 12)):
        is_open = last == 12
        total = f"{sum(rewards[first:last])}{' so far' if is_open else ''}"
        shape = box(x(first) + 2, 155, step * (last - first) - 4, 36, BLUE)
        if is_open:
            shape = shape.replace("/>", ' stroke-dasharray="5 4"/>')
        parts += [shape, text((x(first) + x(last)) / 2, 178, total, 13)]
    parts += [
        f'<line x1="{x(10)}" y1="50" x2="{x(10)}" y2="206" stroke="{INK}" stroke-width="2"/>',
        text(x(12), 222, "the episode ends: every level closes its row", 13, anchor="end"),
        text(x(0), 222, "four rows below make one row above", 13, anchor="start"),
    ]
    return svg(700, 240, *parts)


def control():
    """Levels that decide at each tick, in three instances that drift apart."""
    left, cell = 120, 36
    ends = {0: [], 1: [5], 2: [9]}  # last tick of an episode
    parts = [text(left - 12, 34, "tick", 13, anchor="end")]
    parts += [text(left + cell * (t + 0.5), 34, t, 12) for t in range(16)]
    for i in range(3):
        y = 48 + 56 * i
        parts.append(text(left - 12, y + 26, f"instance {i}", 13, anchor="end"))
        since = 0
        for t in range(16):
            decides_above = since % 4 == 0
            parts.append(
                box(left + cell * t + 2, y, cell - 4, 40, BLUE if decides_above else ORANGE)
            )
            if decides_above:
                parts.append(text(left + cell * (t + 0.5), y + 17, "0", 13, BLUE, weight="bold"))
            parts.append(text(left + cell * (t + 0.5), y + 33, "1", 13, ORANGE, weight="bold"))
            since += 1
            if t in ends[i]:
                at = left + cell * (t + 1)
                parts.append(
                    f'<line x1="{at}" y1="{y - 5}" x2="{at}" y2="{y + 45}" stroke="{INK}" '
                    'stroke-width="2.5"/>'
                )
                since = 0
    parts.append(
        text(
            left + 8 * cell,
            232,
            "0, 1: the levels that decide at this tick; level 1 has control_interval=4; "
            "bars: ends of episodes",
            13,
        )
    )
    return svg(720, 248, *parts)


PICTURES = {"stack.svg": stack, "rows.svg": rows, "control.svg": control}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (Path(__file__).parent / name).write_text(draw())
