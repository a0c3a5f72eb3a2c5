"""Compares two versions of semantic IDs: their measures, and how much their groupings of items agree."""

import numpy as np
import polars as pl
from sklearn.metrics import adjusted_rand_score

from curate.sids.measures import prefix_numbers
from curate.sids.versions import SidSummary, SidVersion, find_version, load_codes, load_summary
from store import InputError, Session, Store


def compare_versions(store: Store, left: str, right: str) -> pl.DataFrame:
    """Return a table of measure, level and one column per version, followed by rows on the versions' agreement.

    left, right: as `find_version` takes them. items_in_both: the number of items that both versions have.
    prefix_agreement: the adjusted Rand index of their prefixes over those items, 1 for the same grouping and about 0
    for unrelated ones. same_id: the share of those items that have the same ID in both.

    Raises InputError if a name fits no version, or if both names lead to the same version.
    """
    with store.reading() as session:
        versions = [find_version(session, left), find_version(session, right)]
        if versions[0] == versions[1]:
            raise InputError(f"{left!r} and {right!r} both name {versions[0]}; choose two different versions")
        figures = [_figures(session, version) for version in versions]
        codes = [load_codes(session, version) for version in versions]
    columns = [str(version) for version in versions]
    table = figures[0].join(
        figures[1], on=["measure", "level"], how="full", coalesce=True, nulls_equal=True, maintain_order="left_right"
    )
    both = sorted(codes[0].keys() & codes[1].keys())
    table = table.rename({"value": columns[0], "value_right": columns[1]})
    rows: list[tuple[str, int | None, float]] = [("items_in_both", None, float(len(both)))]
    if both:
        prefixes = [prefix_numbers(np.array([known[item] for item in both])) for known in codes]
        rows += [
            ("prefix_agreement", level, float(adjusted_rand_score(*pair)))
            for level, pair in enumerate(zip(*prefixes, strict=False), 1)
        ]
        rows.append(("same_id", None, sum(codes[0][item] == codes[1][item] for item in both) / len(both)))
    # Agreement is symmetric, so both columns get the same value.
    agreement = pl.DataFrame([(*row, row[2]) for row in rows], schema=dict(table.schema), orient="row")
    return pl.concat([table, agreement])


def _figures(session: Session, version: SidVersion) -> pl.DataFrame:
    summary = load_summary(session, version)
    assert summary is not None
    return figure_table(summary)


def figure_table(summary: SidSummary) -> pl.DataFrame:
    """The measures of a version with columns measure, level and value.

    Measures of whole IDs come first, then by level.
    """
    whole = [
        ("items", None, float(summary.items)),
        ("distinct_ids", None, float(summary.distinct_ids)),
        ("uniqueness", None, summary.uniqueness),
    ]
    return pl.DataFrame(
        [*whole, *summary.measures],
        schema={"measure": pl.String, "level": pl.Int32, "value": pl.Float64},
        orient="row",
    ).sort("level", nulls_last=False, maintain_order=True)
