"""Rules that are not gr2's: judged by, kept, counted and named in rulesets like the others."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from curate.review.agreement import load_judgements, measure_rules
from curate.review.trace_pages import count_traces
from curate.traces.filter import TraceFilter
from curate.traces.planning import SamplingSettings
from curate.traces.recording import recover
from curate.traces.rulesets import add_ruleset
from curate.traces.sampling import sample
from curate.traces.teachers.evidence import EvidenceTeacher
from curate.traces.verification import verify
from store import InputError, Store
from store.labels import Label, put_label

RULE = """
from curate.traces.rules import Failure, Rule

def check(answer, parsed):
    return None if len(parsed.reasoning) % 2 else Failure("even", str(len(parsed.reasoning)))

odd_length = Rule(3, check)
"""
WriteModule = Callable[[str, str], Path]
SETTINGS = SamplingSettings("shop", limit=20, max_attempts=2, ruleset="odd", temperature=0.7)


def fetch(store: Store, statement: str) -> list[tuple[Any, ...]]:
    with store.reading() as session:
        return session.connection.execute(statement).fetchall()


def test_verify_judges_by_a_rule_that_it_is_given(shop: Store, write_module: WriteModule) -> None:
    write_module("own_verify", RULE)
    sample(shop, EvidenceTeacher(), SamplingSettings("shop", limit=20, max_attempts=1))
    summary = verify(shop, "shop", ["own_verify:odd_length"])
    assert summary.new_verdicts == 20
    odd = "len(reasoning) % 2 = 1"
    assert fetch(
        shop,
        "select distinct rule, rule_version from verdicts_current join traces using (trace_id) "
        f"where rule not in ('parsed') and rule like '%:%' and passed = ({odd})",
    ) == [("own_verify:odd_length", 3)]
    ((failed,),) = fetch(shop, f"select count(*) from traces where not ({odd})")
    assert 0 < failed < 20
    assert summary.reasons == {("own_verify:odd_length", "even"): failed}
    assert count_traces(shop, TraceFilter(rule="own_verify:odd_length")) == failed
    trace_id = fetch(shop, "select min(trace_id) from traces")[0][0]
    put_label(shop, trace_id, "ann", Label.BAD)
    measured = measure_rules(load_judgements(shop))
    assert measured.filter(pl.col("name") == "own_verify:odd_length")["labels"].item() == 1


def test_a_run_judges_by_the_rules_of_its_ruleset(shop: Store, write_module: WriteModule) -> None:
    write_module("own_trace", RULE)
    add_ruleset(shop, "odd", ["parsed", "own_trace:odd_length"])
    progress = sample(shop, EvidenceTeacher(), SETTINGS)
    assert 0 < progress.accepted < progress.attempts
    odd = "select count(*) from traces where len(reasoning) % 2 = 1"
    assert fetch(shop, "select count(*) from accepted_traces('odd')") == fetch(shop, odd) == [(progress.accepted,)]
    assert fetch(shop, "select count(distinct rule) from verdicts") == [(10,)]
    # A default verification knows the rulesets' rules too.
    assert verify(shop, "shop").new_verdicts == 0


def test_what_a_dead_run_left_is_judged_by_its_ruleset(shop: Store, write_module: WriteModule) -> None:
    write_module("own_dead", RULE)
    add_ruleset(shop, "odd", ["parsed", "own_dead:odd_length"])
    sample(shop, EvidenceTeacher(), SETTINGS)
    before = fetch(shop, "select trace_id, rule, passed from verdicts order by all")
    lose_traces(shop)
    again = sample(shop, EvidenceTeacher(), SETTINGS)
    assert again.attempts == 0
    assert fetch(shop, "select trace_id, rule, passed from verdicts order by all") == before

    # A package that is gone keeps no trace away; its verdicts come later.
    lose_traces(shop)
    with shop.writing() as session:
        session.connection.execute("update rulesets set rules = ['own_gone:rule'] where name = 'odd'")
    assert sum(recovery.traces for recovery in recover(shop)) == len({trace_id for trace_id, *_ in before})
    assert fetch(shop, "select trace_id, rule, passed from verdicts order by all") == [
        verdict for verdict in before if ":" not in verdict[1]
    ]
    with shop.writing() as session:
        session.connection.execute("update rulesets set rules = ['own_dead:odd_length'] where name = 'odd'")
    assert verify(shop, "shop").new_verdicts == sum(":" in rule for _, rule, _ in before)


def lose_traces(store: Store) -> None:
    """As if every run had been killed before it committed anything."""
    with store.writing() as session:
        for table in ("traces", "verdicts", "journals"):
            session.connection.execute(f"delete from {table}")
        session.connection.execute("update runs set ended_at = null")


def test_a_ruleset_whose_rule_is_gone_asks_nobody(shop: Store, write_module: WriteModule) -> None:
    with pytest.raises(InputError, match="there is no module own_nowhere"):
        add_ruleset(shop, "odd", ["own_nowhere:odd_length"])
    write_module("own_here", RULE)
    add_ruleset(shop, "odd", ["own_here:odd_length"])
    with shop.writing() as session:
        session.connection.execute("update rulesets set rules = ['own_nowhere:odd_length'] where name = 'odd'")
    with pytest.raises(InputError, match="'own_nowhere:odd_length': there is no module own_nowhere"):
        sample(shop, EvidenceTeacher(), SETTINGS)
    assert fetch(shop, "select count(*) from traces") == [(0,)]
