import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.ranking.sid_trie import SidTrie

IDS = st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=40)


def walk(trie: SidTrie, prefix: tuple[int, ...]) -> torch.Tensor:
    nodes = torch.zeros(1, dtype=torch.int64)
    for level, code in enumerate(prefix):
        nodes = trie.step(level, nodes, torch.tensor([code]))
    return nodes


@given(ids=IDS)
def test_the_ways_on_from_every_prefix_are_those_of_the_ids(ids: list[tuple[int, int, int]]) -> None:
    trie = SidTrie.build(np.array(ids), 5)
    for level in range(3):
        prefixes = sorted({sid[:level] for sid in ids})
        nodes = torch.cat([walk(trie, prefix) for prefix in prefixes])
        rows, codes = trie.children(level, nodes)
        found = [sorted(codes[rows == row].tolist()) for row in range(len(prefixes))]
        assert found == [sorted({sid[level] for sid in ids if sid[:level] == prefix}) for prefix in prefixes]


@given(ids=IDS, other=st.tuples(*[st.integers(0, 4)] * 3))
def test_an_id_can_be_walked_if_and_only_if_it_is_there(
    ids: list[tuple[int, int, int]], other: tuple[int, int, int]
) -> None:
    trie = SidTrie.build(np.array(ids), 5)
    assert len({int(walk(trie, sid)) for sid in ids}) == len(set(ids))
    if other in ids:
        walk(trie, other)
    else:
        with pytest.raises(ValueError, match="no semantic ID has code"):
            walk(trie, other)


def test_codes_out_of_range_never_lead_anywhere() -> None:
    trie = SidTrie.build(np.array([[0, 1], [1, 0]]), 2)
    # -1 after node 1 and 2 after node 0 would be the numbers of edges that exist.
    for node, code in ((1, -1), (0, 2)):
        with pytest.raises(ValueError, match="no semantic ID"):
            trie.step(1, torch.tensor([node]), torch.tensor([code]))


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((0, 4), int), "at least one"),
        (np.array([[0, 5]]), "codes range from 0 to 5"),
        (np.array([[-1]]), "from -1"),
    ],
)
def test_what_is_no_set_of_ids_is_a_clear_error(codes: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SidTrie.build(codes, 5)
