import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curate.traces import rules, verification
from curate.traces.planning import SamplingSettings
from curate.traces.recording import load_tasks_of_prompts
from curate.traces.sampling import sample
from curate.traces.teachers.evidence import EvidenceTeacher
from curate.traces.verification import BEGINNING, _ranges, verify
from store import InputError, Store


def sample_twice(shop: Store) -> None:
    sample(shop, EvidenceTeacher(), SamplingSettings("shop", limit=40, max_attempts=2, num_accepted=2))


@pytest.fixture
def traced(prepare: Callable[..., Store], built_shop: Path) -> Store:
    """A shop with 80 traces."""
    return prepare(built_shop, sample_twice)


def fetch(store: Store, statement: str) -> list[tuple[Any, ...]]:
    with store.reading() as session:
        return session.connection.execute(statement).fetchall()


def test_judging_again_agrees_with_the_first_time_and_adds_nothing(traced: Store) -> None:
    before = fetch(traced, "from verdicts order by all")
    summary = verify(traced, "shop")
    assert (summary.traces, summary.new_verdicts) == (80, 0)
    assert fetch(traced, "from verdicts order by all") == before
    assert sum(summary.passed.values()) + sum(summary.failed.values()) == len(before)


def test_verdicts_can_be_made_from_completions_alone(traced: Store) -> None:
    before = fetch(traced, "from verdicts order by all")
    with traced.writing() as session:
        session.connection.execute("delete from verdicts")
        session.connection.execute("update traces set outcome = null")
    assert fetch(traced, "select count(*) from accepted_traces('paper')") == [(0,)]
    summary = verify(traced, "shop")
    assert summary.new_verdicts == len(before)
    assert fetch(traced, "from verdicts order by all") == before


def test_a_new_version_of_a_rule_adds_verdicts_and_counts_from_then_on(
    traced: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    accepted = fetch(traced, "select count(*) from accepted_traces('paper')")
    assert accepted != [(0,)]
    stricter = rules.Rule(99, lambda *_: rules.Failure("never"))
    monkeypatch.setitem(rules.RULES.builtin, "permutation", stricter)
    summary = verify(traced, "shop", ["permutation"])
    assert summary.new_verdicts == 80
    assert summary.reasons == {("permutation", "never"): 80}
    assert fetch(
        traced, "select rule_version, count(*) from verdicts where rule = 'permutation' group by 1 order by 1"
    ) == [
        (3, 80),
        (99, 80),
    ]
    assert fetch(traced, "select count(*) from accepted_traces('paper')") == [(0,)]
    assert fetch(traced, "select count(*) from accepted_traces('answered')") == [(80,)]


def test_a_completion_that_was_misread_gets_its_new_reading_and_verdicts(traced: Store) -> None:
    """As stored by a release that read ranked objects in the order in which they are listed."""
    accepted = fetch(
        traced,
        "select trace_id, ranking, prompt_id, predicted_rank from accepted_traces('paper') order by trace_id limit 2",
    )
    (misread, ranking, prompt_id, predicted_rank), (unread, *_) = accepted
    with traced.reading() as session:
        task = load_tasks_of_prompts(session, [prompt_id])[prompt_id].task
    sids = {candidate.item.item_id: candidate.item.sid for candidate in task.candidates}
    ranked = [{"rank": rank, "sid": sids[item]} for rank, item in enumerate(ranking, 1)]
    completion = json.dumps({"explanation": "x", "recommendations": ranked[::-1]})
    with traced.writing() as session:
        session.connection.execute("update verdicts set rule_version = rule_version - 1")
        session.connection.execute(
            "update traces set completion = $1, reasoning = 'x', ranking = $2, predicted_rank = 1 where trace_id = $3",
            [completion, ranking[::-1], misread],
        )
        session.connection.execute("update traces set ranking = null, reasoning = null where trace_id = $1", [unread])
    assert verify(traced, "shop", ["grounded"]).new_readings == 2
    found = fetch(traced, f"select ranking, reasoning, predicted_rank, copied from traces where trace_id = '{misread}'")
    assert found == [(ranking, "x", predicted_rank, False)]
    judged = fetch(traced, f"select rule from verdicts where trace_id = '{misread}' and rule = 'target_first'")
    assert len(judged) == 2
    assert fetch(traced, "select count(*) from traces where ranking is null") == [(0,)]
    assert verify(traced, "shop").new_readings == 0


def test_only_the_named_rules_are_run(traced: Store) -> None:
    with traced.writing() as session:
        session.connection.execute("delete from verdicts")
    verify(traced, "shop", ["cites", "no_leak"])
    assert fetch(traced, "select distinct rule from verdicts order by 1") == [("cites",), ("no_leak",)]


def test_what_is_unknown_is_a_clear_error(traced: Store) -> None:
    with pytest.raises(InputError, match="no dataset is called 'nope'; there are: shop"):
        verify(traced, "nope")
    with pytest.raises(InputError, match="no rule is called 'nice'"):
        verify(traced, "shop", ["nice"])


def test_ranges_of_keys_take_each_completion_once_and_read_no_others(traced: Store) -> None:
    # Many traces of one moment, and a failed request, which has no completion.
    with traced.writing() as session:
        session.connection.execute("update traces set created_at = '2026-01-01' where trace_id < '8'")
        session.connection.execute(
            "update traces set completion = null where trace_id = (select max(trace_id) from traces)"
        )
    expected = fetch(traced, "select trace_id from traces where completion is not null order by created_at, trace_id")
    found, sizes, after = [], [], BEGINNING
    with traced.reading() as session:
        ends = session.rows("ranges_to_judge", dataset="shop", after_time=after[0], after_id=after[1], batch=7)
        for end in ends:
            rows = session.rows(
                "completions_to_judge",
                dataset="shop",
                after_time=after[0],
                after_id=after[1],
                until_time=end[0],
                until_id=end[1],
            )
            sizes.append(len(rows))
            found += [(trace_id,) for trace_id, *_ in rows]
            after = end
        assert not session.rows("ranges_to_judge", dataset="shop", after_time=after[0], after_id=after[1], batch=7)
    assert found == expected
    assert sizes == [7] * 11 + [2]


def test_a_batch_reads_only_the_part_of_the_store_where_its_prompts_lie(
    traced: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "VERIFY_BATCH", 9)
    batches = list(_ranges(traced, "shop"))
    assert len(batches) == 9
    loaded = []
    for after, until, places in batches:
        with traced.reading() as session:
            parameters = {"dataset": "shop", "after_time": after[0], "after_id": after[1]}
            rows = session.rows("completions_to_judge", **parameters, until_time=until[0], until_id=until[1])
            prompts = {prompt_id for _, _, prompt_id, *_ in rows}
            within = load_tasks_of_prompts(session, list(prompts), within=places)
            assert within == load_tasks_of_prompts(session, list(prompts))
            assert within.keys() == prompts
            assert all(candidate.evidence.score for task in within.values() for candidate in task.task.candidates)
            # What lies elsewhere is not read: these tasks cannot be found there.
            elsewhere = places._replace(first=places.last + 1, last=2**62)
            assert load_tasks_of_prompts(session, list(prompts), within=elsewhere) == {}
        loaded.append((places.first, places.last, places.lists.last - places.lists.first))
    assert min(last - first for first, last, _ in loaded) < 40 / 2
    assert min(lists for *_, lists in loaded) < fetch(traced, "select count(*) from candidate_lists")[0][0] / 2
