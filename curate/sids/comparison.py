"""Two versions of semantic IDs beside each other: their measures, and how far they group the same items together."""

import numpy as np
import polars as pl
from sklearn.metrics import adjusted_rand_score

from curate.sids.measures import prefix_numbers
from curate.sids.versions import SidSummary, SidVersion, find_version, load_codes, load_summary
from store import InputError, Session, Store


def compare_versions(store: Store, left: str, right: str) -> pl.DataFrame:
    """Rows of measure, level, and a column for each of the two, named as it is found; then how alike they are.

    prefix_agreement: the adjusted Rand index of their prefixes over the items that both have, 1 where they group alike
    and about 0 where they have nothing to do with each other. same_id: the share of those items whose ID is the same.

    Raises InputError where a name fits no version, or both name the same one.
    """
    with store.reading() as session:
        versions = [find_version(session, left), find_version(session, right)]
        if versions[0] == versions[1]:
            raise InputError(f"{left!r} and {right!r} both name {versions[0]}; name two versions")
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
    alike = pl.DataFrame([(*row, row[2]) for row in rows], schema=dict(table.schema), orient="row")
    return pl.concat([table, alike])


def _figures(session: Session, version: SidVersion) -> pl.DataFrame:
    summary = load_summary(session, version)
    assert summary is not None
    return figure_table(summary)


def figure_table(summary: SidSummary) -> pl.DataFrame:
    """measure, level, value of a version, whole IDs first, then level by level."""
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
