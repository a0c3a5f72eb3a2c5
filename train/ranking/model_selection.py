"""Model selection: a student ranks valid lists every few steps of its training, and its best checkpoint is kept.

The metric is NDCG@5 over a fixed sample of valid lists. transformers does the rest: it writes a checkpoint after each
evaluation, keeps the best one, loads it at the end, and ends a training that no longer improves. The student before
training is one of the candidates, so that training cannot make it worse on these lists. Test lists are never read here.

Unlike in `gr2 eval`, an invalid answer counts as a miss. There, the input order takes its place. A student without any
valid answer would then be as good as the pre-ranker, and would be kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState  # type: ignore[import-untyped]
from accelerate.utils import gather_object  # type: ignore[import-untyped]
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl.models import unwrap_model_for_generation

from curate.datasets.catalogue import find_dataset
from curate.datasets.sources import choose_sources
from curate.evaluation.metrics import ndcg_at_k
from curate.evaluation.rankers.protocol import checked
from curate.traces.target_lists import load_target_lists
from curate.traces.tasks import ListedTask
from prompts.completion import NUMBERS
from prompts.templates import Template, load_template
from store import InputError, Store
from store.snapshots import Snapshot
from train.ranking.modes import make_ranker
from train.ranking.rerankers import Student
from train.ranking.settings import SelectionSettings
from train.runs import SELECTED_BY, last_checkpoint
from train.students.chat import ChatFormat

K = 5

RankValidLists = Callable[[Any], dict[str, float]]
"""Metrics of a model by name. Every process calls it and gets the same metrics."""


@dataclass(frozen=True, slots=True)
class ValidLists:
    """A sample of valid lists that contain their target. A call with a model ranks them.

    settings: those of `open_valid_lists`, with a mode. chat, template: used for the prompts.
    """

    listed: Sequence[ListedTask]
    settings: SelectionSettings
    chat: ChatFormat
    template: Template

    def __call__(self, model: Any) -> dict[str, float]:
        """Return NDCG@5, with an invalid answer as a miss, and the share of valid answers.

        Processes share the lists.
        """
        state = PartialState()
        mine = self.listed[state.process_index :: state.num_processes]
        student = Student("valid lists", model, self.chat, self.template)
        ranker = make_ranker(student, self.settings.eval_mode or "", max_tokens=self.settings.eval_max_tokens)
        ranks = []
        for listed, ranked in zip(mine, ranker.rank([listed.task for listed in mine]), strict=True):
            order = checked(listed.task, ranked)
            # Rank 0 is a miss.
            ranks.append(order.item_ids.index(listed.target_item_id) + 1 if order.valid else 0)
        ranks_B = np.array(gather_object(ranks))
        return {f"ndcg_at_{K}": float(ndcg_at_k(ranks_B, K).mean()), "valid_share": float((ranks_B > 0).mean())}


def open_valid_lists(
    store: Store, snapshot: Snapshot, templates: Sequence[str], tokenizer: Any, settings: SelectionSettings
) -> ValidLists | None:
    """Load the valid lists of the snapshot's dataset, or return None if the settings ask for no evaluation.

    templates: those of the snapshot's prompts. If the settings have no mode, the cheapest mode that the template allows
    is used. List ids are hashes, so the same lists are drawn in every training.

    Raises InputError if the snapshot has several templates or versions of semantic IDs, or if the store lacks the
    dataset, the semantic IDs or valid lists that contain their target.
    """
    if settings.eval_steps is None:
        return None
    lineage = snapshot.manifest["lineage"]
    dataset, versions = lineage["dataset"], [sids["sid_version"] for sids in lineage["semantic_ids"]]
    if len(templates) != 1 or len(versions) != 1:
        raise InputError(
            f"`eval_steps` shows valid lists as the snapshot does, but it has {len(templates)} templates and "
            f"{len(versions)} versions of semantic IDs; publish a snapshot with one of each"
        )
    with store.reading() as session:
        find_dataset(session, dataset)
        sid_version, pre_ranker = choose_sources(
            session, dataset, versions[0], settings.pre_ranker or lineage.get("pre_ranker")
        )
    listed = load_target_lists(store, dataset, sid_version, pre_ranker, "valid", limit=settings.eval_lists).listed
    if not listed:
        raise InputError(
            f"no valid list of {dataset!r} by {pre_ranker} contains its target, and `eval_steps` needs some to select "
            f"a student by; run gr2 candidates {dataset}, or leave `eval_steps` out"
        )
    template = load_template(templates[0])
    mode = settings.eval_mode or ("first-token" if template.answer == NUMBERS else "direct")
    return ValidLists(listed, replace(settings, eval_mode=mode), ChatFormat.of(tokenizer), template)


def selection_arguments(settings: SelectionSettings, folder: Path) -> dict[str, Any]:
    """Return the arguments of a trainer that keeps its best checkpoint. folder: the folder of the checkpoints.

    There are no arguments if the settings ask for no evaluation.
    """
    if settings.eval_steps is None:
        return {}
    return {
        "eval_strategy": "steps",
        "eval_steps": settings.eval_steps,
        # The curve begins with the student before training. A resumed training has that point already.
        "eval_on_start": last_checkpoint(folder) is None,
        # Only a student with a checkpoint can be kept.
        "save_steps": settings.eval_steps,
        "load_best_model_at_end": True,
        "metric_for_best_model": SELECTED_BY,
        "greater_is_better": True,
        # A resumed training has as much patience left as before.
        "restore_callback_states_from_checkpoint": True,
    }


def selection_callbacks(settings: SelectionSettings) -> list[TrainerCallback]:
    """Return a callback that ends a training that no longer improves, or none if the settings set no patience."""
    return [] if settings.patience is None else [EarlyStoppingCallback(settings.patience)]


class SelectingTrainer:
    """A mixin for a trainer of TRL. With `rank_valid_lists`, an evaluation ranks lists instead of computing a loss."""

    def __init__(self, *args: Any, rank_valid_lists: RankValidLists | None = None, **others: Any) -> None:
        if rank_valid_lists is not None:
            # transformers refuses to evaluate without a dataset, but never reads this one.
            others["eval_dataset"] = ()
        super().__init__(*args, **others)
        self._rank_valid_lists = rank_valid_lists

    def evaluate(self: Any, *args: Any, **others: Any) -> dict[str, float]:
        """Return the metrics of the valid lists with the prefix eval_, and log them too."""
        if self._rank_valid_lists is None:
            metrics: dict[str, float] = super().evaluate(*args, **others)  # type: ignore[misc]
            return metrics
        is_training = self.model.training
        # In training mode, TRL would take these for metrics of the training, and average them too early.
        self.model.eval()
        with unwrap_model_for_generation(self.model_wrapped, self.accelerator) as model:
            metrics = {f"eval_{name}": value for name, value in self._rank_valid_lists(model).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if self.state.global_step == 0:
            self._keep_untrained(metrics)
        self.model.train(is_training)
        return metrics

    def _keep_untrained(self: Any, metrics: dict[str, float]) -> None:
        """Make the student before training the best one so far. transformers considers what has taken a step only."""
        self._determine_best_metric(metrics, None)
        # It would take the step 0 for no step when it looks for the best checkpoint.
        self.state.best_model_checkpoint = str(Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-0")
        self._save_checkpoint(self.model, None)

    def _issue_warnings_after_load(self: Any, load_result: Any) -> None:
        """Say nothing of tied weights. A checkpoint contains them once, so each has a name that is missing in it."""
        tied = getattr(self.accelerator.unwrap_model(self.model), "all_tied_weights_keys", None) or {}
        missing = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))  # type: ignore[misc]
