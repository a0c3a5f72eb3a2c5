"""Snapshots for DAPO: prompts whose answers can be verified, each with its target and how hard it was for a teacher.

No teacher is needed: a list that holds its target is enough. Where traces of the same prompt are in the store, the pass
rate under policy paper goes with it, and the model that it is the pass rate of.
"""

import polars as pl

from curate.requests import choose_sources, render_list
from curate.snapshot_kinds.contents import MESSAGES, Contents, Kind, Schema, SnapshotSettings, SplitRow
from curate.tasks import load_tasks
from prompts.templates import load_template
from store import InputError, Session

TEMPLATE = "rerank_evidence.v1"
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


def select(session: Session, settings: SnapshotSettings) -> Contents:
    """Every list that holds its target, shown by one template."""
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
    )
    if selected.height == 0:
        raise InputError(f"no list of {settings.dataset!r} in splits {', '.join(settings.splits)} holds its target")
    tasks = load_tasks(session, settings.dataset, sid_version, selected["list_id"].to_list())

    def render() -> list[SplitRow]:
        rows: list[SplitRow] = []
        for row in selected.iter_rows(named=True):
            task, messages = render_list(template, tasks[row["list_id"]], knowledge_priming=True)
            sids = {candidate.item.item_id: candidate.item.sid for candidate in task.candidates}
            rows.append(
                (
                    row["split"],
                    {
                        "list_id": row["list_id"],
                        "prompt": list(messages),
                        "candidates": list(sids.values()),
                        "history": [item.sid for item in task.history],
                        "target": sids[tasks[row["list_id"]].target_item_id],
                        "target_rank": row["target_rank"],
                        "pass_rate": row["pass_rate"],
                        "pass_rate_model": row["pass_rate_model"],
                        "attempts": row["attempts"],
                        "template": template.name,
                    },
                )
            )
        return rows

    return Contents(
        render=render,
        targets=set(selected.select("user_id", "position").rows()),
        sid_versions=(sid_version,),
        lineage={
            "templates": [{"template": template.name, "sha256": template.sha256}],
            "pre_ranker": pre_ranker,
            "teachers": sorted(selected["pass_rate_model"].drop_nulls().unique()),
        },
    )


DAPO = Kind(
    "dapo",
    "list_id",
    SCHEMA,
    "Re-ranking prompts with their candidates and targets, for reinforcement learning.",
    select,
)
