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
from collections.abc import Callable
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
from transformers.trainer_utils import get_last_checkpoint

from curate.lineage import code_commit
from curate.snapshots import find_snapshot
from store import InputError, Store
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

    Raises InputError where a student of that name is not finished.
    """
    if reference == Path(reference).name and (folder := store.models / "students" / reference).is_dir():
        if not (folder / "config.json").is_file():
            raise InputError(f"the training of student {reference!r} is not finished; go on with it by --resume")
        return str(folder)
    return reference


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
            f"{snapshot.path} holds semantic IDs of {len(sizes)} sizes; publish one with --template and traces of one "
            "version of IDs"
        )
    return sizes.pop()


class TrainingRun:
    """One training: its row, its folder, its curves.

    Only the process of rank 0 writes; the others share the folder.
    """

    def __init__(self, store: Store, run_id: str, folder: Path) -> None:
        self.store = store
        self.run_id = run_id
        self.folder = folder
        self.checkpoints = folder / CHECKPOINTS
        self._started = time.perf_counter()

    @classmethod
    def start(cls, store: Store, kind: str, name: str, snapshot: Snapshot, settings: dict[str, Any]) -> "TrainingRun":
        """Claim the name and record the run. Raises InputError where there is a student of that name."""
        folder = student_folder(store, name)
        if folder.exists() and is_main_process():
            raise InputError(
                f"there is a student called {name!r} already; choose another --name, or go on with it by --resume"
            )
        now = utc_now()
        run_id = f"train-{kind}-{now:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"
        facts = {
            **settings,
            "name": name,
            "snapshot": f"{snapshot.manifest['name']}@{snapshot.version}",
            # What --resume opens: this very version, though a newer one may be published meanwhile.
            "reference": str(snapshot.path),
            "code_commit": code_commit(),
            "libraries": {library: version(library) for library in LIBRARIES},
            "processes": int(os.environ.get("WORLD_SIZE", "1")),
        }
        run = cls(store, run_id, folder)
        if is_main_process():
            (folder / CHECKPOINTS).mkdir(parents=True)
            (folder / RUN_FILE).write_bytes(orjson.dumps({"run_id": run_id, "kind": kind, "settings": facts}))
            row = {
                "run_id": run_id,
                "kind": f"train-{kind}",
                "dataset": snapshot.manifest["lineage"]["dataset"],
                "settings": orjson.dumps(facts).decode(),
                "status": "running",
                "started_at": now,
            }
            with store.writing() as session:
                session.put("runs", pl.DataFrame([row]))
        return run

    @classmethod
    def resume(cls, store: Store, kind: str, name: str) -> tuple["TrainingRun", dict[str, Any]]:
        """A training that was killed, and its settings. Raises InputError where there is none, or it is finished."""
        folder = student_folder(store, name)
        if not (folder / RUN_FILE).is_file():
            raise InputError(f"there is no training called {name!r} to go on with; leave --resume out")
        known = orjson.loads((folder / RUN_FILE).read_bytes())
        if known["kind"] != kind:
            raise InputError(f"{name!r} is a training of kind {known['kind']}, not {kind}")
        if (folder / "config.json").is_file():
            raise InputError(f"the training of {name!r} is finished; choose another --name for a new one")
        run = cls(store, known["run_id"], folder)
        checkpoint = run.last_checkpoint()
        step = int(checkpoint.rsplit("-", 1)[1]) if checkpoint else 0
        if is_main_process():
            with store.writing() as session:
                session.execute("resume_run", run_id=run.run_id)
                session.execute("delete_run_metrics_after", run_id=run.run_id, step=step)
            if checkpoint:
                # What was logged but not in the store yet when the process died.
                state = TrainerState.load_from_json(str(Path(checkpoint) / TRAINER_STATE_NAME))
                run.put_metrics([row for entry in state.log_history for row in metric_rows(entry["step"], entry)])
        return run, known["settings"]

    def last_checkpoint(self) -> str | None:
        """The folder of the newest checkpoint; None where there is none yet."""
        if not self.checkpoints.is_dir():
            return None
        found: str | None = get_last_checkpoint(str(self.checkpoints))  # type: ignore[no-untyped-call]
        return found

    def put_metrics(self, rows: list[dict[str, Any]]) -> None:
        """Rows of step, metric, value."""
        if rows:
            frame = pl.DataFrame(
                [{"run_id": self.run_id, **row} for row in rows],
                schema={"run_id": pl.String, "step": pl.Int32, "metric": pl.String, "value": pl.Float64},
            )
            with self.store.writing() as session:
                session.put("run_metrics", frame.unique(["step", "metric"], keep="last", maintain_order=True))

    def carry_out(self, trainer: Any, tokenizer: Any, *, resume: bool) -> TrainingSummary:
        """Train to the end, from the last checkpoint where there is one to go on from, and save what came of it."""
        # Figures go where `StoreCallback` says, not onto the terminal as well.
        trainer.remove_callback(PrinterCallback)
        try:
            with warnings.catch_warnings():
                # TRL and peft ask transformers by an old name.
                warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
                trainer.train(resume_from_checkpoint=self.last_checkpoint() if resume else None)
        except BaseException as error:
            self.end("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
            raise
        model = trainer.accelerator.unwrap_model(trainer.model)
        if isinstance(model, PeftModel):
            model = model.merge_and_unload()
        history = trainer.state.log_history
        figures = {row["metric"]: row["value"] for entry in history for row in metric_rows(entry["step"], entry)}
        return self.finish(model, tokenizer, trainer.state.global_step, figures)

    def end(self, status: str) -> None:
        """Close the run's row."""
        if is_main_process():
            with self.store.writing() as session:
                session.execute("end_run", run_id=self.run_id, status=status)

    def finish(self, model: Any, tokenizer: Any, steps: int, figures: dict[str, float]) -> TrainingSummary:
        """Save the model beside its run, drop the checkpoints, close the run. figures: the last of each."""
        if is_main_process():
            with temporary_folder(self.folder) as temporary:
                model.save_pretrained(temporary)
                tokenizer.save_pretrained(temporary)
                # What says that the student is there comes last.
                for file in sorted(temporary.iterdir(), key=lambda file: file.name == "config.json"):
                    file.replace(self.folder / file.name)
            shutil.rmtree(self.checkpoints, ignore_errors=True)
        self.end("done")
        return TrainingSummary(self.run_id, self.folder, steps, figures, time.perf_counter() - self._started)


class StoreCallback(TrainerCallback):
    """Writes what a trainer logs into the store, a few seconds' worth at a time, and tells one line of it."""

    def __init__(self, run: TrainingRun, shown: tuple[str, ...], on_progress: OnProgress) -> None:
        self._run = run
        self._shown = shown
        self._on_progress = on_progress
        self._waiting: list[dict[str, Any]] = []
        self._flushed = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:  # noqa: ARG002
        """Keep the figures; write them where the last time is old enough."""
        if not state.is_world_process_zero or not logs:
            return
        rows = metric_rows(state.global_step, logs)
        self._waiting += rows
        values = {row["metric"]: row["value"] for row in rows}
        told = ", ".join(f"{name} {values[name]:.4g}" for name in self._shown if name in values)
        if told:
            self._on_progress(f"step {state.global_step:,} of {state.max_steps:,}: {told}")
        if time.monotonic() - self._flushed >= FLUSH_S:
            self._flush()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """With a checkpoint everything before it is in the store."""
        if state.is_world_process_zero:
            self._flush()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Write the rest."""
        if state.is_world_process_zero:
            self._flush()

    def _flush(self) -> None:
        self._run.put_metrics(self._waiting)
        self._waiting = []
        self._flushed = time.monotonic()


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


def device_arguments() -> dict[str, Any]:
    """What trainers are told of this machine: bfloat16 on a GPU, plain floats on a CPU."""
    on_gpu = torch.cuda.is_available()
    return {"bf16": on_gpu, "use_cpu": not on_gpu, "activation_checkpointing": on_gpu}
