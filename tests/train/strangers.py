"""Models and tokenizers of the kinds that other people bring: small, but real ones of transformers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from prompts.completion import render_completion

# Shortened from the templates that come with these models.
QWEN3 = """\
{%- for message in messages -%}
{%- if message.role == 'assistant' and loop.last -%}
{{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' + message.content.lstrip('\\n') + '<|im_end|>\\n' -}}
{%- else -%}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if enable_thinking is defined and enable_thinking is false -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}
{%- endif -%}
"""
CHATML = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
GEMMA2 = """\
{{- bos_token -}}
{%- if messages[0]['role'] == 'system' -%}{{- raise_exception('System role not supported') -}}{%- endif -%}
{%- for message in messages -%}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') -}}
{%- endif -%}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
{{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}
"""
# Without a word, it leaves the system's text out where an answer follows.
MISTRAL = """\
{%- if messages[0]['role'] == 'system' -%}
{%- set system, messages = messages[0]['content'], messages[1:] -%}
{%- endif -%}
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}
{%- if loop.last and system is defined -%}
{{- '[INST] ' + system + '\\n\\n' + message['content'] + ' [/INST]' -}}
{%- else -%}
{{- '[INST] ' + message['content'] + ' [/INST]' -}}
{%- endif -%}
{%- else -%}
{{- ' ' + message['content'] | trim + eos_token -}}
{%- endif -%}
{%- endfor -%}
"""
# It begins a thinking block where an answer is to be generated, and leaves it out of answers.
R1 = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{{- message['content'] -}}{%- endif -%}
{%- if message['role'] == 'user' -%}{{- '<|User|>' + message['content'] -}}{%- endif -%}
{%- if message['role'] == 'assistant' -%}{{- '<|Assistant|>' + message['content'] + eos_token -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|Assistant|><think>\\n' -}}{%- endif -%}
"""
TEXTS = [
    *(render_completion("", [number, 1, *range(2, 12)]) for number in range(1, 21)),
    *(
        f"s{number} w{number} l{number} Re-rank for the next purchase. Answer user system assistant."
        for number in range(9)
    ),
]
# How pieces of text may become tokens: by digit as Qwen, with brackets and numbers joined, or with spaces for words.
DIGITS = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
)
JOINED = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Split(Regex(r" ?\p{L}+|[^\s\p{L}]\p{N}*|\s+"), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
)
METASPACE = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first"),
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.Punctuation(),
    ]
)


def make_tokenizer(
    pieces: Any = DIGITS,
    *,
    special: Sequence[str] = (),
    template: str | None = None,
    eos: str | None = "<|endoftext|>",
    bos: str | None = None,
    tokens: int = 600,
) -> Any:
    """A tokenizer learned from TEXTS. bos: also begins every text that is encoded, as with Llama and Gemma."""
    backend = Tokenizer(models.BPE(byte_fallback=False, unk_token=None))
    backend.pre_tokenizer = pieces
    backend.decoder = decoders.Metaspace(prepend_scheme="first") if pieces is METASPACE else decoders.ByteLevel()
    letters = [chr(code) for code in range(32, 127)] + ["\n", "▁"]
    trainer = trainers.BpeTrainer(
        vocab_size=tokens,
        special_tokens=[token for token in (eos, bos, *special) if token],
        initial_alphabet=letters if pieces is METASPACE else pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=eos, bos_token=bos, extra_special_tokens=list(special)
    )
    tokenizer.chat_template = template
    return tokenizer


def make_model(kind: str, tokenizer: Any, *, seed: int = 0) -> Any:
    """A tiny model with random weights: llama, gemma3, qwen3 or gpt2."""
    torch.manual_seed(seed)
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id, "pad_token_id": None}
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, **ends))
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        **ends,
    }
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**shape))
    if kind == "gemma3":
        return Gemma3ForCausalLM(Gemma3TextConfig(head_dim=16, sliding_window=1024, **shape))
    return Qwen3ForCausalLM(Qwen3Config(head_dim=16, **shape))


def save_stranger(folder: Path, kind: str, tokenizer: Any, **options: Any) -> str:
    """Save a model with its tokenizer. Returns the folder, as `--student` takes it."""
    make_model(kind, tokenizer, **options).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
