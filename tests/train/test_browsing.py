import polars as pl
import pytest
from streamlit.testing.v1 import AppTest

from app.browser.training_page import gains_over
from curate.evaluation.evaluate import evaluate
from curate.evaluation.rankers.offline import EvidenceRanker
from curate.evaluation.settings import EvalSettings
from store import Store
from train.browsing import load_curves, load_trainings
from train.sft.training import SftSettings, train_sft


def draw_page() -> None:
    import os  # noqa: PLC0415

    from app.browser.training_page import draw_trainings  # noqa: PLC0415
    from store import Store  # noqa: PLC0415

    draw_trainings(Store.open(os.environ["GR2_STORE"]))


@pytest.mark.usefixtures("checked_charts")
def test_trainings_and_curves_are_listed_and_drawn(inputs: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GR2_STORE", str(inputs.folder))
    page = AppTest.from_function(draw_page, default_timeout=30).run()
    assert [info.value.split(".")[0] for info in page.info] == [
        "There are no trainings yet",
        "There are no evaluations yet",
    ]
    for name in ("one", "two"):
        train_sft(inputs, "traces", "new", name, SftSettings(max_steps=2, batch_size=4, log_steps=1))
    evaluate(inputs, "shop", [EvidenceRanker(), EvidenceRanker("again")], EvalSettings(limit=20, shuffles=0))
    trainings = load_trainings(inputs)
    assert trainings.select("name", "student", "status", "steps").rows() == [
        ("two", "new", "done", 2),
        ("one", "new", "done", 2),
    ]
    assert trainings["best_step"].to_list() == [None, None]
    curves = load_curves(inputs, trainings["run_id"].to_list())
    assert curves.filter(metric="loss").height == 4
    page.run()
    assert not page.exception
    # At least the loss, the gains over the pre-ranker and over another, the slices.
    assert len(page.get("vega_lite_chart")) >= 4
    assert page.dataframe[0].value["name"].to_list() == ["two", "one"]
    assert "loss" in page.multiselect[0].value
    assert page.dataframe[1].value["ranker"].to_list() == ["cooccurrence.v1", "evidence.v1", "again"]
    assert "20 lists (split: test) of pre-ranker cooccurrence.v1" in page.text[0].value
    page.selectbox(key="other").select("again").run()
    assert not page.exception


def test_a_difference_is_turned_where_it_is_stored_the_other_way_round() -> None:
    differences = pl.DataFrame(
        {"ranker": ["b", "c", "c"], "other": ["a", "a", "b"], "value": [1.0, 3.0, 2.0], "low": [0.5, 2.0, 1.0],
         "high": [1.5, 4.0, 3.5], "n": [9, 9, 9]}
    )  # fmt: skip
    assert gains_over(differences, "b").rows() == [("c", 2.0, 1.0, 3.5, 9), ("a", -1.0, -1.5, -0.5, 9)]
