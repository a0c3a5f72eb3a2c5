"""How a run's prompts come into the store: each once, without a look at all prompts for each batch."""

from collections.abc import Iterator

from curate.traces.planning import OpenPrompt, find_open_lists, open_prompts, plan_sampling
from curate.traces.settings import SamplingSettings
from curate.traces.teachers.evidence import EvidenceTeacher
from curate.traces.teachers.fake import FakeTeacher
from curate.traces.teachers.protocol import Teacher
from store import Store


def stored(store: Store) -> list[str]:
    with store.reading() as session:
        rows = session.connection.execute("select prompt_id from prompts order by rowid").fetchall()
    return [prompt_id for (prompt_id,) in rows]


def open_in_batches(store: Store, teacher: Teacher, limit: int) -> Iterator[list[OpenPrompt]]:
    plan = plan_sampling(store, teacher, SamplingSettings("shop", limit=limit, ruleset="answered"))
    lists, table = find_open_lists(store, plan)
    for part in lists.iter_slices(7):
        prompts = open_prompts(store, plan, part, table)
        # The next batch looks only at what is stored from here on.
        assert table.rows == len(stored(store))
        yield prompts


def test_runs_that_overlap_store_each_prompt_once(shop: Store) -> None:
    one, other = (open_in_batches(shop, teacher, 30) for teacher in (EvidenceTeacher(), FakeTeacher(lambda _: "x")))
    prompts = [prompt.prompt_id for prompt in next(one)]
    # The other run stores all prompts that the first has not reached yet.
    assert len(stored(shop)) == 7
    assert sum(len(batch) for batch in other) == len(stored(shop)) == 30
    prompts += [prompt.prompt_id for batch in one for prompt in batch]
    assert sorted(stored(shop)) == sorted(prompts)
    assert len(set(prompts)) == 30


def test_prompts_of_earlier_runs_are_known_from_the_plan_on(shop: Store) -> None:
    first = [prompt.prompt_id for batch in open_in_batches(shop, EvidenceTeacher(), 20) for prompt in batch]
    again = [prompt.prompt_id for batch in open_in_batches(shop, EvidenceTeacher(), 30) for prompt in batch]
    assert set(first) < set(again)
    assert sorted(stored(shop)) == sorted(again)
