"""The SQL against a slow implementation written from the definition."""

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from curate.candidates.making import PRE_RANKER, PreRankerSettings, import_candidates, make_candidates
from curate.candidates.similarities import SEED
from curate.datasets.ingest import IngestSettings, put_dataset
from curate.sids.embedding.copurchases import copurchase_vectors
from curate.sids.embedding.embedders import TfidfSvdEmbedder
from store import InputError, Session, Store, database
from store.records import FOLDS, Item

from ..conftest import put_shop, put_tiny

P = PreRankerSettings()


def fetch(store: Store, statement: str) -> list[dict[str, Any]]:
    with store.reading() as session:
        return session.connection.sql(statement).pl().to_dicts()


def sequences_of(store: Store) -> dict[str, list[tuple[str, str]]]:
    """(item, split) by user, in order."""
    users: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for row in fetch(store, "select user_id, item_id, split from interactions order by user_id, position"):
        users[row["user_id"]].append((row["item_id"], row["split"]))
    return users


def folds_of(store: Store) -> dict[str, int]:
    rows = fetch(store, f"select distinct user_id, md5_number(user_id) % {FOLDS} as fold from interactions")
    return {row["user_id"]: int(row["fold"]) for row in rows}


def count_slowly(
    users: dict[str, list[tuple[str, str]]], splits: tuple[str, ...]
) -> tuple[dict[tuple[str, str], list[float]], dict[str, int]]:
    """(times after, times before, raw weight) of each (left, right) pair, and purchases of each item."""
    pairs: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0, 0, 0.0])
    bought: dict[str, int] = defaultdict(int)
    for sequence in users.values():
        for at, (item, split) in enumerate(sequence):
            if split not in splits:
                continue
            bought[item] += 1
            for distance in range(1, P.window + 1):
                if at + distance >= len(sequence) or sequence[at + distance][1] not in splits:
                    continue
                other = sequence[at + distance][0]
                if other == item:
                    continue
                weight = P.decay ** (distance - 1)
                pairs[item, other][0] += 1
                pairs[item, other][2] += weight
                pairs[other, item][1] += 1
                pairs[other, item][2] += P.backward * weight
    return pairs, bought


def score_slowly(history: list[str], pairs: dict[Any, Any], bought: dict[str, int]) -> dict[str, float]:
    scores: dict[str, float] = defaultdict(float)
    for age, left in enumerate(reversed(history[-P.history :])):
        for (of, right), (_, _, raw) in pairs.items():
            if of == left and right not in history:
                scores[right] += P.recency**age * raw / (bought[left] ** P.left_power * bought[right] ** P.right_power)
    return scores


def test_lists_and_evidence_agree_with_the_definition(tiny: Store) -> None:
    make_candidates(tiny, "tiny")
    check_lists(tiny)


def test_longer_sequences_agree_with_the_definition(store: Store) -> None:
    """Longer than the window and the history that counts."""
    random = np.random.default_rng(0)
    items = np.array([f"i{number:02}" for number in range(60)])
    put_shop(store, "long", {f"u{user}": random.permutation(items)[: 12 + 3 * user].tolist() for user in range(6)})
    make_candidates(store, "long")
    check_lists(store)


def check_lists(store: Store) -> None:
    """Compare all lists and their evidence with what the definition gives."""
    users, folds = sequences_of(store), folds_of(store)
    lists = fetch(store, "from candidate_lists order by list_id")
    evidence = {(row["list_id"], row["rank"]): row for row in fetch(store, "from evidence order by list_id, rank")}
    assert len(lists) == sum(len(sequence) - 1 for sequence in users.values())
    for row in lists:
        counted = {
            "train": {user: sequence for user, sequence in users.items() if folds[user] != folds[row["user_id"]]},
            "valid": users,
            "test": users,
        }[row["split"]]
        pairs, bought = count_slowly(counted, ("train", "valid") if row["split"] == "test" else ("train",))
        history = [item for item, _ in users[row["user_id"]][: row["position"]]]
        scores = score_slowly(history, pairs, bought)
        assert row["history"] == history[-P.history :]
        found = dict(zip(row["item_ids"], row["scores"], strict=True))
        # What sells most fills lists up, at score 0.
        linked = {item: score for item, score in found.items() if score > 0}
        # Of items that score the same, any may be the tenth.
        assert list(linked.values()) == pytest.approx(sorted(scores.values(), reverse=True)[:10], abs=2e-5)
        assert linked == pytest.approx({item: scores[item] for item in linked}, abs=2e-5)
        assert not set(history) & set(row["item_ids"])
        assert row["scores"] == sorted(row["scores"], reverse=True)
        target = users[row["user_id"]][row["position"]][0]
        assert row["target_item_id"] == target
        assert row["target_rank"] == (row["item_ids"].index(target) + 1 if target in row["item_ids"] else None)
        assert row["fold"] == (folds[row["user_id"]] if row["split"] == "train" else None)
        for rank, item in enumerate(row["item_ids"], 1):
            facts = evidence[row["list_id"], rank]
            assert facts["item_id"] == item
            assert facts["score"] == pytest.approx(found[item])
            assert [(link["item_id"], link["after"], link["before"]) for link in facts["links"]] == [
                (left, *pairs[left, item][:2]) for left in reversed(row["history"]) if (left, item) in pairs
            ]
            last = pairs.get((history[-1], item))
            weight = last[2] / (bought[history[-1]] ** P.left_power * bought[item] ** P.right_power) if last else 0
            assert facts["last_weight"] == pytest.approx(weight, rel=1e-5)


def test_categories_brands_and_popularity_agree_with_the_definition(tiny: Store) -> None:
    make_candidates(tiny, "tiny")
    items = {row["item_id"]: row for row in fetch(tiny, "from items")}
    histories = {row["list_id"]: row["history"] for row in fetch(tiny, "from candidate_lists")}
    for facts in fetch(tiny, "from evidence"):
        mine = items[facts["item_id"]]
        depths = []
        for other in histories[facts["list_id"]]:
            theirs = items[other]["categories"]
            depth = 0
            while depth < min(len(theirs), len(mine["categories"])) and theirs[depth] == mine["categories"][depth]:
                depth += 1
            depths.append(depth)
        assert facts["shared_category"] == mine["categories"][: max(depths)]
        assert facts["shared_category_items"] == (depths.count(max(depths)) if max(depths) else 0)
        brands = [items[other]["brand"] for other in histories[facts["list_id"]]]
        assert facts["same_brand_items"] == brands.count(mine["brand"])
        assert 0 <= facts["popularity"] <= 5


@pytest.mark.slow
def test_similarities_agree_with_the_definition(tiny: Store) -> None:
    make_candidates(tiny, "tiny")
    users, folds = sequences_of(tiny), folds_of(tiny)
    items = [row["item_id"] for row in fetch(tiny, "select item_id from items order by item_id")]
    number = {item: n for n, item in enumerate(items)}
    texts = [
        Item(row["item_id"], row["title"], tuple(row["categories"]), row["brand"], row["description"]).text
        for row in fetch(tiny, "from items order by item_id")
    ]
    text_vectors = TfidfSvdEmbedder.fit(tiny.embeddings, texts, seed=SEED).embed(texts)
    lists = {row["list_id"]: row for row in fetch(tiny, "from candidate_lists")}
    for facts in fetch(tiny, "from evidence"):
        row = lists[facts["list_id"]]
        counted = {user: seq for user, seq in users.items() if row["split"] != "train" or folds[user] != row["fold"]}
        pairs, _ = count_slowly(counted, ("train", "valid") if row["split"] == "test" else ("train",))
        bought = sorted((number[a], number[b], int(after)) for (a, b), (after, _, _) in pairs.items() if after)
        copurchases = copurchase_vectors(
            np.array([pair[:2] for pair in bought]), len(items), counts_P=np.array([n for *_, n in bought]), seed=SEED
        )
        mine, theirs = number[facts["item_id"]], [number[item] for item in reversed(row["history"])]
        for kind, vectors in (("text", text_vectors), ("copurchase", copurchases)):
            cosines = [float(vectors[mine] @ vectors[other]) for other in theirs]
            expected = (cosines[0], sum(cosines) / len(cosines), max(cosines))
            found = [facts[f"{kind}_{which}"] for which in ("last", "mean", "max")]
            assert found == pytest.approx(expected, abs=1e-4)


def test_lists_from_before_there_were_similarities_get_them(tiny: Store) -> None:
    make_candidates(tiny, "tiny")
    columns = [f"{kind}_{which}" for kind in ("text", "copurchase") for which in ("last", "mean", "max")]
    before = fetch(tiny, "from evidence order by list_id, rank")
    with tiny.writing() as session:
        session.connection.execute(f"update evidence set {', '.join(f'{column} = null' for column in columns)}")
    make_candidates(tiny, "tiny")
    assert fetch(tiny, "from evidence order by list_id, rank") == before


def test_making_them_again_changes_nothing(tiny: Store) -> None:
    first = make_candidates(tiny, "tiny")
    again = make_candidates(tiny, "tiny")
    assert sum(split.new for split in first.splits) == sum(split.lists for split in first.splits)
    assert sum(split.new for split in again.splits) == 0
    assert again.full == first.full
    assert fetch(tiny, "select count(*) as n from evaluations where metric = 'mrr'") == [{"n": 3}]


def test_shorter_lists_are_the_beginnings_of_longer_ones(tiny: Store, tmp_path: Path) -> None:
    make_candidates(tiny, "tiny", list_size=3)
    short = {row["list_id"]: row for row in fetch(tiny, "from candidate_lists")}
    other = Store.open(tmp_path / "other", create=True)
    put_tiny(other)
    make_candidates(other, "tiny")
    whole = {row["list_id"]: row for row in fetch(other, "from candidate_lists")}
    assert short.keys() == whole.keys()
    assert max(len(row["item_ids"]) for row in whole.values()) > 3
    for list_id, row in short.items():
        assert row["item_ids"] == whole[list_id]["item_ids"][:3]
        rank = whole[list_id]["target_rank"]
        assert row["target_rank"] == (rank if rank is not None and rank <= 3 else None)
    with pytest.raises(InputError, match="`list_size`"):
        make_candidates(tiny, "tiny")


def test_a_list_of_one_is_refused(tiny: Store) -> None:
    with pytest.raises(InputError, match="`list_size` is 1"):
        make_candidates(tiny, "tiny", list_size=1)


def test_an_unknown_data_set_is_a_clear_error(tiny: Store) -> None:
    with pytest.raises(InputError, match="'nope'"):
        make_candidates(tiny, "nope")


def write(path: Path, **columns: list[Any]) -> Path:
    pl.DataFrame(columns).write_parquet(path)
    return path


def test_imported_scores_make_lists_with_evidence_of_the_same_source(tiny: Store, tmp_path: Path) -> None:
    make_candidates(tiny, "tiny")
    scores = write(tmp_path / "mine.parquet", user_id=["u00"] * 3, item_id=["l", "e", "k"], score=[0.5, 0.9, 0.1])
    summary = import_candidates(tiny, "tiny", scores)
    assert summary.pre_ranker == "mine"
    (row,) = fetch(tiny, "from candidate_lists where pre_ranker = 'mine'")
    assert (row["split"], row["item_ids"], row["target_rank"]) == ("test", ["e", "l", "k"], 1)
    mine = fetch(tiny, f"from evidence where list_id = '{row['list_id']}' and item_id = 'e'")
    ours = fetch(
        tiny,
        "select evidence.* from evidence join candidate_lists using (list_id) where item_id = 'e'"
        f" and user_id = 'u00' and split = 'test' and pre_ranker = '{PRE_RANKER}'",
    )
    assert mine[0]["links"] == ours[0]["links"]


def test_imported_logits_are_stored_as_odds_against_the_best_of_the_list(tiny: Store, tmp_path: Path) -> None:
    logits = write(tmp_path / "s.parquet", user_id=["u00"] * 3, item_id=["l", "e", "k"], score=[-3.0, 1.0, -900.0])
    import_candidates(tiny, "tiny", logits)
    rows = fetch(tiny, "select item_id, score from evidence order by score desc")
    assert [row["item_id"] for row in rows] == ["e", "l", "k"]
    assert [row["score"] for row in rows] == pytest.approx([1.0, math.exp(-4), 0.0])


def test_a_pair_that_is_scored_twice_keeps_its_best_score(tiny: Store, tmp_path: Path) -> None:
    columns = {"user_id": ["u00"] * 5, "item_id": ["l", "e", "l", "e", "k"], "score": [0.2, 0.9, 0.7, 0.1, 0.3]}
    summary = import_candidates(tiny, "tiny", write(tmp_path / "s.parquet", **columns))
    assert summary.repeated_scores == 2
    (row,) = fetch(tiny, "from candidate_lists where pre_ranker = 's'")
    assert row["item_ids"] == ["e", "l", "k"]
    assert row["scores"] == pytest.approx([0.9, 0.7, 0.3])


def test_identifiers_that_a_data_frame_made_floats_are_found(store: Store, tmp_path: Path) -> None:
    rows = [
        {"user_id": str(user), "item_id": str(item), "timestamp": None} for user in range(3) for item in range(1, 5)
    ]
    items = pl.DataFrame({"item_id": ["1", "2", "3", "4"]}).with_columns(
        *(pl.lit(None, pl.String).alias(name) for name in ("title", "brand", "description")),
        categories=pl.lit([], pl.List(pl.String)),
    )
    interactions = pl.DataFrame(rows, schema_overrides={"timestamp": pl.Datetime})
    settings = IngestSettings(k_core=0)
    put_dataset(store, "numbers", items, interactions, source="test", source_settings={}, settings=settings)
    scores = write(tmp_path / "s.parquet", user_id=[0.0, 1.0], item_id=[4.0, 1.0], score=[0.5, 0.5])
    assert import_candidates(store, "numbers", scores).splits[0].lists == 2
    bad = write(tmp_path / "b.parquet", user_id=[0.5], item_id=[4.0], score=[0.5])
    with pytest.raises(InputError, match="there is no such user"):
        import_candidates(store, "numbers", bad)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user_id": ["u00"], "item_id": ["a"]}, "no column 'score'"),
        (
            {"user_id": ["u00"], "item_id": ["zz"], "score": [1.0]},
            r"row 1 \(user 'u00', item 'zz'\): there is no such item",
        ),
        ({"user_id": ["u99"], "item_id": ["a"], "score": [1.0]}, "there is no such user"),
        ({"user_id": ["u00"], "item_id": ["a"], "score": [float("nan")]}, "not a number"),
        ({"user_id": ["u00"], "item_id": ["a"], "score": [1.0], "split": ["train"]}, "add a column position"),
    ],
)
def test_scores_that_do_not_fit_are_clear_errors(
    tiny: Store, tmp_path: Path, columns: dict[str, list[Any]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        import_candidates(tiny, "tiny", write(tmp_path / "s.parquet", **columns))
    assert fetch(tiny, "from candidate_lists") == []


def test_a_file_that_is_no_parquet_is_a_clear_error(tiny: Store, tmp_path: Path) -> None:
    (tmp_path / "s.parquet").write_text("user_id,item_id,score\n")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        import_candidates(tiny, "tiny", tmp_path / "s.parquet")
    with pytest.raises(InputError, match="is not a file"):
        import_candidates(tiny, "tiny", tmp_path)


def test_other_scores_under_the_same_name_are_refused(tiny: Store, tmp_path: Path) -> None:
    import_candidates(
        tiny, "tiny", write(tmp_path / "s.parquet", user_id=["u00"], item_id=["e"], score=[1.0]), "theirs"
    )
    with pytest.raises(InputError, match="another name with `pre_ranker`"):
        import_candidates(
            tiny, "tiny", write(tmp_path / "s.parquet", user_id=["u00"], item_id=["k"], score=[1.0]), "theirs"
        )


@pytest.mark.slow
def test_threads_and_batches_change_nothing(shop: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fetch(shop, "from candidate_lists order by list_id"), fetch(shop, "from evidence order by list_id, rank")
    with shop.writing() as session:
        session.connection.execute("delete from candidate_lists")
        session.connection.execute("delete from evidence")
    monkeypatch.setattr("curate.candidates.making.BATCH_LISTS", 17)
    opened = database.scratch

    @contextmanager
    def on_one_thread(folder: Path) -> Iterator[Session]:
        with opened(folder) as session:
            session.connection.execute("set threads = 1")
            yield session

    monkeypatch.setattr(database, "scratch", on_one_thread)
    make_candidates(shop, "shop")
    assert fetch(shop, "from candidate_lists order by list_id") == before[0]
    assert fetch(shop, "from evidence order by list_id, rank") == before[1]
