import pytest
from streamlit.testing.v1 import AppTest

from curate.evaluation import EvalSettings, evaluate
from curate.rankers.offline import EvidenceRanker
from store import Store
from train.browsing import load_curves, load_trainings
from train.sft_training import SftSettings, train_sft


def draw_page() -> None:
    import os  # noqa: PLC0415

    from app.training_page import draw_trainings  # noqa: PLC0415
    from store import Store  # noqa: PLC0415

    draw_trainings(Store.open(os.environ["GR2_STORE"]))


def test_trainings_and_curves_are_listed_and_drawn(lessons: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GR2_STORE", str(lessons.folder))
    page = AppTest.from_function(draw_page, default_timeout=30).run()
    assert [info.value.split(".")[0] for info in page.info] == ["No training yet", "No evaluation yet"]
    for name in ("one", "two"):
        train_sft(lessons, "traces", "new", name, SftSettings(max_steps=2, batch_size=4, log_steps=1))
    evaluate(lessons, "shop", [EvidenceRanker()], EvalSettings(limit=20, shuffles=0))
    trainings = load_trainings(lessons)
    assert trainings.select("name", "student", "status", "steps").rows() == [
        ("two", "new", "done", 2),
        ("one", "new", "done", 2),
    ]
    curves = load_curves(lessons, trainings["run_id"].to_list())
    assert curves.filter(metric="loss").height == 4
    page.run()
    assert not page.exception
    assert page.dataframe[0].value["name"].to_list() == ["two", "one"]
    assert "loss" in page.multiselect[0].value
    assert set(page.dataframe[1].value["ranker"]) == {"cooccurrence.v1", "evidence.v1"}
