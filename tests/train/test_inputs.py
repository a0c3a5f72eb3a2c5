from dataclasses import asdict
from typing import Any

import pytest
from typer.testing import CliRunner

from app.cli import cli
from store import InputError, Store
from train.dapo.settings import DapoSettings
from train.inputs import resume_settings
from train.midtrain.settings import MidtrainSettings
from train.sft.settings import SftSettings
from train.sft.training import train_sft

RECORDED = asdict(SftSettings(batch_size=4, epochs=2.0).resolve(from_scratch=True))


def stop(told: str) -> None:
    if told.startswith("step 2 "):
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("chosen", "given"),
    [
        ({}, ()),
        ({"batch_size": 4}, ("batch_size",)),
        ({"learning_rate": 5e-3, "optimizer": "muon"}, ()),
        ({}, ("seed",)),
    ],
    ids=str,
)
def test_a_resumed_training_keeps_the_settings_that_it_was_started_with(
    chosen: dict[str, Any], given: tuple[str, ...]
) -> None:
    assert asdict(resume_settings("x", RECORDED, SftSettings(**chosen), given)) == RECORDED


@pytest.mark.parametrize(
    ("settings", "given", "details"),
    [
        (SftSettings(batch_size=8), (), "`batch_size` 4, not 8;"),
        # Equal to the default, which is not what was recorded.
        (SftSettings(), ("batch_size", "epochs"), "`epochs` 2.0, not 1.0, `batch_size` 4, not 32;"),
        (SftSettings(learning_rate=1e-5, seed=3), ("seed",), "`learning_rate` 0.005, not 1e-05, `seed` 0, not 3;"),
        (SftSettings(max_steps=9), (), "`max_steps` None, not 9;"),
    ],
    ids=str,
)
def test_settings_that_differ_from_those_of_the_start_are_refused_by_name(
    settings: SftSettings, given: tuple[str, ...], details: str
) -> None:
    with pytest.raises(InputError) as error:
        resume_settings("x", RECORDED, settings, given)
    assert details in str(error.value)
    assert str(error.value).startswith("the training of 'x' was started with ")


def test_choices_outside_the_settings_are_compared_too_and_newer_settings_are_not() -> None:
    recorded = {**asdict(MidtrainSettings()), "codebook_rows": False}
    assert resume_settings("x", recorded, MidtrainSettings(), codebook_rows=False) == MidtrainSettings()
    with pytest.raises(InputError, match="`codebook_rows` False, not True"):
        resume_settings("x", recorded, MidtrainSettings(), codebook_rows=True)
    older = {name: value for name, value in asdict(DapoSettings()).items() if name != "refill_rounds"}
    assert resume_settings("x", older, DapoSettings(refill_rounds=5)).refill_rounds == 5


def test_the_command_refuses_only_options_that_were_typed(inputs: Store) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_sft(
            inputs,
            "traces",
            "new",
            "x",
            SftSettings(max_steps=3, batch_size=4, save_steps=1, log_steps=1),
            on_progress=stop,
        )
    words = ["train", "sft", "--name", "x", "--resume", "--store", str(inputs.folder)]
    # 32 is the default.
    refused = CliRunner().invoke(cli, [*words, "--batch-size", "32", "--max-steps", "3"])
    assert isinstance(refused.exception, InputError)
    assert "was started with --batch-size 4, not 32; leave it out to resume" in str(refused.exception)
    assert "--max-steps" not in str(refused.exception)
    resumed = CliRunner().invoke(cli, [*words, "--batch-size", "4"])
    assert resumed.exit_code == 0, resumed.output
    assert "student x: 3 steps" in resumed.output
    assert "with muon, learning rate 0.005" in resumed.output
