"""Trainings as runs of the store: their settings, curves and models, and how to resume a training that was killed.

A training has a name. The folder `models/students/<name>/` contains `run.json`, the checkpoints while the training
runs, and at the end the model in the format of transformers and safetensors. The tables `runs` and `run_metrics`
contain status and curves. This module knows nothing of losses and trainers.
"""

import math
import os
import secrets
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import torch
from transformers import PrinterCallback, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from curate.datasets.provenance import code_commit
from curate.snapshots.publishing import find_snapshot
from store import InputError, Store
from store.database import Session
from store.errors import StoreBusyError
from store.former_names import renamed
from store.names import check_name
from store.progress import Counted
from store.snapshots import Snapshot, read_manifest
from store.temporary import temporary_folder
from store.values import utc_now
from train.saving import save_plain

RUN_FILE = "run.json"
CHECKPOINTS = "checkpoints"
FLUSH_S = 3.0
# The metric by which the best checkpoint is kept, and the metric that says which step this was.
SELECTED_BY = "eval_ndcg_at_5"
BEST_STEP = "best_step"
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")

OnProgress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class TrainingSummary:
    """The result of a training.

    figures: the last logged value of each metric. If the best student was selected, the value of SELECTED_BY is the one
    at BEST_STEP. seconds: wall time of this process. settings: the recorded settings, in which every default is
    resolved.
    """

    run_id: str
    folder: Path
    steps: int
    figures: dict[str, float]
    seconds: float
    settings: Mapping[str, Any]


def student_folder(store: Store, name: str) -> Path:
    """The folder of the student of this name, whether it exists or not. Raises InputError on an unusable name."""
    check_name("student", name)
    return store.models / "students" / name


def find_student(store: Store, reference: str) -> str:
    """Resolve a model reference: the folder of a student of the store, or the reference itself.

    reference: the name of a trained or new student, a path, or a name on the hub.

    Raises InputError if the training of that student is not finished, or if a plain name is neither a student nor a
    folder. The hub is not searched for plain names, because without a network that would take a minute of retries.
    """
    if reference != Path(reference).name:
        return reference
    folder = store.models / "students" / reference
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(f"the training of student {reference!r} is not finished; continue it with `resume`")
        return str(folder)
    if not Path(reference).is_dir():
        raise InputError(
            f"there is no student {reference!r} in the store, and no such folder; a model of the hub is named with its "
            "owner, such as Qwen/Qwen3-8B"
        )
    return reference


def trained_on(place: str) -> dict[str, Any]:
    """The settings that the training of the student in this folder recorded, or {} if there is no record."""
    file = Path(place) / RUN_FILE
    settings: dict[str, Any] = orjson.loads(file.read_bytes())["settings"] if file.is_file() else {}
    return settings


def sids_of_students(store: Store, dataset: str, references: Sequence[str]) -> str | None:
    """The version of a dataset's semantic IDs that students were trained on, or None if none was trained on any.

    Raises InputError if they were trained on different versions.
    """
    learned = {
        reference: trained["sid_versions"]
        for reference in references
        if (trained := trained_on(find_student(store, reference))).get("dataset") == dataset
    }
    versions = {version for versions in learned.values() for version in versions}
    if len(versions) > 1:
        details = "; ".join(f"{reference} on {', '.join(versions)}" for reference, versions in learned.items())
        raise InputError(f"students were trained on different semantic IDs: {details}; choose one with `sid_version`")
    return next(iter(versions), None)


def open_snapshot(store: Store, reference: str) -> Snapshot:
    """Open a snapshot by NAME, NAME@VERSION or folder. Raises InputError if there is none."""
    folder = Path(reference)
    # The manifest decides, because any folder may have the same name as a snapshot.
    if (folder / "manifest.json").is_file():
        return Snapshot(folder.absolute(), read_manifest(folder.absolute()))
    return find_snapshot(store, reference)


def sid_sizes(snapshot: Snapshot) -> tuple[int, int]:
    """Levels and codebook size of a snapshot's semantic IDs. Raises InputError if it has IDs of several sizes."""
    sizes = {(sids["levels"], sids["codebook_size"]) for sids in snapshot.manifest["lineage"]["semantic_ids"]}
    if len(sizes) != 1:
        raise InputError(
            f"{snapshot.path} contains semantic IDs of {len(sizes)} sizes; publish a snapshot with `template` and "
            "traces of a single version of semantic IDs"
        )
    return sizes.pop()


def load_training(store: Store, kind: str, name: str) -> tuple[str, dict[str, Any]]:
    """Load the run id and the settings of an unfinished training.

    Raises InputError if there is no training of this name, or if it is of another kind, finished, or was started with
    another number of processes: the same steps would then cover other rows.
    """
    folder = student_folder(store, name)
    if not (folder / RUN_FILE).is_file():
        raise InputError(f"there is no training called {name!r} to resume; leave `resume` out")
    record = orjson.loads((folder / RUN_FILE).read_bytes())
    if record["kind"] != kind:
        raise InputError(f"{name!r} is a training of kind {record['kind']}, not {kind}")
    if (folder / "config.json").is_file():
        raise InputError(f"the training of {name!r} is finished; choose another `name` for a new one")
    settings = renamed(record["settings"])
    if settings["processes"] != process_count():
        raise InputError(
            f"the training of {name!r} was started with {settings['processes']} processes, not {process_count()}; "
            f"resume it with accelerate launch --num_processes {settings['processes']}"
        )
    return record["run_id"], settings


@contextmanager
def open_run(
    store: Store, kind: str, name: str, snapshot: Snapshot, settings: dict[str, Any], *, resume: bool
) -> Iterator["TrainingRun"]:
    """Open a training for the length of the block. It claims the name and records status and outcome in `runs`.

    resume: continue the training of that name with its recorded settings instead of `settings`. A new training that
    fails before its first checkpoint frees its name and leaves a failed run. A training that was interrupted or killed
    can be resumed.

    Raises InputError if there is a student of that name already, or if another process is training it.
    """
    folder = student_folder(store, name)
    # Only the main process claims the name, since the other processes would find it taken.
    with store.claim(f"training-{name}", f"training {name!r}") if is_main_process() else nullcontext():
        # This is checked only under the claim, because its previous holder may have finished the training in the
        # meantime.
        run_id, facts = load_training(store, kind, name) if resume else _begin(kind, name, folder, snapshot, settings)
        run = TrainingRun(store, run_id, folder)
        try:
            run.settings = facts
            if is_main_process():
                run.record(kind, snapshot, facts)
            yield run
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            # A busy store must not hide the error that ended the training.
            with suppress(StoreBusyError):
                run.end("interrupted" if interrupted else "failed")
            # Without a checkpoint there is nothing to resume, and the folder would only block the name.
            if is_main_process() and not (resume or interrupted or run.can_go_on()):
                shutil.rmtree(folder)
            raise
        run.end("done")


def _begin(
    kind: str, name: str, folder: Path, snapshot: Snapshot, settings: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Create the folder of a new training. Returns its run id and the settings to record."""
    # The other processes may come here after the main process has created the folder.
    if folder.exists() and is_main_process():
        raise InputError(
            f"there is a student called {name!r} already; choose another `name`, or continue it with `resume`"
        )
    run_id = f"train-{kind}-{utc_now():%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
    lineage = snapshot.manifest["lineage"]
    facts = {
        **settings,
        "name": name,
        "dataset": lineage["dataset"],
        "sid_versions": [sids["sid_version"] for sids in lineage["semantic_ids"]],
        "snapshot": f"{snapshot.manifest['name']}@{snapshot.version}",
        # `resume` opens this exact version, even if a newer one has been published in the meantime.
        "reference": str(snapshot.path),
        "code_commit": code_commit(),
        "libraries": {library: version(library) for library in LIBRARIES},
        "processes": process_count(),
    }
    if is_main_process():
        # A folder without its run file could neither be started nor resumed, so both appear in one rename.
        with temporary_folder(folder.parent) as temporary:
            staged = temporary / name
            (staged / CHECKPOINTS).mkdir(parents=True)
            (staged / RUN_FILE).write_bytes(orjson.dumps({"run_id": run_id, "kind": kind, "settings": facts}))
            staged.replace(folder)
    return run_id, facts


class TrainingRun:
    """One training as `open_run` opens it: its row in `runs`, its folder and its curves.

    Only the process of rank 0 writes. The others use the same folder.
    """

    def __init__(self, store: Store, run_id: str, folder: Path) -> None:
        self.store = store
        self.run_id = run_id
        self.folder = folder
        self.checkpoints = folder / CHECKPOINTS
        self.settings: Mapping[str, Any] = {}
        # The step of the checkpoint from which this process continues.
        self.resumed_at = 0
        self._started = time.perf_counter()
        self._waiting: list[dict[str, Any]] = []
        self._flushed = time.monotonic()

    def record(self, kind: str, snapshot: Snapshot, facts: dict[str, Any]) -> None:
        """Insert the run's row if it is missing, mark it as running, and cut its curves off at the last checkpoint."""
        row = {
            "run_id": self.run_id,
            "kind": f"train-{kind}",
            "dataset": snapshot.manifest["lineage"]["dataset"],
            "settings": orjson.dumps(facts).decode(),
            "status": "running",
            "started_at": utc_now(),
        }
        checkpoint = last_checkpoint(self.checkpoints)
        self.resumed_at = int(checkpoint.rsplit("-", 1)[1]) if checkpoint else 0
        if checkpoint:
            # The checkpoint may have log entries that had not reached the store when the process died.
            history = _load_state(checkpoint).log_history
            self._waiting = [row for entry in history for row in metric_rows(entry["step"], entry)]
        with self.store.writing(patient=True) as session:
            session.put("runs", pl.DataFrame([row]))
            # put() leaves an existing row as it is, so the status of a resumed run needs its own statement.
            session.execute("resume_run", run_id=self.run_id)
            # The steps after the checkpoint are trained again and would otherwise appear twice.
            session.execute("delete_run_metrics_after", run_id=self.run_id, step=self.resumed_at)

    def can_go_on(self) -> bool:
        """Whether there is a finished model, or a checkpoint of any phase to resume from."""
        return (self.folder / "config.json").is_file() or any(self.checkpoints.rglob(TRAINER_STATE_NAME))

    def keep(self, rows: list[dict[str, Any]]) -> None:
        """Queue rows of step, metric, value for the store. They are written every FLUSH_S seconds, not one by one."""
        self._waiting += rows
        if time.monotonic() - self._flushed >= FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Write the queued rows. If the store is busy they stay queued, because metrics must not stop a training."""
        if is_main_process() and self._waiting:
            with suppress(StoreBusyError):
                with self.store.writing() as session:
                    self._put_waiting(session)
                self._waiting = []
        self._flushed = time.monotonic()

    def end(self, status: str) -> None:
        """Write the queued rows and set the run's final status. Raises StoreBusyError if the store stays busy."""
        if is_main_process():
            with self.store.writing(patient=True) as session:
                self._put_waiting(session)
                session.execute("end_run", run_id=self.run_id, status=status)

    def _put_waiting(self, session: Session) -> None:
        rows = [{"run_id": self.run_id, **row} for row in self._waiting]
        schema = {"run_id": pl.String, "step": pl.Int32, "metric": pl.String, "value": pl.Float64}
        frame = pl.DataFrame(rows, schema=schema)
        # A trainer may log a metric twice at one step, for example at its end. The later value counts.
        session.put("run_metrics", frame.unique(["step", "metric"], keep="last", maintain_order=True))

    def carry_out(self, trainer: Any, tokenizer: Any, *, resume: bool) -> TrainingSummary:
        """Train to the end and save the model. resume: start from the last checkpoint, if there is one."""
        # `StoreCallback` reports the metrics, so the trainer must not print them as well.
        trainer.remove_callback(PrinterCallback)
        with warnings.catch_warnings():
            # TRL and peft use a deprecated name of transformers.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            checkpoint = last_checkpoint(self.checkpoints) if resume else None
            state = None if checkpoint is None else _load_state(checkpoint)
            if state is not None and state.stateful_callbacks["TrainerControl"]["args"]["should_training_stop"]:
                # The training was killed after its last step. Another step would make another model.
                trainer.state = state
                kept = state.global_step if state.best_global_step is None else state.best_global_step
                trainer._load_from_checkpoint(str(self.checkpoints / f"checkpoint-{kept}"))
            else:
                trainer.train(resume_from_checkpoint=checkpoint)
        model = trainer.accelerator.unwrap_model(trainer.model)
        history = trainer.state.log_history
        figures = {row["metric"]: row["value"] for entry in history for row in metric_rows(entry["step"], entry)}
        if (best_step := trainer.state.best_global_step) is not None:
            figures |= {SELECTED_BY: trainer.state.best_metric, BEST_STEP: best_step}
            self.keep(metric_rows(trainer.state.global_step, {BEST_STEP: best_step}))
        return self.finish(model, tokenizer, trainer.state.global_step, figures)

    def finish(self, model: Any, tokenizer: Any, steps: int, figures: dict[str, float]) -> TrainingSummary:
        """Save the model into the run's folder and delete the checkpoints. figures: the last value of each metric.

        model: plain or with LoRA, whole or sharded. A student is always a plain model, which loads without peft. Every
        process takes part.
        """
        with temporary_folder(self.folder) if is_main_process() else nullcontext() as temporary:
            save_plain(model, temporary)
            if temporary is not None:
                tokenizer.save_pretrained(temporary)
                # config.json marks a finished student, so it is moved last.
                for file in sorted(temporary.iterdir(), key=lambda file: file.name == "config.json"):
                    file.replace(self.folder / file.name)
                shutil.rmtree(self.checkpoints, ignore_errors=True)
        return TrainingSummary(
            self.run_id, self.folder, steps, figures, time.perf_counter() - self._started, self.settings
        )


class StoreCallback(TrainerCallback):
    """Passes the metrics that a trainer logs to a run, and reports some of them in a progress line.

    shown: the metrics of the progress line, in order. remark: makes the end of the line from all metrics, or "".
    """

    def __init__(
        self,
        run: TrainingRun,
        shown: tuple[str, ...],
        on_progress: OnProgress,
        remark: Callable[[Mapping[str, float]], str] = lambda _: "",
    ) -> None:
        self._run = run
        self._shown = shown
        self._on_progress = on_progress
        self._remark = remark

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Log the last step, so that a training shorter than the log interval has metrics too."""
        control.should_log |= state.global_step >= state.max_steps

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:  # noqa: ARG002
        """Queue the metrics and report the progress line."""
        if not state.is_world_process_zero or not logs:
            return
        rows = metric_rows(state.global_step, logs)
        self._run.keep(rows)
        values = {row["metric"]: row["value"] for row in rows}
        line = ", ".join(f"{name} {values[name]:.4g}" for name in self._shown if name in values)
        if line:
            remark = self._remark(values)
            message = f"step {state.global_step:,} of {state.max_steps:,}: {line}" + (f"; {remark}" if remark else "")
            self._on_progress(Counted(message, state.global_step, state.max_steps))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Write the queued metrics, so that the store has everything up to the checkpoint."""
        if state.is_world_process_zero:
            self._run.flush()


def last_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint in a folder, or None if there is none."""
    # The trainer's state is the last file of a checkpoint, so a checkpoint without it is incomplete.
    states = folder.glob(f"checkpoint-*/{TRAINER_STATE_NAME}")
    # The steps are compared as numbers, because as text checkpoint-900 would come after checkpoint-1000.
    newest = max(states, key=lambda state: int(state.parent.name.rpartition("-")[2]), default=None)
    return None if newest is None else str(newest.parent)


def _load_state(checkpoint: str) -> Any:
    return TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))


def metric_rows(step: int, logs: dict[str, Any]) -> list[dict[str, Any]]:
    """Return rows of step, metric, value for one entry of a trainer's log.

    Values that are not finite numbers are left out.
    """
    return [
        {"step": step, "metric": name, "value": float(value)}
        for name, value in logs.items()
        if name not in ("step", "epoch") and isinstance(value, int | float) and math.isfinite(value)
    ]


def is_main_process() -> bool:
    """Whether this is the one process that writes, among those that `accelerate launch` started."""
    # This is read from the environment, because it is needed before torch.distributed is initialized.
    return int(os.environ.get("RANK", "0")) == 0


def process_count() -> int:
    """The number of processes that `accelerate launch` started, or 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def device_arguments(*, gradient_checkpointing: bool | None = None) -> dict[str, Any]:
    """Return the trainer arguments for this machine: products in bfloat16 on a GPU, in float32 on a CPU.

    gradient_checkpointing: None means only on a GPU.
    """
    on_gpu = torch.cuda.is_available()
    checkpointing = on_gpu if gradient_checkpointing is None else gradient_checkpointing
    return {"bf16": on_gpu, "use_cpu": not on_gpu, "activation_checkpointing": checkpointing}
