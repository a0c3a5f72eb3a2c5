import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from store import InputError, Store
from tests.train.strangers import CHATML, QWEN3, make_model, make_tokenizer, save_stranger
from tests.train.test_other_models import LEVELS, levels, settings_of  # noqa: F401
from train.dapo.training import DapoSettings, train_dapo
from train.midtrain.settings import MidtrainSettings
from train.ranking.rerankers import open_student
from train.sft.training import SftSettings, train_sft
from train.students.settings import TrainerSettings
from train.students.student import load_student
from train.students.trainers import shared_arguments, tracker_callbacks

TURN = ("<|im_start|>", "<|im_end|>")


def movement(before: Any, after: Any) -> float:
    """How far the weights moved, in relation to their size."""
    pairs = [(old.detach().float(), dict(after.named_parameters())[name].detach().float()) for name, old in before]
    moved = sum(float((new - old).square().sum()) for old, new in pairs)
    return float((moved / sum(float(old.square().sum()) for old, _ in pairs)) ** 0.5)


def test_a_bfloat16_checkpoint_moves_as_the_same_one_in_float32(levels: Store, tmp_path: Path) -> None:  # noqa: F811
    tokenizer = make_tokenizer(special=TURN, template=CHATML)
    half = make_model("qwen3", tokenizer).to(torch.bfloat16)
    settings = SftSettings(max_steps=4, batch_size=2, learning_rate=1e-5, optimizer="adamw")
    moved = {}
    for name, model in (("half", half), ("whole", make_model("qwen3", tokenizer).to(torch.bfloat16).float())):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        assert json.loads((tmp_path / name / "config.json").read_text())["dtype"] == str(model.dtype)[6:]
        done = train_sft(levels, "levels", str(tmp_path / name), name, settings)
        moved[name] = movement(half.named_parameters(), load_student(done.folder)[0])
    assert moved["whole"] > 1e-5
    assert moved["half"] == pytest.approx(moved["whole"], rel=0.01)


def test_variables_of_the_chat_template_are_kept_by_everything_trained_from_the_student(
    levels: Store,  # noqa: F811
    tmp_path: Path,
) -> None:
    # As SmolLM3 and others, it tells the model in the system text whether to think.
    template = "{%- if enable_thinking is defined and not enable_thinking -%}{{- '/no_think ' -}}{%- endif -%}" + QWEN3
    tokenizer = make_tokenizer(special=(*TURN, "<think>", "</think>"), template=template)
    begun = save_stranger(tmp_path / "base", "qwen3", tokenizer)
    messages = [{"role": "user", "content": "s1"}]

    def prompt(reference: str, **options: Any) -> str:
        return open_student(levels, reference, LEVELS, **options).chat.prompt(messages)

    assert not prompt(begun).startswith("/no_think ")
    assert prompt(begun, chat_template_kwargs={"enable_thinking": False}).startswith("/no_think ")
    settings = SftSettings(max_steps=1, batch_size=2, chat_template_kwargs={"enable_thinking": False})
    train_sft(levels, "levels", begun, "quiet", settings)
    assert prompt("quiet").startswith("/no_think ")
    assert settings_of(levels, "quiet")["chat_template_kwargs"] == {"enable_thinking": False}
    rl = DapoSettings(steps=1, prompts_per_batch=2, num_generations=2, max_tokens=4, refill_rounds=0)
    done = train_dapo(levels, "level-prompts", "quiet", "rl", rl)
    assert prompt("rl").startswith("/no_think ")
    # Other programs render it so too, whatever they pass.
    saved = load_student(done.folder)[1]
    assert saved.apply_chat_template(messages, tokenize=False, enable_thinking=True).startswith("/no_think ")


@pytest.mark.slow
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_gradient_accumulation_and_checkpointing_leave_a_step_of_sft_as_it_is(
    lora_rank: int,
    levels: Store,  # noqa: F811
    tmp_path: Path,
) -> None:
    begun = save_stranger(tmp_path / "base", "qwen3", make_tokenizer(special=TURN, template=CHATML))
    found = []
    for name, changed in (
        ("whole", {"batch_size": 4}),
        ("parts", {"batch_size": 2, "gradient_accumulation_steps": 2, "gradient_checkpointing": True}),
    ):
        settings = SftSettings(max_steps=1, learning_rate=1e-3, lora_rank=lora_rank, **changed)
        done = train_sft(levels, "levels", begun, name, settings)
        found.append(load_student(done.folder)[0].state_dict())
    for name, weight in found[0].items():
        # Adam turns a gradient near zero into a step of either sign.
        assert (weight - found[1][name]).abs().mean() < 1e-4


def test_the_attention_is_that_of_the_settings_and_an_unknown_one_is_an_error(tmp_path: Path) -> None:
    begun = save_stranger(tmp_path / "base", "qwen3", make_tokenizer(special=TURN, template=CHATML))
    model, _ = load_student(begun, attn_implementation="eager")
    assert model.config._attn_implementation == "eager"
    with pytest.raises(InputError, match="transformers cannot load a causal language model"):
        load_student(begun, attn_implementation="fast")


def test_shared_arguments_follow_settings_and_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "checkpoints"
    settings = TrainerSettings(gradient_accumulation_steps=3, gradient_checkpointing=True)
    arguments = shared_arguments(settings, folder)
    assert (arguments["output_dir"], arguments["run_name"]) == (str(folder), "mine")
    assert (arguments["gradient_accumulation_steps"], arguments["activation_checkpointing"]) == (3, True)
    assert arguments["report_to"] == "none"
    assert shared_arguments(TrainerSettings(), folder)["activation_checkpointing"] == torch.cuda.is_available()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match="--fsdp_version 2"):
        shared_arguments(settings, folder)
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert shared_arguments(settings, folder) == arguments


@pytest.mark.parametrize("tracker", ["wandb", "trackio", "tensorboard"])
def test_a_tracker_that_is_not_installed_is_named(tracker: str, tmp_path: Path) -> None:
    settings = TrainerSettings(report_to=tracker)
    if find_spec(tracker):
        assert shared_arguments(settings, tmp_path)["report_to"] in (tracker, "none")
        return
    with pytest.raises(InputError, match=f"`report_to` is {tracker}, which is not installed: pip install {tracker}"):
        shared_arguments(settings, tmp_path)


def test_tensorboard_writes_into_the_students_folder(levels: Store, tmp_path: Path) -> None:  # noqa: F811
    pytest.importorskip("tensorboard")
    assert tracker_callbacks(TrainerSettings(), tmp_path) == []
    begun = save_stranger(tmp_path / "base", "qwen3", make_tokenizer(special=TURN, template=CHATML))
    done = train_sft(levels, "levels", begun, "seen", SftSettings(max_steps=1, batch_size=2, report_to="tensorboard"))
    assert list((done.folder / "tensorboard").glob("events*"))


def test_every_trainer_has_the_shared_settings() -> None:
    for settings in (SftSettings, DapoSettings, MidtrainSettings):
        assert issubclass(settings, TrainerSettings)
        chosen: Callable[..., TrainerSettings] = settings
        assert chosen(lora_rank=4, attn_implementation="eager", report_to="wandb").lora_rank == 4
        assert settings().report_to == "none"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"vllm_mode": "server"}, "`vllm_mode` is server; it needs the server's address, `vllm_url`"),
        ({"vllm_mode": "colocate", "vllm_url": "http://x"}, "`vllm_url` is http://x, but `vllm_mode` is colocate"),
    ],
    ids=str,
)
def test_modes_of_vllm_that_do_not_fit_its_address_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DapoSettings(**changed)


@pytest.mark.parametrize("changed", [{"vllm_mode": "colocate"}, {"vllm_url": "http://127.0.0.1:9"}], ids=str)
def test_vllm_that_is_not_installed_is_a_clear_error(changed: dict[str, Any], levels: Store, tmp_path: Path) -> None:  # noqa: F811
    if find_spec("vllm"):
        pytest.skip("vllm is installed")
    begun = save_stranger(tmp_path / "base", "qwen3", make_tokenizer(special=TURN, template=CHATML))
    with pytest.raises(InputError, match="needs vllm, which is not installed"):
        train_dapo(levels, "level-prompts", begun, "rl", DapoSettings(steps=1, max_tokens=4, **changed))
