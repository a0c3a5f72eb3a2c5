"""Names of gr2 0.1 in links, queues, manifests and unfinished trainings. They are supported until 0.3.

Migrations rename everything in DuckDB files. This module covers the rest: texts that the store does not own.
"""

from collections.abc import Mapping
from typing import Any

FIELDS = {
    "policy": "ruleset",
    "lost_at": "first_failed_rule",
    "new_rank": "predicted_rank",
    "text_folder": "text_dir",
    "order_weight": "answer_weight",
    "accumulation": "gradient_accumulation_steps",
    "group": "num_generations",
    "prompts": "prompts_per_batch",
    "updates": "num_iterations",
    "alpha": "format_weight",
}
VALUES = {
    "ruleset": {"all": "answered"},
    "passes": {"all": "answered"},
    "fails": {"all": "answered"},
    "rule": {"complete": "not_truncated"},
    "rules": {"complete": "not_truncated"},
    "rankers": {"ceiling": "oracle"},
    "first_failed_rule": {"complete": "not_truncated"},
    "reward": {"plain": "unconditional", "paper": "conditional", "gated": "format_gated"},
}


def renamed(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The same facts under their current names.

    >>> renamed({"policy": "all", "split": "train"})
    {'ruleset': 'answered', 'split': 'train'}
    """
    today = {FIELDS.get(name, name): value for name, value in facts.items()}
    return {
        name: VALUES[name].get(value, value) if name in VALUES and isinstance(value, str) else value
        for name, value in today.items()
    }
