"""The HTML of the skip explorer: session, list of next tracks, and map. Every name is escaped."""

from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from helpers.explorer import Explorer, Moment, Play

Floats = NDArray[np.float32] | NDArray[np.float64]
# Marks differ in shape as well as in colour.
LEGEND = {
    "listened": "listened",
    "skipped": "skipped",
    "latest": "latest",
    "next": "next, with its rank",
    "other": "other",
}
WIDTH, HEIGHT, MARGIN = 400, 330, 24  # of the map, in its own units
MOST_OTHERS = 400  # other tracks on the map
MOST_MARKED = 20  # tracks of the session and of the list on the map
MOST_LABELS = 8
LABEL_HEIGHT, LETTER = 13, 6.8  # of a label on the map: a line, and a letter in a wide font
LONGEST_LABEL = 22

# `data-action` and `data-place` of a button are sent as an event. A button that had the focus when the part
# was drawn anew is focused again, for those who use the keyboard.
SCRIPT = """
let used = null;
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-action]');
  if (!button) return;
  used = button.dataset;
  trigger('click', {action: used.action, place: Number(used.place)});
});
watch('value', () => {
  if (used && document.activeElement === document.body) {
    const buttons = element.querySelectorAll(`button[data-action="${used.action}"]`);
    buttons[Math.min(Number(used.row), buttons.length) - 1]?.focus({preventScroll: true});
  }
  used = null;
});
"""
ANNOUNCE = "element.setAttribute('role', 'status'); element.setAttribute('aria-live', 'polite');"

STYLE = Path(__file__).with_name("explorer.css")


def wrap(html: str) -> str:
    """Put a part of the page into the box that the style is for."""
    return f'<div class="explorer">{html}</div>'


def write(name: str) -> str:
    """Escape a name, and isolate its direction of writing."""
    return f"<bdi>{escape(name)}</bdi>"


def make_button(action: str, place: int, row: int, text: str, label: str) -> str:
    """Return a button that sends an action on a track or play; the label begins with the text."""
    return (
        f'<button type="button" data-action="{action}" data-place="{place}" data-row="{row}" '
        f'aria-label="{escape(label)}">{text}</button>'
    )


def make_heading(explorer: Explorer) -> str:
    """Return the head of the page."""
    return wrap(
        "<h1>Skip explorer</h1><p>Listen to a track or skip it, turn the dial, and see which tracks move. "
        f"Model: {escape(repr(explorer.recommender))}.</p>"
    )


def make_found(explorer: Explorer, query: str, found: list[int]) -> str:
    """Return the tracks of a search with buttons to listen and to skip."""
    if not query.strip():
        return ""
    if not found:
        return wrap('<p class="hint">No track has this text in its name or id.</p>')
    rows = [
        f'<li><span class="name">{write(explorer.names[track])}</span>'
        f"{make_choice(explorer, track, row)}</li>"
        for row, track in enumerate(found, start=1)
    ]
    return wrap(f'<ul aria-label="Tracks found">{"".join(rows)}</ul>')


def make_choice(explorer: Explorer, track: int, row: int) -> str:
    """Return the two buttons of a track."""
    name = explorer.names[track]
    listen = make_button("listen", track, row, "Listen", f"Listen to {name}")
    return f'<span class="buttons">{listen} {make_button("skip", track, row, "Skip", f"Skip {name}")}</span>'


def make_session(explorer: Explorer, plays: tuple[Play, ...]) -> str:
    """Return the session, the latest track first, with a button at each to change its feedback."""
    if not plays:
        hint = "No track yet. Choose a session, or search for a track and listen to it."
        return wrap(f'<h2>Played tracks</h2><p class="hint">{hint}</p>')
    rows = []
    for row, (place, play) in enumerate(reversed(list(enumerate(plays))), start=1):
        state, other = ("skipped", "listened") if play.skipped else ("listened", "skipped")
        name = explorer.names[play.track]
        button = make_button("switch", place, row, "Change", f"Change {name} to {other}")
        rows.append(
            f'<li class="{state}"><span class="number">{place + 1}</span>{draw_mark(state)}'
            f'<span class="name">{write(name)}</span>{button}</li>'
        )
    return wrap(
        '<h2>Played tracks</h2><div class="plays" tabindex="0" role="region" '
        f'aria-label="Played tracks, the latest first"><ol reversed>{"".join(rows)}</ol></div>'
    )


def make_list(explorer: Explorer, moment: Moment, top_k: int) -> str:
    """Return the table of next tracks: rank, move, name, skip probability, and buttons."""
    moves = moment.moves(top_k)
    if not moves:
        return wrap('<h2>Next tracks</h2><p class="hint">The list begins with the first played track.</p>')
    rows = []
    for row, move in enumerate(moves, start=1):
        sign = {"▲": "up", "▼": "down", "n": "new"}.get(move.text[:1], "")
        rows.append(
            f'<tr role="row"><td role="cell" class="number">{move.rank}</td>'
            f'<td role="cell" class="move {sign}" title="{move.words}">{move.text}</td>'
            f'<td role="cell" class="name">{write(explorer.names[move.track])}</td>'
            f"{make_probability(move.skip_probability)}"
            f'<td role="cell" class="buttons">{make_choice(explorer, move.track, row)}</td></tr>'
        )
    heads = {
        "number rank": "Rank",
        "move": "Move",
        "track": "Track",
        "skip": "P(skip)",
        "buttons choice": "You",
    }
    if not explorer.predicts_skips:
        del heads["skip"]
    head = "".join(
        f'<th role="columnheader" scope="col" class="{kind}">{text}</th>' for kind, text in heads.items()
    )
    gone = [
        f"{write(explorer.names[track])} ({f'now {rank}' if rank else 'left out'})"
        for track, rank in moment.gone(top_k)
    ]
    # On a phone the style makes a grid of each row, which would take the roles of a table away.
    return wrap(
        f'<table role="table"><caption>Next tracks</caption><thead role="rowgroup"><tr role="row">{head}</tr>'
        f'</thead><tbody role="rowgroup">{"".join(rows)}</tbody></table>'
        + (f'<p class="hint">Left the list: {", ".join(gone)}</p>' if gone else "")
    )


def make_probability(probability: float | None) -> str:
    """Return a cell with a probability as a number and as a bar; nothing without a probability."""
    if probability is None:
        return ""
    percent = f"{100 * probability:.0f}"
    bar = f'<span class="bar"><i style="width:{percent}%"></i></span>'
    return f'<td role="cell" class="skip">{percent} %{bar}</td>'


def describe_change(moment: Moment, top_k: int) -> str:
    """Return the last action and how much the list changed, for the line that screen readers announce."""
    if not moment.action:
        return ""
    moves = moment.moves(top_k)
    moved = sum(move.before != move.rank for move in moves)
    change = f" {moved} of {len(moves)} tracks moved." if moment.before and moves else ""
    return wrap(f"<p>{escape(moment.action)}.{change}</p>")


def draw_mark(kind: str) -> str:
    """Return a small picture of a mark, with its name for screen readers."""
    mark = draw(kind, 0, 0)
    return f'<svg class="mark" viewBox="-11 -11 22 22" role="img" aria-label="{kind}">{mark}</svg>'


def draw(kind: str, x: float, y: float, title: str = "", number: int | None = None) -> str:
    """Return a mark: a disc, a cross, a square with a number, a circle or a dot; the title is its hint."""
    shape = {
        "listened": '<circle class="listened" r="5.5"/>',
        "skipped": '<path class="skipped" d="M-5-5L5 5M-5 5L5-5"/>',
        "next": '<rect class="next" x="-7.5" y="-7.5" width="15" height="15" rx="2"/>',
        "latest": '<circle class="latest" r="10"/>',
        "other": '<circle class="other" r="2"/>',
    }[kind]
    hint = f"<title>{escape(title)}</title>" if title else ""
    text = f'<text class="number" y="3.5">{number}</text>' if number is not None else ""
    return f'<g transform="translate({x:.1f} {y:.1f})">{hint}{shape}{text}</g>'


def make_map(explorer: Explorer, moment: Moment, top_k: int) -> str:
    """Return the map: the latest tracks of the session and the next tracks, among others as dots."""
    plays, moves = moment.plays[-MOST_MARKED:], moment.moves(min(top_k, MOST_MARKED))
    if not plays:
        return ""
    marked = [play.track for play in plays] + [move.track for move in moves]
    points = fit(explorer.points, marked)

    def at(track: int) -> tuple[float, float]:
        x, y = points[track].tolist()
        return x, y

    inside = np.flatnonzero(((points > 0) & (points < (WIDTH, HEIGHT))).all(axis=1))
    others = inside[np.unique(np.linspace(0, len(inside) - 1, min(len(inside), MOST_OTHERS)).astype(int))]
    marks = [draw("other", *at(track)) for track in others.tolist()]
    way = " ".join("{:.1f},{:.1f}".format(*at(play.track)) for play in plays)
    marks.append(f'<polyline class="way" points="{way}"/>')
    # The first of the list lies on top.
    for move in reversed(moves):
        title = f"{move.rank}: {explorer.names[move.track]}"
        marks.append(draw("next", *at(move.track), title, move.rank))
    for play in plays:
        kind = "skipped" if play.skipped else "listened"
        marks.append(draw(kind, *at(play.track), f"{kind}: {explorer.names[play.track]}"))
    latest = plays[-1].track
    marks.append(draw("latest", *at(latest)))
    wanted = [latest, *(move.track for move in moves)]
    marks += label([(explorer.names[track], *at(track)) for track in wanted], points[marked])
    described = (
        f"Map of the latest {len(plays)} played tracks, {sum(play.skipped for play in plays)} of them "
        f"skipped, and of the first {len(moves)} next tracks. The tables hold the same tracks."
    )
    legend = "".join(f"<li>{draw_mark(kind)}{text}</li>" for kind, text in LEGEND.items())
    return wrap(
        f'<h2>Map</h2><svg class="map" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{described}">'
        f'{"".join(marks)}</svg><ul class="legend" aria-label="Legend">{legend}</ul>'
        f'<p class="hint">The two axes hold {explorer.shown_variance:.0%} of the variance of the track '
        "embeddings. Similar tracks are near; near tracks need not be similar.</p>"
    )


def fit(points: Floats, marked: list[int]) -> Floats:
    """Return the points in units of the map, which the marked ones fill; both axes have one scale."""
    low, high = points[marked].min(axis=0), points[marked].max(axis=0)
    extent = (points.max(axis=0) - points.min(axis=0)).max()
    # Not closer than a fourth of the whole, in which few tracks would lie.
    span = np.maximum(high - low, max(float(extent) / 4, 1e-6))
    size = np.array([WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN])
    placed = (points - (low + high) / 2) * (size / span).min()
    moved: Floats = placed * (1, -1) + (WIDTH / 2, HEIGHT / 2)
    return moved


def label(wanted: list[tuple[str, float, float]], marks: Floats) -> list[str]:
    """Return names right or left of their marks, but none that would cover another or a mark."""
    taken = [(x - 8, x + 8, y) for x, y in marks.tolist()]  # left, right, height
    texts: list[str] = []
    for name, x, y in wanted:
        text = name if len(name) <= LONGEST_LABEL else name[: LONGEST_LABEL - 1] + "…"
        width = LETTER * len(text)
        for side, start, left in (("right", x + 12, x + 12), ("left", x - 12, x - 12 - width)):
            free = all(
                left > end or begin > left + width or abs(y - height) > LABEL_HEIGHT
                for begin, end, height in taken
            )
            if free and 0 < left < WIDTH - width and len(texts) < MOST_LABELS:
                taken.append((left, left + width, y))
                texts.append(f'<text class="{side}" x="{start:.1f}" y="{y + 4:.1f}">{escape(text)}</text>')
                break
    return texts
