"""What is fitted must come out the same, digest by digest, whatever people bought on the days that it must not know.

A shop is poisoned before anything is fitted: the items of all interactions of one split are exchanged at random. That
changes the targets of this split's lists, and everything that reads them.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from curate.candidates.making import PRE_RANKER, make_candidates
from curate.datasets.simulation import simulate
from curate.datasets.sources import choose_sources
from curate.evaluation.rankers.lambdamart import train_lambdamart_ranker
from curate.sids.assignment import assign_semantic_ids
from curate.snapshots import KINDS, SnapshotSettings
from curate.snapshots.publishing import find_snapshot, publish
from curate.traces.sampling import sample
from curate.traces.settings import SamplingSettings
from curate.traces.teachers.fitted.boosting import LambdaMart, LambdaMartSettings, import_lightgbm
from curate.traces.teachers.fitted.lambdamart import make_lambdamart_teacher
from curate.traces.teachers.fitted.scorecard import fit_scorecard
from curate.traces.teachers.selection import make_teacher
from store import InputError, Store

# Few, but enough for valid lists to stop them at different rounds.
TREES = LambdaMartSettings(rounds=40, patience=5)
# What the store holds of lists, but for the target and its rank.
SHOWN = "list_id, user_id, position, history, item_ids, scores, fold"
EVIDENCE = "from evidence semi join (from candidate_lists where split = '{}') using (list_id) order by list_id, rank"
STORED = {
    "train lists": "from candidate_lists where split = 'train' order by list_id",
    "train evidence": EVIDENCE.format("train"),
    "valid candidates": f"select {SHOWN} from candidate_lists where split = 'valid' order by list_id",
    "valid targets": "select list_id, target_item_id from candidate_lists where split = 'valid' order by list_id",
    "valid evidence": EVIDENCE.format("valid"),
    "test candidates": f"select {SHOWN} from candidate_lists where split = 'test' order by list_id",
    "test targets": "select list_id, target_item_id from candidate_lists where split = 'test' order by list_id",
    "test evidence": EVIDENCE.format("test"),
    "semantic IDs": "select item_id, codes from semantic_ids order by item_id",
    "measures of semantic IDs": "from sid_measures order by all",
}
# What may read a split. All else must come out the same whatever happened in it.
OF_TEST = {"test targets"}
# A test list comes after its user's valid interaction, which counts as its evidence.
OF_VALID = {"valid targets", "test candidates", "test evidence"} | {
    f"{kind} validation" for kind in ("sft", "dapo", "midtrain")
}


@pytest.fixture(scope="session")
def poisoned(
    build_once: Callable[..., Path], permute_items: Callable[[Store, str], None]
) -> Callable[[str | None], Store]:
    """`poisoned("test")` is a shop whose test interactions are poisoned, None a clean one. Only read it."""

    def build(split: str | None) -> Store:
        def make(folder: Path) -> None:
            store = Store.open(folder, create=True)
            simulate(store, "shop", users=120, items=80, seed=1)
            if split is not None:
                permute_items(store, f"split = '{split}'")
            assign_semantic_ids(store, "shop")
            make_candidates(store, "shop")
            teacher = make_teacher("scorecard", {}, store=store, dataset="shop")
            for each in ("train", "valid"):
                sample(store, teacher, SamplingSettings("shop", split=each, limit=25, max_attempts=2))
            for kind in KINDS.builtin:
                publish(store, kind, SnapshotSettings("shop", kind=kind))

        return Store(build_once(f"poisoned-{split}", make))

    return build


def fitted(store: Store) -> dict[str, Any]:
    """A digest, or the thing itself, of all that is fitted to a store and of all that is published of it."""
    found: dict[str, Any] = {name: digest_rows(store, query) for name, query in STORED.items()}
    models = sorted(path for path in (store.models / "sids").rglob("*") if path.is_file())
    found["models of semantic IDs"] = [hashlib.sha256(path.read_bytes()).hexdigest() for path in models]
    found["scorecard"] = fit_scorecard(store, "shop").weights_E_V.tobytes()
    for kind in KINDS.builtin:
        files = find_snapshot(store, kind).manifest["files"]
        for split in ("train", "validation"):
            found[f"{kind} {split}"] = {name: facts for name, facts in files.items() if f"/{split}-" in name}
            assert found[f"{kind} {split}"]
    return found


def digest_rows(store: Store, query: str) -> str:
    with store.reading() as session:
        rows = session.connection.execute(query).fetchall()
    assert rows
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def different(left: Store, right: Store) -> set[str]:
    """Names of what is not the same in both."""
    one, other = fitted(left), fitted(right)
    return {name for name in one if one[name] != other[name]}


@pytest.mark.slow
def test_nothing_that_is_fitted_or_published_depends_on_test_targets(poisoned: Callable[..., Store]) -> None:
    assert different(poisoned(None), poisoned("test")) == OF_TEST
    for kind in KINDS.builtin:
        assert find_snapshot(poisoned(None), kind).version == find_snapshot(poisoned("test"), kind).version


@pytest.mark.slow
def test_on_valid_targets_depend_only_what_is_said_of_valid_and_the_evidence_of_test_lists(
    poisoned: Callable[..., Store],
) -> None:
    assert different(poisoned(None), poisoned("valid")) == OF_VALID


@pytest.mark.slow
def test_the_digests_see_what_is_fitted_to_train(poisoned: Callable[..., Store]) -> None:
    """So that the tests above say something: poison of train reaches everything but the later targets."""
    assert different(poisoned(None), poisoned("train")) >= fitted(poisoned(None)).keys() - OF_TEST - {"valid targets"}


def trees(store: Store) -> Iterator[LambdaMart]:
    """LambdaMART as the teacher and as the ranker have it."""
    try:
        import_lightgbm()
    except InputError as error:
        pytest.skip(str(error))
    yield make_lambdamart_teacher(store, "shop", settings=TREES).models
    with store.reading() as session:
        sid_version, _ = choose_sources(session, "shop", None, None)
    yield train_lambdamart_ranker(store, "shop", sid_version, PRE_RANKER, "test", settings=TREES).models


def test_lambdamart_does_not_depend_on_test_targets(poisoned: Callable[..., Store]) -> None:
    for clean, other in zip(trees(poisoned(None)), trees(poisoned("test")), strict=True):
        assert (clean.digest, clean.scale) == (other.digest, other.scale)


@pytest.mark.slow
def test_valid_targets_decide_when_lambdamart_stops_and_nothing_else(poisoned: Callable[..., Store]) -> None:
    for clean, other in zip(trees(poisoned(None)), trees(poisoned("valid")), strict=True):
        pairs = [(*clean.boosters[fold], *other.boosters[fold]) for fold in clean.boosters]
        for ours, theirs in pairs:
            rounds = min(ours.best_iteration, theirs.best_iteration)
            first, second = (booster.dump_model(num_iteration=rounds)["tree_info"] for booster in (ours, theirs))
            assert len(first) == rounds > 0
            assert first == second
        assert any(ours.best_iteration != theirs.best_iteration for ours, theirs in pairs)
