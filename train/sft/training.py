"""One SFT training from a snapshot of traces: checked before the first step, recorded in the store, resumable."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import set_seed
from trl import SFTConfig

from store import InputError, Store
from store.errors import require_at_least
from train.inputs import open_inputs
from train.runs import (
    CHECKPOINTS,
    OnProgress,
    StoreCallback,
    TrainingSummary,
    device_arguments,
    load_training,
    open_run,
    student_folder,
)
from train.sft.muon import MuonWithAdamW
from train.sft.weighted_loss import SftLoss, WeightedSFTTrainer, encode_traces
from train.students.lora import make_lora

OPTIMIZERS = ("muon", "adamw")
SHOWN = ("loss", "mean_token_accuracy", "learning_rate")


@dataclass(frozen=True, slots=True)
class SftSettings:
    """reasoning_weight, answer_weight: lambda_r and lambda_o. reasoning: False teaches orders without explanations.

    epochs: over the training split; max_steps, where given, ends earlier. batch_size: rows a step and process.
    max_tokens: the longest row allowed. packing: several rows in one sequence of max_tokens; wants a GPU with flash
    attention to be worth it. lora_rank: 0 trains every weight. optimizer: muon, which students from scratch learn
    faster by, or adamw, which LoRA needs. The defaults are for students from scratch. save_steps, log_steps: between
    checkpoints and figures.
    """

    reasoning_weight: float = 0.1
    answer_weight: float = 1.0
    reasoning: bool = True
    epochs: float = 1.0
    max_steps: int | None = None
    batch_size: int = 32
    gradient_accumulation_steps: int = 1
    optimizer: str = "muon"
    learning_rate: float = 5e-3
    weight_decay: float = 0.05
    warmup_share: float = 0.05
    max_tokens: int = 4096
    packing: bool = False
    lora_rank: int = 0
    seed: int = 0
    save_steps: int = 200
    log_steps: int = 10

    def __post_init__(self) -> None:
        require_at_least(
            ("epochs", self.epochs, 1e-6),
            ("max-steps", self.max_steps, 1),
            ("batch-size", self.batch_size, 1),
            ("gradient-accumulation-steps", self.gradient_accumulation_steps, 1),
            ("learning-rate", self.learning_rate, 0.0),
            ("max-tokens", self.max_tokens, 1),
            ("lora-rank", self.lora_rank, 0),
            ("save-steps", self.save_steps, 1),
            ("log-steps", self.log_steps, 1),
        )
        if self.optimizer not in OPTIMIZERS:
            raise InputError(f"--optimizer is {self.optimizer!r}; it must be {' or '.join(OPTIMIZERS)}")
        if self.optimizer == "muon" and self.lora_rank:
            raise InputError(f"--lora-rank is {self.lora_rank}; its thin matrices want --optimizer adamw")


def train_sft(
    store: Store,
    reference: str,
    student: str,
    name: str,
    settings: SftSettings,
    *,
    resume: bool = False,
    on_progress: OnProgress = lambda _: None,
) -> TrainingSummary:
    """Train `student` on the snapshot's training split; the new student is called `name`.

    resume: go on with a training of this name that was killed, with the settings that it began with, at its last
    checkpoint and in the same order of data.

    Raises InputError and SnapshotError before any step: a snapshot that was changed or is of another kind, a tokenizer
    without semantic IDs, an empty split, a row that is too long.
    """
    if resume:
        _, known = load_training(store, "sft", name)
        settings = SftSettings(**{field: known[field] for field in asdict(settings) if field in known})
        reference, student = known["reference"], known["student"]
    snapshot, rows, model, tokenizer, vocabulary = open_inputs(store, "sft", reference, student)
    loss = SftLoss(settings.reasoning_weight, settings.answer_weight)
    limit = min(settings.max_tokens, getattr(model.config, "max_position_embeddings", settings.max_tokens))
    encoded = encode_traces(rows, tokenizer, loss, max_tokens=limit, reasoning=settings.reasoning)
    arguments = training_arguments(settings, student_folder(store, name) / CHECKPOINTS, limit)
    facts = {**asdict(settings), "student": student, "templates": sorted(set(rows["template"]))}
    with open_run(store, "sft", name, snapshot, facts, resume=resume) as run:
        # LoRA draws its first weights.
        set_seed(settings.seed)
        if settings.lora_rank:
            model = make_lora(model, vocabulary, rank=settings.lora_rank, alpha=2 * settings.lora_rank)
        muon = settings.optimizer == "muon"
        trainer = WeightedSFTTrainer(
            model,
            arguments,
            encoded,
            processing_class=tokenizer,
            # None is the trainer's own, AdamW; it makes the schedule for either.
            optimizers=(MuonWithAdamW(model, settings.learning_rate, settings.weight_decay) if muon else None, None),
            callbacks=[StoreCallback(run, SHOWN, on_progress)],
        )
        return run.carry_out(trainer, tokenizer, resume=resume)


def training_arguments(settings: SftSettings, folder: Path, limit: int) -> SFTConfig:
    """What the trainer is told. folder: of checkpoints. limit: the most tokens of a packed row."""
    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": settings.epochs,
        "max_steps": -1 if settings.max_steps is None else settings.max_steps,
        "per_device_train_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "learning_rate": settings.learning_rate,
        "weight_decay": settings.weight_decay,
        "adam_beta2": 0.95,
        "lr_scheduler_type": "cosine",
        "warmup_steps": settings.warmup_share,
        "max_length": limit if settings.packing else None,
        "packing": settings.packing,
        # Rows of one length pad least.
        "train_sampling_strategy": "random" if settings.packing else "group_by_length",
        "seed": settings.seed,
        "data_seed": settings.seed,
        "logging_steps": settings.log_steps,
        "save_steps": settings.save_steps,
        "save_total_limit": 2,
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
    }
    return SFTConfig(**arguments, **device_arguments())
