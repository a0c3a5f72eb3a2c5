import json
from typing import Any

import datasets
import pytest

from curate.requests import SamplingSettings
from curate.sampling import sample
from curate.snapshot_kinds import SnapshotSettings
from curate.snapshots import publish
from curate.teachers.evidence import BRIEF, EvidenceTeacher
from store import InputError, SnapshotError, Store
from train.dapo_training import DapoSettings, choose_prompts, train_dapo
from train.runs import find_student, student_folder
from train.student import load_student

FEW: dict[str, Any] = {"steps": 2, "prompts": 2, "group": 2, "max_tokens": 8}
TEMPLATE = "rerank_numbers.v1"


def fetch(store: Store, statement: str) -> list[tuple[Any, ...]]:
    with store.reading() as session:
        return session.connection.execute(statement).fetchall()


@pytest.mark.parametrize("changed", [{}, {"lora_rank": 2, "refill_rounds": 0}, {"reward": "gated"}], ids=str)
def test_a_training_leaves_a_student_a_run_and_what_its_answers_were_like(
    changed: dict[str, Any], lessons: Store
) -> None:
    told: list[str] = []
    done = train_dapo(lessons, "prompts", "new", "rl", DapoSettings(**{**FEW, **changed}), on_progress=told.append)
    assert done.steps == 2
    assert "reward" in told[-1]
    load_student(find_student(lessons, "rl"))
    ((kind, status, settings),) = fetch(lessons, "select kind, status, settings from runs where kind like 'train%'")
    assert (kind, status, json.loads(settings)["templates"]) == ("train-dapo", "done", [TEMPLATE])
    metrics = {name for (name,) in fetch(lessons, "select distinct metric from run_metrics")}
    wanted = {"reward", "entropy", "answers/valid", "answers/copied", "answers/truncated", "completions/mean_length"}
    assert wanted <= metrics
    # A student that knows nothing writes no order: every group is alike.
    if "refill_rounds" not in changed:
        assert done.figures["refill/left"] == 1.0
        assert done.figures["loss"] == 0.0


def test_prompts_are_drawn_by_pass_rate(lessons: Store) -> None:
    rows = datasets.Dataset.from_dict(
        {
            "pass_rate": [None, 0.0, 0.25, 0.5, 1.0],
            "prompt": list("abcde"),
            "candidates": [["x"]] * 5,
            "target": ["x"] * 5,
            "history": [[]] * 5,
        }
    )
    chosen = choose_prompts(rows, DapoSettings(min_pass_rate=0.2, max_pass_rate=0.9))
    assert chosen["prompt"][:] == ["c", "d"]
    assert choose_prompts(rows, DapoSettings(max_pass_rate=0.1))["prompt"][:] == ["a", "b"]
    with pytest.raises(InputError, match=r"none of 5 prompts has a pass rate from 0.6 to 0.9"):
        choose_prompts(rows, DapoSettings(min_pass_rate=0.6, max_pass_rate=0.9))


def test_a_snapshot_with_pass_rates_can_be_trained_on(lessons: Store) -> None:
    sample(lessons, EvidenceTeacher(BRIEF), SamplingSettings("shop", template=TEMPLATE, max_attempts=4))
    publish(lessons, "tried", SnapshotSettings("shop", kind="dapo", template=TEMPLATE))
    settings = DapoSettings(**FEW, min_pass_rate=0.1, max_pass_rate=0.9)
    assert train_dapo(lessons, "tried", "new", "rl", settings).steps == 2


def test_what_cannot_be_trained_is_a_clear_error_and_leaves_nothing(lessons: Store) -> None:
    with pytest.raises(SnapshotError, match="is a snapshot of kind 'sft'; 'dapo' is wanted"):
        train_dapo(lessons, "traces", "new", "x", DapoSettings(**FEW))
    with pytest.raises(InputError, match=r"the longest prompt has \d+ tokens; with answers of up to 4,000"):
        train_dapo(lessons, "prompts", "new", "x", DapoSettings(max_tokens=4000))
    with pytest.raises(InputError, match="no reward is called 'nice'"):
        DapoSettings(reward="nice")
    with pytest.raises(InputError, match="--group is 1"):
        DapoSettings(group=1)
    with pytest.raises(InputError, match="must be from 0 to 1"):
        DapoSettings(min_pass_rate=0.9, max_pass_rate=0.1)
    assert not student_folder(lessons, "x").exists()
