"""Pictures of every page of the app, for the README and for developers who change a page.

    python bench/screenshots.py STORE [--all]

Writes docs/images/<page>.png at 1280 px, light. With --all it writes each page at 1280 and 1920 px, light and dark, to
docs/images/all/, which git ignores. Look at these after a change. STORE is the store of `make demo`, never one of real
data, since pictures show rows. Labels, a queue and a second snapshot are added to a copy of it.
"""

import argparse
import shutil
import tempfile
from itertools import product
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlencode

from browser import chromium, running_app
from playwright.sync_api import Page, expect, sync_playwright

from curate.review.labelling import QueueSettings, claim_next, label_assigned, make_queue
from curate.review.trace_pages import find_traces
from curate.snapshots import SnapshotSettings
from curate.snapshots.publishing import publish
from curate.traces.filter import TraceFilter
from store import Store
from store.labels import Label

QUERY = """select dataset, split, template, teacher, prompts, attempts, accepted, labelled
from acceptance_funnel
order by accepted desc"""
IMAGES = Path(__file__).parents[1] / "docs" / "images"
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


class Picture(NamedTuple):
    """A page: the name of its file, the path to open, words that show that it is drawn, and its height in pixels."""

    name: str
    path: str
    words: str
    height: int


def prepare(store: Store) -> list[Picture]:
    """Add people's work to the store. Returns the pages to open."""
    argued = TraceFilter(template="rerank_evidence.v1")
    dataset = find_traces(store, argued).rows["dataset"][0]
    queue = make_queue(store, QueueSettings("evidence-two-people-each", argued, size=60, overlap=2), "Ann")
    people = ("Ann", "Ben", "Cem")
    for number in range(90):
        person = people[number % 3]
        assignment, _ = claim_next(store, queue, person)
        if assignment is None:
            continue
        # The people mostly agree with ruleset paper, each with individual deviations.
        with store.reading() as session:
            ((fine,),) = session.connection.execute(
                "select coalesce(list_contains(rulesets, 'paper'), false) from traces"
                " left join judged_outcomes using (outcome) where trace_id = $1",
                [assignment.trace_id],
            ).fetchall()
        moody = (int(assignment.trace_id[:4], 16) + number) % 7 == 0
        label = Label.UNSURE if number % 11 == 10 else Label.GOOD if fine != moody else Label.BAD
        label_assigned(
            store, queue, person, assignment, label, seconds=4.0 + number % 5, tags=["generic"] if moody else []
        )
    blind = make_queue(store, QueueSettings("first-look", argued, size=200), "Ann")
    publish(store, "liked", SnapshotSettings(dataset, ruleset="paper", traces=TraceFilter(label="good")))
    moved = find_traces(
        store, TraceFilter(passes="strict", split="train", template="rerank_evidence.v1"), limit=300
    ).rows
    moved = moved.filter(moved["target_rank"] > 3) if (moved["target_rank"] > 3).any() else moved
    trace_id = moved["trace_id"][0]
    return [
        Picture("overview", "", "Tokens and cost", 1900),
        Picture("traces", f"traces?template=rerank_evidence.v1&trace={trace_id}", "Completion as received", 1500),
        Picture("compare", f"compare?trace={trace_id}", "Two attempts", 1900),
        Picture("label", f"label?queue={blind.queue_id}", "Completion as received", 1050),
        Picture("agreement", "agreement", "Rules and rulesets against people", 2000),
        Picture("snapshots", "snapshots", "Lineage", 1100),
        Picture("sql", f"sql?{urlencode({'q': QUERY})}", "A download runs the query again", 800),
        Picture("semantic-ids", "semantic-ids", "Use of codes", 1250),
        Picture("training", "training", "gain over", 1850),
    ]


def take(page: Page, address: str, picture: Picture, path: Path) -> None:
    """Open a page, wait until it is drawn, and take the picture."""
    width = page.viewport_size["width"] if page.viewport_size else 1280
    page.set_viewport_size({"width": width, "height": picture.height})
    page.goto(f"{address}/{picture.path}")
    if picture.name == "sql":
        # A query from a link waits for a click.
        page.get_by_role("button", name="Run", exact=True).click(timeout=60_000)
    expect(page.get_by_text(picture.words).first).to_be_visible(timeout=60_000)
    for unfinished in ("stStatusWidget", "stSkeleton"):
        expect(page.get_by_test_id(unfinished)).to_have_count(0, timeout=60_000)
    page.wait_for_timeout(2_500)
    page.screenshot(path=path)


def main() -> None:
    """Start the app on a copy of the store, and take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--all", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        store = Store.open(shutil.copytree(options.store, Path(temporary) / "store"))
        pictures = prepare(store)
        looks = list(product((1280, 1920), SCHEMES)) if options.all else [(1280, SCHEMES[0])]
        folder = IMAGES / "all" if options.all else IMAGES
        folder.mkdir(parents=True, exist_ok=True)
        with running_app(store.folder) as app, sync_playwright() as playwright:
            for width, scheme in looks:
                with chromium(playwright, width, 1400, scheme) as context:
                    page = context.pages[0]
                    page.goto(f"{app.address}/label")
                    page.get_by_label("Your name").fill("Ann")
                    page.keyboard.press("Enter")
                    expect(page.get_by_text("New queue", exact=True)).to_be_visible(timeout=60_000)
                    for picture in pictures:
                        name = f"{picture.name}-{width}-{scheme}.png" if options.all else f"{picture.name}.png"
                        take(page, app.address, picture, folder / name)
                        print(f"{folder.name}/{name}", flush=True)


if __name__ == "__main__":
    main()
