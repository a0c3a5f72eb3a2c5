import asyncio
import math
import random
import re
from dataclasses import replace

import pytest

from curate.traces.rules import Answer, judge
from curate.traces.teachers.evidence import BRIEF, FULL, EvidenceTeacher, evidence_score
from curate.traces.teachers.protocol import Completion, RequestFailedError, Teacher, TeacherRequest
from prompts.completion import ParsedCompletion, parse_completion
from prompts.tasks import Candidate, RerankTask, ShownItem
from store import InputError
from store.records import Evidence, Link

PATHS = [(), ("Beauty",), ("Beauty", "Hair"), ("Beauty", "Hair", "Shampoo"), ("Beauty", "Skin", "Cream & Co.")]
BRANDS = [None, "Acme", "L. Oak; Sons"]
SID = r"<\|sid_begin\|>[^|]*<\|sid_end\|>"


def an_item(number: int, rng: random.Random | None = None) -> ShownItem:
    codes = "".join(f"<s_{level}_{number}>" for level in "abcd")
    sid = f"<|sid_begin|>{codes}<|sid_end|>"
    if rng is None:
        return ShownItem(f"i{number}", sid)
    return ShownItem(f"i{number}", sid, f"Item {number}", rng.choice(PATHS), rng.choice(BRANDS))


def shared_path(item: ShownItem, history: tuple[ShownItem, ...]) -> tuple[str, ...]:
    prefixes = [item.categories[:depth] for depth in range(len(item.categories), 0, -1)]
    return next((path for path in prefixes if count_in(path, history)), ())


def count_in(path: tuple[str, ...], history: tuple[ShownItem, ...]) -> int:
    return sum(item.categories[: len(path)] == path for item in history)


def a_task(seed: int) -> RerankTask:
    """A random task: histories of 0 to 7, lists of 1 to 10, with evidence or without, sparse in every way."""
    rng = random.Random(seed)
    history = tuple(an_item(number, rng) for number in range(rng.randrange(8)))
    shows_evidence = rng.random() < 0.7
    candidates = []
    for number in range(100, 101 + rng.randrange(10)):
        item = an_item(number, rng)
        path = shared_path(item, history)
        links = tuple(
            Link(other.item_id, rng.choice([0, 0, 1, 2, 12]), rng.choice([0, 1, 3]))
            for other in (*history, an_item(50))
            if rng.random() < 0.4
        )
        brand_items = sum(other.brand == item.brand for other in history) if item.brand else 0
        facts = Evidence(
            rng.gauss(0, 5), rng.random(), links, path, count_in(path, history) if path else 0, brand_items
        )
        candidates.append(Candidate(item, facts if shows_evidence else None))
    return RerankTask(history, tuple(candidates))


def a_request(task: RerankTask, temperature: float = 0.0, seed: int = 0) -> TeacherRequest:
    return TeacherRequest("t", (), task, {}, 0, temperature, 1024, seed)


def complete(task: RerankTask, temperature: float = 0.0, seed: int = 0, model: str = FULL) -> Completion:
    return asyncio.run(EvidenceTeacher(model).complete(a_request(task, temperature, seed)))


def parse(task: RerankTask, completion: Completion) -> ParsedCompletion:
    parsed = parse_completion(completion.text, task)
    assert isinstance(parsed, ParsedCompletion)
    return parsed


def ranking(task: RerankTask, temperature: float = 0.0, seed: int = 0) -> tuple[str, ...]:
    return tuple(parse(task, complete(task, temperature, seed)).ranking)


def scored(*scores: float) -> RerankTask:
    """Candidates i0, i1, ... with these pre-ranker scores and no other evidence."""
    return RerankTask((), tuple(Candidate(an_item(n), Evidence(score)) for n, score in enumerate(scores)))


@pytest.mark.parametrize("model", [FULL, BRIEF])
def test_every_ranking_is_a_permutation_and_passes_the_rules_on_form(model: str) -> None:
    for seed in range(300):
        task = a_task(seed)
        answer = Answer(task, "", "stop", parse(task, complete(task, 1.0, seed, model)))
        rules = ["parsed", "not_truncated", "known_sids", "permutation", "cites", "grounded", "no_leak"]
        assert [verdict for verdict in judge(answer, rules) if not verdict.passed] == []


def test_every_statement_in_the_reasoning_is_true() -> None:
    kinds = dict.fromkeys(["link", "pattern", "category", "brand", "nothing"], 0)
    for seed in range(600):
        task = a_task(seed)
        parsed = parse(task, complete(task, 1.0, seed))
        for kind in check_statements(task, parsed):
            kinds[kind] += 1
    assert min(kinds.values()) >= 20, kinds


def check_statements(task: RerankTask, parsed: ParsedCompletion) -> list[str]:
    """Assert each statement found in the reasoning against the task; returns which kinds there were."""
    text, history = parsed.reasoning, task.history
    candidates = {candidate.item.sid: candidate for candidate in task.candidates}
    ids = {item.sid: item.item_id for item in history}
    first = next(c for c in task.candidates if c.item.item_id == parsed.ranking[0])
    kinds = []
    for left, way, right, times in re.findall(rf"({SID}) was bought (after|before) ({SID}) (once|\d+ times)", text):
        facts = candidates[left].evidence
        assert facts is not None
        link = next(link for link in facts.links if link.item_id == ids[right])
        assert (1 if times == "once" else int(times.split()[0])) == (link.after if way == "after" else link.before)
        kinds.append("link")
    assert len(kinds) == text.count("was bought")
    for count, size, path in [
        *re.findall(r"(\d+) of the (\d+) items in the history (?:is|are) in (.*?), most recently", text),
        *((c, n, p) for p, c, n in re.findall(r"Pattern: (.*?) holds (\d+) of the (\d+) items in the history", text)),
    ]:
        assert (int(count), int(size)) == (count_in(tuple(path.split(" > ")), history), len(history))
        kinds.append("pattern")
    for path, member in re.findall(
        rf"(?:history (?:is|are) in|Pattern:) ([^<]*?)(?:, most recently| holds [^<]*?) ({SID})", text
    ):
        newest = [item for item in history if item.categories[: path.count(">") + 1] == tuple(path.split(" > "))][-1]
        assert newest.sid == member
    for path, count in re.findall(r"is in ([^<]*?), like (\d+) items? of the history", text):
        assert tuple(path.split(" > ")) == shared_path(first.item, history)
        assert int(count) == count_in(tuple(path.split(" > ")), history)
        kinds.append("category")
    for brand, count in re.findall(r"is by ([^<]*), the brand of (\d+) items? there", text):
        assert brand == first.item.brand
        assert int(count) == sum(item.brand == brand for item in history)
        kinds.append("brand")
    for place, size in re.findall(r"has it at place (\d+) of (\d+)", text):
        assert (task.candidates[int(place) - 1], int(size)) == (first, len(task.candidates))
        assert not shared_path(first.item, history)
        assert first.evidence is None or not any(
            (link.after or link.before) and link.item_id in ids.values() for link in first.evidence.links
        )
        kinds.append("nothing")
    assert first.item.sid in text
    return kinds


def test_reasonings_are_two_to_four_sentences_in_varied_words() -> None:
    task = next(task for task in map(a_task, range(100)) if len(task.history) > 3 and task.candidates[0].evidence)
    texts = {parse(task, complete(task, 1.0, seed)).reasoning for seed in range(100)}
    starts = {re.split(r"\d", text, maxsplit=1)[0] for text in texts}
    assert len(texts) > 6
    assert len(starts) > 1
    brand_stops = re.compile(r"L\. Oak; Sons|Cream & Co\.")
    assert all(2 <= len(re.findall(r"\.(?: |$)", brand_stops.sub("", text))) <= 4 for text in texts)


def test_temperature_zero_is_deterministic_whatever_the_seed() -> None:
    for task_seed in range(50):
        task = a_task(task_seed)
        assert len({complete(task, 0.0, seed).text for seed in range(5)}) == 1


def test_above_zero_the_seed_decides_and_decides_again_the_same() -> None:
    task = scored(5.0, 4.9, 4.8, 4.7, 1.0)
    rankings = [ranking(task, 1.0, seed) for seed in range(50)]
    assert len(set(rankings)) > 10
    assert rankings == [ranking(task, 1.0, seed) for seed in range(50)]


def test_a_higher_temperature_strays_further_from_the_scores() -> None:
    task = scored(*range(10, 0, -1))
    firsts = [sum(ranking(task, t, seed)[0] == "i0" for seed in range(300)) for t in (0.01, 1.0, 10.0)]
    assert firsts[0] == 300
    assert firsts[0] > firsts[1] > firsts[2]


@pytest.mark.slow
@pytest.mark.parametrize("others", [1, 9])
def test_first_places_follow_the_softmax_of_the_scores(others: int) -> None:
    """Scores s of the pre-ranker count 1.5 log s, so 4 against 1 has odds 4**1.5 : 1, which is 8.

    Against one other, noise of the wrong sign would give the same shares.
    """
    wins = sum(ranking(scored(4.0, *[1.0] * others), 1.0, seed)[0] == "i0" for seed in range(2000))
    assert wins / 2000 == pytest.approx(8 / (8 + others), abs=0.03)


def test_ties_and_missing_evidence_keep_the_pre_rankers_order() -> None:
    assert ranking(scored(3.0, 3.0, 3.0)) == ("i0", "i1", "i2")
    assert ranking(scored(1.0, 2.0, 2.0)) == ("i1", "i2", "i0")
    task = scored(1.0, 2.0, 3.0)
    hidden = replace(task, candidates=tuple(replace(c, evidence=None) for c in task.candidates))
    assert ranking(hidden) == ("i0", "i1", "i2")
    assert len({ranking(hidden, 1.0, seed) for seed in range(50)}) > 3


def test_the_scale_of_the_pre_rankers_scores_does_not_matter() -> None:
    for seed in range(100):
        task = a_task(seed)
        positive = [replace(c, evidence=c.evidence and replace(c.evidence, score=1.0 + n)) for n, c in pairs(task)]
        rescaled = [
            replace(c, evidence=c.evidence and replace(c.evidence, score=1000.0 + 1000 * n)) for n, c in pairs(task)
        ]
        assert ranking(replace(task, candidates=tuple(positive))) == ranking(replace(task, candidates=tuple(rescaled)))


def pairs(task: RerankTask) -> list[tuple[int, Candidate]]:
    return list(enumerate(task.candidates))


def test_the_score_is_one_line_of_arithmetic() -> None:
    assert evidence_score(Evidence(1.0), None) == pytest.approx(0.0, abs=1e-6)
    facts = Evidence(math.e, 0.0, (Link("last", 1, 9), Link("older", 50, 0)), ("Beauty", "Hair"), 3, 2)
    assert evidence_score(facts, "last") == pytest.approx(1.5 + 0.9 * math.log(2) + 0.75 + 0.44, abs=1e-6)
    assert evidence_score(facts, "elsewhere") == pytest.approx(1.5 + 0.75 + 0.44, abs=1e-6)
    assert math.isfinite(evidence_score(Evidence(0.0), None))
    assert math.isfinite(evidence_score(Evidence(-5.0), None))


def test_purchases_after_the_last_item_lift_a_candidate() -> None:
    history = (an_item(7), an_item(8))
    lifted = Candidate(an_item(1), Evidence(0.9, links=(Link("i8", 3, 0),)))
    older = Candidate(an_item(1), Evidence(0.9, links=(Link("i7", 3, 0),)))
    first = Candidate(an_item(0), Evidence(1.0))
    assert ranking(RerankTask(history, (first, lifted))) == ("i1", "i0")
    assert ranking(RerankTask(history, (first, older))) == ("i0", "i1")


def test_the_target_comes_first_and_only_where_the_task_names_one() -> None:
    for seed in range(100):
        task = a_task(seed)
        target = task.candidates[-1].item
        targeted = replace(task, target=target)
        parsed = parse(targeted, complete(targeted, 1.0, seed))
        assert parsed.ranking[0] == target.item_id
        check_statements(targeted, parsed)
        without = [item for item in ranking(task, 0.0) if item != target.item_id]
        assert list(ranking(targeted, 0.0))[1:] == without


def test_a_completion_is_finished_free_and_uncounted() -> None:
    teacher: Teacher = EvidenceTeacher()
    assert (teacher.name, teacher.model) == ("evidence", "evidence.v1")
    completion = complete(a_task(1))
    assert completion == Completion(completion.text, "stop", None, None, 0.0)
    asyncio.run(teacher.close())


def test_a_list_without_candidates_fails_that_request_alone() -> None:
    with pytest.raises(RequestFailedError, match="no candidates"):
        complete(RerankTask((), ()))


def test_a_brief_answer_has_the_same_order_and_says_less() -> None:
    for seed in range(50):
        task = a_task(seed)
        full, brief = (parse(task, complete(task, 1.0, seed, model)) for model in (FULL, BRIEF))
        assert full.ranking == brief.ranking
        assert len(brief.reasoning) < len(full.reasoning)
    with pytest.raises(InputError, match="for teacher evidence it must be"):
        EvidenceTeacher("gpt")
