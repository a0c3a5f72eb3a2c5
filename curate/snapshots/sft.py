"""Snapshots for SFT: accepted traces, each with the prompt that a student will see.

A prompt in a snapshot never shows the target. A targeted trace is therefore paired with the prompt of its template's
student.
"""

from collections.abc import Iterator
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
from curate.snapshots.trace_rows import Wording, iterate_traces, read_texts
from curate.traces.filter import check_filter
from curate.traces.rules import find_leak
from curate.traces.rulesets import Ruleset, find_ruleset
from prompts.completion import NUMBERS, render_completion
from prompts.templates import Template, load_template, parse_template
from store import Gr2Error, InputError, Session, SnapshotError, Store

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
    """The traces that pass the ruleset and the filter, except for those that a user labelled bad."""
    chosen = settings.trace_filter
    ruleset = find_ruleset(session, settings.ruleset)
    check_filter(session, chosen)
    session.rows(
        "select_traces",
        where=chosen.where,
        rules=ruleset.rules,
        splits=settings.splits,
        held_out_folds=list(settings.held_out_folds),
        **chosen.parameters,
    )
    totals = session.frame("snapshot_trace_totals").row(0, named=True)
    counts = Counts(groups=session.frame("snapshot_trace_groups"), **totals)
    nothing = InputError(
        f"no trace of {settings.dataset!r} is accepted under ruleset {settings.ruleset!r} with these filters; "
        "gr2 status shows the funnel"
    )
    suspects = session.frame("snapshot_suspects")
    return Selection(
        counts,
        targets=session.frame("snapshot_trace_targets"),
        refusal=None if counts.rows else nothing,
        load=lambda limit: _load(session, settings, ruleset, counts.groups, limit),
        check=lambda store: _check(store, suspects, counts.rows),
    )


def _check(store: Store, suspects: pl.DataFrame, rows: int) -> Gr2Error | None:
    """The reason not to publish: a suspect text leaks its target. None if no text does.

    suspects: traces that did not pass the rule no_leak, for example because they cannot be parsed. rows: the number of
    rows of the whole selection.
    """
    leaks = Leaks(rows)
    for texts in read_texts(store, suspects):
        for trace_id, reasoning, completion in texts.select("trace_id", "reasoning", "completion").iter_rows():
            leaks.look(trace_id, completion if reasoning is None else reasoning)
    return leaks.refusal


def _load(
    session: Session, settings: SnapshotSettings, ruleset: Ruleset, groups: pl.DataFrame, limit: int | None
) -> Contents:
    """The traces to write, and the templates to render them with."""
    session.execute("create_wordings")
    worded = session.frame("snapshot_wordings")
    chosen = session.frame("snapshot_chosen", limit=limit)
    made_by = groups.filter(pl.col("rows") > 0)
    versions = dict(session.rows("snapshot_rule_versions", rules=ruleset.rules))
    events, newest = session.rows("label_watermark", dataset=settings.dataset)[0]
    templates = worded.select("template", "template_sha256").unique().sort("template", "template_sha256").rows()
    students = {sha256: _student(session, template, sha256) for template, sha256 in templates}
    wordings = {
        number: Wording(sid_version, students[sha256], knowledge_priming)
        for number, sid_version, _, sha256, knowledge_priming in worded.iter_rows()
    }

    def stream(store: Store) -> Iterator[SplitRow]:
        leaks = Leaks(chosen.height)
        for trace in iterate_traces(store, settings.dataset, chosen, wordings):
            row = _row(trace, wordings[trace["wording"]].student)
            # Checked again on the final text, because verdicts may be older than the current version of the rule.
            leaks.look(row["trace_id"], row["completion"][0]["content"])
            yield trace["split"], row
        if leaks.refusal:
            raise leaks.refusal

    return Contents(
        stream=stream,
        sid_versions=tuple(sorted(worded["sid_version"].unique())),
        selection={
            "ruleset": ruleset.name,
            "rules": [{"rule": rule, "version": versions[rule]} for rule in ruleset.rules],
            "labels": {"events": events, "newest": newest},
        },
        lineage={
            "templates": [{"template": template, "sha256": sha256} for template, sha256 in templates],
            "teachers": sorted({f"{teacher}/{model}" for teacher, model in made_by.select("teacher", "model").rows()}),
        },
    )


def _student(session: Session, template: str, sha256: str) -> Template:
    """The template whose prompt is shown with traces of a template. sha256: the wording that made the traces."""
    ((text,),) = session.rows("template_text", template=template, sha256=sha256)
    teacher = parse_template(template, text)
    return teacher if teacher.student == template else load_template(teacher.student)


def _row(trace: dict[str, Any], student: Template) -> dict[str, Any]:
    """A row for the trainer, made from one trace. Every item is a semantic ID."""
    candidates, target = trace["candidates"], trace["target"]
    sids = dict(zip(trace["item_ids"], candidates, strict=True))
    parsed = trace["ranking"] is not None and all(item in sids for item in trace["ranking"])
    ranking = [sids[item] for item in trace["ranking"]] if parsed else None
    completion = trace["completion"]
    if ranking is not None:
        numbers = [candidates.index(sid) + 1 for sid in ranking]
        completion = render_completion(trace["reasoning"], numbers if student.answer == NUMBERS else ranking)
    return {
        "trace_id": trace["trace_id"],
        "list_id": trace["list_id"],
        "prompt": trace["prompt"],
        "completion": [{"role": "assistant", "content": completion}],
        "reasoning": trace["reasoning"],
        "ranking": ranking,
        "candidates": candidates,
        "history": trace["history"],
        "target": target,
        "target_rank": candidates.index(target) + 1 if target else None,
        "pass_rate": trace["pass_rate"],
        "template": student.name,
        "strategy": trace["strategy"],
        "teacher": trace["teacher"],
        "model": trace["model"],
        "temperature": trace["temperature"],
    }


class Leaks:
    """Counts texts that show that the target was visible in the prompt. rows: the number of rows of the selection."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._count = 0
        self._first: tuple[str, str] | None = None

    def look(self, trace_id: str, text: str) -> None:
        """Check the text of one trace."""
        if leak := find_leak(text):
            self._count += 1
            self._first = min(self._first or (trace_id, leak), (trace_id, leak))

    @property
    def refusal(self) -> SnapshotError | None:
        """The error about all leaks found, which names the smallest trace id. None if there are no leaks."""
        if self._first is None:
            return None
        return SnapshotError(
            f"{self._count} of {self._rows} traces leak the target, for example {self._first[0]} by the words "
            f"{self._first[1]!r}; nothing was published: use ruleset strict, or label these traces bad"
        )


SFT = Kind("trace_id", SCHEMA, "Reasoning traces for re-ranking; `prompt` and `completion` are chat messages.", select)
