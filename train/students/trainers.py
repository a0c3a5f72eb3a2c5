"""The common beginning of all trainers: a student in the precision that its training needs, and shared arguments.

All weights are trained in float32, and products are computed in bfloat16 on a GPU (autocast). bfloat16 keeps 8
significant bits, so an update of less than about 1/500 of a weight is rounded away, and at a learning rate of 1e-5 most
updates are that small. A base under LoRA does not change, so on a GPU it is bfloat16, while the adapters are float32.
"""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed
from transformers.integrations.integration_utils import TensorBoardCallback

from store.errors import InputError
from train.runs import device_arguments
from train.students.chat import ChatFormat
from train.students.lora import make_lora
from train.students.settings import ChatTrainerSettings, TrainerSettings
from train.students.student import load_student
from train.students.vocabulary import Vocabulary


def load_trainable(place: Path | str, settings: TrainerSettings) -> tuple[Any, Any]:
    """Load model and tokenizer of a student to train, like `load_student`."""
    on_gpu = torch.cuda.is_available()
    return load_student(
        place,
        dtype=torch.bfloat16 if settings.lora_rank and on_gpu else torch.float32,
        attn_implementation=settings.attn_implementation,
        chat_template_kwargs=settings.chat_template_kwargs if isinstance(settings, ChatTrainerSettings) else None,
    )


def add_adapters(model: Any, vocabulary: Vocabulary | None, settings: TrainerSettings, seed: int) -> Any:
    """Return the model with LoRA if the settings ask for it, otherwise the model itself. Seeds all generators."""
    # LoRA's first weights are random, so the seed must be set before.
    set_seed(seed)
    if not settings.lora_rank:
        return model
    return make_lora(model, vocabulary, rank=settings.lora_rank, alpha=2 * settings.lora_rank)


class ChatPrompts:
    """A mixin for a trainer of TRL that generates: it renders chat prompts as everywhere in gr2 (`ChatFormat`)."""

    def _tokenize_prompts(self: Any, prompts: list[Any]) -> tuple[list[list[int]], Any, dict[str, Any]]:
        """Token ids of each prompt, its images and their fields. Only the texts of chats differ from TRL's."""
        if isinstance(prompts[0], str) or any(not isinstance(message["content"], str) for message in prompts[0]):
            tokenized: tuple[list[list[int]], Any, dict[str, Any]] = super()._tokenize_prompts(prompts)  # type: ignore[misc]
            return tokenized
        return ChatFormat.of(self._tokenizer).encode_prompts(prompts), None, {}


def shared_arguments(settings: TrainerSettings, folder: Path) -> dict[str, Any]:
    """Return the arguments that all of TRL's trainers get from these settings and this machine.

    folder: for checkpoints, in the folder of the new student.

    Raises InputError if the chosen tracker is not installed, or if the processes shard by FSDP's first version.
    """
    tracker = settings.report_to
    if tracker != "none" and find_spec(tracker) is None:
        raise InputError(f"`report_to` is {tracker}, which is not installed: pip install {tracker}")
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and os.environ.get("FSDP_VERSION", "1") != "2":
        raise InputError("FSDP version 1 cannot be saved as a student; start accelerate launch with --fsdp_version 2")
    return {
        "output_dir": str(folder),
        "run_name": folder.parent.name,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        # TensorBoard gets a separate callback, see `tracker_callbacks`.
        "report_to": "none" if tracker == "tensorboard" else tracker,
        "disable_tqdm": True,
        **device_arguments(gradient_checkpointing=settings.gradient_checkpointing),
    }


def tracker_callbacks(settings: TrainerSettings, folder: Path) -> list[Any]:
    """Return the callback of TensorBoard, if it is the tracker.

    folder: for its logs, unless TENSORBOARD_LOGGING_DIR is set. Without a folder it would write among the checkpoints,
    which are deleted at the end.
    """
    if settings.report_to != "tensorboard":
        return []
    callback: Any = TensorBoardCallback()  # type: ignore[no-untyped-call]
    callback.logging_dir = callback.logging_dir or str(folder)
    return [callback]
