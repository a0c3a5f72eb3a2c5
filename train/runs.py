"""Trainings as runs of the store: what was asked for, the curves, where the model is, and how a killed one goes on.

A training has a name; `models/students/<name>/` holds `run.json`, checkpoints while it runs, and at the end the model,
as transformers and safetensors write it. Rows of `runs` and `run_metrics` tell the rest. Of losses and trainers it
knows nothing.
"""

import math
import os
import secrets
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import torch
from peft import PeftModel
from transformers import PrinterCallback, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from curate.datasets.provenance import code_commit
from curate.snapshots.publishing import find_snapshot
from store import InputError, Store
from store.database import Session
from store.errors import StoreBusyError
from store.former_names import renamed
from store.snapshots import Snapshot, read_manifest
from store.temporary import temporary_folder
from store.values import utc_now

RUN_FILE = "run.json"
CHECKPOINTS = "checkpoints"
FLUSH_S = 3.0
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")

OnProgress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class TrainingSummary:
    """What came of a training. figures: the last value of each metric that was logged."""

    run_id: str
    folder: Path
    steps: int
    figures: dict[str, float]
    seconds: float


def student_folder(store: Store, name: str) -> Path:
    """Where the student of this name is, or will be. Raises InputError on what is no plain file name."""
    if not name or name != Path(name).name or name.startswith("."):
        raise InputError(f"{name!r} cannot name a student: use a plain file name")
    return store.models / "students" / name


def find_student(store: Store, reference: str) -> str:
    """The folder of a trained or new student of the store by name, or what was given: a path, or a name on the hub.

    Raises InputError where a student of that name is not finished, or where a plain name is neither a student nor a
    folder: asking the hub for it would cost a minute of retries where there is no network.
    """
    if reference != Path(reference).name:
        return reference
    folder = store.models / "students" / reference
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(f"the training of student {reference!r} is not finished; go on with it by `resume`")
        return str(folder)
    if not Path(reference).is_dir():
        raise InputError(
            f"there is no student {reference!r} in the store, and no such folder; a model of the hub is named with its "
            "owner, such as Qwen/Qwen3-8B"
        )
    return reference


def trained_on(place: str) -> dict[str, Any]:
    """What the training of a student in this folder recorded; empty where the model is none of the store's."""
    file = Path(place) / RUN_FILE
    settings: dict[str, Any] = orjson.loads(file.read_bytes())["settings"] if file.is_file() else {}
    return settings


def sids_of_students(store: Store, dataset: str, references: Sequence[str]) -> str | None:
    """The version of a dataset's semantic IDs that students learned; None where none of them learned any of it.

    Raises InputError where they learned different ones.
    """
    learned = {
        reference: trained["sid_versions"]
        for reference in references
        if (trained := trained_on(find_student(store, reference))).get("dataset") == dataset
    }
    versions = {version for versions in learned.values() for version in versions}
    if len(versions) > 1:
        told = "; ".join(f"{reference} on {', '.join(versions)}" for reference, versions in learned.items())
        raise InputError(f"students were trained on different semantic IDs: {told}; choose one with `sid_version`")
    return next(iter(versions), None)


def open_snapshot(store: Store, reference: str) -> Snapshot:
    """A snapshot by NAME, NAME@VERSION or folder. Raises InputError where there is none."""
    folder = Path(reference)
    # A folder of ours may be called as a snapshot is.
    if (folder / "manifest.json").is_file():
        return Snapshot(folder.absolute(), read_manifest(folder.absolute()))
    return find_snapshot(store, reference)


def sid_sizes(snapshot: Snapshot) -> tuple[int, int]:
    """Levels and codebook size of the semantic IDs in a snapshot. Raises InputError where they are several."""
    sizes = {(sids["levels"], sids["codebook_size"]) for sids in snapshot.manifest["lineage"]["semantic_ids"]}
    if len(sizes) != 1:
        raise InputError(
            f"{snapshot.path} holds semantic IDs of {len(sizes)} sizes; publish one of a single template and a "
            "single version of IDs"
        )
    return sizes.pop()


def load_training(store: Store, kind: str, name: str) -> tuple[str, dict[str, Any]]:
    """The run id of a training that did not end, and the settings that it began with.

    Raises InputError where there is none, it is of another kind, it is finished, or it ran in another number of
    processes, in which the same steps would be of other rows.
    """
    folder = student_folder(store, name)
    if not (folder / RUN_FILE).is_file():
        raise InputError(f"there is no training called {name!r} to go on with; leave `resume` out")
    known = orjson.loads((folder / RUN_FILE).read_bytes())
    if known["kind"] != kind:
        raise InputError(f"{name!r} is a training of kind {known['kind']}, not {kind}")
    if (folder / "config.json").is_file():
        raise InputError(f"the training of {name!r} is finished; choose another `name` for a new one")
    settings = renamed(known["settings"])
    if settings["processes"] != process_count():
        raise InputError(
            f"the training of {name!r} began in {settings['processes']} processes, not {process_count()}; go on with "
            "it in as many (accelerate launch --num_processes)"
        )
    return known["run_id"], settings


@contextmanager
def open_run(
    store: Store, kind: str, name: str, snapshot: Snapshot, settings: dict[str, Any], *, resume: bool
) -> Iterator["TrainingRun"]:
    """A training for the length of the block: its name is claimed, its row says how it goes and how it ended.

    resume: the training of that name goes on, with what it recorded in place of settings. A new one that fails before
    its first checkpoint leaves its name free and its row as failed; one that was interrupted or killed can go on.

    Raises InputError where there is a student of that name, or another process trains it at this moment.
    """
    folder = student_folder(store, name)
    with store.claim(f"training-{name}", f"training {name!r}") if is_main_process() else nullcontext():
        # Only now: whoever held the name may have finished meanwhile.
        run_id, facts = load_training(store, kind, name) if resume else _begin(kind, name, folder, snapshot, settings)
        run = TrainingRun(store, run_id, folder)
        try:
            if is_main_process():
                run.record(kind, snapshot, facts)
            yield run
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            # A busy store must not hide why the training ended.
            with suppress(StoreBusyError):
                run.end("interrupted" if interrupted else "failed")
            if is_main_process() and not (resume or interrupted or run.can_go_on()):
                shutil.rmtree(folder)
            raise
        run.end("done")


def _begin(
    kind: str, name: str, folder: Path, snapshot: Snapshot, settings: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Make the folder of a new training; returns its run id and all that is recorded of it."""
    if folder.exists() and is_main_process():
        raise InputError(
            f"there is a student called {name!r} already; choose another `name`, or go on with it by `resume`"
        )
    run_id = f"train-{kind}-{utc_now():%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
    lineage = snapshot.manifest["lineage"]
    facts = {
        **settings,
        "name": name,
        "dataset": lineage["dataset"],
        "sid_versions": [sids["sid_version"] for sids in lineage["semantic_ids"]],
        "snapshot": f"{snapshot.manifest['name']}@{snapshot.version}",
        # What a resumption opens: this very version, though a newer one may be published meanwhile.
        "reference": str(snapshot.path),
        "code_commit": code_commit(),
        "libraries": {library: version(library) for library in LIBRARIES},
        "processes": process_count(),
    }
    if is_main_process():
        # A folder without its file could neither be begun nor gone on with, so they come together.
        with temporary_folder(folder.parent) as temporary:
            staged = temporary / name
            (staged / CHECKPOINTS).mkdir(parents=True)
            (staged / RUN_FILE).write_bytes(orjson.dumps({"run_id": run_id, "kind": kind, "settings": facts}))
            staged.replace(folder)
    return run_id, facts


class TrainingRun:
    """One training, as `open_run` opens it: its row, its folder, its curves.

    Only the process of rank 0 writes; the others share the folder.
    """

    def __init__(self, store: Store, run_id: str, folder: Path) -> None:
        self.store = store
        self.run_id = run_id
        self.folder = folder
        self.checkpoints = folder / CHECKPOINTS
        self._started = time.perf_counter()
        self._waiting: list[dict[str, Any]] = []
        self._flushed = time.monotonic()

    def record(self, kind: str, snapshot: Snapshot, facts: dict[str, Any]) -> None:
        """Put the run's row if it is missing, mark it as running, and take its curves back to the last checkpoint."""
        row = {
            "run_id": self.run_id,
            "kind": f"train-{kind}",
            "dataset": snapshot.manifest["lineage"]["dataset"],
            "settings": orjson.dumps(facts).decode(),
            "status": "running",
            "started_at": utc_now(),
        }
        checkpoint = last_checkpoint(self.checkpoints)
        step = int(checkpoint.rsplit("-", 1)[1]) if checkpoint else 0
        if checkpoint:
            # What was logged but not in the store yet when the process died.
            state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
            self._waiting = [row for entry in state.log_history for row in metric_rows(entry["step"], entry)]
        with self.store.writing() as session:
            session.put("runs", pl.DataFrame([row]))
            session.execute("resume_run", run_id=self.run_id)
            session.execute("delete_run_metrics_after", run_id=self.run_id, step=step)

    def can_go_on(self) -> bool:
        """Whether there is a checkpoint, of any phase, or a model already."""
        return (self.folder / "config.json").is_file() or any(self.checkpoints.rglob(TRAINER_STATE_NAME))

    def keep(self, rows: list[dict[str, Any]]) -> None:
        """Take rows of step, metric, value for the store, which gets a few seconds' worth at a time."""
        self._waiting += rows
        if time.monotonic() - self._flushed >= FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait; where the store is busy they wait on, since figures are not worth a training."""
        if is_main_process() and self._waiting:
            with suppress(StoreBusyError):
                with self.store.writing() as session:
                    self._put_waiting(session)
                self._waiting = []
        self._flushed = time.monotonic()

    def end(self, status: str) -> None:
        """Write the rest and close the run's row. Raises StoreBusyError where the store stays busy."""
        if is_main_process():
            with self.store.writing() as session:
                self._put_waiting(session)
                session.execute("end_run", run_id=self.run_id, status=status)

    def _put_waiting(self, session: Session) -> None:
        rows = [{"run_id": self.run_id, **row} for row in self._waiting]
        schema = {"run_id": pl.String, "step": pl.Int32, "metric": pl.String, "value": pl.Float64}
        frame = pl.DataFrame(rows, schema=schema)
        session.put("run_metrics", frame.unique(["step", "metric"], keep="last", maintain_order=True))

    def carry_out(self, trainer: Any, tokenizer: Any, *, resume: bool) -> TrainingSummary:
        """Train to the end, from the last checkpoint where there is one to go on from, and save what came of it."""
        # Figures go where `StoreCallback` says, not onto the terminal as well.
        trainer.remove_callback(PrinterCallback)
        with warnings.catch_warnings():
            # TRL and peft ask transformers by an old name.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            trainer.train(resume_from_checkpoint=last_checkpoint(self.checkpoints) if resume else None)
        model = trainer.accelerator.unwrap_model(trainer.model)
        if isinstance(model, PeftModel):
            model = model.merge_and_unload()
        history = trainer.state.log_history
        figures = {row["metric"]: row["value"] for entry in history for row in metric_rows(entry["step"], entry)}
        return self.finish(model, tokenizer, trainer.state.global_step, figures)

    def finish(self, model: Any, tokenizer: Any, steps: int, figures: dict[str, float]) -> TrainingSummary:
        """Save the model beside its run and drop the checkpoints. figures: the last of each."""
        if is_main_process():
            with temporary_folder(self.folder) as temporary:
                model.save_pretrained(temporary)
                tokenizer.save_pretrained(temporary)
                # What says that the student is there comes last.
                for file in sorted(temporary.iterdir(), key=lambda file: file.name == "config.json"):
                    file.replace(self.folder / file.name)
            shutil.rmtree(self.checkpoints, ignore_errors=True)
        return TrainingSummary(self.run_id, self.folder, steps, figures, time.perf_counter() - self._started)


class StoreCallback(TrainerCallback):
    """Gives a run what a trainer logs, and tells one line of it."""

    def __init__(self, run: TrainingRun, shown: tuple[str, ...], on_progress: OnProgress) -> None:
        self._run = run
        self._shown = shown
        self._on_progress = on_progress

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:  # noqa: ARG002
        """Keep the figures and tell those that are shown."""
        if not state.is_world_process_zero or not logs:
            return
        rows = metric_rows(state.global_step, logs)
        self._run.keep(rows)
        values = {row["metric"]: row["value"] for row in rows}
        told = ", ".join(f"{name} {values[name]:.4g}" for name in self._shown if name in values)
        if told:
            self._on_progress(f"step {state.global_step:,} of {state.max_steps:,}: {told}")

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """With a checkpoint everything before it is in the store."""
        if state.is_world_process_zero:
            self._run.flush()


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint in a folder that was written to its end; None where there is none."""
    # The trainer's state is what a checkpoint gets last.
    states = folder.glob(f"checkpoint-*/{TRAINER_STATE_NAME}")
    newest = max(states, key=lambda state: int(state.parent.name.rpartition("-")[2]), default=None)
    return None if newest is None else str(newest.parent)


def metric_rows(step: int, logs: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of step, metric, value of one entry of a trainer's log; what is no finite number is left out."""
    return [
        {"step": step, "metric": name, "value": float(value)}
        for name, value in logs.items()
        if name not in ("step", "epoch") and isinstance(value, int | float) and math.isfinite(value)
    ]


def is_main_process() -> bool:
    """Whether this process, of those that `accelerate launch` started, is the one that writes."""
    return int(os.environ.get("RANK", "0")) == 0


def process_count() -> int:
    """How many processes `accelerate launch` started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def device_arguments() -> dict[str, Any]:
    """What trainers are told of this machine: bfloat16 on a GPU, plain floats on a CPU."""
    on_gpu = torch.cuda.is_available()
    return {"bf16": on_gpu, "use_cpu": not on_gpu, "activation_checkpointing": on_gpu}
