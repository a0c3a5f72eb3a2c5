import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from curate.sids.assignment import assign_semantic_ids
from curate.sids.extension import extend_semantic_ids
from curate.sids.methods import open_embedder
from curate.sids.quantizers import ResidualCodebooks, ResidualKMeans
from curate.sids.settings import EmbedderSettings, PurchaseSettings
from curate.sids.versions import load_codes, model_folder
from curate.traces.planning import SamplingSettings, plan_sampling
from curate.traces.teachers.evidence import EvidenceTeacher
from prompts.semantic_ids import parse_sid
from store import InputError, Store

PutTexts = Callable[[str, Sequence[str]], None]

TEXT_ALONE = PurchaseSettings(copurchase_weight=0)
SMALL = ResidualKMeans(levels=3, codebook_size=16)


def test_every_item_gets_an_id_and_its_codes_say_the_same(tiny: Store) -> None:
    summary = assign_semantic_ids(tiny, "tiny", SMALL)
    assert (summary.items, summary.distinct_ids, summary.uniqueness) == (12, 12, 1.0)
    assert summary.fit_for_training
    with tiny.reading() as session:
        rows = session.connection.execute("select codes, text from semantic_ids").fetchall()
    assert len(rows) == 12
    assert all(parse_sid(text) == tuple(codes) for codes, text in rows)


def test_versions_go_by_settings_and_the_same_again_changes_nothing(tiny: Store) -> None:
    first = assign_semantic_ids(tiny, "tiny")
    again = assign_semantic_ids(tiny, "tiny")
    others = [
        assign_semantic_ids(tiny, "tiny", ResidualKMeans(seed=1)),
        assign_semantic_ids(tiny, "tiny", embedder=EmbedderSettings(dimensions=5)),
        assign_semantic_ids(tiny, "tiny", purchases=TEXT_ALONE),
    ]
    assert not first.already_there
    assert again.already_there
    assert again.measures == first.measures
    assert len({first.version, again.version, *(other.version for other in others)}) == 4
    with tiny.reading() as session:
        assert session.connection.execute("select count(*) from semantic_ids").fetchall() == [(48,)]


def test_the_model_is_kept_beside_the_rows(tiny: Store) -> None:
    summary = assign_semantic_ids(tiny, "tiny", SMALL)
    codebooks = ResidualCodebooks.load(model_folder(tiny, summary.version)).codebooks
    assert len(codebooks) == 2
    assert {path.name for path in tiny.models.iterdir()} == {"sids"}


def test_shared_ids_are_not_fit_for_training_unless_somebody_says_so(put_texts: PutTexts, store: Store) -> None:
    put_texts("same", ["red soap"] * 6 + ["blue towel"] * 6)
    fitted = ResidualKMeans(levels=3, codebook_size=16, random_levels=0)
    refused = assign_semantic_ids(store, "same", fitted, purchases=TEXT_ALONE)
    assert (refused.distinct_ids, refused.fit_for_training) == (2, False)
    with pytest.raises(InputError, match="no semantic-ID version fit for training yet; run gr2 sids same first"):
        plan_sampling(store, EvidenceTeacher(), SamplingSettings("same"))
    insisted = assign_semantic_ids(store, "same", fitted, purchases=TEXT_ALONE, accept_shared=True)
    assert insisted.already_there
    assert insisted.fit_for_training
    assert assign_semantic_ids(store, "same", fitted, purchases=TEXT_ALONE).fit_for_training


@pytest.mark.parametrize("texts", [["only one"], ["same"] * 5, [""] * 5, ["", "a b", "a b", "c d"]])
@pytest.mark.parametrize("balanced", [False, True])
def test_any_texts_get_ids_of_their_own(texts: list[str], balanced: bool, put_texts: PutTexts, store: Store) -> None:
    put_texts("odd", texts)
    summary = assign_semantic_ids(store, "odd", ResidualKMeans(codebook_size=4, balanced=balanced))
    assert summary.uniqueness == 1.0


def test_more_items_than_one_prefix_holds_take_the_next(put_texts: PutTexts, store: Store) -> None:
    put_texts("same", ["one text"] * 10)
    summary = assign_semantic_ids(store, "same", ResidualKMeans(codebook_size=4, levels=3), purchases=TEXT_ALONE)
    assert summary.uniqueness == 1.0
    assert summary.figure("moved") == 6


def test_too_many_items_and_broken_vectors_are_clear_errors(tiny: Store) -> None:
    with pytest.raises(InputError, match="all 8 semantic IDs are taken"):
        assign_semantic_ids(tiny, "tiny", ResidualKMeans(levels=3, codebook_size=2))

    class Broken:
        name = "broken"

        def embed(self, texts: list[str]) -> NDArray[np.float32]:
            return np.array([[np.nan if "Item c" in text else 1.0] for text in texts], np.float32)

    with pytest.raises(InputError, match="broken gave a vector that is not finite for the text 'Item c"):
        assign_semantic_ids(tiny, "tiny", open_embedder=lambda *_: Broken())
    with tiny.reading() as session:
        assert session.connection.execute("select count(*) from sid_versions").fetchall() == [(0,)]


def ids_and_model(store: Store, purchases: PurchaseSettings) -> tuple[Any, ...]:
    """All that a new version holds, with its whole model."""
    summary = assign_semantic_ids(store, "shop", ResidualKMeans(codebook_size=16), purchases=purchases)
    assert not summary.already_there
    with store.reading() as session:
        codes = sorted(load_codes(session, summary.version).items())
    files = sorted(model_folder(store, summary.version).iterdir())
    return codes, summary.measures, [(file.name, file.read_bytes()) for file in files]


def test_ids_know_nothing_of_the_purchases_of_held_out_folds(
    shop: Store, built_shop: Path, tmp_path: Path, permute_items: Callable[[Store, str], None]
) -> None:
    poisoned = Store(shutil.copytree(built_shop, tmp_path / "poisoned"))
    permute_items(poisoned, "split = 'train' and user_fold(user_id) in (1, 3)")
    held_out = PurchaseSettings(held_out_folds=(3, 1))
    assert ids_and_model(shop, held_out) == ids_and_model(poisoned, held_out)
    # So that the above says something: each fold alone shapes the IDs that do not hold it out.
    for folds in ((1,), (3,)):
        some = PurchaseSettings(held_out_folds=folds)
        assert ids_and_model(shop, some) != ids_and_model(poisoned, some)


def test_a_version_says_which_folds_it_holds_out(tiny: Store) -> None:
    summary = assign_semantic_ids(tiny, "tiny", SMALL, purchases=PurchaseSettings(held_out_folds=(4, 0, 4)))
    assert summary.settings["held_out_folds"] == [0, 4]
    assert assign_semantic_ids(tiny, "tiny", SMALL, purchases=PurchaseSettings(held_out_folds=(0, 4))).already_there
    assert "held_out_folds" not in assign_semantic_ids(tiny, "tiny", SMALL).settings


def test_what_cannot_be_is_a_clear_error(tiny: Store) -> None:
    with pytest.raises(InputError, match="'nope'"):
        assign_semantic_ids(tiny, "nope")
    with pytest.raises(InputError, match="`levels` is 0"):
        ResidualKMeans(levels=0)
    with pytest.raises(InputError, match="`codebook_size` is 1"):
        ResidualKMeans(codebook_size=1)
    with pytest.raises(InputError, match="`random_levels` is 4; it must be from 0 to 3"):
        ResidualKMeans(random_levels=4)
    with pytest.raises(InputError, match="`held_out_folds` is 5; it must be from 0 to 4"):
        PurchaseSettings(held_out_folds=(0, 5))
    for settings, message in (
        (EmbedderSettings("magic"), "no embedder is called 'magic'; there are: tfidf-svd, openai, hf"),
        (EmbedderSettings("openai"), "embedder 'openai' needs `model`, which is not given"),
        (EmbedderSettings(model="x"), "embedder 'tfidf-svd' takes no `model`"),
    ):
        with pytest.raises(InputError, match=message):
            assign_semantic_ids(tiny, "tiny", embedder=settings)


OWN_EMBEDDER = """
import numpy as np

class Letters:
    def __init__(self, dimensions, folder, model="a", fitted=None):
        self.name = f"letters-{model}"
        self.dimensions, self.letters = dimensions, model

    def embed(self, texts):
        return np.array([[text.count(chr(97 + n)) for n in range(self.dimensions)] for text in texts], np.float32)

class Astray(Letters):
    def __init__(self, dimensions, corpus):
        super().__init__(dimensions, None)
        self.name = "../astray" if corpus else "other"
"""


def test_an_embedder_of_ones_own_makes_ids_and_extends_them(
    store: Store, put_texts: PutTexts, write_module: Callable[[str, str], Path]
) -> None:
    write_module("own_embedders", OWN_EMBEDDER)
    put_texts("may", ["red soap", "blue brush", "green towel"])
    put_texts("june", ["red soap", "blue brush", "green towel", "red towel"])
    settings = EmbedderSettings("own_embedders:Letters", model="b", dimensions=20)
    base = assign_semantic_ids(store, "may", SMALL, settings)
    assert base.settings["embedder"]["name"] == "letters-b"
    assert (store.embeddings / "letters-b").is_dir()
    assert extend_semantic_ids(store, "june", "may").figure("new_items") == 1
    astray = EmbedderSettings("own_embedders:Astray")
    with pytest.raises(InputError, match=r"is called '\.\./astray', which cannot name a folder"):
        assign_semantic_ids(store, "may", embedder=astray)
    with pytest.raises(
        InputError, match="now gives vectors called 'other', but the version to extend has vectors called"
    ):
        open_embedder(astray, store.embeddings, [], "letters-a")
