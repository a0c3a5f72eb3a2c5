import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from prompts.completion import render_completion
from store import InputError
from tests.train.strangers import (
    CHATML,
    GEMMA2,
    METASPACE,
    MISTRAL,
    QWEN3,
    R1,
    make_model,
    make_tokenizer,
    save_stranger,
)
from train.students.chat import ChatFormat, give_template, set_end_tokens
from train.students.student import init_student, is_from_scratch, load_student

TURN = ("<|im_start|>", "<|im_end|>")
MESSAGES = ({"role": "system", "content": "Re-rank."}, {"role": "user", "content": "s1 w2"})
ANSWER = render_completion("because", [3, 1, 2])


def conversation(tokenizer: Any) -> str:
    return str(tokenizer.apply_chat_template([*MESSAGES, {"role": "assistant", "content": ANSWER}], tokenize=False))


@pytest.mark.parametrize(
    ("special", "bos", "begins", "ends"),
    [
        (TURN, None, "<|im_start|>system\nRe-rank.<|im_end|>\n<|im_start|>user\ns1 w2", "<|im_end|>"),
        ((), None, "Re-rank.\n\ns1 w2", "<|endoftext|>"),
        ((), "<s>", "<s>Re-rank.\n\ns1 w2", "<|endoftext|>"),
    ],
    ids=["ChatML", "plain", "with a token that begins every text"],
)
def test_a_tokenizer_without_chat_template_gets_one_that_it_can_write(
    special: tuple[str, ...], bos: str | None, begins: str, ends: str, tmp_path: Path
) -> None:
    model, tokenizer = load_student(save_stranger(tmp_path, "llama", make_tokenizer(special=special, bos=bos)))
    chat = ChatFormat.of(tokenizer)
    assert chat.has_system
    assert chat.prompt(MESSAGES).startswith(begins)
    assert tokenizer.decode(chat.end_id) == ends
    assert chat.ending.startswith(ends)
    assert conversation(tokenizer) == chat.prompt(MESSAGES) + ANSWER + chat.ending
    # What generation begins with is what an answer follows, for other programs too.
    assert chat.prompt(MESSAGES) == tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    tokenizer.save_pretrained(tmp_path / "student")
    assert ChatFormat.of(AutoTokenizer.from_pretrained(tmp_path / "student")).prompt(MESSAGES) == chat.prompt(MESSAGES)
    assert not is_from_scratch(model, tokenizer)


@pytest.mark.parametrize(
    ("template", "special", "prompt"),
    [
        (
            GEMMA2,
            ("<start_of_turn>", "<end_of_turn>"),
            "<s><start_of_turn>user\nRe-rank.\n\ns1 w2<end_of_turn>\n<start_of_turn>model\n",
        ),
        (MISTRAL, ("[INST]", "[/INST]"), "<s>[INST] Re-rank.\n\ns1 w2 [/INST] "),
    ],
    ids=["raises", "leaves out"],
)
def test_without_a_system_role_the_system_text_begins_the_users_turn(
    template: str, special: tuple[str, ...], prompt: str
) -> None:
    chat = ChatFormat.of(make_tokenizer(special=special, bos="<s>", template=template))
    assert not chat.has_system
    assert chat.prompt(MESSAGES) == prompt


@pytest.mark.parametrize(
    ("template", "special", "between"),
    [
        (QWEN3, (*TURN, "<think>", "</think>"), "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        (R1, ("<|User|>", "<|Assistant|>"), "<|User|>s1 w2<|Assistant|>"),
    ],
    ids=["Qwen3", "R1"],
)
def test_the_prompt_is_what_stands_before_an_answer_and_not_what_asks_for_one(
    template: str, special: tuple[str, ...], between: str
) -> None:
    tokenizer = make_tokenizer(special=special, bos="<s>", template=template)
    chat = ChatFormat.of(tokenizer)
    assert chat.prompt(MESSAGES).endswith(between)
    assert conversation(tokenizer) == chat.prompt(MESSAGES) + ANSWER + chat.ending
    assert chat.prompt(MESSAGES) != tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)


@pytest.mark.parametrize("eos", ["<|endoftext|>", None])
def test_generation_of_a_base_model_stops_at_the_end_of_a_turn(eos: str | None, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(special=TURN, template=CHATML, eos=eos)
    model, tokenizer = load_student(save_stranger(tmp_path, "qwen3", tokenizer))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    known = [end] if eos is None else [end, tokenizer.convert_tokens_to_ids(eos)]
    assert model.generation_config.eos_token_id == (known if eos else end)
    # A training saves it, so other programs stop there too.
    model.save_pretrained(tmp_path / "trained")
    tokenizer.save_pretrained(tmp_path / "trained")
    assert load_student(tmp_path / "trained")[0].generation_config.eos_token_id == model.generation_config.eos_token_id
    assert not json.loads((tmp_path / "trained" / "generation_config.json").read_text()).get("_from_model_config")
    assert tokenizer.pad_token is not None


def test_generation_settings_that_transformers_would_not_save_again_do_not_end_a_training(tmp_path: Path) -> None:
    begun = save_stranger(tmp_path / "base", "llama", make_tokenizer(special=TURN, template=CHATML))
    file = tmp_path / "base" / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "temperature": 0.9, "top_p": 0.6}))
    model, _ = load_student(begun)
    model.save_pretrained(tmp_path / "checkpoint")
    assert load_student(begun)[0].generation_config.temperature == 0.9


def test_an_answer_that_no_token_of_the_template_ends_is_ended_by_the_end_token() -> None:
    template = "{% for message in messages %}### {{ message['role'] }}:\n{{ message['content'] }}\n\n{% endfor %}"
    tokenizer = make_tokenizer(template=template)
    chat = ChatFormat.of(tokenizer)
    assert chat.ending == "<|endoftext|>"
    assert chat.encode_answers([ANSWER])["input_ids"][0][-1] == tokenizer.eos_token_id == chat.end_id


def test_a_line_end_that_was_added_to_a_tokenizer_ends_no_turn() -> None:
    tokenizer = make_tokenizer(
        special=("<start_of_turn>", "<end_of_turn>"),
        bos="<s>",
        template=GEMMA2.replace("trim + '<end", "trim + '\\n<end"),
    )
    tokenizer.add_tokens(["\n"])
    assert tokenizer.decode(ChatFormat.of(tokenizer).end_id) == "<end_of_turn>"


@pytest.mark.parametrize("pieces", ["digits", "metaspace"])
def test_a_prompt_has_the_same_tokens_whatever_answer_follows(pieces: str) -> None:
    tokenizer = make_tokenizer(
        **({"pieces": METASPACE} if pieces == "metaspace" else {}),
        special=("[INST]", "[/INST]"),
        bos="<s>",
        template=MISTRAL,
    )
    chat = ChatFormat.of(tokenizer)
    (prompt,) = chat.encode_prompts([MESSAGES])
    assert prompt[0] == tokenizer.bos_token_id != prompt[1]
    (ids,) = chat.encode_answers([ANSWER])["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == ANSWER


def test_what_cannot_hold_a_conversation_is_a_clear_error(tmp_path: Path) -> None:
    losing = make_tokenizer(template="{{ messages[-1]['content'] }}")
    with pytest.raises(
        InputError, match="cannot write a system text, a user's text and an answer in this order: it wr"
    ):
        ChatFormat.of(losing)
    raising = make_tokenizer(template="{{ raise_exception('only tools') }}")
    with pytest.raises(InputError, match="in this order: its error is 'only tools'; set another `chat_template`"):
        ChatFormat.of(raising)
    with pytest.raises(InputError, match="has no chat template, and there is no end token; set `eos_token`"):
        give_template(make_tokenizer(eos=None))
    plain = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    with pytest.raises(InputError, match="has no token that ends an answer, and there is no end token"):
        ChatFormat.of(make_tokenizer(eos=None, template=plain))
    with pytest.raises(InputError, match="cannot write a system text"):
        load_student(save_stranger(tmp_path, "gpt2", losing))


def test_a_student_from_scratch_is_known_by_its_config_and_so_are_its_descendants(tmp_path: Path) -> None:
    init_student(["some text"], 2, 8, "tiny", tmp_path / "new")
    model, tokenizer = load_student(tmp_path / "new")
    assert is_from_scratch(model, tokenizer)
    # One that gr2 0.1 made has no mark.
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config.pop("gr2_from_scratch")
    (tmp_path / "new" / "config.json").write_text(json.dumps(config))
    assert is_from_scratch(*load_student(tmp_path / "new"))
    # A descendant, with another template.
    tokenizer.chat_template = CHATML
    model.save_pretrained(tmp_path / "child")
    tokenizer.save_pretrained(tmp_path / "child")
    assert is_from_scratch(*load_student(tmp_path / "child"))
    stranger = make_tokenizer(special=TURN)
    give_template(stranger)
    assert not is_from_scratch(make_model("qwen3", stranger), stranger)


def test_a_students_own_end_token_stays_alone(tmp_path: Path) -> None:
    init_student(["some text"], 2, 8, "tiny", tmp_path / "new")
    model, tokenizer = load_student(tmp_path / "new")
    set_end_tokens(model, tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
