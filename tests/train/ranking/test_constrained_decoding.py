import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from train.ranking.constrained_decoding import SidLogitsProcessor
from train.ranking.sid_trie import SidTrie

LEVELS, CODES = 3, 6
BEGIN, END, TEXT = 1, 2, 30
CODE_IDS = torch.arange(3, 3 + LEVELS * CODES).reshape(LEVELS, CODES)
IDS = {(0, 1, 2), (0, 1, 3), (0, 5, 5), (4, 0, 0), (4, 0, 5)}


def processor() -> SidLogitsProcessor:
    return SidLogitsProcessor(SidTrie.build(np.array(sorted(IDS)), CODES), BEGIN, END, CODE_IDS)


def tokens(*codes: int) -> list[int]:
    return [int(CODE_IDS[level, code]) for level, code in enumerate(codes)]


def left(text: list[int]) -> set[int]:
    scores = processor()(torch.tensor([text]), torch.zeros(1, 40))
    return {int(token) for token in torch.isfinite(scores[0]).nonzero()[:, 0]}


def test_inside_an_id_only_what_some_item_has_is_left() -> None:
    assert left([TEXT, BEGIN]) == {int(CODE_IDS[0, 0]), int(CODE_IDS[0, 4])}
    assert left([TEXT, BEGIN, *tokens(0)]) == {int(CODE_IDS[1, 1]), int(CODE_IDS[1, 5])}
    assert left([TEXT, BEGIN, *tokens(0, 1)]) == {int(CODE_IDS[2, 2]), int(CODE_IDS[2, 3])}
    assert left([TEXT, BEGIN, *tokens(0, 1, 3)]) == {END}


def test_outside_an_id_neither_codes_nor_an_end_can_come() -> None:
    banned = {END, *CODE_IDS.flatten().tolist()}
    for text in ([TEXT], [TEXT, TEXT, TEXT, TEXT, TEXT], [BEGIN, *tokens(0, 1, 3), END]):
        assert left(text) == set(range(40)) - banned


def test_beams_in_different_places_are_each_served() -> None:
    texts = [[TEXT, TEXT, TEXT, BEGIN], [TEXT, BEGIN, *tokens(4, 0)], [BEGIN, *tokens(0, 5, 5)], [TEXT] * 4]
    together = processor()(torch.tensor(texts), torch.zeros(4, 40))
    for row, text in enumerate(texts):
        assert {int(token) for token in torch.isfinite(together[row]).nonzero()[:, 0]} == left(text)


def test_scores_that_are_left_stay_as_they_were() -> None:
    scores = torch.randn(1, 40, generator=torch.Generator().manual_seed(0))
    after = processor()(torch.tensor([[TEXT, BEGIN]]), scores.clone())
    assert torch.equal(after[torch.isfinite(after)], scores[torch.isfinite(after)])


@pytest.mark.parametrize(
    "text", [[BEGIN, *tokens(1)], [BEGIN, TEXT], [BEGIN, 39], [BEGIN, END], [BEGIN, *tokens(0), *tokens(0)]]
)
def test_a_prefix_that_no_item_has_is_an_error_never_a_free_step(text: list[int]) -> None:
    with pytest.raises(ValueError, match="no semantic ID has"):
        left(text)


def test_a_random_model_can_only_write_valid_ids() -> None:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = Qwen3ForCausalLM(config).eval()
    written = model.generate(
        torch.tensor([[TEXT, BEGIN]]).repeat(64, 1),
        attention_mask=torch.ones(64, 2, dtype=torch.int64),
        max_new_tokens=40,
        do_sample=True,
        top_k=0,
        logits_processor=[processor()],
    )
    found = set()
    for text in written.tolist():
        at = 1
        while at < len(text):
            if text[at] != BEGIN:
                assert text[at] not in {END, *CODE_IDS.flatten().tolist()}
                at += 1
                continue
            whole = text[at + 1 : at + 1 + LEVELS]
            if len(whole) == LEVELS:
                codes = tuple(int((CODE_IDS[level] == token).nonzero()[0, 0]) for level, token in enumerate(whole))
                assert codes in IDS
                found.add(codes)
                assert text[at + 1 + LEVELS : at + 2 + LEVELS] in ([END], [])
            at += LEVELS + 2
    assert found == IDS


def test_tokens_of_another_shape_are_a_clear_error() -> None:
    with pytest.raises(ValueError, match=r"it must be \(3, 6\)"):
        SidLogitsProcessor(SidTrie.build(np.array(sorted(IDS)), CODES), BEGIN, END, CODE_IDS[:2])
