"""Snapshots for DAPO: prompts with verifiable answers, each with its target and its difficulty for a teacher.

No teacher is needed: every list that contains its target is used. If the store has traces of the same prompt, the row
also has their pass rate under ruleset paper and the name of the teacher's model.
"""

from collections.abc import Iterator
from typing import Any

import polars as pl

from curate.datasets.sources import choose_sources
from curate.snapshots.kind import MESSAGES, Contents, Counts, Kind, Schema, Selection, SnapshotSettings, SplitRow
from curate.traces.tasks import ListedTask, load_tasks, render_list
from prompts.templates import Template, load_template
from store import InputError, Session, Store

TEMPLATE = "rerank_evidence.v1"
PROMPT_BATCH = 1_000
SCHEMA: Schema = {
    "list_id": pl.String,
    "prompt": MESSAGES,
    "candidates": pl.List(pl.String),
    "history": pl.List(pl.String),
    "target": pl.String,
    "target_rank": pl.Int32,
    "pass_rate": pl.Float64,
    "pass_rate_model": pl.String,
    "attempts": pl.Int32,
    "template": pl.String,
}


def select(session: Session, settings: SnapshotSettings) -> Selection:
    """Every list that contains its target, rendered with one template."""
    template = load_template(settings.template or TEMPLATE)
    if template.strategy == "targeted":
        raise InputError(f"template {template.name} shows the target; a student is trained on {template.student}")
    sid_version, pre_ranker = choose_sources(session, settings.dataset, settings.sid_version, settings.pre_ranker)
    selected = session.frame(
        "snapshot_lists",
        dataset=settings.dataset,
        splits=settings.splits,
        pre_ranker=pre_ranker,
        sid_version=sid_version,
        template=template.name,
        template_sha256=template.sha256,
        teacher=settings.teacher,
        held_out_folds=list(settings.held_out_folds),
    )
    nothing = InputError(f"no list of {settings.dataset!r} in splits {', '.join(settings.splits)} contains its target")

    def load(limit: int | None) -> Contents:
        def stream(store: Store) -> Iterator[SplitRow]:
            for part in selected.head(selected.height if limit is None else limit).iter_slices(PROMPT_BATCH):
                with store.reading() as reading:
                    tasks = load_tasks(reading, settings.dataset, sid_version, part["list_id"].to_list())
                for row in part.iter_rows(named=True):
                    yield row["split"], _row(row, tasks[row["list_id"]], template)

        return Contents(
            stream=stream,
            sid_versions=(sid_version,),
            lineage={
                "templates": [{"template": template.name, "sha256": template.sha256}],
                "pre_ranker": pre_ranker,
                "teachers": sorted(selected["pass_rate_model"].drop_nulls().unique()),
            },
        )

    return Selection(
        Counts(
            groups=selected.group_by("split", pl.lit(template.name).alias("template"), "pass_rate_model")
            .agg(pl.len().alias("rows"))
            .sort("split", "pass_rate_model"),
            users=selected["user_id"].n_unique(),
            prompts=selected.height,
        ),
        targets=selected.select("user_id", "position"),
        refusal=None if selected.height else nothing,
        load=load,
    )


def _row(row: dict[str, Any], listed: ListedTask, template: Template) -> dict[str, Any]:
    """A row for the trainer, made from one list. Every item is a semantic ID."""
    task, messages = render_list(template, listed, knowledge_priming=True)
    sids = {candidate.item.item_id: candidate.item.sid for candidate in task.candidates}
    return {
        "list_id": row["list_id"],
        "prompt": list(messages),
        "candidates": list(sids.values()),
        "history": [item.sid for item in task.history],
        "target": sids[listed.target_item_id],
        "target_rank": row["target_rank"],
        "pass_rate": row["pass_rate"],
        "pass_rate_model": row["pass_rate_model"],
        "attempts": row["attempts"],
        "template": template.name,
    }


DAPO = Kind(
    "list_id",
    SCHEMA,
    "Re-ranking prompts with their candidates and targets, for reinforcement learning.",
    select,
    filters=("dataset", "split", "template", "teacher"),
)
