"""Students: small models from scratch, for datasets and machines of any size, and any other that transformers loads.

Owns the architecture (Qwen3's, as the GR2 paper's student has), sizes, tokenizer and chat format of a new student. It
learns its pieces of text from rendered prompts and completions; where these come from it does not know.
"""

import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from store.errors import InputError
from store.temporary import temporary_folder
from train.students.vocabulary import ROWS_MULTIPLE, add_tokens

PAD = "<|endoftext|>"
START = "<|im_start|>"
END = "<|im_end|>"
MAX_TOKENS = 4096

# ChatML. What the assistant says, its end included, is marked, so that trainers find the tokens to learn; and the
# prompt with the generation prompt is a prefix of the whole, so that they need no second tokenization.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{ message['content'] + '<|im_end|>' }}{%- endgeneration -%}
{%- else -%}
{{ message['content'] + '<|im_end|>' }}
{%- endif -%}
{{ '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""

# A letter and a count (a7), which short prompts are made of; words with the blank before them, numbers by at most two
# digits, signs, line ends with the indent after them, blanks. Any other number looks the same after a blank, a word or
# a sign, so that it can be copied.
_PIECE = r" ?[a-z]\p{N}{1,2}(?![\p{L}\p{N}])| ?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|[\r\n]+ *|\s+(?!\S)|\s+"
# Learned as one piece each, whatever the texts.
_ALWAYS = ["system", "user", "assistant", *(f"{number:02}" for number in range(100))]
# Tokens of the vocabulary, which are no text: semantic IDs, chat marks and thinking marks.
_TOKEN = re.compile(r"<\|\w+\|>|<s_[a-z]_\d+>|</?think>")


@dataclass(frozen=True, slots=True)
class StudentSize:
    """What a size means: widths, layers and heads of the model; text_tokens: pieces of text learned at most."""

    hidden: int
    layers: int
    heads: int
    head_dim: int
    intermediate: int
    text_tokens: int


SIZES = {
    "tiny": StudentSize(hidden=128, layers=4, heads=4, head_dim=32, intermediate=256, text_tokens=1_500),
    "small": StudentSize(hidden=256, layers=6, heads=8, head_dim=32, intermediate=768, text_tokens=4_000),
    "base": StudentSize(hidden=512, layers=8, heads=8, head_dim=64, intermediate=1536, text_tokens=8_000),
}


@dataclass(frozen=True, slots=True)
class StudentSummary:
    """A new student. parameters: tied ones count once. text_tokens, sid_tokens: in its vocabulary."""

    folder: Path
    size: str
    parameters: int
    text_tokens: int
    sid_tokens: int
    seconds: float


def init_student(
    texts: Iterable[str], sid_levels: int, codebook_size: int, size: str, folder: Path, *, seed: int = 0
) -> StudentSummary:
    """Make a student that has learned nothing yet: random weights, and a tokenizer fitted to the texts.

    texts: prompts and completions such as it will see. size: one of SIZES. folder: new or empty; transformers loads
    the student from it. The same arguments give the same bytes.

    Raises InputError on an unknown size, no text, or a folder that holds something.
    """
    started = time.perf_counter()
    if size not in SIZES:
        raise InputError(f"`size` is {size!r}; it must be one of {', '.join(SIZES)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there already and not empty; give the new student another folder")
    shape = SIZES[size]
    tokenizer = _train_tokenizer(texts, shape.text_tokens)
    text_tokens = len(tokenizer)
    vocabulary = add_tokens(tokenizer, sid_levels, codebook_size)
    model = _random_model(shape, tokenizer, seed)
    with temporary_folder(folder.absolute().parent) as temporary:
        # A folder inside, because a temporary folder is its owner's alone to read.
        staged = temporary / "student"
        model.save_pretrained(staged)
        tokenizer.save_pretrained(staged)
        staged.replace(folder)
    return StudentSummary(
        folder=folder,
        size=size,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        text_tokens=text_tokens,
        sid_tokens=vocabulary.code_ids_L_C.numel() + 2,
        seconds=time.perf_counter() - started,
    )


def load_student(path: Path | str) -> tuple[Any, Any]:
    """Model and tokenizer of any causal language model, from a folder or the hub, in the precision it was saved in.

    A tokenizer without padding token pads with the end token. Raises InputError where transformers cannot load them.
    """
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(path)
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"transformers cannot load a causal language model from {str(path)!r}: {error}") from error
    if not tokenizer.encode("a", add_special_tokens=False):
        # Where there is no tokenizer, transformers makes up an empty one.
        raise InputError(f"there is no tokenizer with the model in {str(path)!r}; save it into the same folder")
    if tokenizer.pad_token is None:
        # Padding is masked, so that any token serves.
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def best_device() -> str:
    """Where a model answers fastest: a GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _train_tokenizer(texts: Iterable[str], text_tokens: int) -> Any:
    """Byte-level BPE that writes every text back as it was."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECE), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=text_tokens,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_passages(texts), trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[START],
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_TOKENS,
        clean_up_tokenization_spaces=False,
    )


def _passages(texts: Iterable[str]) -> Iterator[str]:
    """What stands between tokens in the texts; after each text come the pieces that are to be learned in any case.

    Raises InputError where there is no text.
    """
    is_empty = True
    for text in texts:
        is_empty = False
        yield from _TOKEN.split(text)
        yield from _ALWAYS
    if is_empty:
        raise InputError("there is no text to learn a vocabulary from; a student needs prompts and completions")


def _random_model(shape: StudentSize, tokenizer: Any, seed: int) -> Any:
    config = Qwen3Config(
        vocab_size=-(-len(tokenizer) // ROWS_MULTIPLE) * ROWS_MULTIPLE,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        head_dim=shape.head_dim,
        max_position_embeddings=MAX_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config)
