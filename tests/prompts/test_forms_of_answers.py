"""The forms in which models write an order: each is read as the order that it states, or not at all."""

import html
import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompts.completion import ParsedCompletion, ParseFailure, ParseReason, parse_completion, render_completion
from prompts.semantic_ids import render_sid
from prompts.tasks import Candidate, RerankTask, ShownItem

TITLES = ["Shampoo & Soap", "Men's Comb", "Gel (200 ml), blue", "7", "Item 9 [new]"]
ITEMS = [ShownItem(f"i{n}", render_sid((n, 1, 2, 3)), title) for n, title in enumerate(TITLES)]
TASK = RerankTask((ShownItem("h", render_sid((9, 9, 9, 9)), "Towel"),), tuple(Candidate(item) for item in ITEMS))
SIDS = [item.sid for item in ITEMS]
COUNT = len(ITEMS)
PLACES = st.permutations(range(COUNT))
REASONING = f"{SIDS[2]} fits best."

Form = Callable[[list[int], list[int]], str]


def parse(text: str) -> ParsedCompletion | ParseFailure:
    return parse_completion(text, TASK)


def ranking(text: str) -> list[int]:
    found = parse(text)
    assert isinstance(found, ParsedCompletion), found
    assert found.unknown == ()
    return [int(item[1:]) for item in found.ranking]


def failure(text: str) -> ParseReason:
    found = parse(text)
    assert isinstance(found, ParseFailure), found
    assert found.detail
    return found.reason


def answer(recommendations: object) -> str:
    return json.dumps({"explanation": REASONING, "recommendations": recommendations})


def titled(place: int) -> str:
    return ITEMS[place].title or ""


def table(header: str, rows: list[str]) -> str:
    return "\n".join([header, "|" + "---|" * (header.count("|") - 1), *rows])


def in_bars(place: int) -> str:
    return SIDS[place].replace("|", "\\|")


# Each form gets the order, best first, and another order in which it may list its entries.
RANKED: dict[str, Form] = {
    "rank": lambda order, listed: answer([{"rank": order.index(n) + 1, "sid": SIDS[n]} for n in listed]),
    "rank as text": lambda order, listed: answer([{"sid": SIDS[n], "Rank": f"{order.index(n) + 1}"} for n in listed]),
    "rank as float": lambda order, listed: answer([{"rank": order.index(n) + 1.0, "sid": SIDS[n]} for n in listed]),
    "rank from 0": lambda order, listed: answer([{"position": order.index(n), "title": titled(n)} for n in listed]),
    "#1": lambda order, listed: answer([{"place": f"#{order.index(n) + 1}", "number": n + 1} for n in listed]),
    "newRank": lambda order, listed: answer(
        [{"newRank": order.index(n) + 1, "originalRank": n + 1, "item": {"sid": SIDS[n]}} for n in listed]
    ),
    "rank to name": lambda order, listed: answer({f"{order.index(n) + 1}": SIDS[n] for n in listed}),
    "rank to object": lambda order, listed: answer({f"Rank {order.index(n) + 1}": {"sid": SIDS[n]} for n in listed}),
    "name to rank": lambda order, listed: answer({SIDS[n]: order.index(n) + 1 for n in listed}),
    "name to ranked object": lambda order, listed: answer(
        {SIDS[n]: {"rank": order.index(n) + 1, "why": "it fits"} for n in listed}
    ),
    "Item 3 to rank": lambda order, listed: answer({f"[{n + 1}]": order.index(n) + 1 for n in listed}),
    "mapping in pieces": lambda order, listed: answer([{f"{order.index(n) + 1}": SIDS[n]} for n in listed]),
    "mapping alone": lambda order, listed: json.dumps({f"{order.index(n) + 1}": SIDS[n] for n in listed}),
    "table with ranks": lambda order, listed: table(
        "| Rank | Item | Why |", [f"| {order.index(n) + 1} | {SIDS[n]} | so |" for n in listed]
    ),
    "table of numbers with ranks": lambda order, listed: table(
        "| Item | **Rank** |", [f"| {n + 1} | **{order.index(n) + 1}** |" for n in listed]
    ),
}
LISTED: dict[str, Form] = {
    "semantic IDs": lambda order, _: answer([SIDS[n] for n in order]),
    "titles": lambda order, _: answer([titled(n) for n in order]),
    "titles in HTML": lambda order, _: answer([html.escape(titled(n)) for n in order]),
    "titles in HTML twice": lambda order, _: answer([html.escape(html.escape(titled(n))) for n in order]),
    "semantic IDs in HTML": lambda order, _: answer([html.escape(SIDS[n]) for n in order]),
    "numbers": lambda order, _: answer([n + 1 for n in order]),
    "numbers as text": lambda order, _: answer([str(n + 1) for n in order]),
    "[3] as text": lambda order, _: answer([f"[{n + 1}]" for n in order]),
    "#3": lambda order, _: answer([f"#{n + 1}" for n in order]),
    "3.0": lambda order, _: answer([n + 1.0 for n in order]),
    "3.0 as text": lambda order, _: answer([f"{n + 1}.0" for n in order]),
    "Candidate 3": lambda order, _: answer([f"Candidate {n + 1}" for n in order]),
    "objects": lambda order, _: answer([{"sid": SIDS[n], "title": titled(n), "why": SIDS[0]} for n in order]),
    "numbers in objects": lambda order, _: answer([{"id": n + 1} for n in order]),
    "numbered entries": lambda order, _: answer([f"{rank}. {SIDS[n]}" for rank, n in enumerate(order, 1)]),
    "entries with the prompt's numbers": lambda order, _: answer([f"{n + 1}. {SIDS[n]} {titled(n)}" for n in order]),
    "objects with scores": lambda order, _: answer(
        [{"sid": SIDS[n], "score": 5 - place} for place, n in enumerate(order)]
    ),
    "numbered objects": lambda order, _: answer(
        [{"no": place, "brand": titled(n)} for place, n in enumerate(order, 1)]
    ),
    "pairs": lambda order, _: answer([[rank, SIDS[n]] for rank, n in enumerate(order, 1)]),
    "key in another case": lambda order, _: answer([SIDS[n] for n in order]).replace("recomm", "Recomm"),
    "keys in upper case": lambda order, _: (
        answer([SIDS[n] for n in order])
        .replace("explanation", "EXPLANATION")
        .replace("recommendations", "RECOMMENDATIONS")
    ),
    "JSON in a string": lambda order, _: json.dumps(answer([SIDS[n] for n in order])),
    "JSON in a string in a string": lambda order, _: json.dumps(json.dumps(answer([n + 1 for n in order]))),
    "JSON in a string without quotes": lambda order, _: json.dumps(answer([SIDS[n] for n in order]))[1:-1],
    "JSON in HTML": lambda order, _: html.escape(answer([n + 1 for n in order])),
    "JSON after a byte order mark": lambda order, _: "\ufeff" + answer([n + 1 for n in order]),
    "RankGPT after a byte order mark": lambda order, _: "\ufeff" + " > ".join(f"[{n + 1}]" for n in order),
    "a list in a string": lambda order, _: answer(json.dumps([n + 1 for n in order])),
    "a chain in a string": lambda order, _: answer(" > ".join(f"[{n + 1}]" for n in order)),
    "a list of lines in a string": lambda order, _: answer("\n".join(SIDS[n] for n in order)),
    "Python": lambda order, _: str({"explanation": REASONING, "recommendations": [SIDS[n] for n in order]}),
    "Python with titles": lambda order, _: str(
        {"explanation": REASONING, "recommendations": [titled(n) for n in order]}
    ),
    "Python with literals": lambda order, _: str(
        {"explanation": None, "sure": True, "recommendations": [{"sid": SIDS[n], "score": 0.5} for n in order]}
    ),
    "comments": lambda order, _: (
        '{"explanation": "so", // why\n"recommendations": [\n'
        + "".join(f'  "{SIDS[n]}", // place {rank}\n' for rank, n in enumerate(order, 1))
        + "] /* the end */}"
    ),
    "trailing commas": lambda order, _: '{"recommendations": [' + "".join(f'"{SIDS[n]}", ' for n in order) + "],}",
    "no quotes around keys": lambda order, _: f"{{explanation: 'so', recommendations: {[n + 1 for n in order]}}}",
    "unescaped quotes": lambda order, _: (
        '{"explanation": "They like "soft" things", "recommendations": ' + json.dumps([SIDS[n] for n in order]) + "}"
    ),
    "typographic quotes": lambda order, _: (
        "{“explanation”: “so”, “recommendations”: [" + ", ".join(f"“{SIDS[n]}”" for n in order) + "]}"
    ),
    "no last brace": lambda order, _: answer([SIDS[n] for n in order])[:-1],
    "no last brace in a fence": lambda order, _: "```json\n" + answer([SIDS[n] for n in order])[:-1] + "\n```",
    "missing commas": lambda order, _: (
        '{"explanation": "so", "recommendations": [' + "\n".join(f'"{SIDS[n]}"' for n in order) + "]}"
    ),
    "single quotes in prose": lambda order, _: f"Here: {{'recommendations': {[n + 1 for n in order]}}}\n\nThat is all.",
    "a list alone": lambda order, _: json.dumps([SIDS[n] for n in order]),
    "a list alone in a fence": lambda order, _: f"```json\n{json.dumps([n + 1 for n in order])}\n```",
    "RankGPT": lambda order, _: " > ".join(f"[{n + 1}]" for n in order),
    "RankGPT without spaces": lambda order, _: ">".join(f"[{n + 1}]" for n in order),
    "RankGPT without brackets": lambda order, _: " > ".join(str(n + 1) for n in order) + "\n",
    "RankGPT with semantic IDs": lambda order, _: " > ".join(SIDS[n] for n in order),
    "RankGPT with titles": lambda order, _: " > ".join(titled(n) for n in order),
    "RankGPT after words": lambda order, _: "Final ranking: " + " > ".join(f"[{n + 1}]" for n in order) + ".",
    "RankGPT on two lines": lambda order, _: "Ranking:\n\n" + " >\n".join(f"[{n + 1}]" for n in order),
    "RankGPT in a tag": lambda order, _: "<answer>" + " > ".join(f"[{n + 1}]" for n in order) + "</answer><|im_end|>",
    "RankGPT in a sentence": lambda order, _: "The ranking is " + " > ".join(f"[{n + 1}]" for n in order) + ".",
    "RankGPT after prose": lambda order, _: (
        f"I've looked at the history, and {SIDS[0]} was bought 12 times.\n\nSo, in my opinion, this is the order: "
        + " > ".join(f"[{n + 1}]" for n in order)
    ),
    "RankGPT after a sentence": lambda order, _: (
        f"{titled(0)} is a classic, isn't it. " + " > ".join(SIDS[n] for n in order)
    ),
    "RankGPT below prose": lambda order, _: (
        "The user likes:\n- dry hair\n- soft towels\nItem 2 is neither.\n" + " > ".join(titled(n) for n in order)
    ),
    "numbers with commas after words": lambda order, _: "Ranking: " + ", ".join(f"{n + 1}" for n in order),
    "numbers with commas": lambda order, _: ", ".join(f"{n + 1}" for n in order),
    "semantic IDs in brackets": lambda order, _: "[" + ", ".join(SIDS[n] for n in order) + "]",
    "numbered list": lambda order, _: "\n".join(f"{rank}. {SIDS[n]}" for rank, n in enumerate(order, 1)),
    "numbered list with reasons": lambda order, _: "\n".join(
        f"{rank}) **{SIDS[n]}** - goes with {SIDS[0]}, bought 12 times" for rank, n in enumerate(order, 1)
    ),
    "numbered list of titles": lambda order, _: (
        "Here is the order:\n\n" + "\n".join(f"{rank}. {titled(n)}" for rank, n in enumerate(order, 1))
    ),
    "numbered list of numbers": lambda order, _: "\n".join(f"{rank}. [{n + 1}]" for rank, n in enumerate(order, 1)),
    "numbered list in bold": lambda order, _: "\n".join(f"{rank}. **{titled(n)}**" for rank, n in enumerate(order, 1)),
    "bold lines": lambda order, _: "**Ranking**\n\n" + "\n".join(f"**{titled(n)}**" for n in order),
    "lines of #3": lambda order, _: "\n".join(f"#{n + 1}" for n in order),
    "bullets": lambda order, _: "\n".join(f"- {SIDS[n]}" for n in order),
    "bullets with titles": lambda order, _: "## Order\n" + "\n".join(f"* {titled(n)}" for n in order),
    "lines": lambda order, _: "\n".join(SIDS[n] for n in order),
    "table in the order of its rows": lambda order, _: table("| Semantic ID |", [f"| {in_bars(n)} |" for n in order]),
    "table with places": lambda order, _: table(
        "| # | Product |", [f"| {rank} | {titled(n)} |" for rank, n in enumerate(order, 1)]
    ),
}
FORMS = RANKED | LISTED


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
@settings(max_examples=10)
@given(order=PLACES, listed=PLACES)
def test_every_form_of_an_order_is_read_as_that_order(form: Form, order: list[int], listed: list[int]) -> None:
    assert ranking(form(order, listed)) == order


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
@settings(max_examples=25)
@given(order=PLACES, listed=PLACES, data=st.data())
def test_no_form_that_is_cut_off_becomes_another_order(
    form: Form, order: list[int], listed: list[int], data: st.DataObject
) -> None:
    text = form(order, listed)
    found = parse(text[: data.draw(st.integers(0, len(text)))])
    if isinstance(found, ParsedCompletion) and not found.unknown:
        assert [int(item[1:]) for item in found.ranking] == order


NUMBERED_AFTER_PROSE = {
    "sentence": "I've looked at everything that the user bought; [2] comes to mind.\n{}",
    "heading": "The user likes hair care, doesn't he?\n\n## Final ranking\n{}",
    "bullets": "- A new one would fit, as would others.\n- The user's towels are new.\n\nSo:\n{}",
}


@pytest.mark.parametrize("prose", NUMBERED_AFTER_PROSE.values(), ids=list(NUMBERED_AFTER_PROSE))
@settings(max_examples=25)
@given(order=PLACES, data=st.data())
def test_a_numbered_list_after_prose_is_an_order_unless_it_repeats_the_prompt(
    prose: str, order: list[int], data: st.DataObject
) -> None:
    lines = "\n".join(f"{rank}. {SIDS[n]} - it fits" for rank, n in enumerate(order, 1))
    text = prose.format(lines)
    found = parse(text)
    if order == sorted(order):
        assert failure(text) == ParseReason.AMBIGUOUS
    else:
        assert ranking(text) == order
        assert isinstance(found, ParsedCompletion)
        assert found.reasoning.startswith(prose[:10])
    cut = parse(text[: data.draw(st.integers(0, len(text)))])
    if isinstance(cut, ParsedCompletion):
        assert [int(item[1:]) for item in cut.ranking] == order


THOUGHT = "I compare. " + render_completion("A draft.", SIDS[::-1])
THOUGHTS = {
    "think": "<think>{}</think>{}",
    "thinking": "<thinking>\n{}\n</thinking>\n\n{}",
    "thought": "<thought>{}</thought>{}",
    "reasoning": "<Reasoning>{}</Reasoning>{}",
    "attribute": '<think duration="3">{}</think>{}',
    "namespace": "<seed:think>{}</seed:think>{}",
    "no opening": "{}</think>{}",
    "Mistral": "[THINK]{}[/THINK]{}",
    "OpenThoughts": "<|begin_of_thought|>{}<|end_of_thought|>{}",
    "gpt-oss": (
        "<|channel|>analysis<|message|>{}<|end|><|start|>assistant"
        "<|channel|>final <|constrain|>json<|message|>{}<|return|>"
    ),
}


@pytest.mark.parametrize("wrap", THOUGHTS.values(), ids=list(THOUGHTS))
@pytest.mark.parametrize("form", ["semantic IDs", "Python", "RankGPT", "numbered list", "rank", "no last brace"])
def test_an_answer_after_a_thought_counts_and_a_draft_in_it_does_not(wrap: str, form: str) -> None:
    order = [2, 0, 4, 1, 3]
    text = FORMS[form](order, [0, 1, 2, 3, 4])
    assert ranking(wrap.format(THOUGHT, text)) == order
    assert failure(wrap.format(THOUGHT + " Or not?", "")) == ParseReason.EMPTY


@pytest.mark.parametrize("opening", ["<think>", "<thought>\n", "[THINK]", "<|channel|>analysis<|message|>"])
def test_json_that_ends_a_thought_without_end_is_the_answer(opening: str) -> None:
    order = [2, 0, 4, 1, 3]
    text = answer([SIDS[n] for n in order])
    assert ranking(f"{opening}I compare.\n{text}") == order
    assert ranking(f"{opening}{THOUGHT} No, better:\n```json\n{text}\n```\n") == order
    assert failure(f"{opening}{text} Let me check that again, because") == ParseReason.UNFINISHED_THINKING
    assert failure(f"{opening}I compare, and") == ParseReason.UNFINISHED_THINKING


def test_an_answer_that_a_server_took_for_a_thought_is_the_answer() -> None:
    order = [2, 0, 4, 1, 3]
    assert ranking(f"<think>{answer([SIDS[n] for n in order])}</think>") == order
    assert failure(f"<think>{THOUGHT} Or not?</think>") == ParseReason.EMPTY


def test_a_mark_of_thinking_within_the_explanation_is_a_word() -> None:
    text = json.dumps({"explanation": "no </think> here, nor <think>", "recommendations": [3, 1, 2, 4, 5]})
    assert ranking(text) == [2, 0, 1, 3, 4]
    assert ranking(f"Here it is:\n{text}") == [2, 0, 1, 3, 4]


def test_the_thought_is_the_reasoning_of_an_order_without_explanation() -> None:
    found = parse("<thinking>So it is.</thinking>[3] > [1] > [2] > [4] > [5]")
    assert isinstance(found, ParsedCompletion)
    assert found.reasoning == "So it is."


TWO_ORDERS = {
    "ranks missing": answer([{"rank": 1, "sid": SIDS[0]}, {"sid": SIDS[1]}]),
    "rank twice": answer([{"rank": 1, "sid": SIDS[0]}, {"rank": 1, "sid": SIDS[1]}]),
    "ranks with a gap": answer([{"rank": 90, "sid": SIDS[0]}, {"rank": 70, "sid": SIDS[1]}]),
    "no rank": answer([{"rank": "high", "sid": SIDS[0]}, {"rank": 1, "sid": SIDS[1]}]),
    "two ranks in one": answer(
        [{"rank": 1, "position": 2, "sid": SIDS[0]}, {"rank": 2, "position": 1, "sid": SIDS[1]}]
    ),
    "rank and key": answer({"1": {"rank": 2, "sid": SIDS[0]}, "2": {"rank": 1, "sid": SIDS[1]}}),
    "numbers to numbers": answer({"1": 2, "2": 3, "3": 1}),
    "numbered against the order": answer([f"{n}. {SIDS[2 * n % 5]}" for n in (3, 1, 2)]),
    "pairs against the order": answer([[n, SIDS[2 * n % 5]] for n in (3, 1, 2)]),
    "list numbered against its order": "\n".join(f"{n}. {SIDS[2 * n % 5]}" for n in (3, 1, 2, 4, 5)),
    "rank under another name": answer([{"priority": n, "sid": SIDS[2 * n % 5]} for n in (3, 1, 2)]),
    "rank twice in pieces": answer([{"1": SIDS[0]}, {"1": SIDS[1]}]),
    "key twice": answer([1, 2, 3, 4, 5])[:-1] + ', "recommendations": [5, 4, 3, 2, 1]}',
    "key in two cases": answer([1, 2, 3, 4, 5])[:-1] + ', "Recommendations": [5, 4, 3, 2, 1]}',
    "rank key twice": '{"explanation": "x", "recommendations": {"1": "%s", "1": "%s"}}' % (SIDS[0], SIDS[1]),  # noqa: UP031
    "rank twice in an object": '{"recommendations": [{"rank": 1, "rank": 2, "sid": "x"}]}',
    "two chains": "[1] > [2] > [3] > [4] > [5]\n[5] > [4] > [3] > [2] > [1]",
    "chain after JSON": answer([1, 2, 3, 4, 5]) + "\nFinal: [5] > [4] > [3] > [2] > [1]",
    "chain before JSON": "Draft: [5] > [4] > [3] > [2] > [1]\n" + answer([1, 2, 3, 4, 5]),
    "chain after repaired JSON": "{'recommendations': [1, 2, 3, 4, 5]}\n[5] > [4] > [3] > [2] > [1]",
    "chain in prose": "At first I'd say [1] > [2], but no.\nSo it's: [5] > [4] > [3] > [2] > [1]",
    "enumeration in prose": "It's 1, then 2, then 3, isn't it? So: [5] > [4] > [3] > [2] > [1]",
    "list before a chain": f"I'd compare these.\n1. {SIDS[0]} fits\nSo it's: [5] > [4] > [3] > [2] > [1]",
    "list before a list": "\n".join(
        f"{rank}. {titled(n)}" for order in (range(5), (4, 3, 2, 1, 0)) for rank, n in enumerate(order, 1)
    ),
    "two lists": "\n".join(f"{rank}. {SIDS[n]}" for order in ([0, 1, 2], [2, 1, 0]) for rank, n in enumerate(order, 1)),
}


@pytest.mark.parametrize("text", TWO_ORDERS.values(), ids=list(TWO_ORDERS))
def test_two_orders_in_one_answer_are_a_failure(text: str) -> None:
    found = parse(text)
    assert isinstance(found, ParseFailure), found
    assert found.reason in (ParseReason.AMBIGUOUS, ParseReason.NO_RECOMMENDATIONS)


def test_the_same_order_twice_is_one_order() -> None:
    chain = "[3] > [1] > [2] > [5] > [4]"
    assert ranking(f"{chain}\n{chain}") == [2, 0, 1, 4, 3]
    assert ranking(answer([3, 1, 2, 5, 4]) + f"\nThat is: {chain}") == [2, 0, 1, 4, 3]
    assert ranking(answer([3, 1, 2, 5, 4])[:-1] + ', "recommendations": [3, 1, 2, 5, 4]}') == [2, 0, 1, 4, 3]
    assert ranking(answer({"1": 1, "2": 3, "3": 2})) == [0, 2, 1]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (answer([1, 2, 3, 4, 5]) + ' No: {"explanation": "x", "recommendations": [5, 4', ParseReason.UNFINISHED_JSON),
        ("{'explanation': 'x', 'recommendations': [3, 1, 2, 4, 5", ParseReason.UNFINISHED_JSON),
        ("{'explanation': 'x', 'recommendations': [3, 1, 2, ...]}", ParseReason.BROKEN_JSON),
        ("{'recommendations': [3, 1, 2, 4, 5], 'explanation': 'It", ParseReason.BROKEN_JSON),
        ("{'recommendations': ['Men's Comb, 'Gel']}", ParseReason.BROKEN_JSON),
        ("[3] > [1] > [2]", ParseReason.UNFINISHED_ORDER),
        ("[3] > [1] > [2] > [4] >", ParseReason.NO_JSON),
        (f"1. {SIDS[1]}\n2. {SIDS[0]}", ParseReason.UNFINISHED_ORDER),
        (f"I like {SIDS[1]} best.\nThen comes {SIDS[0]}.", ParseReason.NO_JSON),
        ("3 is more than 1 > 2", ParseReason.NO_JSON),
        ("- dry hair\n- soft towels", ParseReason.NO_JSON),
        ('{"explanation": "x", "recommendations": {"a": "b"}}', ParseReason.NO_RECOMMENDATIONS),
        ('["dry hair"]', ParseReason.NO_RECOMMENDATIONS),
        ("x" * 1_000_001, ParseReason.TOO_LONG),
    ],
)
def test_what_is_unfinished_or_no_order_stays_a_failure(text: str, reason: ParseReason) -> None:
    assert failure(text) == reason


@pytest.mark.parametrize(
    "entry",
    [
        "7",  # a title, and no candidate has this number
        {"sid": SIDS[3], "title": "a title that nobody has"},
        {"SID": SIDS[3], "number": 4},
        {"semanticId": SIDS[3], "index": 4},
        [4, SIDS[3]],
        {"rank": 1, "candidate": {"name": "7"}},
        {"Product Title": "7"},
    ],
)
def test_an_entry_names_its_candidate(entry: object) -> None:
    order = ranking(answer([entry]))
    assert order == [3]


@pytest.mark.parametrize(
    "entry",
    [
        "9",
        "3 Men's Comb",
        "-1",
        "1.5",
        "Item 3",  # a title reads "Item 9 [new]", but no candidate is called "Item 3"; see below
        "Towel",
        {"sid": SIDS[3], "title": "Men's Comb"},
        {"sid": render_sid((8, 8, 8, 8)), "title": "7"},
        {"title": "Unknown", "number": 2},
        {"id": True},
        1e400,
        float("nan"),
    ],
)
def test_an_entry_that_may_mean_several_candidates_or_none_is_unknown(entry: object) -> None:
    found = parse_completion(answer([entry]), _with_title("Item 17"))
    assert isinstance(found, ParsedCompletion)
    assert found.ranking == ()
    assert len(found.unknown) == 1


def test_a_number_that_is_another_candidates_title_names_neither() -> None:
    task = _with_title("2")
    for name in ("2", "#2"):
        found = parse_completion(answer([name]), task)
        assert isinstance(found, ParsedCompletion)
        assert found.ranking == (() if name == "2" else ("i1",))
    assert ranking(answer([2])) == [1]


def test_a_title_with_a_number_in_it_is_a_title() -> None:
    items = [ShownItem(f"i{n}", SIDS[n], f"Product {n}") for n in range(COUNT)]
    task = RerankTask((), tuple(map(Candidate, items)))
    for name, expected in (
        ("Product 2", "i2"),
        ("Item 2", "i1"),
        ("#2", "i1"),
        ("Product 7", None),
        ("Product #2", None),
    ):
        found = parse_completion(answer([name]), task)
        assert isinstance(found, ParsedCompletion)
        assert found.ranking == ((expected,) if expected else ()), name


def test_an_order_in_quotes_that_leaves_candidates_out_is_left_for_the_rules() -> None:
    assert ranking(answer("[3] > [1]")) == [2, 0]


def _with_title(title: str) -> RerankTask:
    last = ShownItem("i4", SIDS[4], title)
    return RerankTask(TASK.history, (*TASK.candidates[:4], Candidate(last)))
