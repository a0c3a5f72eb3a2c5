from hypothesis import given
from hypothesis import strategies as st

from curate.review.trace_text import Part, Stretch, annotate, with_codes
from curate.traces.tasks import ListedTask
from prompts.semantic_ids import render_sid
from prompts.tasks import Candidate, RerankTask, ShownItem
from store.records import Evidence, Link

TEA, MUG, FAR = render_sid([1, 2]), render_sid([3, 4]), render_sid([9, 9])
LISTED = ListedTask(
    "list",
    RerankTask(
        history=(ShownItem("tea", TEA, "Green tea"),),
        candidates=(Candidate(ShownItem("mug", MUG, "Mug"), Evidence(1.0, links=(Link("tea", 12, 3),))),),
    ),
    "mug",
)


def test_items_foreign_ids_and_claims_are_told_apart() -> None:
    reasoning = f"{MUG} was bought after {TEA} 12 times, before {FAR}. {MUG} was bought before {TEA} twice."
    assert annotate(reasoning, LISTED) == [
        Stretch(Part.ITEM, MUG, "Mug", True),
        Stretch(Part.WORDS, " was bought after ", "", True),
        Stretch(Part.ITEM, TEA, "Green tea", True),
        Stretch(Part.WORDS, " 12", "", True, 12),
        Stretch(Part.WORDS, " times, before "),
        Stretch(Part.FOREIGN, FAR),
        Stretch(Part.WORDS, ". "),
        Stretch(Part.ITEM, MUG, "Mug", False),
        Stretch(Part.WORDS, " was bought before ", "", False),
        Stretch(Part.ITEM, TEA, "Green tea", False),
        Stretch(Part.WORDS, " twice", "", False, 3),
        Stretch(Part.WORDS, "."),
    ]


def test_a_line_of_a_table_shows_codes() -> None:
    assert with_codes(f"Take {MUG}, not {FAR}.") == "Take 3·4, not 9·9."


@given(
    st.lists(
        st.sampled_from(
            [TEA, MUG, FAR, " was bought after ", " was bought before ", " 12 times", " once", ". ", "<s_a_1>"]
        )
        | st.text(max_size=5)
    ).map("".join)
)
def test_the_stretches_are_the_whole_text(reasoning: str) -> None:
    assert "".join(stretch.text for stretch in annotate(reasoning, LISTED)) == reasoning
