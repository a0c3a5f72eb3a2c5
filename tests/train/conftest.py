"""A student that knows nothing and traces of its kind."""

from pathlib import Path
from typing import Any

import datasets
import pytest

from prompts.completion import render_completion
from prompts.semantic_ids import render_sid
from train.student import init_student, load_student

SIDS = [render_sid([code, 7 - code]) for code in range(8)]


def a_row(number: int) -> dict[str, Any]:
    """Candidates in an order of its own; the right answer puts the target first and has a reason of its own length."""
    order = [(number + step * (1 + 2 * (number % 4))) % 8 for step in range(8)][:4]
    order = list(dict.fromkeys([*order, *range(8)]))[:4]
    candidates = [SIDS[code] for code in order]
    target = number % 4
    ranking = [target + 1, *(place + 1 for place in range(4) if place != target)]
    return {
        "prompt": [
            {"role": "system", "content": "Re-rank."},
            {"role": "user", "content": " ".join(candidates) + f" {number % 10}" * (1 + number % 5)},
        ],
        "completion": [
            {"role": "assistant", "content": render_completion(f"{candidates[target]} fits" * (number % 3), ranking)}
        ],
        "candidates": candidates,
        "target": candidates[target],
        "list_id": str(number),
    }


@pytest.fixture(scope="session")
def student_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("students") / "new"
    texts = [message["content"] for row in map(a_row, range(40)) for message in (*row["prompt"], *row["completion"])]
    init_student(texts, 2, 8, "tiny", folder)
    return folder


@pytest.fixture
def student(student_folder: Path) -> tuple[Any, Any]:
    """A new model and its tokenizer."""
    return load_student(student_folder)


@pytest.fixture
def rows() -> datasets.Dataset:
    return datasets.Dataset.from_list([a_row(number) for number in range(24)])
