from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import krippendorff
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score, precision_score, recall_score
from statsmodels.stats.inter_rater import fleiss_kappa

from curate.review.agreement import (
    ALPHA,
    CATEGORIES,
    COHEN,
    FLEISS,
    NOBODY,
    NOT_JUDGED,
    ONE_CATEGORY,
    ONE_SIDED,
    Agreement,
    alpha,
    confuse_annotators,
    find_disagreements,
    find_ruleset_disagreements,
    kappa,
    load_judgements,
    load_labelled_queues,
    measure_agreement,
    measure_rules,
    summarize_annotators,
)
from curate.review.trace_pages import find_traces
from curate.traces.filter import TraceFilter
from curate.traces.planning import SamplingSettings
from curate.traces.sampling import sample
from curate.traces.teachers.evidence import EvidenceTeacher
from curate.traces.teachers.fake import FakeTeacher
from curate.traces.teachers.protocol import RequestFailedError
from store import InputError, Store
from store.labels import Label, put_label

NAMES = dict(zip("gbu", CATEGORIES, strict=True))
MOMENT = datetime(2026, 11, 25)  # noqa: DTZ001


def judgements(accepted: str = "", /, **said: str) -> pl.DataFrame:
    """What annotators say of traces t000, t001, ...: g, b, u, or . for nothing. accepted: y or n of each, default y.

    What is not accepted fails the rule target_first and the ruleset paper.
    """
    rows = []
    for annotator, labels in said.items():
        for place, label in enumerate(labels):
            if label == ".":
                continue
            good = not accepted or accepted[place] == "y"
            rows.append(
                {
                    "trace_id": f"t{place:03}",
                    "annotator": annotator,
                    "label": NAMES[label],
                    "seconds": float(place),
                    "created_at": MOMENT,
                    "passed_rules": ["parsed", "target_first"] if good else ["parsed"],
                    "failed_rules": [] if good else ["target_first"],
                    "accepted_by": ["answered", "paper"] if good else ["answered"],
                    "refused_by": ["strict"] if good else ["paper", "strict"],
                }
            )
    lists = dict.fromkeys(("passed_rules", "failed_rules", "accepted_by", "refused_by"), pl.List(pl.String))
    texts = dict.fromkeys(("trace_id", "annotator", "label"), pl.String)
    return pl.DataFrame(rows, schema={**texts, "seconds": pl.Float64, "created_at": pl.Datetime("us"), **lists})


def figure(labels: pl.DataFrame, measure: str, *annotators: str, seed: int = 0) -> Agreement:
    (found,) = (
        row
        for row in measure_agreement(labels, seed=seed)
        if row.measure == measure and (not annotators or row.annotators == annotators)
    )
    return found


def coincidences(counts: list[list[int]]) -> np.ndarray:
    """The definition, trace by trace and pair by pair."""
    table = np.zeros((len(counts[0]), len(counts[0])))
    for row in counts:
        said = [category for category, count in enumerate(row) for _ in range(count)]
        for one, first in enumerate(said):
            for other, second in enumerate(said):
                if one != other:
                    table[first, second] += 1 / (len(said) - 1)
    return table[None]


# --- Hand-worked and textbook cases.


def test_cohens_kappa_by_hand() -> None:
    # Observed .7; expected .5 x .6 + .5 x .4 = .5; (.7 - .5) / (1 - .5) = .4.
    labels = judgements(ann="g" * 25 + "b" * 25, ben="g" * 20 + "b" * 5 + "g" * 10 + "b" * 15)
    found = figure(labels, COHEN, "ann", "ben")
    assert found.value == pytest.approx(0.4)
    assert found.traces == 50
    assert found.note == "traces that both labelled"
    cells = confuse_annotators(labels, "ann", "ben")
    assert cells.rows() == [("good", "good", 20), ("good", "bad", 5), ("bad", "good", 10), ("bad", "bad", 15)]


def test_krippendorffs_alpha_of_his_binary_example() -> None:
    # Krippendorff (2011), Computing Krippendorff's alpha-reliability, section A: 1 - 19 x 4 / (14 x 6) = .095.
    labels = judgements(meg="gbggggggbg", owen="bbbggbgggg")
    found = figure(labels, ALPHA)
    assert found.value == pytest.approx(1 - 19 * 4 / (14 * 6))
    assert found.traces == 10


def test_alpha_of_a_known_table_of_coincidences() -> None:
    # https://en.wikipedia.org/wiki/Krippendorff%27s_alpha, three coders, four values, some missing.
    table = np.array([[[6.0, 0, 1, 0], [0, 4, 0, 0], [1, 0, 7, 2], [0, 0, 2, 3]]])
    assert alpha(table)[0] == pytest.approx(0.691358, abs=1e-6)


def test_fleiss_kappa_of_the_known_example() -> None:
    # https://en.wikipedia.org/wiki/Fleiss%27_kappa, fourteen raters of ten subjects.
    rows = ("00 0 0 0 14", "0 2 6 4 2", "0 0 3 5 6", "0 3 9 2 0", "2 2 8 1 1")
    rows += ("7 7 0 0 0", "3 2 6 3 0", "2 5 3 2 2", "6 5 2 1 0", "0 2 2 3 7")
    counts = [[int(count) for count in row.split()] for row in rows]
    assert kappa(coincidences(counts))[0] == pytest.approx(0.210, abs=5e-4)


def test_fleiss_kappa_takes_traces_with_the_most_common_number_of_labels() -> None:
    labels = judgements(ann="ggbbgb", ben="gbbbg.", cid="ggb..g")
    found = figure(labels, FLEISS)
    # Three labels each on the first three traces, two on the others: as common, so three it is.
    assert found.traces == 3
    assert found.note == "traces with exactly 3 labels, of 6 with two or more"
    assert found.value == pytest.approx(fleiss_kappa(np.array([[3, 0], [2, 1], [0, 3]])))
    fewer = figure(labels.filter(pl.col("trace_id") != "t000"), FLEISS)
    assert fewer.traces == 3
    assert fewer.note == "traces with exactly 2 labels, of 5 with two or more"


def test_a_rule_as_a_detector_of_what_people_call_bad() -> None:
    # Ann: good/failed, good/passed, bad/failed, bad/passed. Ben: bad/failed. Unsure says nothing.
    labels = judgements("nynyn", ann="ggbb.", ben="u...b")
    rules = measure_rules(labels)
    row = rules.filter(name="target_first").row(0, named=True)
    assert [row[name] for name in ("good_passed", "good_failed", "bad_passed", "bad_failed")] == [1, 1, 1, 2]
    assert (row["labels"], row["traces"]) == (5, 5)
    assert row["agreement"] == pytest.approx(3 / 5)
    assert row["precision"] == pytest.approx(2 / 3)
    assert row["recall"] == pytest.approx(2 / 3)
    # Observed .6; expected .4 x .4 + .6 x .6 = .52.
    assert row["kappa"] == pytest.approx((0.6 - 0.52) / 0.48)
    assert row["low"] < row["kappa"] < row["high"]
    paper = rules.filter(kind="ruleset", name="paper").row(0, named=True)
    assert {**paper, "kind": "rule", "name": "target_first"} == row
    assert rules.filter(kind="ruleset")["name"].to_list() == ["answered", "paper", "strict"]


def test_disagreements_come_most_evenly_split_first() -> None:
    labels = judgements(ann="ggggg", ben="gbbgu", cid="gbgb.", dee="g.gb.")
    found = find_disagreements(labels)
    assert found["trace_id"].to_list() == ["t003", "t001", "t002"]
    assert found["share"].to_list() == pytest.approx([1 / 2, 1 / 3, 1 / 4])
    assert found.row(2, named=True)["bad"] == ["ben"]
    assert found.row(2, named=True)["good"] == ["ann", "cid", "dee"]


def test_where_most_people_say_other_than_the_ruleset() -> None:
    labels = judgements("ynynyn", ann="gbbgbu", ben="gbbggg", cid="...g..")
    found = find_ruleset_disagreements(labels)
    # t004 is a draw, t000 and t001 agree with the ruleset; t003 has three against it.
    assert found.select("trace_id", "people", "accepted").rows() == [
        ("t003", "good", False),
        ("t002", "bad", True),
        ("t005", "good", False),
    ]
    assert found["failed_rules"].to_list() == [["target_first"], [], ["target_first"]]
    assert found["unsure"].to_list() == [[], [], ["ann"]]


def test_annotators_are_summed_up() -> None:
    found = summarize_annotators(judgements(ann="gg.bu", ben="b"))
    assert found.drop("first", "last").rows() == [("ann", 4, 2, 1, 1, 0.5, 2.0), ("ben", 1, 0, 1, 0, 0.0, 0.0)]
    assert found["first"].to_list() == [MOMENT, MOMENT]


# --- Independent implementations.


@pytest.mark.slow
@given(st.lists(st.lists(st.sampled_from("gbu."), min_size=3, max_size=3), min_size=1, max_size=30))
def test_figures_are_those_of_the_libraries(table: list[list[str]]) -> None:
    ann, ben, cid = ("".join(column) for column in zip(*table, strict=True))
    labels = judgements(ann=ann, ben=ben, cid=cid)
    counts = np.array([[row.count(letter) for letter in "gbu"] for row in table])
    counts = counts[counts.sum(axis=1) >= 2]
    for found in measure_agreement(labels):
        if found.value is None:
            assert found.note in {NOBODY, ONE_CATEGORY}
            continue
        if found.measure == ALPHA:
            expected = krippendorff.alpha(value_counts=counts, level_of_measurement="nominal")
            again = alpha(coincidences(counts.tolist()))
        elif found.measure == FLEISS:
            most = int(found.note.split()[3])
            chosen = counts[counts.sum(axis=1) == most]
            expected, again = fleiss_kappa(chosen), kappa(coincidences(chosen.tolist()))
        else:
            said = {"ann": ann, "ben": ben, "cid": cid}
            pairs = [pair for pair in zip(*(said[name] for name in found.annotators), strict=True) if "." not in pair]
            expected = cohen_kappa_score(*zip(*pairs, strict=True))
            crossed = [[pairs.count((one, other)) for other in "gbu"] for one in "gbu"]
            again = kappa(np.array([crossed], dtype=float))
        assert found.value == pytest.approx(expected)
        assert again[0] == pytest.approx(expected)


def test_precision_and_recall_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    accepted, said = "".join(rng.choice(["y", "n"], 60)), "".join(rng.choice(["g", "b"], 60))
    row = measure_rules(judgements(accepted, ann=said)).filter(name="target_first").row(0, named=True)
    bad, failed = [label == "b" for label in said], [answer == "n" for answer in accepted]
    assert row["precision"] == pytest.approx(precision_score(bad, failed))
    assert row["recall"] == pytest.approx(recall_score(bad, failed))
    assert row["kappa"] == pytest.approx(cohen_kappa_score(bad, failed))


def noisy(seed: int, traces: int = 200) -> dict[str, str]:
    """Three people who see the same traces, each in error on a fifth of them."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(list("gb"), traces)
    return {
        name: "".join(np.where(rng.random(traces) < 0.2, rng.choice(list("gbu."), traces), truth))
        for name in ("ann", "ben", "cid")
    }


@pytest.mark.slow
def test_intervals_are_those_of_resampling_traces_one_by_one() -> None:
    said = noisy(5)
    labels = judgements(**said)
    rng = np.random.default_rng(9)
    counts = np.array([[row.count(letter) for letter in "gbu"] for row in zip(*said.values(), strict=True)])
    counts = counts[counts.sum(axis=1) >= 2]
    pairs = np.array([pair for pair in zip(said["ann"], said["ben"], strict=True) if "." not in pair])
    alphas, kappas = [], []
    for _ in range(400):
        drawn = counts[rng.integers(len(counts), size=len(counts))]
        alphas.append(krippendorff.alpha(value_counts=drawn, level_of_measurement="nominal"))
        kappas.append(cohen_kappa_score(*pairs[rng.integers(len(pairs), size=len(pairs))].T))
    for found, values in ((figure(labels, ALPHA), alphas), (figure(labels, COHEN, "ann", "ben"), kappas)):
        assert (found.low, found.high) == pytest.approx(tuple(np.quantile(values, (0.025, 0.975))), abs=0.03)


def test_labels_of_one_trace_stay_together_in_the_intervals_of_rules() -> None:
    alone = measure_rules(judgements("ynyn" * 10, ann="ggbb" * 10)).filter(name="target_first")
    echoed = measure_rules(judgements("ynyn" * 10, ann="ggbb" * 10, ben="ggbb" * 10)).filter(name="target_first")
    assert echoed["labels"][0] == 2 * alone["labels"][0]
    assert echoed.select("kappa", "low", "high").rows() == alone.select("kappa", "low", "high").rows()


# --- Properties.


def test_perfect_agreement_is_one() -> None:
    labels = judgements("ynyn", ann="gbgb", ben="gbgb", cid="gbgb")
    assert [found[2:5] for found in measure_agreement(labels)] == [(pytest.approx(1.0),) * 3] * 5
    assert measure_rules(labels).filter(name="paper")["kappa"].to_list() == [pytest.approx(1.0)]
    assert find_disagreements(labels).height == find_ruleset_disagreements(labels).height == 0


def test_intervals_hold_their_value_and_a_seed_gives_them_again() -> None:
    for seed in range(5):
        labels = judgements(**noisy(seed))
        found = measure_agreement(labels)
        assert all(row.low < row.value < row.high for row in found)
        assert found == measure_agreement(labels)
        assert found != measure_agreement(labels, seed=1)
        assert measure_rules(labels).equals(measure_rules(labels))


def test_who_is_called_what_changes_nothing() -> None:
    said = noisy(4)
    before = judgements(**said)
    after = judgements(cid=said["ann"], ann=said["ben"], ben=said["cid"])
    renamed = {"ann": "cid", "ben": "ann", "cid": "ben"}
    for measure in (ALPHA, FLEISS):
        assert figure(before, measure) == figure(after, measure)
    for found in measure_agreement(before)[2:]:
        other = figure(after, COHEN, *sorted(renamed[name] for name in found.annotators))
        assert other.value == pytest.approx(found.value)
        assert (other.low, other.high) == pytest.approx((found.low, found.high), abs=0.05)
    assert measure_rules(before).equals(measure_rules(after))


def test_the_order_of_labels_changes_nothing() -> None:
    labels = judgements(**noisy(6))
    shuffled = labels.sample(fraction=1, shuffle=True, seed=1)
    assert measure_agreement(shuffled) == measure_agreement(labels)
    assert measure_rules(shuffled).equals(measure_rules(labels))
    assert find_disagreements(shuffled).equals(find_disagreements(labels))


# --- What cannot be measured has no value, and a reason.


def test_nothing_and_one_annotator_have_no_agreement() -> None:
    for labels in (judgements(), judgements(ann="ggbu")):
        assert measure_agreement(labels) == []
        assert find_disagreements(labels).height == 0
    assert summarize_annotators(judgements()).height == 0
    assert set(measure_rules(judgements())["note"]) == {NOT_JUDGED}
    assert measure_rules(judgements("ynyn", ann="ggbu")).filter(name="paper")["kappa"][0] is not None


def test_one_category_has_no_agreement_beyond_chance() -> None:
    for found in measure_agreement(judgements(ann="ggg", ben="ggg")):
        assert found[2:] == (None, None, None, 3, ONE_CATEGORY)
    rules = measure_rules(judgements("yyy", ann="ggg"))
    assert rules.filter(name="paper").select("kappa", "low", "precision", "recall", "note").rows() == [
        (None, None, None, None, ONE_CATEGORY)
    ]
    assert rules.filter(name="paper")["agreement"].to_list() == [1.0]


def test_people_without_a_common_trace_have_none() -> None:
    for found in measure_agreement(judgements(ann="gb..", ben="..gb")):
        assert found[2:] == (None, None, None, 0, NOBODY)


def test_a_rule_that_always_says_the_same_is_told_from_one_that_is_as_good_as_chance() -> None:
    rules = measure_rules(judgements("yyyy", ann="gbgb"))
    assert rules.filter(name="paper").select("kappa", "note").rows() == [(pytest.approx(0.0), ONE_SIDED)]


def test_one_trace_has_a_value_and_no_interval() -> None:
    assert figure(judgements(ann="g", ben="b"), ALPHA)[2:6] == (pytest.approx(0.0), None, None, 1)


# --- Labels in the store.


def sample_with_a_failure(shop: Store) -> None:
    sample(shop, EvidenceTeacher(), SamplingSettings("shop", limit=20, temperature=0.5))
    failing = FakeTeacher(lambda _: RequestFailedError("gave up"), "failing")
    sample(shop, failing, SamplingSettings("shop", limit=1, max_attempts=1))


@pytest.fixture
def traced(prepare: Callable[..., Store], built_shop: Path) -> Store:
    """A shop with traces, one of which is a failed request."""
    return prepare(built_shop, sample_with_a_failure)


def traces_of(store: Store, chosen: TraceFilter) -> list[str]:
    return find_traces(store, chosen).rows["trace_id"].to_list()


def one_of_each(store: Store) -> tuple[str, str]:
    """A trace that ruleset paper accepts, and one that it refuses."""
    return (
        traces_of(store, TraceFilter(passes="paper"))[0],
        traces_of(store, TraceFilter(fails="paper", teacher="evidence"))[0],
    )


def put_in_queue(store: Store, queue_id: str, trace_id: str, annotator: str, label: Label) -> None:
    event_id = put_label(store, trace_id, annotator, label)
    with store.labelling() as session:
        session.connection.execute(
            "update label_events set queue_id = $queue where event_id = $event", {"queue": queue_id, "event": event_id}
        )


def test_labels_come_beside_what_rules_and_rulesets_say(traced: Store) -> None:
    good, bad = one_of_each(traced)
    (failed,) = traces_of(traced, TraceFilter(teacher="failing"))
    for trace_id in (good, bad, failed):
        put_label(traced, trace_id, "ann", Label.GOOD, seconds=3)
    put_label(traced, good, "ben", Label.SKIP)
    put_label(traced, "gone", "ann", Label.GOOD)
    labels = load_judgements(traced)
    assert set(labels["trace_id"]) == {good, bad, failed}
    assert labels.height == 3
    row = {trace: labels.filter(trace_id=trace).row(0, named=True) for trace in (good, bad, failed)}
    assert "paper" in row[good]["accepted_by"]
    assert "target_first" in row[good]["passed_rules"]
    assert "paper" in row[bad]["refused_by"]
    assert row[failed]["refused_by"] == ["answered", "paper", "strict"]
    assert row[failed]["passed_rules"] == row[failed]["failed_rules"] == row[failed]["accepted_by"] == []
    rules = measure_rules(labels)
    assert rules.filter(name="parsed")["labels"].to_list() == [2]
    assert rules.filter(name="answered")["labels"].to_list() == [3]


def test_labels_are_those_of_the_filter_and_of_the_queue(traced: Store) -> None:
    good, bad = one_of_each(traced)
    put_in_queue(traced, "first", good, "ann", Label.GOOD)
    put_label(traced, good, "ben", Label.GOOD)
    put_label(traced, bad, "ann", Label.UNSURE)
    assert load_judgements(traced).height == 3
    assert set(load_judgements(traced, TraceFilter(passes="paper"))["trace_id"]) == {good}
    assert load_judgements(traced, TraceFilter(text="stands nowhere")).height == 0
    assert load_judgements(traced, queue_id="first").select("trace_id", "annotator").rows() == [(good, "ann")]
    assert load_judgements(traced, TraceFilter(fails="paper"), queue_id="first").height == 0
    assert "unsure" not in load_judgements(traced, unsure=False)["label"]


def test_queues_are_those_that_people_labelled_in(traced: Store) -> None:
    with traced.labelling() as session:
        session.connection.execute(
            "insert into label_queues select name, upper(name), '{}', 1, 'ann', timestamp '2026-11-25' + to_days(day) "
            "from (values ('one', 1), ('two', 2), ('unused', 3)) as queues(name, day)"
        )
    trace_id = traces_of(traced, TraceFilter())[0]
    put_in_queue(traced, "one", trace_id, "ann", Label.GOOD)
    put_in_queue(traced, "two", trace_id, "ben", Label.GOOD)
    assert list(load_labelled_queues(traced).items()) == [("two", "TWO"), ("one", "ONE")]


def test_the_last_word_counts_and_undo_takes_it_back(traced: Store) -> None:
    first, second = traces_of(traced, TraceFilter())[:2]
    for annotator in ("ann", "ben"):
        put_label(traced, first, annotator, Label.GOOD)
        put_label(traced, second, annotator, Label.BAD)
    assert figure(load_judgements(traced), COHEN).value == pytest.approx(1.0)
    put_label(traced, second, "ben", Label.GOOD)
    assert figure(load_judgements(traced), COHEN).value == pytest.approx(0.0)
    assert find_disagreements(load_judgements(traced))["trace_id"].to_list() == [second]
    put_label(traced, second, "ben", Label.UNDO)
    assert figure(load_judgements(traced), COHEN)[2:] == (None, None, None, 1, ONE_CATEGORY)
    assert find_disagreements(load_judgements(traced)).height == 0


def test_a_filter_without_meaning_is_a_clear_error(traced: Store) -> None:
    put_label(traced, traces_of(traced, TraceFilter())[0], "ann", Label.GOOD)
    with pytest.raises(InputError, match="no ruleset is called 'nice'"):
        load_judgements(traced, TraceFilter(passes="nice"))
    with pytest.raises(InputError, match=r"'\(' is not a regular expression"):
        load_judgements(traced, TraceFilter(pattern="("))
