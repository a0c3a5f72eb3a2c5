"""A trace as HTML. All text that comes from models, catalogues or people is escaped here.

Charts and tables that the browser builds from data would take most of the time from one label to the next, so a trace
is plain HTML: two columns of names with lines between them, tables, and words with marks.
"""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import quote

import polars as pl

from curate.review.trace_text import Part, Stretch, name_of, short_sid
from curate.traces.tasks import ListedTask
from prompts.tasks import ShownItem

ROW_PX = 27
WAYS = {"target": "#e8820c", "up": "#2f9e5b", "down": "#d05252", "same": "#999"}
_ORDER_STYLE = f"""<style>
.gr2-order {{display: grid; grid-template-columns: minmax(0, 5fr) minmax(28px, 1fr) minmax(0, 6fr); column-gap: 6px;
  font-size: .87em}}
.gr2-order ol {{list-style: none; margin: 0; padding: 0}}
.gr2-order li {{display: flex; gap: 6px; height: {ROW_PX}px; line-height: {ROW_PX}px; margin: 0; padding: 0}}
.gr2-order .name {{flex: 1; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; unicode-bidi: isolate}}
.gr2-order .before .head, .gr2-order .before .name {{text-align: right; justify-content: end}}
.gr2-order .rank, .gr2-order .moved {{font-variant-numeric: tabular-nums; min-width: 1.3em; text-align: right}}
.gr2-order .moved {{min-width: 2.2em; text-align: left}}
.gr2-order .sid, .gr2-order .head {{opacity: .6; font-size: .85em}}
.gr2-order img {{width: 100%; margin-top: {ROW_PX}px}}
.gr2-order .up .moved {{color: {WAYS["up"]}}} .gr2-order .down .moved {{color: {WAYS["down"]}}}
.gr2-order li.target {{font-weight: 600; color: {WAYS["target"]}}}
@media (max-width: 1500px) {{.gr2-order .sid {{display: none}}}}
</style>"""
_TABLE_STYLE = """<style>
.gr2-table {width: 100%; border-collapse: collapse; font-size: .9em}
.gr2-table th {text-align: left; font-weight: 400; opacity: .6}
.gr2-table th, .gr2-table td {padding: 3px 10px 3px 0; border-bottom: 1px solid rgba(128, 128, 128, .25);
  max-width: 24em; overflow-wrap: anywhere; vertical-align: top}
.gr2-table td:first-child {overflow-wrap: break-word}
</style>"""
_FIELDS_STYLE = """<style>
.gr2-fields dl {display: flex; flex-wrap: wrap; gap: 8px 28px; margin: 0; padding: 0; font-size: .9em}
.gr2-fields dt {margin: 0; padding: 0; font-weight: 400; opacity: .6}
.gr2-fields dd {margin: 0; padding: 0; overflow-wrap: anywhere}
</style>"""
_REASONING_STYLE = """<style>
.gr2-reasoning {white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext; line-height: 1.6}
.gr2-reasoning .item {background: rgba(70, 130, 240, .18); border-radius: 4px; padding: 0 4px; unicode-bidi: isolate}
.gr2-reasoning .foreign {background: rgba(230, 60, 60, .2); border-radius: 4px; padding: 0 4px; unicode-bidi: isolate;
  text-decoration: line-through}
.gr2-reasoning .true {border-bottom: 2px solid rgba(40, 160, 90, .9)}
.gr2-reasoning .false {border-bottom: 2px solid rgba(230, 60, 60, .9)}
.gr2-reasoning .says {font-size: .8em; font-weight: 600}
</style>"""


class Move(NamedTuple):
    """One candidate. before, after: its ranks from 1; after is None if the order leaves it out."""

    item: ShownItem
    before: int
    after: int | None
    is_target: bool

    @property
    def way(self) -> str:
        """The direction of the move, as one of WAYS."""
        if self.is_target:
            return "target"
        if self.after is None or self.after == self.before:
            return "same"
        return "up" if self.after < self.before else "down"

    @property
    def arrow(self) -> str:
        """The arrow and number of places of the move, or an empty string."""
        if self.after is None or self.after == self.before:
            return ""
        return f"▲ {self.before - self.after}" if self.after < self.before else f"▼ {self.after - self.before}"


def find_moves(listed: ListedTask, ranking: Sequence[str] | None) -> list[Move]:
    """Return the candidates in the order of the prompt, with their ranks in an order.

    A repeated item gets its first rank.
    """
    after = {item_id: rank for rank, item_id in reversed(list(enumerate(ranking or (), 1)))}
    return [
        Move(item, before, after.get(item.item_id), item.item_id == listed.target_item_id)
        for before, item in enumerate((candidate.item for candidate in listed.task.candidates), 1)
    ]


def order_html(moves: Sequence[Move]) -> str:
    """Return the candidates before re-ranking.

    If there is an order, also the candidates after, with lines between the two.
    """
    shown = "".join(
        f'<li class="{move.way}"><span class="sid">{html.escape(short_sid(move.item.sid))}</span>{_name(move)}'
        f'<span class="rank">{move.before}</span></li>'
        for move in moves
    )
    parts = [_ORDER_STYLE, f'<div class="gr2-order"><ol class="before"><li class="head">before</li>{shown}</ol>']
    ranked = sorted((move for move in moves if move.after is not None), key=lambda move: move.after or 0)
    if ranked:
        answered = "".join(
            f'<li class="{move.way}"><span class="rank">{move.after}</span><span class="moved">{move.arrow}</span>'
            f"{_name(move)}</li>"
            for move in ranked
        )
        parts += [
            f'<img alt="" style="height: {len(moves) * ROW_PX}px" '
            f'src="data:image/svg+xml,{quote(_lines(ranked, len(moves)))}">',
            f'<ol class="after"><li class="head">after</li>{answered}</ol>',
        ]
    return "".join([*parts, "</div>"])


def _lines(ranked: Sequence[Move], rows: int) -> str:
    """Return an SVG picture of lines from the places before to the places after.

    It counts places, not ranks, because an order that names an item twice has only one place for it. It is an image
    because Streamlit removes inline SVG.
    """
    lines = "".join(
        f'<line x1="0" y1="{move.before - 0.5}" x2="1" y2="{place - 0.5}" stroke="{WAYS[move.way]}" '
        f'stroke-width="{4 if move.is_target else 1.5}" vector-effect="non-scaling-stroke"/>'
        for place, move in enumerate(ranked, 1)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 {rows}" width="100" height="{rows * ROW_PX}" '
        f'preserveAspectRatio="none">{lines}</svg>'
    )


def table_html(frame: pl.DataFrame) -> str:
    """Return a small table. Cells are written by `str`, null as an empty cell."""
    heads = "".join(f"<th>{html.escape(name)}</th>" for name in frame.columns)
    rows = "".join(
        "<tr>"
        + "".join(f'<td dir="auto">{"" if cell is None else html.escape(str(cell))}</td>' for cell in row)
        + "</tr>"
        for row in frame.iter_rows()
    )
    return f'{_TABLE_STYLE}<table class="gr2-table"><tr>{heads}</tr>{rows}</table>'


def fields_html(fields: Mapping[str, object]) -> str:
    """Return names with their values below them, side by side."""
    pairs = "".join(
        f'<div><dt>{html.escape(name)}</dt><dd dir="auto">{html.escape(str(value))}</dd></div>'
        for name, value in fields.items()
    )
    return f'{_FIELDS_STYLE}<div class="gr2-fields"><dl>{pairs}</dl></div>'


def reasoning_html(stretches: Iterable[Stretch], *, checked: bool) -> str:
    """Return the stretches of a reasoning. checked: mark unknown IDs, and claims as true or false."""
    parts = [_REASONING_STYLE, '<div class="gr2-reasoning" dir="auto">']
    for stretch in stretches:
        text, kinds, title = stretch.text, [], ""
        if stretch.part is Part.ITEM:
            text, title = stretch.title, short_sid(stretch.text)
            kinds.append("item")
        elif stretch.part is Part.FOREIGN:
            text, title = short_sid(stretch.text), "not in this prompt" if checked else ""
            kinds.append("foreign" if checked else "item")
        if checked and stretch.claim is not None:
            kinds.append("true" if stretch.claim else "false")
        parts.append(f'<span class="{" ".join(kinds)}" title="{html.escape(title)}">{html.escape(text)}</span>')
        if checked and stretch.counted is not None:
            mark = "✓" if stretch.claim else f" ✗ the store counts {stretch.counted}"
            parts.append(f'<span class="says">{mark}</span>')
    return "".join([*parts, "</div>"])


def _name(move: Move) -> str:
    """Return a candidate's name, in full on hover. The target has a star."""
    name = html.escape(name_of(move.item))
    sid = html.escape(short_sid(move.item.sid))
    return f'<span class="name" dir="auto" title="{name}, {sid}">{"★ " if move.is_target else ""}{name}</span>'
