"""Keeps the rollouts of reinforcement learning as traces of its run, with their step, rewards and advantage.

A rollout goes to the run's journal at once, as a teacher's answer does, and a thread commits the journal to the store
every few seconds. A step therefore waits for a write to the operating system and never for the database. If rollouts
are uncommitted when the training ends or is killed, the next `gr2 trace` or the resumed training commits them.

A checkpoint decides what counts. When a training is resumed, the steps after the last checkpoint are repeated, so their
rollouts are removed from the store first. This module knows neither how completions are sampled nor how they are
rewarded.
"""

import hashlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import orjson
import polars as pl
from accelerate.utils import gather_object  # type: ignore[import-untyped]

from curate.traces.planning import ID_DIGITS, prompt_id_of
from curate.traces.recording import commit_batch, commit_rest, read_batch
from curate.traces.records import STUDENT
from curate.traces.rules import RULE_NAMES
from prompts.templates import load_template
from store import Store, StoreError
from store.journals import JournalWriter, compress_journal, taken_over
from store.snapshots import Snapshot
from store.values import storable_text, utc_now
from train.dapo.dynamic_sampling import Rollout
from train.dapo.settings import DapoSettings
from train.runs import OnProgress, TrainingRun, is_main_process

COMMIT_SECONDS = 3.0

OnRollouts = Callable[[int, Sequence[Rollout]], None]


@contextmanager
def keep_rollouts(
    run: TrainingRun, snapshot: Snapshot, rows: datasets.Dataset, settings: DapoSettings, on_progress: OnProgress
) -> Iterator[OnRollouts]:
    """Yield a function that keeps the rollouts of a step (see `DynamicSamplingTrainer`). All processes must call it.

    rows: list_id and prompt of every row that is trained on. If the store lacks their candidate lists, because the
    snapshot is from another store, nothing is kept, and on_progress says so.
    """
    prompt_ids = _store_prompts(run.store, snapshot, rows) if is_main_process() else {}
    if prompt_ids is None:
        on_progress("rollouts are not kept: the store lacks the candidate lists of this snapshot")
    writer = _RolloutWriter(run, on_progress) if prompt_ids else None

    def keep(step: int, rollouts: Sequence[Rollout]) -> None:
        # The prompt is left out, because the store has it.
        gathered = gather_object([(rollout.example["list_id"], replace(rollout, example={})) for rollout in rollouts])
        if writer is not None and prompt_ids is not None:
            writer.write([_record(run, settings, prompt_ids[list_id], step, rollout) for list_id, rollout in gathered])

    try:
        yield keep
    finally:
        if writer is not None:
            writer.close()


def _store_prompts(store: Store, snapshot: Snapshot, rows: datasets.Dataset) -> dict[str, str] | None:
    """Store the prompts that traces refer to. Returns their ids by list, or None if the store lacks a list."""
    lineage = snapshot.manifest["lineage"]
    # A snapshot of prompts has one template and one version of semantic IDs.
    (shown,), (sids,) = lineage["templates"], lineage["semantic_ids"]
    template = load_template(shown["template"])
    prompts = pl.DataFrame(
        [
            {
                "prompt_id": prompt_id_of(
                    row["list_id"], template.name, shown["sha256"], sids["sid_version"], knowledge_priming=True
                ),
                "list_id": row["list_id"],
                "dataset": lineage["dataset"],
                "sid_version": sids["sid_version"],
                "template": template.name,
                "template_sha256": shown["sha256"],
                "strategy": template.strategy,
                "knowledge_priming": True,
                "messages": orjson.dumps(row["prompt"]).decode(),
            }
            for row in rows.select_columns(["list_id", "prompt"])
        ]
    )
    with store.writing(patient=True) as session:
        if session.insert("unknown_lists", prompts):
            return None
        session.put("prompts", prompts)
        # If the template has changed since the snapshot was published, its former text is not known here.
        if template.sha256 == shown["sha256"]:
            row = {"template": template.name, "sha256": template.sha256, "text": template.text}
            session.put("templates", pl.DataFrame([row]))
    return dict(prompts.select("list_id", "prompt_id").iter_rows())


def _record(run: TrainingRun, settings: DapoSettings, prompt_id: str, step: int, rollout: Rollout) -> dict[str, Any]:
    """Return the journal's record of a rollout."""
    # The text is part of the identity: a step that is repeated after a kill may write another text, to which no earlier
    # label belongs.
    identity = [run.run_id, step, prompt_id, rollout.index, rollout.completion]
    return {
        "event": "received",
        "trace_id": hashlib.sha256(orjson.dumps(identity)).hexdigest()[:ID_DIGITS],
        "prompt_id": prompt_id,
        "run_id": run.run_id,
        "teacher": STUDENT,
        "model": run.folder.name,
        "temperature": settings.temperature,
        "max_tokens": settings.max_tokens,
        "sample_index": rollout.index,
        "completion": storable_text(rollout.completion),
        # As in the rewards, only a truncated completion has the maximum length.
        "finish_reason": "length" if rollout.tokens >= settings.max_tokens else "stop",
        "completion_tokens": rollout.tokens,
        "created_at": utc_now().isoformat(),
        "rollout": {
            "step": step,
            "rewards": {name: _number(reward) for name, reward in rollout.rewards.items()},
            "reward": _number(rollout.reward),
            "advantage": rollout.advantage,
            "kept": rollout.kept,
        },
    }


def _number(reward: float) -> float | None:
    """Return a reward, or None for the NaN of a function that did not score the completion."""
    return None if math.isnan(reward) else reward


class _RolloutWriter:
    """Journals rollouts, and commits them to the store in a thread.

    A busy or damaged store, or a full disk, never ends a training. If the journal cannot be written, on_progress says
    so once, and no further rollout is kept.
    """

    def __init__(self, run: TrainingRun, on_progress: OnProgress) -> None:
        self._store = run.store
        self._on_progress = on_progress
        self._path = run.store.journals / f"{run.run_id}.jsonl"
        self._committed = 0
        self._keeps = True
        _cut_off(run, self._path)
        self._journal = JournalWriter(self._path)
        self._closing = threading.Event()
        self._committing = threading.Thread(target=self._commit_regularly, name="rollouts", daemon=True)
        self._committing.start()

    def write(self, records: Sequence[dict[str, Any]]) -> None:
        """Append the records of a step to the journal."""
        if self._keeps:
            try:
                for record in records:
                    self._journal.append(record)
            except StoreError as error:
                self._keeps = False
                self._on_progress(f"rollouts are no longer kept: {error}")

    def close(self) -> None:
        """Commit the rest, unless the store is in use, and release the journal."""
        self._closing.set()
        self._committing.join()
        self._commit()
        waits = self._committed < self._journal.end
        with suppress(StoreError):
            self._journal.close()
        if waits:
            self._on_progress(f"some rollouts wait in {self._path}, and the next gr2 trace stores them")
            return
        with taken_over(self._path) as is_free:
            if is_free:
                compress_journal(self._path)

    def _commit_regularly(self) -> None:
        while not self._closing.wait(COMMIT_SECONDS):
            self._commit()

    def _commit(self) -> None:
        # The end is read first: lines that arrive in the meantime belong to the next commit.
        end = self._journal.end
        with suppress(StoreError):
            while (
                batch := read_batch(self._store, self._path, self._committed, RULE_NAMES, stop=end)
            ).end > self._committed:
                commit_batch(self._store, self._path, batch)
                self._committed = batch.end


def _cut_off(run: TrainingRun, path: Path) -> None:
    """Make the store contain the rollouts of a resumed training up to its checkpoint, and no others.

    The run's old journal is committed, the steps after the checkpoint are deleted, and the journal is removed. With
    this order, a kill in between leaves nothing that the next resumption does not repeat.
    """
    if path.exists():
        with run.store.reading() as session:
            offsets = {run_id: offset for run_id, _, offset, _ in session.rows("sampling_runs")}
        commit_rest(run.store, path, offsets[run.run_id])
    with run.store.writing(patient=True) as session:
        for statement in (
            "delete_verdicts_of_rollouts_after",
            "delete_traces_of_rollouts_after",
            "delete_rollouts_after",
        ):
            session.execute(statement, run_id=run.run_id, step=run.resumed_at)
        session.execute("clear_committed_offset", run_id=run.run_id)
    path.unlink(missing_ok=True)
