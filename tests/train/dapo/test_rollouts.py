import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from streamlit.testing.v1 import AppTest
from typer.testing import CliRunner

from app.cli import cli
from curate.review.attempts import load_attempts
from curate.review.trace_pages import count_traces, find_traces
from curate.snapshots import SnapshotSettings
from curate.snapshots.publishing import publish
from curate.traces.filter import TraceFilter
from curate.traces.recording import recover
from store import InputError, Store, StoreBusyError
from store.journals import read_journal
from train.dapo import rollouts
from train.dapo.judging import compare_rewards, judge_again
from train.dapo.training import DapoSettings, train_dapo
from train.runs import CHECKPOINTS, last_checkpoint, student_folder

SOME: dict[str, Any] = {
    "steps": 2, "prompts_per_batch": 2, "num_generations": 4, "max_tokens": 40, "refill_rounds": 1,
    "resolution_lists": 0,
}  # fmt: skip
STUDENT = "teacher = 'student'"


def fetch(store: Store, statement: str) -> list[tuple[Any, ...]]:
    with store.reading() as session:
        return session.connection.execute(statement).fetchall()


def train(store: Store, name: str = "rl", **changed: Any) -> str:
    return train_dapo(store, "prompts", "copier", name, DapoSettings(**{**SOME, **changed})).run_id


@pytest.mark.slow
def test_every_completion_is_a_trace_of_its_run(copying: Store) -> None:
    before = fetch(copying, f"select count(*) from traces where not {STUDENT}")
    run_id = train(copying)
    rows = fetch(
        copying,
        "select step, prompt_id, sample_index, (rewards ->> 'conditional')::double, (rewards ->> 'overlong')::double,"
        " reward, advantage, kept, model, completion_tokens, finish_reason, dataset, split, predicted_rank"
        f" from rollouts join traces using (trace_id, run_id) where run_id = '{run_id}' order by all",
    )
    assert fetch(copying, f"select count(*) from traces where not {STUDENT}") == before
    assert {row[0] for row in rows} == {1, 2}
    # Two prompts a step at the least, with all of their completions; kept are two at the most.
    groups: dict[Any, list[Any]] = {}
    for row in rows:
        groups.setdefault(row[:2], []).append(row)
    for group in groups.values():
        assert [row[2] for row in group] == [0, 1, 2, 3]
        assert len({row[7] for row in group}) == 1
        assert sum(row[6] for row in group) == pytest.approx(0, abs=1e-4)
    kept = [sum(group[0][7] for (at, _), group in groups.items() if at == step) for step in (1, 2)]
    assert max(kept) <= 2
    assert sum(kept) > 0
    for _, _, _, conditional, overlong, reward, _, _, model, tokens, reason, dataset, split, _ in rows:
        assert reward == pytest.approx(conditional + overlong)
        assert (model, dataset, split, reason == "length") == ("rl", "shop", "train", tokens >= 40)
    # The copying student writes orders, and the parser reads them.
    assert any(row[-1] for row in rows)
    # What the trainer logged before any selection is the mean over the first prompts of the step.
    logged = dict(
        fetch(copying, f"select step, value from run_metrics where metric = 'reward' and run_id = '{run_id}'")
    )
    for step, value in logged.items():
        means = [sum(row[5] for row in group) / 4 for (at, _), group in groups.items() if at == step]
        assert min(means) - 1e-6 <= value <= max(means) + 1e-6
    assert fetch(copying, "select count(*) from verdicts where trace_id in (select trace_id from rollouts)")[0][0] > 0
    (journal,) = copying.journals.glob(f"{run_id}*")
    assert journal.suffix == ".zst"
    assert len([entry for entry in read_journal(journal) if entry.record["event"] == "received"]) == len(rows)


@pytest.mark.slow
def test_rollouts_change_no_figure_of_teachers(copying: Store) -> None:
    queries = (
        "from acceptance_funnel",
        "select * from pass_rates where teacher <> 'student' order by group_id",
        "select trace_id from accepted_traces('answered') order by trace_id",
    )
    before = [fetch(copying, query) for query in queries]
    version = publish(copying, "traces-again", SnapshotSettings("shop", ruleset="answered")).version
    prompts = publish(copying, "tried", SnapshotSettings("shop", kind="dapo", template="rerank_numbers.v1")).version
    train(copying, num_generations=8)
    assert [fetch(copying, query) for query in queries] == before
    assert publish(copying, "traces-again", SnapshotSettings("shop", ruleset="answered")).version == version
    again = publish(copying, "tried", SnapshotSettings("shop", kind="dapo", template="rerank_numbers.v1"))
    assert again.version == prompts
    # Whoever asks for them gets them.
    asked = publish(copying, "own", SnapshotSettings("shop", ruleset="answered", teacher="student", splits=("train",)))
    assert fetch(copying, f"select rows from snapshots where version = '{asked.version}'") == fetch(
        copying, "select count(*) from rollouts"
    )


def test_judged_again_as_in_the_training_they_earn_what_they_earned(copying: Store) -> None:
    run_id = train(copying, overlong_weight=0.5, max_tokens=30)
    same = judge_again(copying, "rl")
    assert same.run_id == run_id
    earned, again = same.rollouts["reward"].to_numpy(), same.rollouts["judged"].to_numpy()
    assert len(earned) == fetch(copying, "select count(*) from rollouts")[0][0] > 0
    assert len(set(earned)) > 2
    np.testing.assert_allclose(again, earned, atol=1e-6)
    compared = compare_rewards(same.rollouts)
    assert compared["same_side"].to_list() == [1.0] * compared.height
    assert compared["differ_reward"].to_list() == compared["differ_judged"].to_list()
    other = judge_again(copying, "rl", reward="unconditional", format_weight=3.0, overlong_weight=0.0)
    before, after = other.trained, other.judged
    assert (before.reward, before.format_weight, after.reward, after.format_weight) == (
        "conditional",
        0.2,
        "unconditional",
        3.0,
    )
    # By hand: the unconditional reward pays the weight for a valid form wherever the target goes.
    expected = fetch(
        copying,
        "select if(ranking is null or predicted_rank is null, -1, (target_rank - predicted_rank) / 10.0"
        " + 3 * coalesce(list_contains(passed_rules, 'permutation'), false)::int)"
        " from rollouts join traces using (trace_id) left join outcomes using (outcome)"
        " order by step, prompt_id, sample_index",
    )
    np.testing.assert_allclose(other.rollouts["judged"].to_numpy(), [value for (value,) in expected])
    done = CliRunner().invoke(cli, ["train", "rollouts", "rl", "--reward", "ndcg", "--store", str(copying.folder)])
    assert done.exit_code == 0
    assert "reward: conditional, format weight 0.2, overlong weight 0.5; again: ndcg, format weight 0.2" in done.stdout
    with pytest.raises(InputError, match="no rollouts of a student called 'copier'"):
        judge_again(copying, "copier")
    with pytest.raises(InputError, match="no reward is called 'nice'"):
        judge_again(copying, "rl", reward="nice")


def test_what_two_rewards_differ_in_is_summed_up_by_steps() -> None:
    # Of 20 steps: in each a group that differs under both rewards, the other way round, and one that differs under one.
    rows = [
        (step, prompt, index, reward, judged)
        for step in range(1, 21)
        for prompt, rewards in (("a", ((1.0, 0.0), (0.0, 1.0))), ("b", ((0.5, 0.5), (0.5, 0.7))))
        for index, (reward, judged) in enumerate(rewards)
    ]
    compared = compare_rewards(
        pl.DataFrame(rows, schema=["step", "prompt_id", "sample_index", "reward", "judged"], orient="row")
    )
    assert compared.select("first_step", "last_step").rows() == [(step, step + 1) for step in range(1, 20, 2)]
    assert set(compared.select("rollouts", "groups", "differ_reward", "differ_judged", "same_side").rows()) == {
        (8, 4, 0.5, 1.0, 0.0)
    }
    assert compared["reward"].to_list() == pytest.approx([0.5] * 10)
    assert compared["judged"].to_list() == pytest.approx([0.55] * 10)


def stop_at(step: int) -> Any:
    def stop(told: str) -> None:
        if told.startswith(f"step {step} of"):
            raise KeyboardInterrupt

    return stop


def rollouts_of(store: Store, name: str) -> list[tuple[Any, ...]]:
    return fetch(
        store,
        "select step, prompt_id, sample_index, completion, round(reward, 5), kept from rollouts"
        f" join traces using (trace_id) where model = '{name}' order by all",
    )


def test_a_resumed_training_keeps_each_rollout_once(copying: Store) -> None:
    train(copying, "whole", steps=4, save_steps=2)
    settings = DapoSettings(**{**SOME, "steps": 4, "save_steps": 2})
    with pytest.raises(KeyboardInterrupt):
        train_dapo(copying, "prompts", "copier", "parts", settings, on_progress=stop_at(3))
    # The third step is in the store, and in no checkpoint.
    assert {row[0] for row in rollouts_of(copying, "parts")} == {1, 2, 3}
    train_dapo(copying, "", "", "parts", DapoSettings(), resume=True)
    assert rollouts_of(copying, "parts") == rollouts_of(copying, "whole")
    ((rollouts_, traces, distinct),) = fetch(
        copying,
        "select count(*), (select count(*) from traces where teacher = 'student'), count(distinct trace_id)"
        " from rollouts",
    )
    assert rollouts_ == traces == distinct


TRAINING = """
import sys
from pathlib import Path
from store import Store
from train.dapo.judging import compare_rewards, judge_again
from train.dapo.training import DapoSettings, train_dapo
from train.dapo import rollouts
rollouts.COMMIT_SECONDS = float(sys.argv[2])
settings = DapoSettings(steps=40, prompts_per_batch=2, num_generations=4, max_tokens=40, refill_rounds=1, save_steps=2)
store = Store(Path(sys.argv[1]))
train_dapo(store, "prompts", "copier", "killed", settings, on_progress=lambda told: print(told, flush=True))
"""


def kill_at(store: Store, step: int, commit_seconds: float) -> None:
    """A training in a process of its own that is killed when it reports the step."""
    command = [sys.executable, "-c", TRAINING, str(store.folder), str(commit_seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path.cwd()) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if line.startswith(f"step {step} of"):
                child.send_signal(signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("commit_seconds", [60.0, 0.1])
def test_a_killed_training_loses_no_rollout(commit_seconds: float, copying: Store, tmp_path: Path) -> None:
    kill_at(copying, 5, commit_seconds)
    checkpoint = last_checkpoint(student_folder(copying, "killed") / CHECKPOINTS)
    assert checkpoint is not None
    step = int(checkpoint.rpartition("-")[2])
    (journal,) = copying.journals.glob("train-dapo-*.jsonl")
    written = {entry.record["trace_id"]: entry.record["rollout"]["step"] for entry in read_journal(journal)}
    assert max(written.values()) > step

    # If nobody resumes it, the next `gr2 trace` stores them.
    left = Store(shutil.copytree(copying.folder, tmp_path / "left"))
    recover(left)
    assert dict(fetch(left, "select trace_id, step from rollouts")) == written
    assert fetch(left, "select status from runs where kind = 'train-dapo'") == [("killed",)]

    # If somebody does, each step counts once, and those after the checkpoint are those that were done again.
    for store in (copying, left):
        with pytest.raises(KeyboardInterrupt):
            train_dapo(store, "", "", "killed", DapoSettings(), resume=True, on_progress=stop_at(step + 1))
        kept = fetch(store, "select trace_id, step from rollouts join traces using (trace_id)")
        assert len(kept) == len(dict(kept))
        assert {trace_id for trace_id, at in kept if at <= step} == {
            trace_id for trace_id, at in written.items() if at <= step
        }
        assert {at for _, at in kept} == set(range(1, step + 2))


def test_a_busy_store_stops_no_training(copying: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollouts, "COMMIT_SECONDS", 0.05)
    refused = []

    def busy(*_: Any) -> None:
        refused.append(1)
        raise StoreBusyError("in use")

    told: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(rollouts, "commit_batch", busy)
        done = train_dapo(copying, "prompts", "copier", "rl", DapoSettings(**SOME), on_progress=told.append)
    assert done.steps == 2
    assert refused
    assert "some rollouts wait in" in told[-1]
    assert fetch(copying, "select count(*) from rollouts") == [(0,)]
    (recovery,) = recover(copying)
    assert recovery.traces == fetch(copying, "select count(*) from rollouts")[0][0] > 0
    assert fetch(copying, "select status from runs where kind = 'train-dapo'") == [("done",)]


def test_a_snapshot_of_another_store_trains_without_keeping_rollouts(copying: Store) -> None:
    with copying.writing() as session:
        session.connection.execute("delete from candidate_lists")
    told: list[str] = []
    assert train_dapo(copying, "prompts", "copier", "rl", DapoSettings(**SOME), on_progress=told.append).steps == 2
    assert "rollouts are not kept: the store lacks the candidate lists of this snapshot" in told
    assert fetch(copying, "select count(*) from rollouts") == [(0,)]


def draw_training() -> None:
    import os  # noqa: PLC0415

    from app.browser.training_page import draw_trainings  # noqa: PLC0415
    from store import Store  # noqa: PLC0415

    draw_trainings(Store.open(os.environ["GR2_STORE"]))


def draw_traces() -> None:
    import os  # noqa: PLC0415

    from app.browser.trace_page import draw_traces  # noqa: PLC0415
    from store import Store  # noqa: PLC0415

    draw_traces(Store.open(os.environ["GR2_STORE"]))


@pytest.mark.slow
def test_people_read_rollouts_step_by_step(copying: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = train(copying)
    monkeypatch.setenv("GR2_STORE", str(copying.folder))
    page = AppTest.from_function(draw_training, default_timeout=30).run()
    assert page.selectbox(key="rollout-step").options == ["1", "2"]
    # Without being asked for, no rollout is among the traces; asked for a step, all of its rollouts are.
    counts = dict(fetch(copying, "select step, count(*) from rollouts group by step"))
    assert find_traces(copying, TraceFilter()).rows["teacher"].unique().to_list() == ["evidence"]
    chosen = TraceFilter(run_id=run_id, step=2)
    assert count_traces(copying, chosen) == counts[2]
    assert count_traces(copying, TraceFilter(kept=True)) + count_traces(copying, TraceFilter(kept=False)) == sum(
        counts.values()
    )
    rows = find_traces(copying, chosen).rows
    assert rows["step"].unique().to_list() == [2]
    page = AppTest.from_function(draw_traces, default_timeout=30)
    for name, value in {**chosen.to_query(), "trace": rows["trace_id"][0]}.items():
        page.query_params[name] = value
    page.run()
    assert not page.exception
    assert page.dataframe[0].value["reward"].to_list() == rows["reward"].to_list()
    heading = " ".join(element.proto.body for element in page.get("html"))
    assert "advantage" in heading
    assert "conditional" in heading
    # Compared are the rollout's own run and what teachers wrote.
    assert train(copying, "other") != run_id
    attempts = load_attempts(copying, rows["trace_id"][0]).attempts
    assert rows["trace_id"][0] in {attempt.trace_id for attempt in attempts}
    assert {attempt.configuration.model for attempt in attempts} <= {"rl", "evidence_brief.v1"}
