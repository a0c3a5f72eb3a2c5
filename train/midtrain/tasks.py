"""Mid-training: a language model learns to read and write semantic IDs among the words that it knows.

This is stage 1 of the GR2 paper (arXiv 2602.07774), which follows OneRec-Think. The model predicts the next token, on
all tokens of texts that mix words and IDs. The texts of each task are drawn in fixed shares. In a warm-up only the rows
of new tokens are trained, and after it all weights. The paper does not publish numbers of steps; these are ours. TRL's
SFTTrainer runs once for each phase, as one pass over the texts drawn for it. This module does not know the store: its
caller records the metrics.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback
from trl import SFTConfig, SFTTrainer
from trl.data_utils import pack_dataset

from store.errors import InputError
from train.midtrain.settings import MidtrainSettings
from train.runs import last_checkpoint, metric_rows
from train.students.student import most_tokens
from train.students.trainers import shared_arguments, tracker_callbacks
from train.students.vocabulary import Vocabulary

OnLog = Callable[[int, dict[str, float]], None]

WARM_UP, FULL = "warm-up", "full"


def midtrain(
    model: Any,
    tokenizer: Any,
    rows: datasets.DatasetDict,
    vocabulary: Vocabulary,
    settings: MidtrainSettings,
    *,
    output_dir: Path,
    on_log: OnLog = lambda _step, _metrics: None,
    resume: bool = False,
) -> dict[str, float]:
    """Train a causal model in place on the training split of a snapshot of kind midtrain. The caller saves it.

    settings: without a learning rate, that of a student from scratch is used.

    output_dir: receives the checkpoints, in one folder per phase. on_log: receives the metrics of each logged step,
    warm-up first; after a resume it receives all of them again. resume: continue from the last checkpoint, in the same
    order of data, or from the beginning if there is none. Returns the last value of each metric.

    Raises InputError before the first step if there is nothing to train on, if a text is too long, if `max_length`
    exceeds the model's positions, or if the folder has checkpoints of another training.
    """
    settings = settings.resolve(from_scratch=True)
    phases = [(WARM_UP, settings.warmup_steps)] * (settings.warmup_steps > 0) + [(FULL, settings.steps)]
    if not resume and any(last_checkpoint(output_dir / phase) for phase, _ in phases):
        raise InputError(f"{output_dir} contains checkpoints of a training; continue it with `resume`")
    encoded = encode_texts(rows, tokenizer, settings, longest=most_tokens(model))
    figures: dict[str, float] = {}

    def tell(step: int, metrics: dict[str, float]) -> None:
        figures.update(metrics)
        on_log(step, metrics)

    for number, (phase, steps) in enumerate(phases):
        arguments = _arguments(settings, phase, output_dir)
        sequences = steps * settings.gradient_accumulation_steps * settings.batch_size * arguments.world_size
        before = settings.warmup_steps if phase == FULL else 0
        with only_new_rows(model, vocabulary) if phase == WARM_UP else nullcontext():
            trainer = SFTTrainer(
                model,
                arguments,
                train_dataset=draw_sequences(encoded, settings, sequences, seed=settings.seed + number),
                processing_class=tokenizer,
                callbacks=[
                    _Teller(before, tell),
                    *tracker_callbacks(settings, output_dir.parent / "tensorboard" / phase),
                ],
            )
            # `on_log` receives the metrics, so the trainer must not print them as well.
            trainer.remove_callback(PrinterCallback)
            with warnings.catch_warnings():
                # TRL and peft use a deprecated name of transformers.
                warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
                # peft correctly saves the embedding with its adapters, because rows were added.
                warnings.filterwarnings("ignore", "Setting `save_embedding_layers` to `True`", UserWarning)
                # A phase that is over is one whole pass. Its last checkpoint is then loaded, and no step follows.
                trainer.train(resume_from_checkpoint=last_checkpoint(output_dir / phase) if resume else None)
    return figures


def draw_rows(tasks_N: Sequence[str], shares: Mapping[str, float], count: int, *, seed: int) -> NDArray[np.int64]:
    """Draw `count` row numbers in random order, with the tasks in their shares.

    Other tasks fill the share of a missing one. A row is repeated only after all rows of its task were drawn. Raises
    InputError if no row is of a task with a share.
    """
    names_N = np.asarray(tasks_N)
    present = {task: share for task, share in shares.items() if share > 0 and (names_N == task).any()}
    if not present:
        raise InputError(f"no task of the texts has a share above 0; the tasks are {', '.join(set(tasks_N))}")
    random = np.random.default_rng(seed)
    # The cumulative ends are rounded, and not the single counts, so that the counts add up to `count`.
    ends = np.rint(np.cumsum(list(present.values())) / sum(present.values()) * count).astype(int)
    drawn = []
    for task, quota in zip(present, np.diff(ends, prepend=0), strict=True):
        rows = np.flatnonzero(names_N == task)
        # Each pass over the task's rows has a different order.
        passes = [random.permutation(rows) for _ in range(-(-quota // len(rows)))]
        drawn += [np.concatenate(passes)[:quota]] if passes else []
    return random.permutation(np.concatenate(drawn))


def encode_texts(
    rows: datasets.DatasetDict, tokenizer: Any, settings: MidtrainSettings, *, longest: int
) -> datasets.Dataset:
    """Encode the training split as tokens, with the columns task and input_ids. Each text ends with the end token.

    longest: the model's number of positions. Raises InputError if the split has no rows or if a text is too long.
    """
    if "train" not in rows or len(rows["train"]) == 0:
        raise InputError("the snapshot has no training rows; publish a snapshot of kind midtrain that has some")
    if settings.max_length > longest:
        raise InputError(f"`max_length` is {settings.max_length:,}, but the model takes at most {longest:,} tokens")
    end = [tokenizer.eos_token_id]

    def encode(batch: Mapping[str, Sequence[str]]) -> dict[str, list[list[int]]]:
        # verbose=False, because texts that are too long are reported below, with their number.
        return {"input_ids": [[*ids, *end] for ids in tokenizer(list(batch["text"]), verbose=False)["input_ids"]]}

    encoded = rows["train"].map(
        encode,
        batched=True,
        remove_columns=[name for name in rows["train"].column_names if name != "task"],
        load_from_cache_file=False,
        keep_in_memory=True,
    )
    lengths = [len(ids) for ids in encoded["input_ids"]]
    if (most := max(lengths)) > settings.max_length:
        over = sum(length > settings.max_length for length in lengths)
        raise InputError(
            f"{over:,} of {len(lengths):,} texts are longer than {settings.max_length:,} tokens, and the longest has "
            f"{most:,}; raise `max_length` (the model takes up to {longest:,}), or leave these texts out"
        )
    return encoded


def draw_sequences(
    encoded: datasets.Dataset, settings: MidtrainSettings, sequences: int, *, seed: int
) -> datasets.Dataset:
    """Draw `sequences` sequences of texts in their shares: one text each, or packed up to max_length tokens."""
    tasks, tokens = encoded["task"][:], encoded.select_columns("input_ids")
    if not settings.packing:
        return tokens.select(draw_rows(tasks, settings.shares, sequences, seed=seed))
    length_N = np.array([len(ids) for ids in tokens["input_ids"]])
    # The number of texts that fill the sequences is known only after packing. The search starts from an estimate and
    # adds 5% at a time.
    mean_length = length_N[draw_rows(tasks, settings.shares, 10_000, seed=seed)].mean()
    texts = int(sequences * settings.max_length / mean_length) + 1
    while True:
        drawn = tokens.select(draw_rows(tasks, settings.shares, texts, seed=seed))
        packed = pack_dataset(drawn, settings.max_length, "bfd", {"keep_in_memory": True})
        if len(packed) >= sequences:
            return packed.select(range(sequences))
        texts += texts // 20 + 1


@contextmanager
def only_new_rows(model: Any, vocabulary: Vocabulary) -> Iterator[None]:
    """Give gradients only to the rows of new tokens in embedding and head, tied or not, within the block.

    An optimizer without weight decay then changes nothing else.
    """
    if isinstance(model, PeftModel):
        # LoRA keeps these rows as separate parameters.
        with _frozen(weight for name, weight in model.named_parameters() if "trainable_tokens_" not in name):
            yield
        return
    # This is a set, because tied embeddings are one parameter, which must get only one hook.
    embeddings = {model.get_input_embeddings().weight, model.get_output_embeddings().weight}

    # requires_grad applies to whole parameters, so a hook clears the gradients of the other rows.
    def keep_new_rows(gradient_V_D: Tensor) -> Tensor:
        kept_V_D = torch.zeros_like(gradient_V_D)
        kept_V_D[list(vocabulary.new_rows)] = gradient_V_D[list(vocabulary.new_rows)]
        return kept_V_D

    hooks = [weight.register_hook(keep_new_rows) for weight in embeddings]
    try:
        with _frozen(weight for weight in model.parameters() if weight not in embeddings):
            yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _frozen(weights: Iterable[Tensor]) -> Iterator[None]:
    """Take the gradients away from weights within the block."""
    frozen = [weight for weight in weights if weight.requires_grad]
    for weight in frozen:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(True)


class _Teller(TrainerCallback):
    """Passes on metrics as they are logged. After a resume, it also passes on the earlier ones.

    before: the number of steps of earlier phases, since each phase counts from 0.
    """

    def __init__(self, before: int, tell: OnLog) -> None:
        self._before = before
        self._tell = tell

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Pass on the metrics of the checkpoint, if there is one."""
        for entry in state.log_history:
            self._pass_on(state, entry["step"], entry)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:  # noqa: ARG002
        """Pass on the metrics of a new log entry."""
        self._pass_on(state, state.global_step, logs or {})

    def _pass_on(self, state: Any, step: int, logs: dict[str, Any]) -> None:
        # The trainer's last entry has no loss. It sums up the run, and its times are wrong after a resume.
        if state.is_world_process_zero and "loss" in logs:
            self._tell(self._before + step, {row["metric"]: row["value"] for row in metric_rows(step, logs)})


def _arguments(settings: MidtrainSettings, phase: str, folder: Path) -> SFTConfig:
    by_phase: dict[str, Any] = (
        # Weight decay would change rows without a gradient.
        {"learning_rate": settings.warmup_learning_rate, "lr_scheduler_type": "constant", "weight_decay": 0.0}
        if phase == WARM_UP
        else {
            "learning_rate": settings.learning_rate,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.05,
            "weight_decay": settings.weight_decay,
        }
    )
    return SFTConfig(
        num_train_epochs=1,
        per_device_train_batch_size=settings.batch_size,
        adam_beta2=0.95,
        max_length=settings.max_length,
        packing=settings.packing,
        # Texts of similar length need the least padding.
        train_sampling_strategy="random" if settings.packing else "group_by_length",
        dataset_kwargs={"skip_prepare_dataset": True},
        seed=settings.seed,
        data_seed=settings.seed,
        logging_steps=settings.log_steps,
        save_steps=settings.save_steps,
        save_total_limit=2,
        **by_phase,
        **{**shared_arguments(settings, folder), "output_dir": str(folder / phase)},
    )
