from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from curate.candidates.making import import_candidates
from prompts.semantic_ids import render_sid
from store import InputError, Store
from train.ranking.full_ranking import (
    FullRankingSettings,
    evaluate_full_ranking,
    propose_items,
    rank_items,
    write_scores,
)
from train.ranking.sid_trie import SidTrie
from train.runs import find_student
from train.students.student import init_student, load_student
from train.students.vocabulary import find_vocabulary

IDS = np.array([codes for codes in product(range(8), repeat=2) if sum(codes) % 3 == 0])
# Of four levels, so that a beam's parent is itself the child of one of several beams.
LONG_IDS = np.array([codes for codes in product(range(4), repeat=4) if sum(codes) % 7 == 0])


@pytest.fixture(scope="session")
def long_student_folder(build_once: Callable[..., Path]) -> Path:
    texts = [render_sid(codes) for codes in LONG_IDS.tolist()]
    return build_once("student-of-long-ids", lambda folder: init_student(texts, 4, 4, "tiny", folder))


def slow_scores(model: Any, tokenizer: Any, history: str, ids_N_L: np.ndarray) -> list[float]:
    """The log-probability of each ID's codes, one ID at a time."""
    scores = []
    for codes in ids_N_L:
        ids = tokenizer.encode(history + render_sid(codes.tolist()), add_special_tokens=False)
        with torch.no_grad():
            log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        # The last token is the end of the ID, those before it the codes.
        places = range(len(ids) - 1 - len(codes), len(ids) - 1)
        scores.append(sum(float(log_probs[place - 1, ids[place]]) for place in places))
    return scores


@pytest.mark.parametrize(("ids_N_L", "codes"), [(IDS, 8), (LONG_IDS, 4)])
def test_as_many_beams_as_ids_are_an_exhaustive_search(
    ids_N_L: np.ndarray, codes: int, student_folder: Path, long_student_folder: Path
) -> None:
    levels = ids_N_L.shape[1]
    model, tokenizer = load_student(student_folder if levels == 2 else long_student_folder)
    trie = SidTrie.build(ids_N_L, codes)
    histories = [
        "A shopper",
        "A shopper bought, one after the other: " + "".join(map(render_sid, ids_N_L[:2].tolist())),
    ]
    ranked = rank_items(
        model,
        tokenizer,
        find_vocabulary(tokenizer, levels, codes),
        trie,
        histories,
        beams=len(ids_N_L) + 5,
        batch_size=2,
    )
    for history, nodes_K, scores_K in zip(histories, ranked.nodes_N_K, ranked.log_probs_N_K, strict=True):
        expected = slow_scores(model, tokenizer, history, ids_N_L)
        found = {int(node): float(score) for node, score in zip(nodes_K, scores_K, strict=True) if np.isfinite(score)}
        assert [found[node] for node in range(len(ids_N_L))] == pytest.approx(expected, abs=1e-4)
        assert np.isneginf(scores_K[len(ids_N_L) :]).all()


def test_few_beams_find_valid_ids_best_first_in_any_batch(student: tuple[Any, Any]) -> None:
    model, tokenizer = student
    trie = SidTrie.build(IDS, 8)
    vocabulary = find_vocabulary(tokenizer, 2, 8)
    histories = [render_sid([code, 7 - code]) * (1 + code) for code in range(5)]
    together = rank_items(model, tokenizer, vocabulary, trie, histories, beams=4, batch_size=5)
    alone = rank_items(model, tokenizer, vocabulary, trie, histories, beams=4, batch_size=1)
    assert (together.nodes_N_K == alone.nodes_N_K).all()
    assert (np.diff(together.log_probs_N_K, axis=1) <= 0).all()
    assert all(len(set(nodes_K)) == 4 for nodes_K in together.nodes_N_K.tolist())


def test_a_store_is_ranked_and_the_beams_become_candidate_lists(inputs: Store, tmp_path: Path) -> None:
    model, tokenizer = load_student(find_student(inputs, "new"))
    settings = FullRankingSettings(beams=40)
    metrics = {metric.name: metric for metric in evaluate_full_ranking(inputs, "shop", model, tokenizer, settings)}
    assert set(metrics) == {"recall_at_5", "recall_at_10", "ndcg_at_5", "ndcg_at_10"}
    assert 0 <= metrics["recall_at_5"].value <= metrics["recall_at_10"].value <= 1
    path = write_scores(inputs, "shop", model, tokenizer, settings, path=tmp_path / "student.parquet")
    done = import_candidates(inputs, "shop", path)
    assert done.pre_ranker == "student"
    lists = {count.split: count.lists for count in done.splits}
    assert lists["test"] > 0
    assert lists.get("train", 0) == 0
    recall = next(metric for metric in done.full["test", "student"] if metric.name == "recall_at_10")
    assert recall.value == pytest.approx(metrics["recall_at_10"].value, abs=1e-6)


def test_what_a_user_has_is_not_proposed_and_nothing_else_is_missing(inputs: Store) -> None:
    model, tokenizer = load_student(find_student(inputs, "new"))
    # More beams than there are IDs.
    settings = FullRankingSettings(limit=7, beams=100)
    targets, items = propose_items(inputs, "shop", model, tokenizer, settings, split="test")
    assert targets.height == 7
    with inputs.reading() as session:
        bought = session.frame("interactions_of", dataset="shop")
        catalogue = {item_id for item_id, *_ in session.rows("items_of", dataset="shop")}
    for user, user_id, position, target in targets.iter_rows():
        of_user = bought.filter(user_id=user_id)
        assert of_user.filter(position=position)["item_id"].to_list() == [target]
        seen = set(of_user.filter(pl.col("position") < position)["item_id"])
        proposed = items.filter(user=user)
        assert sorted(proposed["item_id"]) == sorted(catalogue - seen)
        assert proposed["score"].is_sorted(descending=True)


def test_what_cannot_be_ranked_is_a_clear_error(inputs: Store, student: tuple[Any, Any]) -> None:
    model, tokenizer = student
    with pytest.raises(InputError, match="`beams` is 0"):
        FullRankingSettings(beams=0)
    with pytest.raises(InputError, match="has no token <s_a_8>"):
        evaluate_full_ranking(inputs, "shop", model, tokenizer)
    trie = SidTrie.build(IDS, 8)
    with pytest.raises(InputError, match=r"a history has [\d,]+ tokens, but the model reads"):
        rank_items(model, tokenizer, find_vocabulary(tokenizer, 2, 8), trie, [render_sid([1, 2]) * 2000])
