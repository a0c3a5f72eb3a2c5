from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from prompts.semantic_ids import render_sid, sid_tokens
from store import InputError
from train.students.vocabulary import (
    NOISE,
    ROWS_MULTIPLE,
    THINKING,
    Vocabulary,
    add_tokens,
    add_vocabulary,
    find_vocabulary,
)

LEVELS, CODES = 3, 6
TEXTS = ["the third shampoo was bought after the first one 12 times", '{"recommendations":[1, 2]}']


def byte_level() -> Any:
    """As GPT-2's and Qwen's."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)


def metaspace() -> Any:
    """As SentencePiece's, with a normalizer that no token survives."""
    backend = Tokenizer(models.BPE(unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    backend.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=300, special_tokens=["[UNK]"], show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", clean_up_tokenization_spaces=False)


def random_model(rows: int, *, tied: bool, hidden: int = 16) -> Any:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=rows, hidden_size=hidden, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, tie_word_embeddings=tied, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    # Trained rows have a mean of their own.
    for module in {model.get_input_embeddings(), model.get_output_embeddings()}:
        module.weight.data += torch.linspace(-1, 1, hidden)
    return model


def weights(model: Any) -> list[torch.Tensor]:
    """Embedding and head, copied."""
    return [layer.weight.detach().clone() for layer in (model.get_input_embeddings(), model.get_output_embeddings())]


def fields(vocabulary: Vocabulary) -> tuple[Any, ...]:
    return vocabulary.begin_id, vocabulary.end_id, vocabulary.code_ids_L_C.tolist(), vocabulary.new_rows


def codebooks(count: int = 2, dimensions: int = 5) -> list[np.ndarray]:
    """Fitted levels; the second has fewer codes than the first."""
    random = np.random.default_rng(0)
    return [
        random.normal(loc=3.0, scale=level + 1, size=(CODES - level, dimensions)).astype(np.float32)
        for level in range(count)
    ]


@pytest.mark.parametrize("make_tokenizer", [byte_level, metaspace])
def test_each_token_is_one_id_and_comes_back_without_blanks(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer()
    vocabulary = add_tokens(tokenizer, LEVELS, CODES)
    for token in [*sid_tokens(LEVELS, CODES), *THINKING]:
        assert len(tokenizer.encode(token, add_special_tokens=False)) == 1
    sid = render_sid([5, 0, 3])
    ids = tokenizer.encode(sid, add_special_tokens=False)
    code_ids = [int(vocabulary.code_ids_L_C[level, code]) for level, code in enumerate([5, 0, 3])]
    assert ids == [vocabulary.begin_id, *code_ids, vocabulary.end_id]
    for text in (sid, sid + sid, "the first" + sid + "after", f"the {sid} first {sid}", f"<think>{sid}</think>{sid}"):
        written = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(written) == tokenizer.decode(written, skip_special_tokens=True) == text


TOKENIZER = byte_level()
add_tokens(TOKENIZER, LEVELS, CODES)
PARTS = st.one_of(st.sampled_from([*sid_tokens(LEVELS, CODES), *THINKING, " ", "\n", '"']), st.text(max_size=5))


@given(parts=st.lists(PARTS, max_size=20))
def test_any_text_around_tokens_comes_back(parts: list[str]) -> None:
    text = TOKENIZER.backend_tokenizer.normalizer.normalize_str("".join(parts))
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == text
    assert TOKENIZER.encode(TOKENIZER.decode(ids), add_special_tokens=False) == ids


@pytest.mark.parametrize("tied", [True, False])
def test_old_rows_stay_and_new_ones_lie_near_their_mean(tied: bool) -> None:
    tokenizer = byte_level()
    text_tokens = len(tokenizer)
    model = random_model(text_tokens, tied=tied)
    before = weights(model)
    vocabulary = add_vocabulary(model, tokenizer, LEVELS, CODES)
    assert vocabulary.new_rows == tuple(range(text_tokens, len(tokenizer)))
    assert model.config.vocab_size % ROWS_MULTIPLE == 0
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    for old, now in zip(before, weights(model), strict=True):
        assert len(now) == model.config.vocab_size
        assert torch.equal(now[:text_tokens], old)
        # Rows beyond the tokenizer's, which only fill up, too: what no text has must not be likely.
        offset = (now[text_tokens:] - old.mean(dim=0)) / old.std(dim=0)
        assert offset.std() == pytest.approx(NOISE, rel=0.1)
        assert len(now.unique(dim=0)) == len(now)
    assert torch.isfinite(model(torch.tensor([vocabulary.new_rows])).logits).all()


@pytest.mark.parametrize("tied", [True, False])
def test_adding_twice_changes_nothing(tied: bool) -> None:
    tokenizer = byte_level()
    model = random_model(len(tokenizer), tied=tied)
    first = add_vocabulary(model, tokenizer, LEVELS, CODES, seed=1)
    before, tokens = weights(model), tokenizer.get_vocab()
    again = add_vocabulary(model, tokenizer, LEVELS, CODES, codebooks=codebooks(), seed=2)
    assert fields(again) == fields(first) == fields(find_vocabulary(tokenizer, LEVELS, CODES))
    assert tokenizer.get_vocab() == tokens
    for old, now in zip(before, weights(model), strict=True):
        assert torch.equal(old, now)


def test_more_levels_leave_those_that_are_there() -> None:
    tokenizer = byte_level()
    model = random_model(len(tokenizer), tied=True)
    first = add_vocabulary(model, tokenizer, LEVELS, CODES)
    rows = model.get_input_embeddings().weight[list(first.new_rows)].clone()
    more = add_vocabulary(model, tokenizer, LEVELS + 1, CODES)
    assert torch.equal(more.code_ids_L_C[:LEVELS], first.code_ids_L_C)
    assert torch.equal(model.get_input_embeddings().weight[list(first.new_rows)], rows)
    assert set(more.new_rows) == {*first.new_rows, *more.code_ids_L_C[LEVELS].tolist()}


@pytest.mark.parametrize("tied", [True, False])
def test_padded_rows_of_a_model_are_taken_and_begin_anew(tied: bool) -> None:
    tokenizer = byte_level()
    text_tokens = len(tokenizer)
    # As Qwen: 151,936 rows for 151,669 tokens.
    model = random_model(text_tokens + 100, tied=tied)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        layer.weight.data[text_tokens:] = 1e6
    before = weights(model)
    vocabulary = add_vocabulary(model, tokenizer, LEVELS, CODES, codebooks=codebooks())
    assert vocabulary.new_rows[0] == text_tokens
    assert model.config.vocab_size == text_tokens + 100
    for old, now in zip(before, weights(model), strict=True):
        assert torch.equal(now[:text_tokens], old[:text_tokens])
        assert now[list(vocabulary.new_rows)].abs().max() < 10
        assert torch.equal(now[len(tokenizer) :], old[len(tokenizer) :])


def test_a_tokenizer_that_is_ahead_of_its_model_is_caught_up_with() -> None:
    tokenizer = byte_level()
    model = random_model(len(tokenizer), tied=True)
    add_tokens(tokenizer, LEVELS, CODES)
    vocabulary = add_vocabulary(model, tokenizer, LEVELS, CODES)
    assert torch.isfinite(model(torch.tensor([vocabulary.new_rows])).logits).all()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dimensions", [5, 40])
def test_rows_from_codebooks_keep_what_is_near_and_the_length_of_old_rows(tied: bool, dimensions: int) -> None:
    tokenizer = byte_level()
    text_tokens = len(tokenizer)
    model = random_model(text_tokens, tied=tied, hidden=32)
    fitted = codebooks(dimensions=dimensions)
    vocabulary = add_vocabulary(model, tokenizer, LEVELS, CODES, codebooks=fitted)
    for weight in weights(model):
        mean, spread = weight[:text_tokens].mean(dim=0), weight[:text_tokens].std(dim=0).norm()
        for level, codebook in enumerate(fitted):
            rows = weight[vocabulary.code_ids_L_C[level, : len(codebook)]] - mean
            assert rows.square().sum(dim=1).mean().sqrt() == pytest.approx(float(spread), rel=1e-4)
            if dimensions <= 32:
                # Turned and scaled, but not bent: all distances shrink alike.
                ratio = torch.pdist(rows) / torch.pdist(torch.from_numpy(codebook))
                assert ratio.std() < 1e-4 * ratio.mean()
        # No vector: the last code of the second level, the third level, begin and end.
        rest = [int(vocabulary.code_ids_L_C[1, -1]), *vocabulary.code_ids_L_C[2].tolist(), vocabulary.begin_id]
        assert ((weight[rest] - mean).norm(dim=1) < 0.3 * spread).all()


def test_a_seed_decides_all_of_it() -> None:
    def rows(seed: int, fitted: Sequence[np.ndarray]) -> torch.Tensor:
        tokenizer = byte_level()
        model = random_model(len(tokenizer), tied=False)
        add_vocabulary(model, tokenizer, LEVELS, CODES, codebooks=fitted, seed=seed)
        return torch.stack(weights(model))

    for fitted in ((), codebooks()):
        assert torch.equal(rows(0, fitted), rows(0, fitted))
        assert not torch.equal(rows(0, fitted), rows(1, fitted))


def test_rows_keep_the_precision_of_the_model() -> None:
    tokenizer = byte_level()
    model = random_model(len(tokenizer), tied=False).to(torch.bfloat16)
    add_vocabulary(model, tokenizer, LEVELS, CODES, codebooks=codebooks())
    assert {weight.dtype for weight in weights(model)} == {torch.bfloat16}


def test_marks_of_thinking_that_a_model_has_are_its_own() -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens(list(THINKING))
    own = tokenizer.convert_tokens_to_ids(list(THINKING))
    model = random_model(len(tokenizer), tied=True)
    before = model.get_input_embeddings().weight[own].clone()
    vocabulary = add_vocabulary(model, tokenizer, LEVELS, CODES)
    assert len(vocabulary.new_rows) == len(sid_tokens(LEVELS, CODES))
    assert torch.equal(model.get_input_embeddings().weight[own], before)
    assert len(find_vocabulary(tokenizer, LEVELS, CODES).new_rows) == len(vocabulary.new_rows)


def test_the_first_token_that_is_missing_is_named() -> None:
    tokenizer = byte_level()
    with pytest.raises(InputError, match=r"no token <\|sid_begin\|>.* 3 levels with 6 codes .*gr2 train init"):
        find_vocabulary(tokenizer, LEVELS, CODES)
    add_tokens(tokenizer, LEVELS, CODES)
    with pytest.raises(InputError, match="no token <s_a_6>"):
        find_vocabulary(tokenizer, LEVELS, CODES + 1)
    with pytest.raises(InputError, match="no token <s_d_0>"):
        find_vocabulary(tokenizer, LEVELS + 1, CODES)


def test_a_tokenizer_that_would_change_ids_is_refused() -> None:
    blanks = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    special = byte_level()
    special.add_tokens(["<s_a_0>"], special_tokens=True)
    for tokenizer in (blanks, special):
        with pytest.raises(InputError, match="does not encode and decode semantic IDs without loss"):
            add_tokens(tokenizer, LEVELS, CODES)
