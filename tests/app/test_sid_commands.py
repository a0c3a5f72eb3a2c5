import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from curate.sids.versions import list_versions
from store import Store

Gr2 = Callable[..., subprocess.CompletedProcess[str]]
Ok = Callable[..., str]


def test_a_name_alone_makes_ids_and_options_may_stand_first(shop: Store, ok: Ok) -> None:
    out = ok("sids", "shop", "--balanced", "--store", shop.folder)
    assert "80 distinct semantic IDs (100.00% unique), version rq-kmeans-4x256-" in out
    assert "neighbour recall" in out
    assert "the store already had it" in ok("sids", "--balanced", "shop", "--store", shop.folder)
    assert "the store already had it" in ok("sids", "make", "shop", "--balanced", "--store", shop.folder)
    assert list_versions(shop).height == 2


def test_folds_of_users_are_held_out(shop: Store, ok: Ok, gr2: Gr2) -> None:
    ok("sids", "shop", "--held-out-folds", "0,2", "--store", shop.folder)
    with shop.reading() as session:
        rows = session.connection.execute("select settings ->> 'held_out_folds' from sid_versions").fetchall()
    assert sorted(rows, key=str) == [("[0,2]",), (None,)]
    refused = gr2("sids", "shop", "--held-out-folds", "0,x", "--store", shop.folder)
    assert refused.returncode == 2
    assert "--held-out-folds is '0,x'; it must be whole numbers, separated by commas" in refused.stderr


def test_the_rq_vae_makes_ids_and_tells_how_it_goes(shop: Store, ok: Ok) -> None:
    words = ["sids", "shop", "--method", "rq-vae", "--epochs", 3, "--contrastive-weight", 0.5, "--store", shop.folder]
    out = ok(*words)
    assert "80 distinct semantic IDs (100.00% unique), version rq-vae-4x256-" in out
    assert "the store already had it" in ok(*words)


def test_versions_can_be_listed_compared_and_explained(shop: Store, ok: Ok) -> None:
    ok("sids", "shop", "--seed", 1, "--store", shop.folder)
    first, second = list_versions(shop)["sid_version"]
    assert ok("sids", "list", "--store", shop.folder).count("rq-kmeans") == 4  # two versions, each with its method
    compared = ok("sids", "compare", first, second, "--store", shop.folder)
    assert "prefix_agreement" in compared
    with shop.reading() as session:
        ((item, title),) = session.connection.execute("select item_id, title from items limit 1").fetchall()
    assert title in ok("sids", "explain", item, "--store", shop.folder)


def test_ids_are_extended_to_another_dataset(shop: Store, ok: Ok) -> None:
    ok("simulate", "later", "--users", 100, "--items", 90, "--seed", 1, "--store", shop.folder)
    out = ok("sids", "later", "--extend", "shop", "--store", shop.folder)
    assert "extends shop@rq-kmeans" in out
    assert "drift: the error of new items is" in out
    vae = ["--method", "rq-vae", "--epochs", 2, "--store", shop.folder]
    ok("sids", "shop", *vae)
    assert "rq-vae-4x256" in ok("sids", "later", "--extend", "shop@rq-vae", "--store", shop.folder)


def test_ids_and_vectors_come_from_a_file(shop: Store, ok: Ok, gr2: Gr2, tmp_path: Path) -> None:
    with shop.reading() as session:
        items = session.frame("catalogue_of", dataset="shop").select("item_id")
    ids = tmp_path / "ids.csv"
    ids.write_text(
        "item_id,codes\n" + "".join(f"{item},{row // 9}-{row % 9}\n" for row, (item,) in enumerate(items.rows()))
    )
    words = ["sids", "shop", "--from", ids, "--store", shop.folder]
    assert "80 distinct semantic IDs (100.00% unique), version imported-2x9-" in ok(*words)
    assert "the store already had it" in ok(*words)
    vectors, names = tmp_path / "v.npy", tmp_path / "items.txt"
    np.save(vectors, np.random.default_rng(0).normal(size=(80, 6)).astype(np.float32))
    names.write_text("".join(f"{item}\n" for (item,) in items.rows()))
    words = ["sids", "shop", "--from", vectors, "--store", shop.folder]
    assert "version rq-kmeans-4x256-" in ok(*words, "--item-ids", names)
    refused = gr2(*words)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "80 of 80 items of the dataset have no row" in refused.stderr
    assert "with --item-ids" in refused.stderr


def test_what_is_not_fit_for_training_says_what_to_do(shop: Store, ok: Ok) -> None:
    words = ["sids", "shop", "--levels", 1, "--random-levels", 0, "--codebook-size", 8, "--store", shop.folder]
    assert "not marked fit for training: under 99%" in ok(*words)
    assert "not marked" not in ok(*words, "--accept-shared")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nope"], "no dataset is called 'nope'; there are: shop"),
        (["shop", "--method", "magic"], "--method is 'magic'; it must be one of rq-kmeans, rq-vae"),
        (["shop", "--epochs", "3"], "method rq-kmeans has no --epochs"),
        (["shop", "--method", "rq-vae", "--balanced"], "method rq-vae has no --balanced"),
        (["shop", "--embedder", "hf"], "embedder 'hf' needs"),
        (["shop", "--from", "none.csv"], "none.csv: there is no such file"),
        (["shop", "--from", "none.csv", "--extend", "other"], "--from and --extend both give the source of the IDs"),
        (["shop", "--item-ids", "none.txt"], "--item-ids names the rows of an .npy; give the .npy with --from"),
        (
            ["later", "--extend", "shop", "--held-out-folds", "0", "--levels", "2"],
            "--extend takes all settings from the version that it extends; leave out --held-out-folds, --levels",
        ),
        (["shop", "--extend", "other"], "'other' names no version of semantic IDs; there are: shop@"),
        (["compare", "shop", "shop"], "both name shop@"),
        (["explain", "nope"], "no item 'nope' has a semantic ID"),
    ],
)
def test_mistakes_are_one_clear_line(words: list[str], message: str, shop: Store, gr2: Gr2) -> None:
    done = gr2("sids", *words, "--store", shop.folder)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_empty_store_says_how_to_begin(tmp_path: Path, ok: Ok) -> None:
    Store.open(tmp_path / "store", create=True)
    assert "no semantic IDs yet" in ok("sids", "list", "--store", tmp_path / "store")
