"""The chat format of a student: the text before an answer, the text after it, and the tokens that end it.

A prompt is the text that the chat template writes before an existing answer. This may differ from the generation
prompt: before an answer, Qwen3 also writes an empty thinking block. SFT, DAPO and every mode of evaluation take their
prompts from here, so that a student is prompted as it was trained. Prompt and answer are tokenized separately, because
in generation the prompt's tokens are fixed before the answer has any.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from store.errors import InputError

Message = Mapping[str, str]

# ChatML. The `generation` block marks the assistant's text, including its end token, so that trainers find the tokens
# to train on. A prompt with the generation prompt is a prefix of the whole conversation, so nothing is tokenized twice.
CHATML = """\
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
# This template is for tokenizers without a token for turns. It only needs an end token.
PLAIN = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{ 'Answer:\\n' }}{%- generation -%}{{ message['content'] + eos_token }}{%- endgeneration -%}
{%- else -%}
{{ message['content'] + '\\n\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'Answer:\\n' }}{%- endif -%}
"""
# Marks a template that gr2 gave to a foreign model, so that the model is not taken for one of gr2's own students.
GIVEN = "{#- gr2 wrote this template, because the tokenizer had none. -#}\n"
# Ends the variables that `fix_variables` wrote into a template.
FIXED = "{#- gr2 wrote the variables above. -#}\n"
TURN = ("<|im_start|>", "<|im_end|>")

# No template has a reason to change these texts.
_SYSTEM, _USER, _ANSWER = "gr2systemtext", "gr2usertext", "gr2answertext"
_PROBE = ({"role": "system", "content": _SYSTEM}, {"role": "user", "content": _USER})


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """How a tokenizer writes conversations of a system text, a user's text and an answer.

    has_system: whether the template has a system role; if not, the system text begins the user's turn. ending: the text
    after an answer. end_id: the first token of `ending` that ends a turn, after which generation stops.
    """

    tokenizer: Any
    has_system: bool
    ending: str
    end_id: int

    @classmethod
    def of(cls, tokenizer: Any) -> "ChatFormat":
        """Find the chat format of a tokenizer that has a chat template (see `give_template`).

        Raises InputError if the template loses a text or fails, if it writes other texts before an answer than without
        an answer, or if no token ends an answer.
        """
        has_system, alone, text = _try_template(tokenizer)
        # Between the user's text and the answer the two may differ, as with Qwen3.
        if alone.partition(_USER)[0] != text.partition(_USER)[0]:
            raise InputError(
                "the tokenizer's chat template renders a prompt differently when an answer follows it, so other "
                "programs would give the model other prompts than it is trained on; use a tokenizer with another chat "
                "template"
            )
        ending = text.rpartition(_ANSWER)[2]
        end_id = next((token for token in _encode(tokenizer, ending) if _is_marker(tokenizer, token)), None)
        if end_id is None:
            # The template ends an answer with plain text or nothing, so generation would not know when to stop.
            _need_end_token(tokenizer, "the model's chat template has no token that ends an answer")
            ending, end_id = tokenizer.eos_token, tokenizer.eos_token_id
        return cls(tokenizer, has_system, ending, int(end_id))

    def prompt(self, messages: Sequence[Message]) -> str:
        """Return the text up to the first character of an answer, including special tokens.

        messages: system and user, in the form of `Template.render`.
        """
        return _render(self.tokenizer, self._arrange(messages)).rpartition(_ANSWER)[0]

    def encode_prompts(self, conversations: Iterable[Sequence[Message]]) -> list[list[int]]:
        """Return the tokens of each prompt."""
        texts = [self.prompt(messages) for messages in conversations]
        # The chat template has written the special tokens. verbose=False, because callers with a limit check the
        # lengths.
        return self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []

    def encode_answers(self, answers: Sequence[str], **options: Any) -> Any:
        """Return the tokenizer's output for answers with their endings, as they should be generated after a prompt."""
        texts = [answer + self.ending for answer in answers]
        return self.tokenizer(texts, add_special_tokens=False, verbose=False, **options)

    def _arrange(self, messages: Sequence[Message]) -> list[Message]:
        return list(messages) if self.has_system else _merge_system(messages)


def give_template(tokenizer: Any) -> None:
    """Give a tokenizer without chat template one that it can write: ChatML if it has the tokens, else a plain one.

    The template is saved with the tokenizer. Raises InputError if the tokenizer has no end token either.
    """
    if tokenizer.chat_template:
        return
    vocabulary = tokenizer.get_vocab()
    if all(token in vocabulary for token in TURN):
        template = CHATML
    else:
        _need_end_token(tokenizer, "the model's tokenizer has no chat template")
        template = PLAIN
    # Models expect the token that begins every text, and a chat template has to write it itself.
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    tokenizer.chat_template = GIVEN + ("{{- bos_token -}}\n" if begins else "") + template


def fix_variables(tokenizer: Any, variables: Mapping[str, Any]) -> None:
    """Write variables, such as enable_thinking, into the chat template, where they override those of callers.

    The template is saved with the tokenizer, so everybody who loads the student renders its prompts with them.
    variables: the chat_template_kwargs of transformers; they replace variables of the same names that were written
    before.

    Raises InputError on a name that is not a valid variable in Jinja.
    """
    for name in variables:
        if not name.isidentifier():
            raise InputError(f"`chat_template_kwargs` has the key {name!r}; keys must be names of template variables")
    # Jinja reads Python's literals.
    written = "".join(f"{{%- set {name} = {value!r} -%}}\n" for name, value in variables.items())
    before, _, template = tokenizer.get_chat_template().rpartition(FIXED)
    tokenizer.chat_template = f"{before}{written}{FIXED}{template}"


def set_end_tokens(model: Any, tokenizer: Any) -> None:
    """Make generation stop at the end of a turn, even with a base model, whose own end token ends a document.

    The model's generation settings are saved with it, so other programs stop there too. A tokenizer without an end
    token gets that of a turn.
    """
    end_id = ChatFormat.of(tokenizer).end_id
    if tokenizer.eos_token_id is None:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end_id)
    end_ids = model.generation_config.eos_token_id
    end_ids = end_ids if isinstance(end_ids, list) else [] if end_ids is None else [end_ids]
    ids = list(dict.fromkeys([end_id, tokenizer.eos_token_id, *end_ids]))
    model.generation_config.eos_token_id = ids if len(ids) > 1 else ids[0]
    # Older releases of transformers would replace settings with this mark by those of the model's config.
    model.generation_config._from_model_config = False
    try:
        model.generation_config.validate(strict=True)
    except ValueError:
        # Some models have a temperature, but do not say that it is for sampling. transformers loads such settings, but
        # refuses to save them once they are changed, which happens at the first checkpoint.
        model.generation_config.do_sample = True


def _try_template(tokenizer: Any) -> tuple[bool, str, str]:
    """Return whether the template has a system role, and how it renders a conversation without and with an answer.

    Raises InputError if it fails or loses a text.
    """
    reason = ""
    for has_system, messages in ((True, list(_PROBE)), (False, _merge_system(_PROBE))):
        try:
            alone = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            text = _render(tokenizer, messages)
        except (jinja2.TemplateError, ValueError, TypeError, LookupError, AttributeError) as error:
            # A foreign template may raise anything. Gemma 2 and Mistral refuse a system role this way.
            reason = f"its error is {str(error).strip()!r}"
            continue
        places = [text.find(_SYSTEM), text.find(_USER), text.rfind(_ANSWER)]
        if -1 not in places and places == sorted(places):
            return has_system, alone, text
        reason = f"it writes {text[:200]!r}"
    raise InputError(
        "the chat template of the model's tokenizer cannot write a system text, a user's text and an answer in this "
        f"order: {reason}; set another `chat_template` in the tokenizer's folder, or delete it to get gr2's own"
    )


def _render(tokenizer: Any, messages: Sequence[Message]) -> str:
    text: str = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": _ANSWER}], tokenize=False)
    return text


def _merge_system(messages: Sequence[Message]) -> list[Message]:
    system = [message["content"] for message in messages if message["role"] == "system"]
    first, *others = [message for message in messages if message["role"] != "system"]
    return [{**first, "content": "\n\n".join([*system, first["content"]])}, *others]


def _encode(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False) if text else []
    return ids


def _is_marker(tokenizer: Any, token: int) -> bool:
    """Whether a token is special or was added to the learned ones. Gemma also added line ends, which end no turn."""
    added = tokenizer.added_tokens_decoder.get(token)
    return token in tokenizer.all_special_ids or (added is not None and bool(added.content.strip()))


def _need_end_token(tokenizer: Any, problem: str) -> None:
    """Raise InputError if the tokenizer has no end token, or does not read it back from a text."""
    if tokenizer.eos_token is None:
        raise InputError(f"{problem}, and there is no end token; set `eos_token` or `chat_template` of the tokenizer")
    if _encode(tokenizer, tokenizer.eos_token)[-1:] != [tokenizer.eos_token_id]:
        raise InputError(
            f"{problem}, and the tokenizer does not read its end token {tokenizer.eos_token!r} from a text; "
            "add it to the tokenizer as a special token, or set `chat_template`"
        )
