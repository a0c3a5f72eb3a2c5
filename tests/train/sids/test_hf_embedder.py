from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModel, BertConfig, PreTrainedTokenizerFast, Qwen3Config

from store import InputError
from train.sids.hf_embedder import HfEmbedder

WORDS = ["[PAD]", "[UNK]", "red", "blue", "soap", "towel", "for", "hair"]
TEXTS = ["red soap", "blue towel for hair", "soap", "red soap for hair for hair"]


def save(folder: Path, config: BertConfig | Qwen3Config, **special: str) -> str:
    """A tiny random model and a tokenizer of whole words."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **special).save_pretrained(folder)
    AutoModel.from_config(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    config = BertConfig(
        vocab_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=8,
    )  # fmt: skip
    return save(tmp_path_factory.mktemp("bert"), config, pad_token="[PAD]")


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    config = Qwen3Config(
        vocab_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=8,
        intermediate_size=16,
    )  # fmt: skip
    # Like many decoders, it has no padding token.
    return save(tmp_path_factory.mktemp("qwen"), config, eos_token="[PAD]")


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
@pytest.mark.parametrize("pooling", ["mean", "last", "cls"])
def test_batches_and_padding_change_nothing(kind: str, pooling: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(kind)
    together = HfEmbedder(path, pooling).embed(TEXTS)
    alone = HfEmbedder(path, pooling, batch_size=1).embed(TEXTS)
    assert together.shape == (4, 16)
    assert together == pytest.approx(alone, abs=1e-5)
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(4), abs=1e-5)


def test_pooling_takes_what_it_says(decoder: str) -> None:
    embedder = HfEmbedder(decoder, "last")
    tokens = embedder._tokenizer(["red soap"], return_tensors="pt")
    with torch.no_grad():
        states = embedder._model(**tokens).last_hidden_state[0]
    for pooling, wanted in (("last", states[-1]), ("cls", states[0]), ("mean", states.mean(dim=0))):
        vector = HfEmbedder(decoder, pooling).embed(["red soap"])[0]
        assert vector == pytest.approx((wanted / wanted.norm()).numpy(), abs=1e-5)


def test_texts_longer_than_the_model_takes_are_cut(encoder: str) -> None:
    embedder = HfEmbedder(encoder)
    assert embedder.embed(["red " * 50]) == pytest.approx(embedder.embed(["red " * 8]), abs=1e-5)


def test_names_tell_model_and_pooling(encoder: str, decoder: str) -> None:
    assert HfEmbedder(encoder).name != HfEmbedder(decoder).name != HfEmbedder(decoder, "last").name


def test_what_cannot_be_loaded_is_a_clear_error(tmp_path: Path, encoder: str) -> None:
    with pytest.raises(InputError, match="transformers cannot load"):
        HfEmbedder(str(tmp_path))
    with pytest.raises(InputError, match="`pooling` is 'max'"):
        HfEmbedder(encoder, "max")
