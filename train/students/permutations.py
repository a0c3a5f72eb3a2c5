"""Answers that are permutations by construction: after the reasoning, only candidates not yet named may follow.

An answer has the canonical form of `prompts.completion.render_completion`. Its frame is fixed, the explanation is any
text of a JSON string, and the ranking names each candidate once. The set of tokens that may follow depends on the
candidates and on the tokens so far. It is found from the tokens of whole answers, as a student writes them, so that a
constrained student writes its usual tokens. When only as many tokens are left as a ranking needs, the explanation must
end.

The policy that samples under these sets is the student's, renormalised over the allowed tokens:

    pi_c(a | s) = pi(a | s) / sum of pi(b | s) over the allowed b

Training must use the log-probabilities of that policy (`constrained_log_probs`). Those of the student alone would push
tokens without a choice, such as the brackets, up and down with the reward.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson
import torch
from torch import Tensor
from transformers import LogitsProcessor

from prompts.completion import render_completion
from store.errors import InputError
from train.students.chat import ChatFormat

Name = int | str

_EMPTY = render_completion("", [])
# The answer up to the first character of the explanation, from its closing quote to the first name, and after the last.
HEAD, _REST = _EMPTY[: _EMPTY.index('""') + 1], _EMPTY[_EMPTY.index('""') + 1 :]
MIDDLE, END = _REST[:-2], _REST[-2:]
# A part of a JSON string. A backslash alone is not a part, because the characters after it would have to be checked
# with it.
_TEXT = r'(?:[^"\\\x00-\x1f]|\\["\\/bfnrt])*'
_CLOSING = re.compile(f'({_TEXT})(".*)', re.DOTALL)
_INSIDE = re.compile(_TEXT)
# This is written before a token, so that its text is that of a token within a text.
_ANCHOR = "a"


@dataclass(slots=True)
class _Node:
    """A node in the tree of tokens that may follow. name: the candidate that is complete here, or None.

    inside: whether the explanation begins here. done: whether the answer ends here.
    """

    children: dict[int, "_Node"] = field(default_factory=dict)
    name: Name | None = None
    inside: bool = False
    done: bool = False

    def add(self, tokens: Sequence[int]) -> "_Node":
        node = self
        for token in tokens:
            node = node.children.setdefault(token, _Node())
        return node


@dataclass(frozen=True, slots=True)
class _State:
    """The state of a row: its node, and the names that are left. node: None inside the explanation."""

    node: _Node | None
    left: tuple[Name, ...]


class PermutationGrammar:
    """The tokens of canonical answers, for one tokenizer and one way to name candidates.

    names: any two names of candidates, numbers or semantic IDs. Raises InputError if the tokenizer joins a name with
    the characters beside it, so that the name has no separate tokens.
    """

    def __init__(self, chat: ChatFormat, names: tuple[Name, Name]) -> None:
        self._chat = chat
        self._tokens_of: dict[Name, list[int]] = {}
        self._following: dict[tuple[Name, ...], _Node] = {}
        text = self._answer(_ANCHOR, names)
        first, second = self._places(text, names)
        tokens = self._encode(text)
        self._head = _between(tokens, 0, len(HEAD))
        self._separator = _between(tokens, first[1], second[0])
        tail = _between(tokens, second[1], None)
        # Generation stops at the first token that ends a turn.
        self._tail = tail[: tail.index(chat.end_id) + 1]
        empty = self._answer("", names)
        self._direct = _between(self._encode(empty), 0, self._places(empty, names)[0][0])
        self.inside, self._closings, self._plain = self._read_vocabulary(names)

    def start(self, names: Sequence[Name], begun: Sequence[int] = ()) -> _State:
        """Return the state before an answer with these candidates, or after its first tokens."""
        root = _Node()
        root.add(self._head).inside = True
        # An empty explanation may have special tokens, such as one token for both quotes.
        self._add_names(root.add(self._direct), names)
        state = _State(root, tuple(names))
        for token in begun:
            state = self.advance(state, token)
        return state

    def allowed(self, state: _State, tokens_left: int) -> list[int] | None:
        """Return the tokens that may follow, or None for all of `inside`.

        tokens_left: how many may still be written.
        """
        if state.node is None:
            return None if tokens_left > self.most_tokens(state.left) else self._plain
        node = state.node
        if node.done:
            return [self._chat.end_id]
        if node.name is None:
            return list(node.children)
        # 1 may be complete, or the beginning of 10.
        return [*node.children, *self._follow(_without(state.left, node.name)).children]

    def advance(self, state: _State, token: int) -> _State:
        """Return the state after a token that was allowed. Raises KeyError after any other token."""
        node, left = state.node, state.left
        if node is None:
            if token not in self._closings:
                return state
            opening = _Node()
            self._add_names(opening.add(self._closings[token]), left)
            return _State(opening, left)
        if node.done:
            return state
        if token not in node.children and node.name is not None:
            left = _without(left, node.name)
            node = self._follow(left)
        node = node.children[token]
        if node.inside:
            return _State(None, left)
        if node.name is not None and not node.children:
            left = _without(left, node.name)
            node = self._follow(left)
        return _State(node, left)

    def most_tokens(self, names: Sequence[Name]) -> int:
        """Return the maximum number of tokens that an answer needs from the end of its explanation on."""
        closing = 1 + max(map(len, self._closings.values()))
        return (
            closing
            + sum(len(self._name(name)) for name in names)
            + (len(names) - 1) * len(self._separator)
            + len(self._tail)
        )

    def check(self, names: Sequence[Name], max_tokens: int) -> None:
        """Raise InputError if an answer with an empty explanation may need more than max_tokens."""
        needed = max(len(self._head), len(self._direct)) + self.most_tokens(names)
        if needed > max_tokens:
            raise InputError(
                f"`max_tokens` is {max_tokens}, but a permutation of {len(names)} candidates takes up to {needed} "
                "tokens; raise it"
            )

    def _follow(self, left: tuple[Name, ...]) -> _Node:
        """Return the node after a name. left: the names that are left."""
        if left not in self._following:
            root = _Node()
            if left:
                self._add_names(root.add(self._separator), left)
            else:
                root.add(self._tail).done = True
            self._following[left] = root
        return self._following[left]

    def _add_names(self, node: _Node, names: Sequence[Name]) -> None:
        for name in names:
            node.add(self._name(name)).name = name

    def _name(self, name: Name) -> list[int]:
        """Return the tokens of a name, without the quotes around it."""
        if name not in self._tokens_of:
            names = (name, name)
            text = self._answer(_ANCHOR, names)
            tokens = self._encode(text)
            first, second = (_between(tokens, *place) for place in self._places(text, names))
            if first != second:
                raise _joined(text)
            self._tokens_of[name] = first
        return self._tokens_of[name]

    def _read_vocabulary(self, names: tuple[Name, Name]) -> tuple[Tensor, dict[int, list[int]], list[int]]:
        """Return the tokens of explanations and of their ends.

        These are the tokens that may be part of an explanation; the tokens that end it, each with the further tokens up
        to the first name; and those of the latter that write no text before the closing quote.
        """
        tokenizer = self._chat.tokenizer
        (anchor,) = tokenizer.encode(_ANCHOR, add_special_tokens=False)[-1:]
        texts = tokenizer.batch_decode([[anchor, token] for token in range(len(tokenizer))])
        before = len(tokenizer.decode([anchor]))
        special = {*tokenizer.all_special_ids, self._chat.end_id}
        inside, closings, plain = [], {}, []
        for token, text in enumerate(texts):
            if token in special or not (written := text[before:]):
                continue
            if _INSIDE.fullmatch(written):
                inside.append(token)
            elif (closing := _CLOSING.fullmatch(written)) and MIDDLE.startswith(closing[2]):
                # The token counts only if a whole answer has it, because otherwise its other tokens would not follow
                # it.
                answer = f"{HEAD}{_ANCHOR}{closing[1]}" + self._answer("", names)[len(HEAD) :]
                encoding = self._encode(answer)
                place = len(HEAD) + len(_ANCHOR)
                if (token, place, place + len(written)) in encoding:
                    start = answer.index(MIDDLE, place) + len(MIDDLE) + _quote(names[0])
                    closings[token] = _between(encoding, place + len(written), start)
                    if not closing[1]:
                        plain.append(token)
        if not plain:
            raise _joined(self._answer(_ANCHOR, names))
        return torch.tensor([*inside, *closings]), closings, plain

    def _answer(self, explanation: str, names: Sequence[Name]) -> str:
        return render_completion(explanation, names)  # type: ignore[arg-type]

    def _places(self, text: str, names: Sequence[Name]) -> list[tuple[int, int]]:
        """Return where the names of an answer begin and end, without quotes."""
        places = []
        end = text.index(MIDDLE) + len(MIDDLE)
        for name in names:
            start = end + _quote(name)
            length = len(orjson.dumps(name)) - 2 * _quote(name)
            places.append((start, start + length))
            # This skips the closing quote and the comma.
            end = start + length + _quote(name) + 1
        return places

    def _encode(self, text: str) -> list[tuple[int, int, int]]:
        """Return each token of an answer with its ending, and where it begins and ends in the text."""
        encoded = self._chat.encode_answers([text], return_offsets_mapping=True)
        return [
            (token, start, end)
            for token, (start, end) in zip(encoded["input_ids"][0], encoded["offset_mapping"][0], strict=True)
        ]


def _between(tokens: Sequence[tuple[int, int, int]], start: int, end: int | None) -> list[int]:
    """Return the tokens of a part of a text. Raises InputError if one of them crosses an end of that part."""
    for place in (start, end):
        if place is not None and any(first < place < last for _, first, last in tokens):
            raise _joined(None)
    return [token for token, first, _ in tokens if start <= first and (end is None or first < end)]


def _joined(text: str | None) -> InputError:
    shown = "" if text is None else f" in {text!r}"
    return InputError(
        f"the tokenizer joins parts of an answer{shown} that must be apart, so rankings cannot be constrained; use "
        "`decode` free"
    )


def _quote(name: Name) -> int:
    """Return the number of quotes before a name."""
    return int(isinstance(name, str))


def _without(names: tuple[Name, ...], name: Name) -> tuple[Name, ...]:
    return tuple(other for other in names if other != name)


class PermutationLogitsProcessor(LogitsProcessor):
    """Restricts generation to permutations of each row's candidates. One object serves one call of `generate`.

    names_B: the candidates of each row. max_tokens: the length of a completion. begun_B: for each row, the tokens at
    the end of its prompt that already belong to the answer. Raises InputError if max_tokens is too small for a ranking.
    """

    def __init__(
        self,
        grammar: PermutationGrammar,
        names_B: Sequence[Sequence[Name]],
        max_tokens: int,
        begun_B: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.grammar = grammar
        for names in {tuple(names) for names in names_B}:
            grammar.check(names, max_tokens)
        begun = begun_B or [()] * len(names_B)
        self._states = [grammar.start(names, tokens) for names, tokens in zip(names_B, begun, strict=True)]
        self._left = max_tokens
        self._begins = True

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores (B, V), with minus infinity for every token that must not follow input_ids (B, T)."""
        if not self._begins:
            tokens = input_ids[:, -1].tolist()
            self._states = [
                self.grammar.advance(state, token) for state, token in zip(self._states, tokens, strict=True)
            ]
        self._begins = False
        allowed = [self.grammar.allowed(state, self._left) for state in self._states]
        self._left -= 1
        return scores.masked_fill(~_mask(self.grammar, allowed, scores.shape[-1], scores.device), -torch.inf)


def allowed_tokens(
    grammar: PermutationGrammar,
    names_B: Sequence[Sequence[Name]],
    completions_B: Sequence[Sequence[int]],
    max_tokens: int,
) -> list[list[list[int] | None]]:
    """Return, for each token of each completion, the tokens that were allowed there, in the form of `allowed`."""
    rows = []
    for names, tokens in zip(names_B, completions_B, strict=True):
        state, row = grammar.start(names), []
        for place, token in enumerate(tokens):
            row.append(grammar.allowed(state, max_tokens - place))
            state = grammar.advance(state, token)
        rows.append(row)
    return rows


def constrained_log_probs(
    grammar: PermutationGrammar, logits_N_V: Tensor, tokens_N: Tensor, allowed_N: Sequence[list[int] | None]
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities of tokens under the constrained policy, and its entropies. Both (N,), in float32.

    logits_N_V: the student's logits, divided by the temperature. allowed_N: in the form of `allowed`.
    """
    mask_N_V = _mask(grammar, allowed_N, logits_N_V.shape[-1], logits_N_V.device)
    # The value is not minus infinity, because its product with a probability of 0 is NaN, in the entropy and in
    # gradients.
    log_probs_N_V = logits_N_V.float().masked_fill(~mask_N_V, torch.finfo(torch.float32).min / 2).log_softmax(-1)
    entropy_N = -(log_probs_N_V.exp() * log_probs_N_V).sum(-1)
    return log_probs_N_V.gather(-1, tokens_N[:, None])[:, 0], entropy_N


def _mask(
    grammar: PermutationGrammar, allowed_N: Sequence[list[int] | None], vocabulary: int, device: torch.device
) -> Tensor:
    """Return a mask of the allowed tokens, of shape (N, V)."""
    mask_N_V = torch.zeros(len(allowed_N), vocabulary, dtype=torch.bool)
    inside = [place for place, tokens in enumerate(allowed_N) if tokens is None]
    text_V = torch.zeros(vocabulary, dtype=torch.bool)
    text_V[grammar.inside] = True
    mask_N_V[inside] = text_V
    places = [(place, token) for place, tokens in enumerate(allowed_N) for token in tokens or ()]
    if places:
        rows, columns = torch.tensor(places).T
        mask_N_V[rows, columns] = True
    return mask_N_V.to(device)
