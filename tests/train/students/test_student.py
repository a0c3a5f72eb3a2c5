import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3ForCausalLM
from trl import SFTConfig, SFTTrainer

from prompts.completion import render_completion
from prompts.semantic_ids import render_sid, sid_tokens
from prompts.tasks import Candidate, RerankTask, ShownItem
from prompts.templates import load_template
from store import InputError
from store.records import Evidence, Link
from train.students.student import SIZES, init_student, load_student
from train.students.vocabulary import ROWS_MULTIPLE, THINKING, find_vocabulary

LEVELS, CODES = 3, 8


def task(user: int) -> RerankTask:
    items = [
        ShownItem(
            f"i{n}", render_sid([n % CODES, user % CODES, n // CODES]), f"Glow Soap {n}", ("Beauty", "Bath"), "Glow"
        )
        for n in range(14)
    ]
    evidence = Evidence(1 / (user + 1), 0.5, (Link("i0", user, 2),), ("Beauty",), 1, 0, 3)
    return RerankTask(tuple(items[:4]), tuple(Candidate(item, evidence) for item in items[4:]))


def conversation(template: str, user: int) -> list[dict[str, str]]:
    shown = task(user)
    sids = [candidate.item.sid for candidate in shown.candidates]
    reasoning = f"{sids[0]} was bought after {shown.history[0].sid} {user} times."
    return [
        *load_template(template).render(shown),
        {"role": "assistant", "content": render_completion(reasoning, sids[::-1])},
    ]


CONVERSATIONS = [
    conversation(template, user) for template in ("rerank_compact.v1", "rerank_evidence.v1") for user in range(20)
]
TEXTS = [message["content"] for chat in CONVERSATIONS for message in chat]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("students") / "tiny"
    init_student(TEXTS, LEVELS, CODES, "tiny", folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def test_transformers_loads_what_was_made(folder: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert type(model) is Qwen3ForCausalLM
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert model.config.vocab_size == -(-len(tokenizer) // ROWS_MULTIPLE) * ROWS_MULTIPLE
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    for settings in (model.config, model.generation_config):
        assert (settings.eos_token_id, settings.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    find_vocabulary(tokenizer, LEVELS, CODES)
    with torch.no_grad():
        assert torch.isfinite(model(torch.arange(len(tokenizer))[None]).logits).all()


def test_sizes_grow_and_are_what_they_say(tmp_path: Path) -> None:
    parameters = []
    for size, shape in SIZES.items():
        summary = init_student(TEXTS, LEVELS, CODES, size, tmp_path / size)
        model, tokenizer = load_student(tmp_path / size)
        assert summary.parameters == model.num_parameters()
        assert summary.sid_tokens == len(sid_tokens(LEVELS, CODES))
        assert summary.text_tokens <= shape.text_tokens
        assert summary.text_tokens + summary.sid_tokens + len(THINKING) == len(tokenizer)
        assert model.config.num_hidden_layers == shape.layers
        parameters.append(summary.parameters)
    assert parameters == sorted(parameters)


def test_the_same_arguments_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    init_student(iter(TEXTS), LEVELS, CODES, "tiny", tmp_path / "again")
    init_student(TEXTS, LEVELS, CODES, "tiny", tmp_path / "other", seed=1)
    files = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "tokenizer.json", "chat_template.jinja", "config.json"} <= files
    for name in files:
        written = (folder / name).read_bytes()
        assert (tmp_path / "again" / name).read_bytes() == written
        assert ((tmp_path / "other" / name).read_bytes() == written) == (name != "model.safetensors")


def test_making_a_student_leaves_torch_its_random_numbers(tmp_path: Path) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    init_student(TEXTS[:2], 1, 2, "tiny", tmp_path / "one")
    assert torch.equal(torch.rand(1), wanted)


@given(text=st.text())
def test_any_text_comes_back(text: str, tokenizer: Any) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", TEXTS[::7])
def test_prompts_come_back_when_special_tokens_are_dropped(text: str, tokenizer: Any) -> None:
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text


def test_numbers_are_one_token_up_to_99_and_look_alike_everywhere(tokenizer: Any) -> None:
    for number in [*map(str, range(100)), *(f"{number:02}" for number in range(100))]:
        tokens = tokenizer.encode(number)
        assert len(tokens) == 1
        assert tokenizer.encode(f" {number}")[-1:] == tokenizer.encode(f"a{number}")[-1:] == tokens
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("2014")) == ["20", "14"]


def test_prompts_are_short(tokenizer: Any) -> None:
    assert tokenizer.tokenize(" first-stage score 0.0312") == [
        "Ġfirst",
        "-",
        "stage",
        "Ġscore",
        "Ġ",
        "0",
        ".",
        "03",
        "12",
    ]
    for word in ("history:", " popularity", "\n   bought", " candidates", '{"explanation":"', '"recommendations"'):
        assert len(tokenizer.encode(word)) <= 3
    assert len(tokenizer.encode(render_sid([0, 1, 2]))) == LEVELS + 2
    for piece in ('","', "system", "user", "assistant"):
        assert len(tokenizer.encode(piece)) == 1


def test_no_piece_of_text_is_a_piece_of_a_token(tokenizer: Any) -> None:
    vocabulary = find_vocabulary(tokenizer, LEVELS, CODES)
    text = set(tokenizer.get_vocab().values()) - set(vocabulary.new_rows) - set(tokenizer.all_special_ids)
    pieces = tokenizer.convert_ids_to_tokens(sorted(text))
    assert not [piece for piece in pieces if "|>" in piece or "<|" in piece or "<s" in piece or "sid" in piece]


@pytest.mark.parametrize("chat", CONVERSATIONS[::9])
def test_a_prompt_begins_the_whole_conversation_and_the_answer_is_marked(chat: Any, tokenizer: Any) -> None:
    whole = tokenizer.apply_chat_template(chat, tokenize=False)
    prompt = tokenizer.apply_chat_template(chat[:-1], tokenize=False, add_generation_prompt=True)
    assert whole.startswith(prompt)
    assert whole == "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in chat)
    marked = tokenizer.apply_chat_template(chat, return_assistant_tokens_mask=True, return_dict=True)
    prompt_ids = tokenizer.apply_chat_template(chat[:-1], add_generation_prompt=True)["input_ids"]
    assert marked["input_ids"][: len(prompt_ids)] == prompt_ids
    answer = [token for token, of in zip(marked["input_ids"], marked["assistant_masks"], strict=True) if of]
    assert tokenizer.decode(answer) == chat[-1]["content"] + "<|im_end|>"
    assert answer == marked["input_ids"][len(prompt_ids) : -1]


def test_trl_trains_on_the_answer_alone(folder: Path, tmp_path: Path) -> None:
    model, tokenizer = load_student(folder)
    settings = SFTConfig(
        output_dir=str(tmp_path), max_steps=2, learning_rate=0.01, bf16=False, activation_checkpointing=False,
        report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
        assistant_only_loss=True, per_device_train_batch_size=2, max_length=None, logging_steps=1,
    )  # fmt: skip
    data = Dataset.from_dict({"messages": CONVERSATIONS[:4]})
    trainer = SFTTrainer(model, settings, train_dataset=data, processing_class=tokenizer)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[1] < losses[0]


def test_a_folder_that_holds_something_is_left_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for taken in (folder, tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(InputError, match="exists and is not empty"):
            init_student(TEXTS, LEVELS, CODES, "tiny", taken)
    (tmp_path / "empty").mkdir()
    init_student(TEXTS[:1], 1, 2, "tiny", tmp_path / "empty")
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "empty"}


def test_a_student_of_nothing_or_of_no_size_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no text to learn a vocabulary from"):
        init_student([], LEVELS, CODES, "tiny", tmp_path / "a")
    with pytest.raises(InputError, match="`size` is 'huge'; it must be one of tiny, small, base"):
        init_student(TEXTS, LEVELS, CODES, "huge", tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_without_padding_pads_with_its_end(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    plain = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|im_end|>")
    plain.save_pretrained(tmp_path / "copy")
    _, tokenizer = load_student(tmp_path / "copy")
    assert tokenizer.pad_token == "<|im_end|>"


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("everything", "transformers cannot load a causal language model from"),
        ("weights", "transformers cannot load"),
        ("half the weights", "transformers cannot load"),
        ("other weights", "transformers cannot load"),
        ("config", "transformers cannot load"),
        ("tokenizer", "there is no tokenizer"),
    ],
)
def test_what_cannot_be_loaded_is_a_clear_error(broken: str, message: str, folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    weights = copy / "model.safetensors"
    match broken:
        case "everything":
            shutil.rmtree(copy)
        case "weights":
            weights.unlink()
        case "half the weights":
            weights.write_bytes(weights.read_bytes()[:1000])
        case "other weights":
            init_student(TEXTS[:1], 1, 2, "tiny", tmp_path / "other")
            shutil.copy(tmp_path / "other" / "model.safetensors", weights)
        case "config":
            (copy / "config.json").write_text('{"model_type": "none of them"}')
        case "tokenizer":
            (copy / "tokenizer.json").unlink()
            (copy / "tokenizer_config.json").unlink()
    with pytest.raises(InputError, match=message):
        load_student(copy)
