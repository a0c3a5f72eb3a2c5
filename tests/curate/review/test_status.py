from curate.review.status import load_status
from curate.traces.planning import SamplingSettings
from curate.traces.sampling import sample
from curate.traces.teachers.evidence import EvidenceTeacher
from curate.traces.teachers.fake import FakeTeacher
from curate.traces.teachers.protocol import FailureKind, RequestFailedError
from store import Store


def test_an_empty_store_says_what_to_do_next(store: Store) -> None:
    for table in load_status(store):
        assert table.rows.height == 0
        assert "gr2 " in table.next_step


def test_the_funnel_counts_what_is_there(shop: Store) -> None:
    progress = sample(shop, EvidenceTeacher(), SamplingSettings("shop", limit=20))
    tables = {table.title.split(",", maxsplit=1)[0]: table.rows for table in load_status(shop)}
    (funnel,) = tables["funnel"].to_dicts()
    assert (funnel["prompts"], funnel["attempts"], funnel["accepted"]) == (20, progress.attempts, progress.accepted)
    (dataset,) = tables["datasets"].to_dicts()
    assert (dataset["items"], dataset["users"], dataset["sid_uniqueness"]) == (80, 120, 1.0)
    assert {row["ranker"] for row in tables["rankers (newest evaluation of most lists)"].to_dicts()} == {
        "cooccurrence.v1"
    }
    assert tables["why traces fail"]["reason"].to_list()[0] == "target_not_first"


def test_the_commonest_errors_are_counted_whatever_their_numbers(shop: Store) -> None:
    failing = FakeTeacher(
        lambda request: (
            RequestFailedError(f"{request.seed} tokens are too many", FailureKind.TOO_LONG)
            if request.seed % 4
            else "no JSON"
        )
    )
    progress = sample(shop, failing, SamplingSettings("shop", limit=30, max_attempts=1), concurrency=4)
    tables = {table.title: table.rows for table in load_status(shop)}
    (row,) = tables["why requests fail"].to_dicts()
    assert row["requests"] == progress.failed > 10
    assert row["kind"] == "too_long"
    assert row["error"].endswith("tokens are too many")
