"""Judges stored rollouts again: the rewards that they would earn under another reward or other weights.

Nothing is sampled. The stored completions are parsed again, against their own candidate lists, by the functions that
the trainer calls. Under the settings of the training, the rewards are therefore those that it recorded, except for the
rounding of float32. Rollouts are not changed.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

import orjson
import polars as pl

from curate.traces.recording import load_tasks_of_prompts
from store import InputError, Store
from store.former_names import renamed
from train.dapo.rewards import RewardFunction, RewardSettings
from train.dapo.settings import DapoSettings

# The maximum number of ranges of steps in a comparison.
MOST_RANGES = 10
# Smaller differences between rewards come from the rounding of float32.
ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class JudgedAgain:
    """The rollouts of a training, with the rewards that they got and those that they would get.

    trained, judged: the settings of the training and of the new judgement. rollouts: step, prompt_id, sample_index,
    trace_id, kept, reward, judged.
    """

    run_id: str
    trained: DapoSettings
    judged: DapoSettings
    rollouts: pl.DataFrame


def judge_again(store: Store, student: str, **changed: Any) -> JudgedAgain:
    """Compute the rewards of all rollouts of a student's training again.

    changed: settings that differ from those of the training: reward, format_weight, overlong_weight. Raises InputError
    if the store has no rollouts of that student, or on an unknown reward.
    """
    with store.reading() as session:
        runs = session.rows("training_of_student", name=student)
        if not runs:
            raise InputError(
                f"the store has no rollouts of a student called {student!r}; gr2 status lists those with rollouts"
            )
        ((run_id, recorded),) = runs
        stored_settings = renamed(orjson.loads(recorded))
        trained = DapoSettings(
            **{
                field.name: stored_settings[field.name]
                for field in fields(DapoSettings)
                if field.name in stored_settings
            }
        )
        judged = replace(trained, **changed)
        rollouts = session.frame("rollouts_to_judge", run_id=run_id)
        tasks = load_tasks_of_prompts(session, rollouts["prompt_id"].unique().to_list())
    columns: dict[str, list[Any]] = {"candidates": [], "target": [], "history": []}
    for prompt_id in rollouts["prompt_id"]:
        listed = tasks[prompt_id]
        sids = {candidate.item.item_id: candidate.item.sid for candidate in listed.task.candidates}
        columns["candidates"].append(list(sids.values()))
        columns["target"].append(sids.get(listed.target_item_id))
        columns["history"].append([item.sid for item in listed.task.history])
    # Only the number of tokens is used.
    columns["completion_ids"] = [range(tokens) for tokens in rollouts["completion_tokens"]]
    completions = rollouts["completion"].to_list()
    shared = RewardSettings.of(judged)
    total = pl.Series("judged", [0.0] * len(completions))
    for name, weight in ((judged.reward, 1.0), ("overlong", judged.overlong_weight)):
        total += weight * pl.Series(RewardFunction(name, shared)(completions, completions, **columns), dtype=pl.Float64)
    shown = ("step", "prompt_id", "sample_index", "trace_id", "kept", "reward")
    return JudgedAgain(run_id, trained, judged, rollouts.select(*shown, total.alias("judged")))


def compare_rewards(rollouts: pl.DataFrame) -> pl.DataFrame:
    """Compare how two rewards judge the same rollouts, by ranges of steps.

    Columns: first_step, last_step, rollouts, reward and judged (means), groups, differ_reward and differ_judged (shares
    of groups whose rewards differ, so that they teach something), same_side (the share of rollouts that are above,
    below or at the mean of their group under both).
    """
    width = -(-int(rollouts["step"].to_numpy().max()) // MOST_RANGES)
    sides, differ = [], []
    for name in ("reward", "judged"):
        distance = pl.col(name) - pl.col(name).mean().over("step", "prompt_id")
        sides.append(pl.when(distance.abs() > ROUNDING).then(distance.sign()).otherwise(0).alias(f"side_{name}"))
        differ.append((pl.max(name) - pl.min(name) > ROUNDING).alias(f"differ_{name}"))
    groups = (
        rollouts.with_columns(*sides, part=(pl.col("step") - 1) // width)
        .group_by("part", "step", "prompt_id")
        .agg(
            pl.len().alias("rollouts"),
            pl.mean("reward", "judged"),
            *differ,
            (pl.col("side_reward") == pl.col("side_judged")).mean().alias("same_side"),
        )
    )
    return (
        groups.group_by("part")
        .agg(
            pl.min("step").alias("first_step"),
            pl.max("step").alias("last_step"),
            pl.sum("rollouts"),
            # All groups have the same size, so the mean of their means is the mean of the rollouts.
            pl.mean("reward", "judged"),
            pl.len().alias("groups"),
            pl.mean("differ_reward", "differ_judged", "same_side"),
        )
        .sort("part")
        .drop("part")
    )
