from pathlib import Path
from typing import Any

import pytest

from curate.datasets.sources import choose_sources
from curate.sids.assignment import assign_semantic_ids
from curate.sids.quantizers import ResidualKMeans
from curate.snapshots import SnapshotSettings
from curate.snapshots.publishing import publish
from curate.traces.planning import SamplingSettings
from curate.traces.sampling import sample
from curate.traces.teachers.evidence import BRIEF, EvidenceTeacher
from store import InputError, Store, file_locks
from train.runs import (
    CHECKPOINTS,
    TrainingRun,
    last_checkpoint,
    load_training,
    open_run,
    open_snapshot,
    sids_of_students,
    student_folder,
)
from train.sft.training import SftSettings, train_sft

TEMPLATE = "rerank_numbers.v1"
FEW = SftSettings(max_steps=3, batch_size=4, save_steps=1, log_steps=1)


def fetch(store: Store, statement: str) -> list[tuple[Any, ...]]:
    with store.reading() as session:
        return session.connection.execute(statement).fetchall()


def statuses(store: Store) -> list[str]:
    return [status for (status,) in fetch(store, "select status from runs where kind = 'train-sft'")]


def stop_at(step: int) -> Any:
    def stop(told: str) -> None:
        if told.startswith(f"step {step} "):
            raise KeyboardInterrupt

    return stop


def test_the_newest_whole_checkpoint_is_gone_on_from(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "nowhere") is None
    for step in (8, 9, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert last_checkpoint(tmp_path) is None
    for step in (8, 9, 10):
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").touch()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


@pytest.mark.slow
def test_a_training_that_was_half_written_goes_on(inputs: Store) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_sft(inputs, "traces", "new", "x", FEW, on_progress=stop_at(2))
    assert statuses(inputs) == ["interrupted"]
    (student_folder(inputs, "x") / CHECKPOINTS / "checkpoint-2").mkdir()
    # As if killed before the row was put.
    with inputs.writing() as session:
        session.connection.execute("delete from run_metrics")
        session.connection.execute("delete from runs where kind = 'train-sft'")
    assert train_sft(inputs, "", "", "x", FEW, resume=True).steps == 3
    assert statuses(inputs) == ["done"]
    losses = fetch(inputs, "select step from run_metrics join runs using (run_id) where metric = 'loss' order by step")
    assert losses == [(1,), (2,), (3,)]


@pytest.mark.slow
def test_a_new_training_that_fails_before_its_first_checkpoint_leaves_its_name_free(inputs: Store) -> None:
    def fail(_: str) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        train_sft(inputs, "traces", "new", "x", FEW, on_progress=fail)
    snapshot = open_snapshot(inputs, "traces")
    with pytest.raises(RuntimeError), open_run(inputs, "sft", "x", snapshot, {}, resume=False):
        raise RuntimeError
    assert statuses(inputs) == ["failed", "failed"]
    assert not student_folder(inputs, "x").exists()
    assert train_sft(inputs, "traces", "new", "x", FEW).steps == 3


@pytest.mark.slow
def test_a_student_remembers_the_semantic_ids_that_it_learned(inputs: Store) -> None:
    with inputs.reading() as session:
        old, _ = choose_sources(session, "shop", None, None)
    train_sft(inputs, "traces", "new", "old", FEW)
    newer = assign_semantic_ids(inputs, "shop", ResidualKMeans(seed=1)).version.sid_version
    with inputs.reading() as session:
        assert choose_sources(session, "shop", None, None)[0] == newer != old
    assert sids_of_students(inputs, "shop", ["old"]) == old
    assert sids_of_students(inputs, "shop", ["old", "new"]) == old
    # A student that learned nothing, one of another dataset, a model of the hub: nothing is known.
    assert sids_of_students(inputs, "shop", ["new"]) is None
    assert sids_of_students(inputs, "elsewhere", ["old"]) is None
    assert sids_of_students(inputs, "shop", ["Qwen/Qwen3-8B"]) is None
    # Traces about both.
    sample(inputs, EvidenceTeacher(BRIEF), SamplingSettings("shop", template=TEMPLATE, limit=40))
    publish(inputs, "both", SnapshotSettings("shop", template=TEMPLATE, splits=("train",)))
    train_sft(inputs, "both", "new", "mixed", FEW)
    with pytest.raises(InputError, match=r"different semantic IDs: mixed on \S+, \S+; choose one with `sid_version`"):
        sids_of_students(inputs, "shop", ["mixed"])


def test_one_process_trains_under_a_name_at_a_time(inputs: Store) -> None:
    snapshot = open_snapshot(inputs, "traces")
    with open_run(inputs, "sft", "x", snapshot, {"student": "new"}, resume=False):
        for words, resume in ((("", ""), True), (("traces", "new"), False)):
            with pytest.raises(InputError, match="is training 'x' already; wait for it or end it"):
                train_sft(inputs, *words, "x", FEW, resume=resume)
        assert statuses(inputs) == ["running"]
    assert statuses(inputs) == ["done"]


def test_a_training_goes_on_in_as_many_processes_as_it_began_in(inputs: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_sft(inputs, "traces", "new", "x", FEW, on_progress=stop_at(2))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="'x' was started with 1 processes, not 2"):
        load_training(inputs, "sft", "x")


def test_figures_wait_while_the_store_is_busy(inputs: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_locks, "WAIT_S", 0.05)

    def write(run: TrainingRun, step: int) -> None:
        run.keep([{"step": step, "metric": "loss", "value": float(step)}])
        run.flush()

    def stored() -> list[tuple[Any, ...]]:
        return fetch(inputs, "select step, value from run_metrics order by step")

    with open_run(inputs, "sft", "x", open_snapshot(inputs, "traces"), {}, resume=False) as run:
        with inputs.reading():
            write(run, 1)
        assert stored() == []
        write(run, 2)
        assert stored() == [(1, 1.0), (2, 2.0)]
        # What was written does not wait any more.
        with inputs.writing() as session:
            session.connection.execute("delete from run_metrics")
        run.keep([{"step": 3, "metric": "loss", "value": 3.0}])
    assert stored() == [(3, 3.0)]
