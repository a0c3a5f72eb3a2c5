from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curate.traces.planning import SamplingSettings
from curate.traces.sampling import sample
from curate.traces.teachers.fitted.scorecard import fit_scorecard
from curate.traces.teachers.selection import make_teacher
from store import InputError, Store

OWN_TEACHER = """
from curate.traces.teachers.protocol import Completion
from prompts.completion import render_completion

class LastFirst:
    name = "last-first"

    def __init__(self, dataset, model="v1", words=("fits",)):
        self.model = f"{model}-{dataset}"
        self.words = words

    async def complete(self, request):
        sids = [candidate.item.sid for candidate in request.task.candidates][::-1]
        return Completion(render_completion(f"{sids[0]} {self.words[0]}.", sids), "stop")

    async def close(self):
        pass
"""


def test_teachers_of_gr2_are_made_by_name(shop: Store) -> None:
    said: list[str] = []
    for name, options, model in (
        ("evidence", {}, "evidence.v1"),
        ("evidence", {"model": "evidence_brief.v1", "base_url": None}, "evidence_brief.v1"),
        ("openai", {"model": "m", "base_url": "http://127.0.0.1:9/v1", "extra_body": {"top_k": 20}}, "m"),
    ):
        teacher = make_teacher(name, options, store=shop, dataset="shop")
        assert (teacher.name, teacher.model) == (name, model)
    card = make_teacher("scorecard", {}, store=shop, dataset="shop", on_progress=said.append)
    assert card.model.endswith(fit_scorecard(shop, "shop").digest)
    assert said[0].startswith("scorecard fitted on ")


def test_a_teacher_of_ones_own_writes_traces(shop: Store, write_module: Callable[[str, str], Path]) -> None:
    write_module("own_teachers", OWN_TEACHER)
    teacher = make_teacher("own_teachers:LastFirst", {"words": ["suits"]}, store=shop, dataset="shop")
    sample(shop, teacher, SamplingSettings("shop", limit=3, max_attempts=1))
    with shop.reading() as session:
        rows = session.connection.execute(
            "select teacher, model, count(*) from traces where reasoning like '%suits.' group by all"
        ).fetchall()
    assert rows == [("last-first", "v1-shop", 3)]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vllm", {}, "no teacher is called 'vllm'; there are: evidence, scorecard, lambdamart, openai"),
        ("openai", {}, "teacher 'openai' needs `model`, which is not given"),
        (
            "openai",
            {"model": "m", "base_url": "http://x", "extra_body": 3},
            "`extra_body` is 3; it must be a JSON object",
        ),
        ("evidence", {"base_url": "http://x"}, "teacher 'evidence' takes no `base_url`; it takes `model`"),
        ("scorecard", {"model": "m"}, "teacher 'scorecard' takes no `model`; it takes no options"),
    ],
)
def test_what_a_teacher_cannot_take_is_a_clear_error(
    name: str, options: dict[str, Any], message: str, shop: Store
) -> None:
    with pytest.raises(InputError, match=message):
        make_teacher(name, options, store=shop, dataset="shop")
