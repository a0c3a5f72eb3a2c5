import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM
from trl.generation.vllm_generation import VLLMGeneration

from tests.train.strangers import make_model, make_tokenizer
from train.dapo.dynamic_sampling import synced_weights
from train.saving import plain_weights, save_plain
from train.students.lora import make_lora
from train.students.vocabulary import add_vocabulary

# peft sets it itself.
pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")
# Embedding and head are one matrix in all but Qwen3. GPT-2 keeps its matrices transposed.
KINDS = ["qwen3", "gemma3", "gpt2"]


def adapted(kind: str, *, dtype: torch.dtype = torch.float32) -> Any:
    """A model with LoRA and new rows, all of whose adapters differ from where they began."""
    tokenizer = make_tokenizer()
    model = make_model(kind, tokenizer)
    vocabulary = add_vocabulary(model, tokenizer, 2, 4)
    lora = make_lora(model.to(dtype), vocabulary, rank=2, alpha=4)
    with torch.no_grad():
        for weight in lora.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.05)
    return lora


def merged_by_peft(lora: Any) -> Any:
    """peft's own plain model, merged in float32."""
    return copy.deepcopy(lora).float().merge_and_unload()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_plain_weights_are_those_that_peft_merges_and_the_model_stays_as_it_is(kind: str, dtype: torch.dtype) -> None:
    lora = adapted(kind, dtype=dtype)
    before = {name: weight.clone() for name, weight in lora.state_dict().items()}
    expected = dict(merged_by_peft(lora).named_parameters())
    plain = dict(plain_weights(lora))
    assert plain.keys() == expected.keys()
    for name, weight in plain.items():
        torch.testing.assert_close(weight, expected[name].detach(), rtol=1e-6, atol=1e-6)
    assert all(torch.equal(weight, before[name]) for name, weight in lora.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_a_plain_model_in_float32(kind: str, tmp_path: Path) -> None:
    lora = adapted(kind, dtype=torch.bfloat16)
    save_plain(lora, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert loaded.config.tie_word_embeddings == (kind != "qwen3")
    saved, expected = dict(loaded.named_parameters()), dict(plain_weights(lora))
    assert saved.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in saved.items())
    assert {weight.dtype for weight in saved.values()} == {torch.float32}


def test_adapters_of_a_bfloat16_base_are_float32() -> None:
    lora = adapted("qwen3", dtype=torch.bfloat16)
    trained = {name: weight for name, weight in lora.named_parameters() if weight.requires_grad}
    assert any("trainable_tokens_" in name for name in trained)
    assert {weight.dtype for weight in trained.values()} == {torch.float32}
    assert lora.dtype == torch.bfloat16


class RecordingClient:
    """Takes the place of TRL's client of a vLLM server."""

    def update_named_params(self, metadata: Any, weights: Any) -> None:
        self.metadata, self.weights = metadata, {name: weight.clone() for name, weight in weights}

    def reset_prefix_cache(self) -> None:
        pass


@pytest.mark.parametrize("kind", ["qwen3", "gemma3"])
def test_vllm_receives_plain_names_and_merged_weights(kind: str) -> None:
    lora = adapted(kind, dtype=torch.bfloat16)
    # Its constructor would want vLLM and a server.
    generation: Any = object.__new__(VLLMGeneration)
    generation.mode, generation._weight_metadata, generation.vllm_client = "server", None, RecordingClient()
    generation.model, generation.accelerator = lora, Accelerator(cpu=True)
    generation._iter_named_params = lambda: synced_weights(lora)
    generation.sync_weights()
    expected = dict(merged_by_peft(lora).named_parameters())
    sent = generation.vllm_client.weights
    assert sent.keys() == expected.keys()
    assert [name for name, _, _ in generation.vllm_client.metadata] == list(sent)
    for (name, dtype, shape), weight in zip(generation.vllm_client.metadata, sent.values(), strict=True):
        assert (f"torch.{dtype}", shape) == (str(weight.dtype), list(weight.shape)) == ("torch.bfloat16", shape)
        torch.testing.assert_close(weight, expected[name].detach().to(torch.bfloat16))


SHARDED = """
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from tests.train.test_saving import adapted
from tests.train.strangers import make_model, make_tokenizer
from train.runs import is_main_process
from train.saving import save_plain

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (2,))
for kind in ("plain", "lora"):
    model = make_model("qwen3", make_tokenizer()) if kind == "plain" else adapted("qwen3")
    causal = model.get_base_model() if kind == "lora" else model
    for layer in causal.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    ids = torch.arange(12).reshape(2, 6)
    model(input_ids=ids, labels=ids).loss.backward()
    torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.1).step()
    save_plain(model, Path(sys.argv[1]) / kind if is_main_process() else None)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_a_model_sharded_over_two_processes_is_saved_whole(tmp_path: Path) -> None:
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    subprocess.run(
        [*launch, str(script), str(tmp_path)],
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    for kind in ("plain", "lora"):
        alone = make_model("qwen3", make_tokenizer()) if kind == "plain" else adapted("qwen3")
        ids = torch.arange(12).reshape(2, 6)
        alone(input_ids=ids, labels=ids).loss.backward()
        torch.optim.SGD([weight for weight in alone.parameters() if weight.requires_grad], lr=0.1).step()
        expected = dict(plain_weights(alone))
        loaded = dict(AutoModelForCausalLM.from_pretrained(tmp_path / kind).named_parameters())
        assert loaded.keys() == expected.keys()
        for name, weight in loaded.items():
            torch.testing.assert_close(weight.detach(), expected[name], rtol=1e-5, atol=1e-6)
