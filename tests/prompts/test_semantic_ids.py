import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompts.semantic_ids import find_bare_sid, find_sids, parse_sid, render_sid, sid_tokens

CODES = st.lists(st.integers(0, 65_535), min_size=1, max_size=26)


def test_the_form_of_the_paper() -> None:
    assert render_sid((57, 7, 23, 4)) == "<|sid_begin|><s_a_57><s_b_7><s_c_23><s_d_4><|sid_end|>"


@given(codes=CODES)
def test_codes_round_trip(codes: list[int]) -> None:
    assert parse_sid(render_sid(codes)) == tuple(codes)


@given(ids=st.lists(CODES, max_size=5), between=st.text(alphabet="ab <>|_\n", max_size=10))
def test_ids_are_found_in_any_surroundings_that_hold_none(ids: list[list[int]], between: str) -> None:
    texts = [render_sid(codes) for codes in ids]
    assert find_sids(between + between.join(texts) + between) == texts


@pytest.mark.parametrize(
    "text",
    [
        "<|sid_begin|><s_a_1><s_c_2><|sid_end|>",
        "<|sid_begin|><s_b_1><|sid_end|>",
        "<|sid_begin|><|sid_end|>",
        "<|sid_begin|><s_a_70000><|sid_end|>",
        "<s_a_1><s_b_2>",
        "",
    ],
)
def test_what_is_malformed_is_none(text: str) -> None:
    assert parse_sid(text) is None
    assert find_sids(text) == []


def test_blanks_between_tokens_are_forgiven() -> None:
    assert find_sids("see <|sid_begin|> <s_a_1>\n<s_b_2> <|sid_end|>.") == [render_sid((1, 2))]


def test_codes_without_begin_and_end_are_found_where_there_is_one_run() -> None:
    assert find_bare_sid("the item <s_a_1><s_b_2>!") == render_sid((1, 2))
    assert find_bare_sid("<s_a_1><s_b_2> or <s_a_3>") is None


@pytest.mark.parametrize("codes", [(), (-1,), (65_536,), (0,) * 27])
def test_codes_out_of_range_are_refused(codes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="code"):
        render_sid(codes)


def test_the_vocabulary_makes_every_id() -> None:
    tokens = sid_tokens(4, 256)
    assert len(tokens) == len(set(tokens)) == 2 + 4 * 256
    rest = render_sid((255, 0, 1, 2))
    for token in tokens:
        rest = rest.replace(token, "")
    assert rest == ""
