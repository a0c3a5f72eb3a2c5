from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM
from trl import SFTConfig, SFTTrainer

from prompts.semantic_ids import sid_tokens
from store import InputError
from train.students.lora import make_lora
from train.students.student import init_student, load_student
from train.students.vocabulary import find_vocabulary

LEVELS, CODES = 2, 5
# All new tokens, so that each of their rows is read.
TEXT = "red soap " + "".join(sid_tokens(LEVELS, CODES)) + "<think> blue </think> towel"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("student") / "tiny"
    init_student([TEXT], LEVELS, CODES, "tiny", folder)
    return load_student(folder)[1]


def random_model(tokenizer: Any, *, tied: bool) -> Any:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer) + 3, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, tie_word_embeddings=tied, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


def step_by_hand(model: PeftModel, tokenizer: Any, folder: Path) -> None:
    optimizer = torch.optim.AdamW(
        [weight for weight in model.parameters() if weight.requires_grad], lr=0.01, weight_decay=0
    )
    ids = torch.tensor([tokenizer.encode(TEXT)])
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()


def step_by_trl(model: PeftModel, tokenizer: Any, folder: Path) -> None:
    settings = SFTConfig(
        output_dir=str(folder), max_steps=1, learning_rate=0.01, bf16=False, activation_checkpointing=False,
        report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
    )  # fmt: skip
    data = Dataset.from_dict({"text": [TEXT] * 8})
    SFTTrainer(model, settings, train_dataset=data, processing_class=tokenizer).train()


def embeddings(model: Any) -> list[torch.Tensor]:
    return [layer.weight.detach().clone() for layer in (model.get_input_embeddings(), model.get_output_embeddings())]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("step", [step_by_hand, step_by_trl])
def test_lora_weights_and_new_rows_move_and_nothing_else(tied: bool, step: Any, tokenizer: Any, tmp_path: Path) -> None:
    vocabulary = find_vocabulary(tokenizer, LEVELS, CODES)
    model = random_model(tokenizer, tied=tied)
    first = embeddings(model)
    lora = make_lora(model, vocabulary, rank=2, alpha=4)
    before = {name: weight.detach().clone() for name, weight in lora.named_parameters()}
    step(lora, tokenizer, tmp_path)
    moved = {name for name, weight in lora.named_parameters() if not torch.equal(weight, before[name])}
    # A LoRA's A moves from the second step on: the gradient passes through B, which begins at zero.
    adapters = {name for name in before if "lora_B" in name or "trainable_tokens_delta" in name}
    assert moved == adapters
    assert len([name for name in adapters if "lora_B" in name]) == 2 * 7
    merged = lora.merge_and_unload()
    assert (merged.get_input_embeddings().weight is merged.get_output_embeddings().weight) == tied
    for old, now in zip(first, embeddings(merged), strict=True):
        moved_rows = (old != now).any(dim=1).nonzero()[:, 0].tolist()
        assert moved_rows == list(vocabulary.new_rows)


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_merged_and_saved_speaks_as_before(tied: bool, tokenizer: Any, tmp_path: Path) -> None:
    lora = make_lora(random_model(tokenizer, tied=tied), find_vocabulary(tokenizer, LEVELS, CODES))
    for _ in range(3):
        step_by_hand(lora, tokenizer, tmp_path)
    ids = torch.tensor([tokenizer.encode(TEXT)])
    with torch.no_grad():
        logits = lora.eval()(input_ids=ids).logits
        lora.merge_and_unload().save_pretrained(tmp_path)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
        torch.testing.assert_close(loaded(input_ids=ids).logits, logits, rtol=1e-5, atol=1e-5)
    assert type(loaded) is Qwen3ForCausalLM
    assert loaded.config.tie_word_embeddings == tied
    assert list(tmp_path.glob("*.safetensors"))


def test_without_its_adapters_the_model_is_as_it_was(tokenizer: Any, tmp_path: Path) -> None:
    model = random_model(tokenizer, tied=True)
    ids = torch.tensor([tokenizer.encode(TEXT)])
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    lora = make_lora(model, find_vocabulary(tokenizer, LEVELS, CODES))
    step_by_hand(lora, tokenizer, tmp_path)
    with torch.no_grad(), lora.disable_adapter():
        assert torch.equal(lora(input_ids=ids).logits, logits)


def test_a_head_with_a_bias_is_refused(tokenizer: Any) -> None:
    model = random_model(tokenizer, tied=False)
    model.lm_head = torch.nn.Linear(16, model.config.vocab_size)
    with pytest.raises(InputError, match="Qwen3ForCausalLM has a bias in its head"):
        make_lora(model, find_vocabulary(tokenizer, LEVELS, CODES))


def test_trl_still_asks_the_head_for_its_bias(tokenizer: Any, tmp_path: Path) -> None:
    lora = make_lora(random_model(tokenizer, tied=True), find_vocabulary(tokenizer, LEVELS, CODES))
    lora.get_output_embeddings()._parameters.pop("bias")
    with pytest.raises(AttributeError, match="bias"):
        step_by_trl(lora, tokenizer, tmp_path)
