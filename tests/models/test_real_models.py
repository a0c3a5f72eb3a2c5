"""First contact with real weights, on a CPU: an encoder for items, and a base model through all stages.

Run by `make test-models`. Few steps teach nothing; what is tested is that every stage takes the model as it comes.
"""

import csv
import gzip
import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer
from typer.testing import CliRunner

from app.cli import cli
from store import Store
from train.sids.hf_embedder import HfEmbedder
from train.students.student import load_student

pytestmark = pytest.mark.models
TEMPLATE = "rerank_ids.v1"
USERS = 100


def gr2(store: Path, *words: object) -> str:
    done = CliRunner().invoke(cli, [*map(str, words), "--store", str(store)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def sample_beauty(source: Path, folder: Path) -> tuple[Path, Path]:
    """Files of the first users of Beauty and of what they bought."""
    with gzip.open(source / "interactions.csv.gz", "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    users = set(islice(dict.fromkeys(row["user_id"] for row in rows), USERS))
    rows = [row for row in rows if row["user_id"] in users]
    bought = {row["item_id"] for row in rows}
    items, interactions = folder / "items.jsonl", folder / "interactions.jsonl"
    with (source / "items.jsonl").open(encoding="utf-8") as file:
        items.write_text("".join(line for line in file if json.loads(line)["item_id"] in bought), encoding="utf-8")
    interactions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return items, interactions


@pytest.fixture(scope="module")
def beauty(real_data: Path, minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a part of Beauty, whose semantic IDs come from MiniLM, and with snapshots of all kinds."""
    folder = tmp_path_factory.mktemp("beauty")
    items, interactions = sample_beauty(real_data / "beauty", folder)
    store = folder / "store"
    gr2(store, "ingest", "beauty", "--items", items, "--interactions", interactions, "--k-core", 1)
    gr2(store, "sids", "make", "beauty", "--embedder", "hf", "--model", minilm)
    gr2(store, "candidates", "beauty")
    gr2(store, "trace", "beauty", "--teacher", "evidence", "--template", TEMPLATE, "--max-attempts", 4, "--limit", 40)
    gr2(store, "snapshot", "publish", "texts", "--dataset", "beauty", "--kind", "midtrain")
    for kind in ("sft", "dapo"):
        where = ("--dataset", "beauty", "--kind", kind, "--template", TEMPLATE, "--splits", "train")
        gr2(store, "snapshot", "publish", f"beauty-{kind}", *where)
    return store


def test_minilm_embeds_titles_by_what_they_mean(minilm: Path) -> None:
    vectors_N_D = HfEmbedder(str(minilm)).embed(["Shampoo for dry hair", "Conditioner for dry hair", "Red nail polish"])
    near_N_N = vectors_N_D @ vectors_N_D.T
    assert near_N_N[0, 1] > 0.6 > near_N_N[0, 2]


def test_semantic_ids_of_its_vectors_are_fit_for_training(beauty: Path, minilm: Path) -> None:
    with Store.open(beauty).reading() as session:
        ((settings, uniqueness),) = session.connection.execute(
            "select settings, uniqueness from sid_versions"
        ).fetchall()
    assert uniqueness >= 0.99
    assert str(minilm) in str(settings)


def test_a_base_model_goes_through_all_stages(beauty: Path, gemma: Path) -> None:
    assert AutoTokenizer.from_pretrained(gemma).chat_template is None
    lora = ("--lora-rank", 4, "--batch-size", 1)
    gr2(
        beauty,
        "train",
        "midtrain",
        "texts",
        "--student",
        gemma,
        "--name",
        "mid",
        *lora,
        "--warmup-steps",
        1,
        "--steps",
        1,
    )
    gr2(beauty, "train", "sft", "beauty-sft", "--student", "mid", "--name", "sft", *lora, "--max-steps", 2)
    rl = ("--lora-rank", 4, "--steps", 1, "--prompts-per-batch", 1, "--num-generations", 2, "--max-tokens", 24)
    told = gr2(beauty, "train", "dapo", "beauty-dapo", "--student", "sft", "--name", "rl", *rl, "--refill-rounds", 0)
    assert "student rl: 1 steps" in told
    model, tokenizer = load_student(beauty / "models" / "students" / "rl")
    assert type(model).__name__ == "Gemma3ForCausalLM"
    assert model.dtype == torch.float32
    assert "<s_a_0>" in tokenizer.get_vocab()
    assert tokenizer.chat_template
    answering = ("--modes", "direct", "--max-tokens", 48, "--limit", 2, "--shuffles", 0)
    told = gr2(beauty, "eval", "beauty", "--student", "rl", "--rankers", "pre-ranker", *answering)
    assert "rl without reasoning" in told
