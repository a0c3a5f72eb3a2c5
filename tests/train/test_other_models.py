"""Models that gr2 did not make, from SFT to evaluation."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from app.cli import cli
from curate.datasets.sources import choose_sources
from curate.snapshots import SnapshotSettings
from curate.snapshots.publishing import publish
from curate.traces.planning import SamplingSettings
from curate.traces.sampling import sample
from curate.traces.target_lists import load_target_lists
from curate.traces.teachers.fitted.scorecard import make_scorecard_teacher
from prompts.tasks import RerankTask
from store import InputError, Store
from tests.train.strangers import (
    CHATML,
    DIGITS,
    GEMMA2,
    JOINED,
    METASPACE,
    QWEN3,
    make_model,
    make_tokenizer,
    save_stranger,
)
from train.dapo.dynamic_sampling import DynamicSamplingTrainer
from train.dapo.rollout_metrics import describe_waste
from train.dapo.training import DapoSettings, train_dapo
from train.inputs import open_inputs
from train.ranking.rerankers import FirstTokenRanker, GeneratingRanker, open_student
from train.sft.training import SftSettings, train_sft
from train.sft.weighted_loss import IGNORED, SftLoss, encode_traces
from train.students.student import load_student

LEVELS = "rerank_levels.v1"
TURN = ("<|im_start|>", "<|im_end|>")


def publish_levels(shop: Store) -> None:
    """Snapshots `levels` (sft) and `level-prompts` (dapo), which show no semantic IDs."""
    sample(
        shop, make_scorecard_teacher(shop, "shop"), SamplingSettings("shop", template=LEVELS, max_attempts=2, limit=30)
    )
    publish(shop, "levels", SnapshotSettings("shop", template=LEVELS, splits=("train",)))
    publish(shop, "level-prompts", SnapshotSettings("shop", kind="dapo", template=LEVELS))


@pytest.fixture
def levels(prepare: Callable[..., Store], built_shop: Path) -> Store:
    """A store of one's own with the snapshots of `publish_levels`."""
    return prepare(built_shop, publish_levels)


def tasks_of(store: Store, limit: int) -> list[RerankTask]:
    with store.reading() as session:
        sources = choose_sources(session, "shop", None, None)
    return [listed.task for listed in load_target_lists(store, "shop", *sources, "test", limit=limit).listed]


def settings_of(store: Store, name: str) -> dict[str, Any]:
    with store.reading() as session:
        ((settings,),) = session.connection.execute(
            "select settings from runs where settings ->> 'name' = ?", [name]
        ).fetchall()
    return dict(json.loads(settings))


@pytest.mark.parametrize("changed", [{}, {"lora_rank": 2}], ids=str)
def test_a_pretrained_model_without_semantic_ids_learns_from_a_template_without_them(
    changed: dict[str, Any], levels: Store, tmp_path: Path
) -> None:
    # Gemma's kind of base model: no chat template, a token that begins each text, and no tokens of semantic IDs.
    begun = save_stranger(tmp_path / "base", "gemma3", make_tokenizer(bos="<bos>"))
    told: list[str] = []
    done = train_sft(
        levels, "levels", begun, "taught", SftSettings(max_steps=1, batch_size=2, **changed), on_progress=told.append
    )
    assert f"{begun}: adamw, learning rate 1e-05" in told
    facts = settings_of(levels, "taught")
    assert (
        (facts["optimizer"], facts["learning_rate"])
        == ("adamw", 1e-5)
        == (
            done.settings["optimizer"],
            done.settings["learning_rate"],
        )
    )
    model, tokenizer = load_student(done.folder)
    assert "<|sid_begin|>" not in tokenizer.get_vocab()
    assert model.get_input_embeddings().num_embeddings == make_model("gemma3", tokenizer).config.vocab_size
    assert not open_inputs(levels, "sft", "levels", "taught").from_scratch


def test_settings_that_were_chosen_win_over_those_of_the_kind_of_model() -> None:
    assert SftSettings().resolve(from_scratch=True) == SftSettings(optimizer="muon", learning_rate=5e-3)
    assert SftSettings(optimizer="muon").resolve(from_scratch=False).optimizer == "muon"
    assert SftSettings(learning_rate=0.0).resolve(from_scratch=False).learning_rate == 0.0
    assert SftSettings(lora_rank=4).resolve(from_scratch=True).optimizer == "adamw"
    assert DapoSettings().resolve(from_scratch=True).learning_rate == 1e-4
    assert DapoSettings().resolve(from_scratch=False).learning_rate == 1e-6
    assert DapoSettings(learning_rate=1e-5).resolve(from_scratch=False).learning_rate == 1e-5


def test_a_snapshot_that_shows_semantic_ids_says_how_to_add_them(inputs: Store, tmp_path: Path) -> None:
    begun = save_stranger(tmp_path / "base", "gpt2", make_tokenizer())
    with pytest.raises(InputError) as error:
        train_sft(inputs, "traces", begun, "x", SftSettings(max_steps=1))
    assert "has no token <|sid_begin|>" in str(error.value)
    assert "gr2 snapshot publish shop-texts --dataset shop --kind midtrain" in str(error.value)
    assert f"gr2 train midtrain shop-texts --student {begun} --name base-mid" in str(error.value)


def a_model_that_only_ends_turns(tokenizer: Any) -> Any:
    """Whatever it reads, its next token ends the turn."""
    model = make_model("llama", tokenizer)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    with torch.no_grad():
        # Every hidden state is about the same vector of ones, and only the row of `end` points there.
        model.get_input_embeddings().weight.add_(1.0)
        model.get_output_embeddings().weight.zero_()
        model.get_output_embeddings().weight[end] = 5.0
    return model


def test_a_base_model_whose_template_ends_turns_stops_there_in_dapo_and_evaluation(
    levels: Store, tmp_path: Path
) -> None:
    tokenizer = make_tokenizer(special=TURN, template=CHATML)
    a_model_that_only_ends_turns(tokenizer).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    settings = DapoSettings(steps=1, prompts_per_batch=2, num_generations=2, max_tokens=8, refill_rounds=0)
    done = train_dapo(levels, "level-prompts", str(tmp_path / "base"), "rl", settings)
    assert done.figures["completions/clipped_ratio"] == 0.0
    assert done.figures["completions/mean_length"] == 1.0
    assert settings_of(levels, "rl")["learning_rate"] == 1e-6
    ranker = GeneratingRanker(open_student(levels, "rl"), max_tokens=8)
    tasks = tasks_of(levels, 2)
    # The token that ends the turn is written too.
    read = [len(prompt) for prompt in ranker.student.prompts(tasks)]
    assert ranker.complete(tasks) == [("", read[0], 1), ("", read[1], 1)]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end in json.loads((done.folder / "generation_config.json").read_text())["eos_token_id"]


@pytest.mark.slow
@pytest.mark.parametrize("refill_rounds", [0, 1])
def test_batches_that_teach_nothing_say_so(refill_rounds: int, levels: Store, tmp_path: Path) -> None:
    # With random weights nothing ends a turn within two tokens.
    begun = save_stranger(tmp_path / "base", "gpt2", make_tokenizer())
    told: list[str] = []
    settings = DapoSettings(steps=1, prompts_per_batch=2, num_generations=2, max_tokens=2, refill_rounds=refill_rounds)
    done = train_dapo(levels, "level-prompts", begun, "rl", settings, on_progress=told.append)
    assert told[-1].endswith("; nothing learned: every completion was cut off at max_tokens")
    assert done.figures["completions/clipped_ratio"] == 1.0
    assert done.figures.get("refill/empty", 1.0) == 1.0


def test_the_remark_on_batches_tells_what_went_wrong() -> None:
    cut = {"completions/clipped_ratio": 1.0, "refill/empty": 1.0}
    assert describe_waste(cut) == "nothing learned: every completion was cut off at max_tokens"
    alike = {"completions/clipped_ratio": 0.5, "refill/empty": 1.0}
    assert describe_waste(alike) == "nothing learned: no group has completions of different outcomes"
    assert describe_waste({"frac_reward_zero_std": 1.0}) == describe_waste(alike)
    assert describe_waste({"refill/empty": 0.25, "frac_reward_zero_std": 1.0}) == "25% of batches gave no gradient"
    assert describe_waste({"refill/empty": 0.0, "completions/clipped_ratio": 0.0}) == ""


def test_sft_dapo_and_every_mode_of_evaluation_read_the_same_prompt(levels: Store, tmp_path: Path) -> None:
    begun = save_stranger(
        tmp_path / "qwen", "qwen3", make_tokenizer(special=(*TURN, "<think>", "</think>"), template=QWEN3)
    )
    _, rows, _, tokenizer, vocabulary, _ = open_inputs(levels, "sft", "levels", begun)
    assert vocabulary is None
    encoded = encode_traces(rows, tokenizer, SftLoss(), max_tokens=2048)
    trained = [
        [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label == IGNORED]
        for row in encoded
    ]
    assert tokenizer.decode(trained[0]).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")

    student = open_student(levels, begun, LEVELS)
    assert student.chat.encode_prompts(rows["prompt"]) == trained
    read: list[list[int]] = []

    def watch(_: Any, __: Any, kwargs: dict[str, Any]) -> None:
        if kwargs["input_ids"].shape[1] > 1:
            read.extend(kwargs["input_ids"].tolist())

    student.model.register_forward_pre_hook(watch, with_kwargs=True)
    (task,) = tasks_of(levels, 1)
    (prompt,) = student.prompts([task])
    GeneratingRanker(student, max_tokens=2).rank([task])
    GeneratingRanker(student, reasoning=False, max_tokens=2).rank([task])
    FirstTokenRanker(student).rank([task])
    assert len(read) >= 3
    assert all(ids[: len(prompt)] == prompt for ids in read)

    settings = DapoSettings(steps=1, prompts_per_batch=1, num_generations=2, max_tokens=2, refill_rounds=0)
    seen: list[str] = []

    original = DynamicSamplingTrainer._generate_single_turn

    def generate(self: Any, prompt_ids: list[list[int]], *others: Any) -> Any:
        seen.extend(self.processing_class.decode(ids) for ids in prompt_ids)
        return original(self, prompt_ids, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DynamicSamplingTrainer, "_generate_single_turn", generate)
        train_dapo(levels, "level-prompts", begun, "rl", settings)
    assert seen
    assert all(text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n") for text in seen)


def log_probability(student: Any, prompt: list[int], answer: list[int], after: int, until: int) -> float:
    """Of the answer's tokens from `after` to before `until`, in one row and without padding."""
    with torch.no_grad():
        log_probs = student.model(torch.tensor([[*prompt, *answer]])).logits[0].double().log_softmax(-1)
    return sum(float(log_probs[len(prompt) + place - 1, answer[place]]) for place in range(after, until))


@pytest.mark.parametrize(
    ("kind", "pieces", "bos"),
    [
        ("gpt2", DIGITS, None),
        ("qwen3", JOINED, None),
        ("llama", METASPACE, "<s>"),
        ("gemma3", DIGITS, "<bos>"),
    ],
    ids=["GPT-2, by digit", "Qwen3, brackets joined", "Llama, spaces for words", "Gemma, by digit"],
)
def test_the_first_token_ranks_by_the_probability_of_whole_numbers(
    kind: str, pieces: Any, bos: str | None, levels: Store, tmp_path: Path
) -> None:
    template = GEMMA2 if kind == "gemma3" else None
    tokenizer = make_tokenizer(pieces, bos=bos, template=template, special=("<start_of_turn>", "<end_of_turn>"))
    student = open_student(levels, save_stranger(tmp_path / "base", kind, tokenizer), LEVELS)
    tasks = tasks_of(levels, 3)
    for task, ranked in zip(tasks, FirstTokenRanker(student).rank(tasks), strict=True):
        assert len(task.candidates) == 10
        (prompt,) = student.prompts([task])
        answers = student.direct_answers(task)
        texts = [student.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in answers]
        assert texts == [f'{{"explanation":"","recommendations":[{number},1]}}' for number in range(1, 11)]
        # The part that all answers share, and for each the first place where it is like no other.
        after = next(place for place in range(99) if len({ids[place] for ids in answers}) > 1)
        scores = []
        for ids in answers:
            others = [other for other in answers if other is not ids]
            until = next(place for place in range(after, 99) if all(o[: place + 1] != ids[: place + 1] for o in others))
            scores.append(log_probability(student, prompt, ids, after, until + 1))
        assert torch.tensor(scores).exp().sum() <= 1.0
        expected = sorted(range(10), key=lambda place: -scores[place])
        assert list(ranked.item_ids) == [task.candidates[place].item.item_id for place in expected]


def test_a_direct_answer_goes_on_from_the_tokens_that_it_was_trained_on(levels: Store, tmp_path: Path) -> None:
    for number, pieces in enumerate((DIGITS, JOINED, METASPACE)):
        begun = save_stranger(tmp_path / str(number), "llama", make_tokenizer(pieces))
        student = open_student(levels, begun, LEVELS)
        ranker = GeneratingRanker(student, reasoning=False, max_tokens=3)
        for answer in ranker.complete(tasks_of(levels, 3)):
            assert answer.text.strip().startswith('{"explanation":"","recommendations":')


def test_a_prompt_that_a_model_cannot_hold_is_a_clear_error(levels: Store, tmp_path: Path) -> None:
    student = open_student(levels, save_stranger(tmp_path / "base", "gpt2", make_tokenizer()), LEVELS)
    task = tasks_of(levels, 1)
    (prompt,) = student.prompts(task)
    with pytest.raises(InputError, match=f"has {len(prompt):,} tokens; with answers of up to 1,000 that is more than"):
        GeneratingRanker(student, max_tokens=1000).rank(task)


def test_a_student_of_somebody_else_takes_part_in_an_evaluation(levels: Store, tmp_path: Path) -> None:
    begun = save_stranger(tmp_path / "base", "gpt2", make_tokenizer())
    words = [
        "eval",
        "shop",
        "--student",
        begun,
        "--student-template",
        LEVELS,
        "--modes",
        "reasoning,direct,first-token",
    ]
    done = CliRunner().invoke(
        cli,
        [
            *words,
            "--rankers",
            "evidence",
            "--limit",
            "4",
            "--shuffles",
            "0",
            "--max-tokens",
            "4",
            "--store",
            str(levels.folder),
        ],
    )
    assert done.exit_code == 0, done.output
    refused = make_tokenizer(template="{{ raise_exception('only tools') }}")
    words[3] = save_stranger(tmp_path / "refused", "gpt2", refused)
    done = CliRunner().invoke(cli, [*words, "--rankers", "evidence", "--limit", "4", "--store", str(levels.folder)])
    assert isinstance(done.exception, InputError)
    assert "a user's text and an answer in this order: its error is 'only tools'" in str(done.exception)
