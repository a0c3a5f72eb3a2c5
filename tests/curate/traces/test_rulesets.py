from pathlib import Path
from typing import Any

import pytest

from curate.snapshots import SnapshotSettings, publishing
from curate.snapshots.publishing import publish, rebuild
from curate.traces import rules
from curate.traces.filter import TraceFilter
from curate.traces.planning import SamplingSettings
from curate.traces.rules import Answer, Failure, Rule
from curate.traces.rulesets import (
    Ruleset,
    add_ruleset,
    describe_unjudged,
    find_ruleset,
    list_rulesets,
    pin_rulesets,
    read_ruleset,
    unjudged_traces,
    write_ruleset,
)
from curate.traces.sampling import sample
from curate.traces.teachers.evidence import EvidenceTeacher
from curate.traces.verification import verify
from prompts.completion import ParsedCompletion
from store import InputError, Store
from store.snapshots import verify_snapshot

SETTINGS = SamplingSettings("shop", limit=40, temperature=0.5)


def fetch(store: Store, statement: str) -> list[tuple[Any, ...]]:
    with store.reading() as session:
        return session.connection.execute(statement).fetchall()


def accepted(store: Store, reference: str) -> int:
    return int(fetch(store, f"select count(*) from accepted_traces('{reference}')")[0][0])


@pytest.fixture
def traced(shop: Store) -> Store:
    sample(shop, EvidenceTeacher(), SETTINGS)
    return shop


@pytest.fixture
def even_length(monkeypatch: pytest.MonkeyPatch) -> str:
    """A rule that came after the traces and passes about half of them: a reasoning has an even number of characters."""

    def check(_: Answer, parsed: ParsedCompletion) -> Failure | None:
        return Failure("odd_length") if len(parsed.reasoning) % 2 else None

    monkeypatch.setitem(rules.RULES.builtin, "even_length", Rule(1, check))
    monkeypatch.setattr(rules, "RULE_NAMES", (*rules.RULE_NAMES, "even_length"))
    return "even_length"


def test_a_store_begins_with_three_rulesets(store: Store) -> None:
    known = list_rulesets(store)
    assert known.select("name", "version").rows() == [("answered", 1), ("paper", 1), ("strict", 1)]
    assert all(known["description"])


def test_a_ruleset_is_found_by_name_and_version(store: Store) -> None:
    add_ruleset(store, "mine", ["parsed"], "first")
    newer, is_new = add_ruleset(store, "mine", ["parsed", "cites"], "second")
    assert (newer, is_new) == (Ruleset("mine", 2, ("parsed", "cites"), "second"), True)
    with store.reading() as session:
        assert find_ruleset(session, "mine") == newer
        assert find_ruleset(session, "mine@1").rules == ("parsed",)
        # What gr2 0.1 called it.
        assert find_ruleset(session, "all").name == "answered"
    assert list_rulesets(store, all_versions=True).filter(name="mine")["version"].to_list() == [2, 1]


def test_the_same_rules_again_add_no_version(store: Store) -> None:
    first, _ = add_ruleset(store, "mine", ["parsed"])
    assert add_ruleset(store, "mine", ["parsed"]) == (first, False)


@pytest.mark.parametrize(
    ("name", "names", "message"),
    [
        ("a b", ["parsed"], "'a b' cannot name a ruleset"),
        ("", ["parsed"], "'' cannot name a ruleset"),
        ("a@1", ["parsed"], "'a@1' cannot name a ruleset"),
        ("all", ["parsed"], "'all' is what gr2 0.1 called 'answered'"),
        ("mine", ["nice"], "no rule is called 'nice'"),
        ("mine", ["parsed", "cites", "parsed"], "name parsed more than once"),
    ],
)
def test_what_is_no_ruleset_is_refused(store: Store, name: str, names: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        add_ruleset(store, name, names)
    assert list_rulesets(store).height == 3


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nope", "no ruleset is called 'nope'; there are: answered, paper, strict"),
        ("strict@9", "no ruleset is called 'strict@9'"),
        ("strict@new", "write NAME or NAME@VERSION"),
    ],
)
def test_an_unknown_ruleset_is_a_clear_error(store: Store, reference: str, message: str) -> None:
    with store.reading() as session, pytest.raises(InputError, match=message):
        find_ruleset(session, reference)


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    ruleset = Ruleset("mine", 3, ("parsed", "cites"), 'says "why" \\ and é')
    file = tmp_path / "mine.toml"
    file.write_text(write_ruleset(ruleset), "utf-8")
    assert read_ruleset(file) == (ruleset.name, ruleset.rules, ruleset.description)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "is not a TOML file"),
        ('name = "a"', "needs name"),
        ('name = "a"\nrules = "parsed"', "needs name"),
        ('name = "a"\nrules = ["parsed", 3]', "needs name"),
        ('name = "a"\nrules = ["parsed"]\nrulse = 1', "unknown keys rulse"),
    ],
)
def test_a_file_that_is_none_is_a_clear_error(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text, "utf-8")
    with pytest.raises(InputError, match=message) as caught:
        read_ruleset(file)
    assert str(file) in str(caught.value)


def test_traces_name_the_ruleset_of_their_run(traced: Store) -> None:
    assert fetch(traced, "select distinct ruleset, ruleset_version from traces") == [("paper", 1)]
    add_ruleset(traced, "paper", ["parsed", "permutation", "target_first", "cites"])
    sample(traced, EvidenceTeacher(), SamplingSettings("shop", split="valid", limit=5))
    assert fetch(traced, "select distinct ruleset_version from traces where split = 'valid'") == [(2,)]


def test_adding_a_rule_loses_no_trace_in_silence(traced: Store, even_length: str) -> None:
    before = accepted(traced, "strict")
    everything = fetch(traced, "select count(*) from traces")[0][0]
    snapshot = publish(traced, "kept", SnapshotSettings("shop", ruleset="strict"))
    strict = fetch(traced, "select rules from rulesets_current where name = 'strict'")[0][0]
    assert before > 0

    add_ruleset(traced, "strict", [*strict, even_length], "even")

    # Nothing is accepted by the new version yet, which is said with the number and the command.
    assert (accepted(traced, "strict"), accepted(traced, "strict@1")) == (0, before)
    with traced.reading() as session:
        missing = unjudged_traces(session)
    assert missing.rows() == [("shop", "strict", 2, even_length, everything)]
    assert describe_unjudged(missing) == [
        f"{everything:,} traces of shop have no verdict of rule even_length, so ruleset strict@2 does not accept them: "
        "run gr2 verify shop"
    ]
    lost = dict(fetch(traced, "select first_failed_rule, count(*) from trace_browser group by all"))
    assert lost["not_judged"] == before
    # Nobody pays for accepted traces a second time.
    with pytest.raises(InputError, match="run gr2 verify shop"):
        sample(traced, EvidenceTeacher(), SamplingSettings("shop", limit=40, ruleset="strict"))
    # The older snapshot still comes out the same, byte by byte.
    assert rebuild(traced, snapshot)

    assert verify(traced, "shop", (even_length,)).passed[even_length] > 0
    with traced.reading() as session:
        assert unjudged_traces(session).height == 0
    assert 0 < accepted(traced, "strict") < before == accepted(traced, "strict@1")
    assert rebuild(traced, snapshot)
    newer = publish(traced, "kept", SnapshotSettings("shop", ruleset="strict"))
    assert newer.manifest["selection"]["ruleset_versions"] == {"paper": 1, "strict": 2}
    assert sum(split["rows"] for split in newer.manifest["splits"].values()) == accepted(traced, "strict")
    # An older version can still be published.
    older = publish(traced, "kept", SnapshotSettings("shop", ruleset="strict@1"))
    assert older.manifest["selection"]["ruleset_versions"]["strict"] == 1
    assert {file: older.manifest["files"][file] for file in older.manifest["files"] if file.startswith("data")} == {
        file: snapshot.manifest["files"][file] for file in snapshot.manifest["files"] if file.startswith("data")
    }


@pytest.mark.slow
def test_pass_rates_of_a_snapshot_are_those_of_its_versions(traced: Store) -> None:
    """Rows of SFT and DAPO hold pass rates under `paper`, and a filter may ask for what `strict` says."""
    kept = publish(traced, "sft", SnapshotSettings("shop", ruleset="answered"))
    prompts = publish(traced, "dapo", SnapshotSettings("shop", kind="dapo"))
    lost = SnapshotSettings("shop", ruleset="answered", traces=TraceFilter(first_failed_rule="target_first"))
    near = publish(traced, "near", lost)
    add_ruleset(traced, "paper", ["parsed"])
    add_ruleset(traced, "strict", ["parsed"])
    for snapshot in (kept, prompts, near):
        verify_snapshot(snapshot.path)
        assert rebuild(traced, snapshot)
    assert publish(traced, "dapo", SnapshotSettings("shop", kind="dapo")).version != prompts.version


def test_another_commit_and_another_card_make_the_same_snapshot(traced: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = publish(traced, "sft", SnapshotSettings("shop"))
    monkeypatch.setattr(publishing, "code_commit", lambda: "a later one")
    monkeypatch.setattr(publishing, "_card", lambda *_: "worded otherwise")
    assert rebuild(traced, snapshot)
    assert publish(traced, "sft", SnapshotSettings("shop")).version != snapshot.version


def test_a_ruleset_that_a_snapshot_does_not_use_changes_nothing_about_it(traced: Store) -> None:
    first = publish(traced, "sft", SnapshotSettings("shop"))
    add_ruleset(traced, "strict", ["parsed"])
    add_ruleset(traced, "mine", ["parsed"])
    assert publish(traced, "sft", SnapshotSettings("shop")).version == first.version


def test_pinning_holds_for_one_session(traced: Store) -> None:
    add_ruleset(traced, "strict", ["parsed"])
    statement = "select version from rulesets_current where name = 'strict'"
    with traced.reading() as session:
        pin_rulesets(session, {"strict": 1})
        assert session.connection.execute(statement).fetchall() == [(1,)]
        with pytest.raises(InputError, match="no ruleset is called 'strict@7'"):
            pin_rulesets(session, {"strict": 7})
    assert fetch(traced, statement) == [(2,)]
