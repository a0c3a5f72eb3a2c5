"""Students: small models made from scratch, and any causal language model that transformers loads.

This module owns the architecture (Qwen3, as in the GR2 paper), the sizes, the tokenizer and the chat format of a new
student. The tokenizer is learned from rendered prompts and completions. The module does not know where those come from.
"""

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from store.errors import InputError
from store.temporary import temporary_folder
from train.students.chat import CHATML, TURN, fix_variables, give_template, set_end_tokens
from train.students.settings import InitSettings
from train.students.vocabulary import ROWS_MULTIPLE, add_tokens

PAD = "<|endoftext|>"
START, END = TURN
MAX_TOKENS = 4096
# The mark of a student from scratch in its config. transformers saves it with every model trained from the student.
FROM_SCRATCH = "gr2_from_scratch"
DEFAULTS = InitSettings()

# The alternatives, in this order: a letter with a count (a7), which compact prompts consist of; words with the space
# before them; numbers in groups of at most two digits; punctuation; line ends with the indent that follows; spaces.
# Digits never include a space, so a number has the same tokens everywhere, and the student can copy it.
_PIECE = r" ?[a-z]\p{N}{1,2}(?![\p{L}\p{N}])| ?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+|[\r\n]+ *|\s+(?!\S)|\s+"
# Each of these becomes one token for all texts.
_ALWAYS = ["system", "user", "assistant", *(f"{number:02}" for number in range(100))]
# Special tokens, which are not text to learn from: semantic IDs, chat markers and thinking markers.
_TOKEN = re.compile(r"<\|\w+\|>|<s_[a-z]_\d+>|</?think>")


@dataclass(frozen=True, slots=True)
class StudentSize:
    """The dimensions of a student. text_tokens: the maximum size of the learned vocabulary, without semantic IDs."""

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
    """A new student.

    parameters: their number, with tied ones counted once. text_tokens, sid_tokens: the parts of its vocabulary.
    """

    folder: Path
    size: str
    parameters: int
    text_tokens: int
    sid_tokens: int
    seconds: float


def init_student(
    texts: Iterable[str],
    sid_levels: int,
    codebook_size: int,
    size: str,
    folder: Path,
    *,
    rope_theta: float = DEFAULTS.rope_theta,
    seed: int = DEFAULTS.seed,
) -> StudentSummary:
    """Create an untrained student: random weights, and a tokenizer that is fitted to the texts.

    texts: prompts and completions like those in training. size: one of SIZES. folder: must be missing or empty;
    transformers can load the student from it. rope_theta: base of the rotary position embedding. The same arguments
    give the same bytes.

    Raises InputError on an unknown size, if there are no texts, or if the folder is not empty.
    """
    started = time.perf_counter()
    if size not in SIZES:
        raise InputError(f"`size` is {size!r}; it must be one of {', '.join(SIZES)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not empty; choose another folder for the new student")
    shape = SIZES[size]
    tokenizer = _train_tokenizer(texts, shape.text_tokens)
    text_tokens = len(tokenizer)
    vocabulary = add_tokens(tokenizer, sid_levels, codebook_size)
    model = _random_model(shape, tokenizer, rope_theta, seed)
    with temporary_folder(folder.absolute().parent) as temporary:
        # The student is staged in a subfolder, because a temporary folder itself is readable only by its owner.
        staged = temporary / "student"
        model.save_pretrained(staged)
        tokenizer.save_pretrained(staged)
        staged.replace(folder)
    return StudentSummary(
        folder=folder,
        size=size,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        text_tokens=text_tokens,
        # The two further tokens are the begin and the end token.
        sid_tokens=vocabulary.code_ids_L_C.numel() + 2,
        seconds=time.perf_counter() - started,
    )


def load_student(
    path: Path | str,
    *,
    dtype: torch.dtype | Literal["auto"] = "auto",
    attn_implementation: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> tuple[Any, Any]:
    """Load model and tokenizer of any causal language model from a folder or the hub.

    dtype: "auto" means the precision of the saved weights. attn_implementation: None leaves it to transformers.
    chat_template_kwargs: variables of the chat template, which are saved with the tokenizer (`fix_variables`).

    A tokenizer without chat template gets one (`train.students.chat`), and one without padding token pads with its end
    token. Generation stops at the end of a turn.

    Raises InputError if transformers cannot load them, or if the tokenizer cannot write conversations.
    """
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(path)
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation=attn_implementation)
    except (ImportError, OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(f"transformers cannot load a causal language model from {str(path)!r}: {error}") from error
    if not tokenizer.encode("a", add_special_tokens=False):
        # transformers creates an empty tokenizer if the folder has none.
        raise InputError(f"there is no tokenizer with the model in {str(path)!r}; save it into the same folder")
    give_template(tokenizer)
    if chat_template_kwargs:
        fix_variables(tokenizer, chat_template_kwargs)
    set_end_tokens(model, tokenizer)
    if tokenizer.pad_token is None:
        # Any token will do, because padding is masked.
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def is_from_scratch(model: Any, tokenizer: Any) -> bool:
    """Whether `init_student` made this model or the one that it descends from. Any other model is pretrained."""
    # Students of gr2 0.1 have no mark. Only `init_student` gives a tokenizer exactly this template.
    return bool(getattr(model.config, FROM_SCRATCH, False)) or tokenizer.chat_template == CHATML


def most_tokens(model: Any) -> int:
    """Return the maximum number of tokens that a model reads, or 2**31 if its config does not say."""
    # A model that also reads images keeps the settings of its text in a separate config.
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31)


def has_static_cache(model: Any) -> bool:
    """Whether `generate` should keep keys and values in a static cache, which is allocated once.

    A dynamic cache is copied for each new token, which takes a third of the time of a small model on a CPU.
    transformers has static caches for models that can be compiled.
    """
    return model.device.type == "cpu" and getattr(model, "_can_compile_fullgraph", False)


def best_device() -> str:
    """The name of the fastest device for PyTorch: "cuda" if there is a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _train_tokenizer(texts: Iterable[str], text_tokens: int) -> Any:
    """Train a byte-level BPE tokenizer, which decodes every text to exactly the original."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECE), behavior="isolated"),
            # The split above replaces ByteLevel's own, and a prefix space would not survive decoding.
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=text_tokens,
        special_tokens=[PAD, START, END],
        # The alphabet has all 256 bytes, so that a text unlike the training texts can be encoded too.
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_passages(texts), trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[START],
        chat_template=CHATML,
        model_max_length=MAX_TOKENS,
        clean_up_tokenization_spaces=False,
    )


def _passages(texts: Iterable[str]) -> Iterator[str]:
    """Yield the passages between special tokens of each text, each text followed by the pieces of _ALWAYS.

    Raises InputError if there are no texts.
    """
    # `texts` may be a generator, so its emptiness shows only when it has been read.
    is_empty = True
    for text in texts:
        is_empty = False
        yield from _TOKEN.split(text)
        # They appear once per text, which makes them frequent enough for BPE to merge each into one token.
        yield from _ALWAYS
    if is_empty:
        raise InputError("there is no text to learn a vocabulary from; pass prompts and completions")


def _random_model(shape: StudentSize, tokenizer: Any, rope_theta: float, seed: int) -> Any:
    config = Qwen3Config(
        # The size is rounded up to the next multiple.
        vocab_size=-(-len(tokenizer) // ROWS_MULTIPLE) * ROWS_MULTIPLE,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        head_dim=shape.head_dim,
        max_position_embeddings=MAX_TOKENS,
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
        # In a model this small, a separate head would hold a large part of all parameters.
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    setattr(config, FROM_SCRATCH, True)
    # This keeps the caller's random state.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config)
