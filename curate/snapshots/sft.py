"""Snapshots for SFT: accepted traces, each with the prompt that a student will see.

That prompt is never the one that showed a teacher the target: a targeted trace is paired with the prompt of its
template's student.
"""

from collections.abc import Sequence
from typing import Any

import polars as pl

from curate.snapshots.kind import (
    MESSAGES,
    Contents,
    Counts,
    Kind,
    Schema,
    Selection,
    SnapshotSettings,
    SplitRow,
)
from curate.traces.filter import check_filter
from curate.traces.rules import find_leak
from curate.traces.rulesets import Ruleset, find_ruleset
from curate.traces.tasks import ListedTask, load_tasks, render_list
from prompts.completion import NUMBERS, render_completion
from prompts.templates import Template, load_template, parse_template
from store import Gr2Error, InputError, Session, SnapshotError

SCHEMA: Schema = {
    "trace_id": pl.String,
    "list_id": pl.String,
    "prompt": MESSAGES,
    "completion": MESSAGES,
    "reasoning": pl.String,
    "ranking": pl.List(pl.String),
    "candidates": pl.List(pl.String),
    "history": pl.List(pl.String),
    "target": pl.String,
    "target_rank": pl.Int32,
    "pass_rate": pl.Float64,
    "template": pl.String,
    "strategy": pl.String,
    "teacher": pl.String,
    "model": pl.String,
    "temperature": pl.Float64,
}


def select(session: Session, settings: SnapshotSettings) -> Selection:
    """The traces that pass the ruleset and the filter, but for those that somebody labelled bad."""
    chosen = settings.trace_filter
    ruleset = find_ruleset(session, settings.ruleset)
    check_filter(session, chosen)
    session.rows("select_traces", where=chosen.where, rules=ruleset.rules, splits=settings.splits, **chosen.parameters)
    totals = session.frame("snapshot_trace_totals").row(0, named=True)
    counts = Counts(groups=session.frame("snapshot_trace_groups"), **totals)
    return Selection(
        counts,
        targets=set(session.rows("snapshot_trace_targets")),
        refusal=_refusal(session, settings, counts.rows),
        load=lambda limit: _load(session, settings, ruleset, limit),
    )


def _refusal(session: Session, settings: SnapshotSettings, rows: int) -> Gr2Error | None:
    """Why not to publish: nothing is selected, or a completion that the rule no_leak did not pass leaks its target."""
    if rows == 0:
        return InputError(
            f"no trace of {settings.dataset!r} is accepted under ruleset {settings.ruleset!r} with these filters; "
            "gr2 status shows the funnel"
        )
    return _find_leaks(session.rows("snapshot_suspects"), rows)


def _load(session: Session, settings: SnapshotSettings, ruleset: Ruleset, limit: int | None) -> Contents:
    """The selected traces with their texts, in the order of their ids, and what they are rendered with."""
    selected = session.frame("snapshot_traces", limit=limit)
    versions = dict(session.rows("snapshot_rule_versions", rules=ruleset.rules))
    events, newest = session.rows("label_watermark", dataset=settings.dataset)[0]
    tasks: dict[str, ListedTask] = {}
    for (sid_version,), group in selected.group_by("sid_version"):
        lists = group["list_id"].unique().to_list()
        tasks |= load_tasks(session, settings.dataset, str(sid_version), lists)
    templates = selected.select("template", "template_sha256").unique().sort("template", "template_sha256").rows()
    students = {sha256: _student(session, template, sha256) for template, sha256 in templates}

    def render() -> list[SplitRow]:
        rows = [
            (row["split"], _row(row, tasks[row["list_id"]], students[row["template_sha256"]]))
            for row in selected.iter_rows(named=True)
        ]
        # Again, on what is written: verdicts may be older than the rule.
        completions = [(row["trace_id"], row["completion"][0]["content"]) for _, row in rows]
        if leaks := _find_leaks(completions, len(rows)):
            raise leaks
        return rows

    return Contents(
        render=render,
        sid_versions=tuple(sorted(selected["sid_version"].unique())),
        selection={
            "ruleset": ruleset.name,
            "rules": [{"rule": rule, "version": versions[rule]} for rule in ruleset.rules],
            "labels": {"events": events, "newest": newest},
        },
        lineage={
            "templates": [{"template": template, "sha256": sha256} for template, sha256 in templates],
            "teachers": sorted({f"{teacher}/{model}" for teacher, model in selected.select("teacher", "model").rows()}),
        },
    )


def _student(session: Session, template: str, sha256: str) -> Template:
    """The template whose prompt goes with traces of a template, in the wording that they were made with."""
    ((text,),) = session.rows("template_text", template=template, sha256=sha256)
    teacher = parse_template(template, text)
    return teacher if teacher.student == template else load_template(teacher.student)


def _row(row: dict[str, Any], listed: ListedTask, student: Template) -> dict[str, Any]:
    """What a trainer gets of one trace; every item is a semantic ID."""
    task, messages = render_list(student, listed, knowledge_priming=row["knowledge_priming"])
    sids = {candidate.item.item_id: candidate.item.sid for candidate in task.candidates}
    parsed = row["ranking"] is not None and all(item in sids for item in row["ranking"])
    ranking = [sids[item] for item in row["ranking"]] if parsed else None
    candidates = list(sids.values())
    completion = row["completion"]
    if ranking is not None:
        numbers = [candidates.index(sid) + 1 for sid in ranking]
        completion = render_completion(row["reasoning"], numbers if student.answer == NUMBERS else ranking)
    target = sids.get(listed.target_item_id)
    return {
        "trace_id": row["trace_id"],
        "list_id": row["list_id"],
        "prompt": list(messages),
        "completion": [{"role": "assistant", "content": completion}],
        "reasoning": row["reasoning"],
        "ranking": ranking,
        "candidates": candidates,
        "history": [item.sid for item in task.history],
        "target": target,
        "target_rank": candidates.index(target) + 1 if target else None,
        "pass_rate": row["pass_rate"],
        "template": student.name,
        "strategy": row["strategy"],
        "teacher": row["teacher"],
        "model": row["model"],
        "temperature": row["temperature"],
    }


def _find_leaks(texts: Sequence[tuple[str, str]], rows: int) -> SnapshotError | None:
    """What to say where a text, of a trace id, tells that its writer was shown the target; rows: of the selection."""
    leaks = [(trace_id, leak) for trace_id, text in texts if (leak := find_leak(text))]
    if not leaks:
        return None
    return SnapshotError(
        f"{len(leaks)} of {rows} traces leak the target, {leaks[0][0]} for one, by the words {leaks[0][1]!r}; "
        "nothing was published: use ruleset strict, or label them bad"
    )


SFT = Kind("trace_id", SCHEMA, "Reasoning traces for re-ranking; `prompt` and `completion` are chat messages.", select)
