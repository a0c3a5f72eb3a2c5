import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers.trainer

from curate.evaluation.evaluate import evaluate
from curate.evaluation.settings import EvalSettings
from store import InputError, Store
from tests.train.weights import same, weights
from train.browsing import load_curves, load_trainings
from train.dapo.settings import DapoSettings
from train.dapo.training import train_dapo
from train.ranking.model_selection import ValidLists, open_valid_lists
from train.ranking.modes import student_rankers
from train.ranking.rerankers import open_student
from train.ranking.settings import SelectionSettings
from train.runs import TrainingRun, TrainingSummary, open_snapshot, student_folder
from train.sft.settings import SftSettings
from train.sft.training import train_sft

TEMPLATE = "rerank_numbers.v1"
SFT = SftSettings(max_steps=4, batch_size=4, log_steps=1)
SELECTION = SelectionSettings(eval_steps=1, eval_lists=8)
NDCG = "eval_ndcg_at_5"


def fetch(store: Store, statement: str) -> list[tuple[Any, ...]]:
    with store.reading() as session:
        return session.connection.execute(statement).fetchall()


def curve(store: Store, done: TrainingSummary, metric: str = NDCG) -> list[tuple[int, float]]:
    return fetch(
        store,
        f"select step, value from run_metrics where run_id = '{done.run_id}' and metric = '{metric}' order by step",
    )


def valid_lists(store: Store, student: str, **changed: Any) -> ValidLists:
    tokenizer = open_student(store, student, TEMPLATE).tokenizer
    found = open_valid_lists(
        store, open_snapshot(store, "traces"), [TEMPLATE], tokenizer, replace(SELECTION, **changed)
    )
    assert found is not None
    return found


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, torch.Tensor]]]:
    """`scripted(0.1, 0.4, ...)` gives these figures to the evaluations to come; returns the weights that each saw."""

    def give(*figures: float) -> list[dict[str, torch.Tensor]]:
        left: Iterator[float] = iter(figures)
        seen: list[dict[str, torch.Tensor]] = []

        def rank(_: ValidLists, model: Any) -> dict[str, float]:
            seen.append({name: weight.detach().clone() for name, weight in model.state_dict().items()})
            return {"ndcg_at_5": next(left), "valid_share": 1.0}

        monkeypatch.setattr(ValidLists, "__call__", rank)
        return seen

    return give


def test_the_figure_is_that_of_an_evaluation_of_the_same_lists(inputs: Store) -> None:
    lists = valid_lists(inputs, "new", eval_lists=30)
    assert len(lists.listed) == 30
    found = lists(open_student(inputs, "new", TEMPLATE).model)
    rankers = student_rankers(inputs, "new", ["first-token"], template=TEMPLATE)
    done = evaluate(inputs, "shop", rankers, EvalSettings("valid", limit=30, shuffles=0))
    figures = dict(done.metrics.filter(ranker=rankers[0].name).select("metric", "value").rows())
    assert found == pytest.approx({"ndcg_at_5": figures["conditional_ndcg_at_5"], "valid_share": 1.0})


def test_an_invalid_answer_is_a_miss_and_not_the_order_of_the_input(inputs: Store) -> None:
    lists = valid_lists(inputs, "new", eval_mode="reasoning", eval_max_tokens=8)
    assert lists(open_student(inputs, "new", TEMPLATE).model) == {"ndcg_at_5": 0.0, "valid_share": 0.0}


@pytest.mark.slow
def test_the_sample_is_fixed_and_the_cheapest_mode_is_chosen(inputs: Store) -> None:
    first, again = valid_lists(inputs, "new"), valid_lists(inputs, "new")
    assert [listed.list_id for listed in first.listed] == [listed.list_id for listed in again.listed]
    ids = ", ".join(f"'{listed.list_id}'" for listed in first.listed)
    assert fetch(inputs, f"select distinct split from candidate_lists where list_id in ({ids})") == [("valid",)]
    assert first.settings.eval_mode == "first-token"
    tokenizer = open_student(inputs, "new", TEMPLATE).tokenizer
    by_sid = open_valid_lists(inputs, open_snapshot(inputs, "traces"), ["rerank_compact.v1"], tokenizer, SELECTION)
    assert by_sid is not None
    assert by_sid.settings.eval_mode == "direct"
    assert by_sid(open_student(inputs, "new", TEMPLATE).model)["valid_share"] == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_the_best_student_is_kept_and_the_run_says_which(
    lora_rank: int, inputs: Store, scripted: Callable[..., list[dict[str, torch.Tensor]]]
) -> None:
    seen = scripted(0.2, 0.1, 0.4, 0.4, 0.2)
    settings = replace(SFT, lora_rank=lora_rank, optimizer="adamw")
    done = train_sft(inputs, "traces", "new", "best", settings, selection=SELECTION)
    # Of equals the earlier one is kept.
    assert curve(inputs, done) == [(0, 0.2), (1, 0.1), (2, 0.4), (3, 0.4), (4, 0.2)]
    assert (done.steps, done.figures["best_step"], done.figures[NDCG]) == (4, 2, 0.4)
    trainings = load_trainings(inputs)
    assert dict(trainings.select("name", "best_step").rows()) == {"best": 2}
    assert set(load_curves(inputs, [done.run_id])["metric"]) >= {NDCG, "eval_valid_share", "loss"}
    kept = weights(inputs, "best")
    if not lora_rank:
        assert all(torch.equal(kept[name], seen[2][name]) for name in kept)
        assert not all(torch.equal(kept[name], seen[3][name]) for name in kept)
    else:
        # LoRA's weights are merged: at step 2 another model comes out than after all four steps.
        scripted(0.1, 0.1, 0.2, 0.4, 0.5)
        train_sft(inputs, "traces", "new", "last", settings, selection=SELECTION)
        train_sft(inputs, "traces", "new", "whole", settings)
        assert same(weights(inputs, "last"), weights(inputs, "whole"))
        assert kept.keys() == weights(inputs, "new").keys()
        assert not same(kept, weights(inputs, "last"))
    ((facts,),) = fetch(inputs, f"select settings from runs where run_id = '{done.run_id}'")
    assert {"eval_steps": 1, "eval_lists": 8, "eval_mode": "first-token", "patience": None}.items() <= json.loads(
        facts
    ).items()


@pytest.mark.slow
def test_evaluating_does_not_change_what_a_student_learns(inputs: Store, copying: Store) -> None:
    select = replace(SELECTION, eval_steps=2)
    plain = train_sft(inputs, "traces", "new", "plain", SFT)
    watched = train_sft(inputs, "traces", "new", "watched", SFT, selection=select)
    assert [step for step, _ in curve(inputs, watched)] == [0, 2, 4]
    assert curve(inputs, watched, "loss") == curve(inputs, plain, "loss")
    assert curve(inputs, plain) == []
    rl = DapoSettings(steps=4, prompts_per_batch=2, num_generations=4, max_tokens=40, log_steps=4, refill_rounds=1)
    plain = train_dapo(copying, "prompts", "copier", "plain-rl", rl)
    watched = train_dapo(copying, "prompts", "copier", "watched-rl", rl, selection=select)
    assert [step for step, _ in curve(copying, watched)] == [0, 2, 4]
    # The metrics of four steps are averaged, whatever is evaluated between them.
    for metric in ("reward", "loss", "completions/mean_length"):
        assert curve(copying, watched, metric) == curve(copying, plain, metric) != []


@pytest.mark.slow
def test_a_kept_student_of_dapo_ranks_as_its_best_step_did(copying: Store) -> None:
    rl = DapoSettings(steps=3, prompts_per_batch=2, num_generations=4, max_tokens=40, learning_rate=1e-2)
    done = train_dapo(copying, "prompts", "copier", "rl", rl, selection=SELECTION)
    figures = dict(curve(copying, done))
    best = max(figures, key=lambda step: (figures[step], -step))
    assert done.figures["best_step"] == best
    student = open_student(copying, "rl")
    assert valid_lists(copying, "rl")(student.model)["ndcg_at_5"] == figures[best]


@pytest.mark.slow
def test_two_processes_share_the_lists_and_agree(inputs: Store) -> None:
    words = [
        "--standalone", "--nproc_per_node", "2", "-m", "app.cli",
        "train", "sft", "traces", "--student", "new", "--name", "both", "--max-steps", "3",
        "--batch-size", "2", "--log-steps", "1", "--eval-steps", "1", "--eval-lists", "9",
        "--store", str(inputs.folder),
    ]  # fmt: skip
    subprocess.run([sys.executable, "-m", "torch.distributed.run", *words], check=True, stdout=subprocess.DEVNULL)
    assert fetch(inputs, "select settings ->> 'processes' from runs where kind = 'train-sft'") == [("2",)]
    figures = dict(fetch(inputs, f"select step, value from run_metrics where metric = '{NDCG}'"))
    assert figures.keys() == {0, 1, 2, 3}
    ((best,),) = fetch(inputs, "select value from run_metrics where metric = 'best_step'")
    assert best == max(figures, key=lambda step: (figures[step], -step))
    # One process that ranks all nine lists finds what two found with five and four.
    lists = valid_lists(inputs, "both", eval_lists=9)
    assert lists(open_student(inputs, "both").model)["ndcg_at_5"] == pytest.approx(figures[best])


def test_a_training_that_does_not_improve_ends(
    inputs: Store, scripted: Callable[..., list[dict[str, torch.Tensor]]]
) -> None:
    scripted(0.1, 0.3, 0.2, 0.3, 0.9)
    done = train_sft(
        inputs, "traces", "new", "short", replace(SFT, max_steps=9), selection=replace(SELECTION, patience=2)
    )
    assert (done.steps, done.figures["best_step"]) == (3, 1)


@pytest.mark.parametrize("killed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_student_that_training_makes_worse_stays_as_it_was(
    killed: bool,
    inputs: Store,
    scripted: Callable[..., list[dict[str, torch.Tensor]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    warned: list[str] = []
    monkeypatch.setattr(transformers.trainer.logger, "warning", warned.append)

    def stop(*_: Any) -> TrainingSummary:
        raise KeyboardInterrupt

    scripted(0.3, 0.1, 0.2, 0.3, 0.1)
    with monkeypatch.context() as patch:
        if killed:
            patch.setattr(TrainingRun, "finish", stop)
            with pytest.raises(KeyboardInterrupt):
                train_sft(inputs, "traces", "new", "same", SFT, selection=SELECTION)
    done = train_sft(inputs, "traces", "new", "same", SFT, selection=SELECTION, resume=killed)
    assert (done.steps, done.figures["best_step"], done.figures[NDCG]) == (4, 0, 0.3)
    assert same(weights(inputs, "same"), weights(inputs, "new"))
    # The head is tied to the embedding, and no checkpoint has it twice.
    assert not [message for message in warned if "missing keys" in message]


# The steps before which the training is killed: with a best checkpoint before, at and after the last one, and after the
# patience has run out, when only the model was still to be saved.
@pytest.mark.slow
@pytest.mark.parametrize(
    "stopped_at", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow), "end"]
)
def test_a_resumed_training_keeps_the_same_student(
    stopped_at: int | str,
    inputs: Store,
    scripted: Callable[..., list[dict[str, torch.Tensor]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    figures = {0: 0.1, 1: 0.5, 2: 0.3, 3: 0.4, 4: 0.8, 5: 0.9}
    settings, selection = replace(SFT, max_steps=5), replace(SELECTION, patience=2)

    def stop(message: str) -> None:
        if message.startswith(f"step {stopped_at} of 5: loss"):
            raise KeyboardInterrupt

    def stop_at_the_end(*_: Any) -> TrainingSummary:
        raise KeyboardInterrupt

    scripted(*figures.values())
    with monkeypatch.context() as patch:
        if stopped_at == "end":
            patch.setattr(TrainingRun, "finish", stop_at_the_end)
        with pytest.raises(KeyboardInterrupt):
            train_sft(inputs, "traces", "new", "killed", settings, selection=selection, on_progress=stop)
    if stopped_at == "end":
        # Nothing is evaluated any more.
        scripted()
    else:
        # What the last checkpoint does not know is evaluated again.
        scripted(*(figures[step] for step in figures if step >= int(stopped_at)))
    resumed = train_sft(inputs, "", "", "killed", settings, resume=True)
    scripted(*figures.values())
    whole = train_sft(inputs, "traces", "new", "whole", settings, selection=selection)
    assert (resumed.steps, resumed.figures["best_step"]) == (whole.steps, whole.figures["best_step"]) == (3, 1)
    assert same(weights(inputs, "killed"), weights(inputs, "whole"))
    assert curve(inputs, resumed) == curve(inputs, whole) == [(step, figures[step]) for step in range(4)]


def test_a_training_killed_after_its_last_step_makes_no_further_one(
    inputs: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> TrainingSummary:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            train_sft(inputs, "traces", "new", "killed", SFT)
    assert train_sft(inputs, "", "", "killed", SFT, resume=True).steps == 4
    train_sft(inputs, "traces", "new", "whole", SFT)
    assert same(weights(inputs, "killed"), weights(inputs, "whole"))


def test_what_cannot_select_is_a_clear_error_before_the_first_step(inputs: Store) -> None:
    def train(selection: SelectionSettings) -> None:
        train_sft(inputs, "traces", "new", "x", SFT, selection=selection)

    with pytest.raises(InputError, match="`patience` is 3, but nothing is evaluated; set `eval_steps` too"):
        SelectionSettings(patience=3)
    with pytest.raises(InputError, match="`eval_mode` is 'magic'"):
        SelectionSettings(eval_mode="magic")
    with pytest.raises(InputError, match="no pre-ranker is called 'other'"):
        train(replace(SELECTION, pre_ranker="other"))
    with pytest.raises(InputError, match="`eval_steps` is 3; it must be a multiple of the 2 steps on"):
        train_dapo(
            inputs,
            "prompts",
            "new",
            "x",
            DapoSettings(num_iterations=2),
            selection=SelectionSettings(eval_steps=3),
        )
    snapshot, tokenizer = open_snapshot(inputs, "traces"), open_student(inputs, "new", TEMPLATE).tokenizer
    with pytest.raises(InputError, match="it has 2 templates and 1 versions of semantic IDs"):
        open_valid_lists(inputs, snapshot, [TEMPLATE, "rerank_levels.v1"], tokenizer, SELECTION)
    # As in a store whose dataset was split without valid interactions.
    with inputs.writing() as session:
        session.connection.execute("delete from candidate_lists where split = 'valid'")
    with pytest.raises(InputError, match=r"no valid list of 'shop' by cooccurrence\.v1 contains its target"):
        train(SELECTION)
    assert not student_folder(inputs, "x").exists()
    assert fetch(inputs, "select count(*) from runs where kind like 'train%'") == [(0,)]


def test_a_snapshot_of_a_dataset_that_the_store_lacks_is_a_clear_error(inputs: Store, store: Store) -> None:
    shutil.copytree(inputs.snapshots, store.snapshots, dirs_exist_ok=True)
    tokenizer = open_student(inputs, "new", TEMPLATE).tokenizer
    with pytest.raises(InputError, match="shop"):
        open_valid_lists(
            store, open_snapshot(store, str(open_snapshot(inputs, "traces").path)), [TEMPLATE], tokenizer, SELECTION
        )


def test_no_setting_of_a_resumed_training_may_change(inputs: Store) -> None:
    def stop(message: str) -> None:
        if message.startswith("step 2 of 4: loss"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_sft(inputs, "traces", "new", "x", SFT, selection=SELECTION, on_progress=stop)
    with pytest.raises(InputError, match="was started with `eval_lists` 8, not 9"):
        train_sft(inputs, "", "", "x", SFT, selection=replace(SELECTION, eval_lists=9), resume=True)
