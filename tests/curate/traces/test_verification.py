from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curate.traces import rules
from curate.traces.planning import SamplingSettings
from curate.traces.sampling import sample
from curate.traces.teachers.evidence import EvidenceTeacher
from curate.traces.verification import verify
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
        (2, 80),
        (99, 80),
    ]
    assert fetch(traced, "select count(*) from accepted_traces('paper')") == [(0,)]
    assert fetch(traced, "select count(*) from accepted_traces('answered')") == [(80,)]


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
