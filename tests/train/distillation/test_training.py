from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from store import InputError, Store
from tests.train.weights import same, weights
from train.distillation.settings import DistillationSettings
from train.distillation.training import _arguments, train_by_distillation
from train.ranking.settings import NO_SELECTION, SelectionSettings
from train.runs import TrainingSummary, find_student, open_snapshot, student_folder
from train.snapshots import load_snapshot
from train.students.chat import ChatFormat
from train.students.initialization import init_from_snapshot
from train.students.student import load_student

FEW = DistillationSettings(steps=2, prompts_per_batch=2, max_tokens=8, log_steps=1, learning_rate=5e-4)


def fetch(store: Store, statement: str) -> list[tuple[Any, ...]]:
    with store.reading() as session:
        return session.connection.execute(statement).fetchall()


def divergence(store: Store, student: str, teacher: str) -> float:
    """The mean of KL(student, teacher) over the tokens of the teacher's answers to some prompts."""
    model, tokenizer = load_student(find_student(store, student))
    better, _ = load_student(find_student(store, teacher))
    prompts = load_snapshot(open_snapshot(store, "prompts").path, kind="dapo")["train"]["prompt"][:4]
    values = []
    for prompt in ChatFormat.of(tokenizer).encode_prompts(prompts):
        ids = better.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)
        with torch.no_grad():
            ours, theirs = (
                found(ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1) for found in (model, better)
            )
        values.append((ours.exp() * (ours - theirs)).sum(-1).mean().item())
    return sum(values) / len(values)


def blur(store: Store, name: str, blurred: str) -> None:
    """Make a student from another one by adding noise to its weights, so that it knows less."""
    model, tokenizer = load_student(find_student(store, name))
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(weight.std() * torch.randn(weight.shape, generator=random) / 4)
    model.save_pretrained(student_folder(store, blurred))
    tokenizer.save_pretrained(student_folder(store, blurred))


def test_the_student_comes_closer_to_its_teacher(copying: Store) -> None:
    before = weights(copying, "copier")
    blur(copying, "copier", "blurred")
    settings = replace(FEW, steps=8, prompts_per_batch=8)
    done = train_by_distillation(copying, "prompts", "blurred", "near", settings, teacher="copier")
    assert divergence(copying, "near", "copier") < 0.5 * divergence(copying, "blurred", "copier")
    losses = [loss for (loss,) in fetch(copying, "select value from run_metrics where metric = 'loss' order by step")]
    assert len(losses) == done.steps == 8
    assert 0 < losses[-1] < losses[0]
    assert same(weights(copying, "copier"), before)
    assert fetch(copying, "select kind, status, settings ->> 'teacher' from runs where kind like 'train%'") == [
        ("train-distill", "done", "copier")
    ]


@pytest.mark.slow
def test_who_learns_from_itself_learns_nothing(copying: Store) -> None:
    done = train_by_distillation(copying, "prompts", "copier", "same", FEW, teacher="copier")
    assert done.figures["loss"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.slow
def test_a_resumed_distillation_makes_the_same_student(copying: Store) -> None:
    settings = replace(FEW, steps=4, save_steps=2)

    def stop(message: str) -> None:
        if message.startswith("step 3 of 4"):
            raise KeyboardInterrupt

    def distill(name: str, **options: Any) -> TrainingSummary:
        return train_by_distillation(copying, "prompts", "new", name, settings, teacher="copier", **options)

    with pytest.raises(KeyboardInterrupt):
        distill("killed", on_progress=stop)
    with pytest.raises(InputError, match="`teacher` copier, not new"):
        train_by_distillation(copying, "", "", "killed", settings, teacher="new", resume=True)
    assert train_by_distillation(copying, "", "", "killed", settings, teacher="", resume=True).steps == 4
    distill("whole")
    assert same(weights(copying, "killed"), weights(copying, "whole"))


@pytest.mark.slow
def test_valid_lists_select_the_best_student(copying: Store) -> None:
    selection = SelectionSettings(eval_steps=1, eval_lists=8)
    done = train_by_distillation(copying, "prompts", "new", "best", FEW, teacher="copier", selection=selection)
    figures = dict(fetch(copying, "select step, value from run_metrics where metric = 'eval_ndcg_at_5'"))
    assert figures.keys() == {0, 1, 2}
    assert done.figures["eval_ndcg_at_5"] == max(figures.values())


@pytest.mark.slow
def test_lora_leaves_a_plain_student(copying: Store) -> None:
    train_by_distillation(copying, "prompts", "new", "lora", replace(FEW, lora_rank=2), teacher="copier")
    assert weights(copying, "lora").keys() == weights(copying, "new").keys()


def test_what_cannot_work_is_a_clear_error_before_the_first_step(copying: Store) -> None:
    init_from_snapshot(copying, "prompts", "stranger", "tiny")
    with pytest.raises(InputError, match="teacher 'stranger' has another vocabulary"):
        train_by_distillation(copying, "prompts", "new", "x", FEW, teacher="stranger")
    with pytest.raises(InputError, match="lower `max_tokens`"):
        train_by_distillation(copying, "prompts", "new", "x", replace(FEW, max_tokens=10_000), teacher="copier")
    assert fetch(copying, "select count(*) from runs where kind like 'train%'") == [(0,)]


def test_what_is_chosen_reaches_trl(tmp_path: Path) -> None:
    settings = DistillationSettings(
        beta=0.5, steps=7, prompts_per_batch=3, max_tokens=9, temperature=0.8, warmup_steps=0.1, seed=3,
        lr_scheduler_type="cosine", gradient_accumulation_steps=2,
    ).resolve(from_scratch=False)  # fmt: skip
    arguments = _arguments(settings, tmp_path, NO_SELECTION)
    expected = {
        "beta": 0.5,
        "max_steps": 7,
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 2,
        "max_completion_length": 9,
        "temperature": 0.8,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "seed": 3,
        "data_seed": 3,
    }
    assert {name: getattr(arguments, name) for name in expected} == expected
    # By default, the reverse divergence on fresh answers.
    defaults = DistillationSettings().resolve(from_scratch=True)
    assert _arguments(defaults, tmp_path, NO_SELECTION).beta == 1.0
