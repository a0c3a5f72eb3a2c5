from dataclasses import replace

import pytest
import safetensors.torch
import torch

from curate.snapshots import SnapshotSettings
from curate.snapshots.publishing import publish
from store import InputError, Store
from train.midtrain.tasks import MidtrainSettings
from train.midtrain.training import train_midtrain
from train.runs import student_folder
from train.students.initialization import init_from_snapshot
from train.students.student import init_student, load_student
from train.students.vocabulary import find_vocabulary

FEW = MidtrainSettings(warmup_steps=1, steps=2, batch_size=4, max_length=512, save_steps=1, log_steps=1)


@pytest.fixture
def texts(inputs: Store) -> Store:
    publish(inputs, "texts", SnapshotSettings("shop", kind="midtrain"))
    return inputs


def test_a_model_without_semantic_ids_gets_them_and_is_trained(texts: Store) -> None:
    init_student(["A shopper bought soap"], 1, 2, "tiny", student_folder(texts, "foreign"))
    done = train_midtrain(texts, "texts", "foreign", "taught", FEW, codebook_rows=True)
    assert done.steps == 3
    model, tokenizer = load_student(student_folder(texts, "taught"))
    vocabulary = find_vocabulary(tokenizer, 4, 256)
    assert model.get_input_embeddings().num_embeddings > vocabulary.new_rows[-1]
    with texts.reading() as session:
        rows = session.connection.execute(
            "select status, list(step order by step) from runs join run_metrics using (run_id) "
            "where kind = 'train-midtrain' and metric = 'loss' group by status"
        ).fetchall()
    assert rows == [("done", [1, 2, 3])]


@pytest.mark.slow
def test_an_interrupted_training_goes_on_to_the_same_weights(texts: Store) -> None:
    init_from_snapshot(texts, "texts", "young", "tiny")
    train_midtrain(texts, "texts", "young", "whole", FEW)

    def stop(told: str) -> None:
        if told.startswith("step 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_midtrain(texts, "texts", "young", "stopped", FEW, on_progress=stop)
    train_midtrain(texts, "", "", "stopped", FEW, resume=True)
    whole, stopped = (
        safetensors.torch.load_file(student_folder(texts, name) / "model.safetensors") for name in ("whole", "stopped")
    )
    assert all(torch.equal(whole[key], stopped[key]) for key in whole)


def test_lora_trains_new_rows_alone_in_the_warm_up_and_leaves_a_plain_model(texts: Store) -> None:
    init_student(["A shopper bought soap"], 1, 2, "tiny", student_folder(texts, "foreign"))
    settings = replace(FEW, lora_rank=2, gradient_accumulation_steps=2, batch_size=2)
    # With a rate of zero nothing moves after the warm-up.
    for name, rate in (("warmed", 0.0), ("trained", 1e-2)):
        assert train_midtrain(texts, "texts", "foreign", name, replace(settings, learning_rate=rate)).steps == 3
    begun, _ = load_student(student_folder(texts, "foreign"))
    warmed, trained = (load_student(student_folder(texts, name))[0] for name in ("warmed", "trained"))
    new = set(find_vocabulary(load_student(student_folder(texts, "warmed"))[1], 4, 256).new_rows)
    old, first = begun.get_input_embeddings().weight, warmed.get_input_embeddings().weight
    known = [row for row in range(len(old)) if row not in new]
    assert torch.equal(first[known], old[known])
    layers = {name for name, _ in begun.named_parameters() if ".layers." in name}
    assert layers <= dict(trained.named_parameters()).keys() == dict(warmed.named_parameters()).keys()
    assert all(torch.equal(begun.get_parameter(name), warmed.get_parameter(name)) for name in layers)
    moved = {name for name in layers if not torch.equal(begun.get_parameter(name), trained.get_parameter(name))}
    assert moved == {name for name in layers if "_proj" in name}
    assert not torch.equal(first, trained.get_input_embeddings().weight)


def test_codebooks_that_are_gone_are_a_clear_error(texts: Store) -> None:
    init_from_snapshot(texts, "texts", "young", "tiny")
    for folder in (texts.models / "sids" / "shop").iterdir():
        folder.rename(folder.with_name("gone"))
    with pytest.raises(InputError, match="has no codebooks of shop@"):
        train_midtrain(texts, "texts", "young", "x", FEW, codebook_rows=True)
    assert not student_folder(texts, "x").exists()
