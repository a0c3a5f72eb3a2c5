"""Runs one DAPO training from a snapshot of prompts. It is checked before the first step, recorded and resumable.

TRL's GRPOTrainer and our dynamic sampling make up DAPO (arXiv 2503.14476): the loss is averaged over tokens, ratios are
clipped to between 1 - 0.2 and 1 + 0.28, there is no KL term, long answers are punished gradually, truncated ones are
left out, and groups whose outcomes do not differ are replaced by fresh prompts. Rewards are verifiable: the target's
promotion and the form of the answer (`train.dapo.rewards`).
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import TrainerCallback
from trl import GRPOConfig

from prompts.completion import NUMBERS
from prompts.templates import load_template
from store import InputError, Store
from store.progress import Notice
from train.dapo.dynamic_sampling import DynamicSamplingTrainer
from train.dapo.permutation_training import PermutationTrainer
from train.dapo.resolution import prompts_seen, resolve
from train.dapo.rewards import OutcomeFunction, RewardFunction, RewardSettings
from train.dapo.rollout_metrics import LoggedReward, describe_waste
from train.dapo.rollouts import keep_rollouts
from train.dapo.settings import LOSSES, DapoSettings
from train.inputs import check_lengths, open_inputs, resume_settings
from train.ranking.model_selection import open_valid_lists, selection_arguments, selection_callbacks
from train.ranking.settings import NO_SELECTION, SelectionSettings
from train.runs import (
    CHECKPOINTS,
    SELECTED_BY,
    OnProgress,
    StoreCallback,
    TrainingSummary,
    load_training,
    open_run,
    process_count,
    student_folder,
)
from train.students.chat import ChatFormat
from train.students.student import most_tokens
from train.students.trainers import add_adapters, shared_arguments, tracker_callbacks

SHOWN = ("reward", "answers/promotion", "answers/valid", "answers/copied", "entropy", "refill/groups", SELECTED_BY)
COLUMNS = ["list_id", "prompt", "candidates", "target", "history"]


def reward_functions(settings: DapoSettings) -> list[RewardFunction]:
    """Return the chosen reward, its outcome and the punishment of length. Raises InputError on an unknown reward."""
    shared = RewardSettings.of(settings)
    return [
        LoggedReward(settings.reward, shared),
        OutcomeFunction(settings.reward, shared),
        RewardFunction("overlong_on_success" if settings.overlong_on_success else "overlong", shared),
    ]


def choose_prompts(
    rows: datasets.Dataset, settings: DapoSettings, on_progress: OnProgress = lambda _: None
) -> datasets.Dataset:
    """Return the prompts whose pass rate is within the limits and whose candidates all have different semantic IDs.

    on_progress: receives the number of prompts that were left out because candidates share a semantic ID, if any.
    Raises InputError if no prompt is left.
    """
    rates = rows["pass_rate"]
    chosen = [
        place
        for place, rate in enumerate(rates)
        # A prompt that no teacher has tried has no pass rate.
        if settings.min_pass_rate <= (rate if rate is not None else 0.0) <= settings.max_pass_rate
    ]
    if not chosen:
        raise InputError(
            f"none of {len(rows):,} prompts has a pass rate from {settings.min_pass_rate:g} to "
            f'{settings.max_pass_rate:g}; gr2 sql "from pass_rates" shows all pass rates'
        )
    candidates = rows["candidates"][:]
    # If two candidates share a semantic ID, an answer does not say which one it means, and no reward can either.
    distinct = [place for place in chosen if len(set(candidates[place])) == len(candidates[place])]
    if not distinct:
        raise InputError(
            f"each of {len(chosen):,} prompts has candidates that share a semantic ID; publish a snapshot with "
            "unique semantic IDs"
        )
    if len(distinct) < len(chosen):
        on_progress(
            f"{len(chosen) - len(distinct):,} of {len(chosen):,} prompts left out: candidates share a semantic ID"
        )
    return rows.select(distinct).select_columns(COLUMNS)


def train_dapo(
    store: Store,
    reference: str,
    student: str,
    name: str,
    settings: DapoSettings,
    *,
    selection: SelectionSettings = NO_SELECTION,
    resume: bool = False,
    given: Collection[str] = (),
    on_progress: OnProgress = lambda _: None,
) -> TrainingSummary:
    """Train `student` on the snapshot's prompts. The new student is called `name`.

    selection, resume, given: as in `train_sft`.

    Raises InputError or SnapshotError before the first step if the snapshot was changed or is of another kind, if the
    tokenizer cannot write conversations or lacks semantic IDs that the prompts show, if the split is empty, if a prompt
    leaves no room for an answer, if each prompt has candidates that share a semantic ID, if a resumed training was
    started with other settings, or if there are no valid lists to select by.
    """
    if resume:
        _, recorded = load_training(store, "dapo", name)
        settings = resume_settings(name, recorded, settings, given)
        selection = resume_settings(name, recorded, selection, given)
        reference, student = recorded["reference"], recorded["student"]
    functions = reward_functions(settings)
    snapshot, rows, model, tokenizer, vocabulary, from_scratch = open_inputs(
        store, "dapo", reference, student, settings
    )
    settings = settings.resolve(from_scratch=from_scratch)
    chat = ChatFormat.of(tokenizer)
    prompts = choose_prompts(rows, settings, on_progress)
    check_lengths(prompts["prompt"], chat, settings.max_tokens, most_tokens(model))
    # A snapshot of prompts has one template.
    template = load_template(rows["template"][0])
    lists = open_valid_lists(store, snapshot, [template.name], tokenizer, selection)
    selection = selection if lists is None else lists.settings
    arguments = _arguments(settings, student_folder(store, name) / CHECKPOINTS, chat.end_id, selection)
    facts = {**asdict(settings), **asdict(selection), "student": student, "templates": [template.name]}
    with (
        open_run(store, "dapo", name, snapshot, facts, resume=resume) as run,
        keep_rollouts(run, snapshot, prompts, settings, on_progress) as on_rollouts,
    ):
        on_progress(f"{student}: learning rate {settings.learning_rate:g}")
        model = add_adapters(model, vocabulary, settings, settings.seed)
        trainer_type: Any = DynamicSamplingTrainer
        if settings.decode == "permutation":
            trainer_type = partial(PermutationTrainer, names_of=partial(_names, template.answer))
        trainer = trainer_type(
            model,
            functions,
            args=arguments,
            train_dataset=prompts,
            processing_class=tokenizer,
            callbacks=[
                StoreCallback(run, SHOWN, on_progress, remark=describe_waste),
                *selection_callbacks(selection),
                *tracker_callbacks(settings, run.folder / "tensorboard"),
            ],
            refill_rounds=settings.refill_rounds,
            on_rollouts=on_rollouts,
            outcome="outcome",
            rank_valid_lists=lists,
        )
        trainer.add_callback(ResolutionCallback(trainer, settings, on_progress))
        return run.carry_out(trainer, tokenizer, resume=resume)


def _names(answer: str, example: Mapping[str, Any]) -> list[Any]:
    """The names of the candidates of a row in an answer: their semantic IDs, or their numbers in the prompt."""
    candidates = example["candidates"]
    return list(range(1, len(candidates) + 1)) if answer == NUMBERS else list(candidates)


class ResolutionCallback(TrainerCallback):
    """Reports what a new run can resolve (`train.dapo.resolution`), from a few prompts that the student answers.

    It waits for the beginning of the training, when the model is on its device and distributed.
    """

    def __init__(self, trainer: DynamicSamplingTrainer, settings: DapoSettings, on_progress: OnProgress) -> None:
        self._trainer = trainer
        self._settings = settings
        self._on_progress = on_progress

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Sample, estimate and report. A sample of fewer than two prompts has no deviation, so nothing is reported."""
        settings, prompts = self._settings, self._trainer.train_dataset
        lists, answers = min(settings.resolution_lists, len(prompts)), settings.num_generations
        if state.global_step or lists < 2:
            return
        self._on_progress(f"answering {lists} prompts, to estimate which differences the run can resolve")
        sample = prompts.select(np.random.default_rng(settings.seed).permutation(len(prompts))[:lists])
        completions = [
            completion
            for start in range(0, lists, settings.prompts_per_batch)
            for completion in self._trainer.sample_completions(
                sample.select(range(start, min(start + settings.prompts_per_batch, lists))).to_list()
            )
        ]
        columns = {name: [value for value in sample[name] for _ in range(answers)] for name in ("candidates", "target")}
        resolution = resolve(RewardFunction(settings.reward).judge(completions, **columns), answers)
        if state.is_world_process_zero:
            for line in resolution.describe(prompts_seen(settings, len(prompts), process_count())):
                self._on_progress(Notice(line))


def _arguments(settings: DapoSettings, folder: Path, end_id: int, selection: SelectionSettings) -> GRPOConfig:
    """Return TRL's settings. settings: resolved ones. end_id: the token that ends an answer.

    Raises InputError if a checkpoint would be within a generated batch.
    """
    if selection.eval_steps and selection.eval_steps % settings.steps_per_batch:
        raise InputError(
            f"`eval_steps` is {selection.eval_steps}; it must be a multiple of the {settings.steps_per_batch} steps on "
            "a generated batch, since a checkpoint follows and does not contain the generated batch"
        )
    loss = LOSSES[settings.loss]
    arguments: dict[str, Any] = {
        "max_steps": settings.steps,
        # TRL counts completions, not prompts, and counts them per part of a generated batch.
        "per_device_train_batch_size": settings.prompts_per_batch
        * settings.num_generations
        // settings.parts_per_batch,
        "steps_per_generation": settings.parts_per_batch,
        "num_iterations": settings.num_iterations,
        "num_generations": settings.num_generations,
        # TRL requires a multiple of the number above, although its own evaluation never runs.
        "per_device_eval_batch_size": settings.num_generations,
        "max_completion_length": settings.max_tokens,
        "temperature": settings.temperature,
        "loss_type": loss.loss_type,
        "importance_sampling_level": loss.importance_sampling_level,
        "epsilon": settings.epsilon,
        "epsilon_high": settings.epsilon_high,
        "scale_rewards": settings.scale_rewards,
        # Without a KL term, no reference model is loaded.
        "beta": 0.0,
        # The weights of `reward_functions`. The outcome selects groups, and adds nothing to the reward.
        "reward_weights": [1.0, 0.0, settings.overlong_weight],
        # A truncated answer is unfinished, so it must not be learned. `overlong` still punishes its length.
        "mask_truncated_completions": True,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.lr_scheduler_type,
        "warmup_steps": settings.warmup_steps,
        "seed": settings.seed,
        "data_seed": settings.seed,
        "logging_steps": settings.log_steps,
        "save_steps": settings.save_steps,
        "save_total_limit": 2,
        **selection_arguments(selection, folder),
    }
    if settings.vllm_mode is not None or settings.vllm_url is not None:
        if find_spec("vllm") is None:
            raise InputError("generating with vLLM needs vllm, which is not installed: pip install trl[vllm]")
        arguments |= {
            "use_vllm": True,
            "vllm_mode": settings.vllm_mode or "server",
            "vllm_server_base_url": settings.vllm_url,
            "vllm_gpu_memory_utilization": settings.vllm_gpu_memory_utilization,
        }
        # A base model's own settings, which the server reads, may not name the token that ends a turn.
        arguments["generation_kwargs"] = {"stop_token_ids": [end_id]}
    return GRPOConfig(**arguments, **shared_arguments(settings, folder))
