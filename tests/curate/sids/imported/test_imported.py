import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from curate.sids.extension import extend_semantic_ids
from curate.sids.imported.files import read_own_rows
from curate.sids.imported.versions import fit_codebooks, import_semantic_ids
from curate.sids.settings import PurchaseSettings
from curate.sids.versions import load_codes
from store import InputError, Store

ITEMS = ["a", "b", "c"]
CODES = [[1, 2, 3], [1, 2, 4], [0, 0, 65]]
TEXT_ALONE = PurchaseSettings(copurchase_weight=0)
VECTORS = [[0.5, 1.0], [-1.0, 2.5], [0.0, 0.25]]


def npy(values: Any, dtype: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array(values, dtype))
    return buffer.getvalue()


def parquet(**columns: Any) -> bytes:
    buffer = io.BytesIO()
    pl.DataFrame(columns).write_parquet(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"item_id,codes\na,1-2-3\nb,1 2 4\nc,0.0.65\n",
        b'asin,semantic_id\na,"<a_1><b_2><c_3>"\nb,<a_1><b_2><c_4>\nc,<a_0><b_0><c_65>\n',
        b"item_id,code_0,code_1,code_2\nc,0,0,65\nb,1,2,4\na,1,2,3\n",
        b"item_id\tsid\na\t[1, 2, 3]\nb\t[1, 2, 4]\nc\t[0, 0, 65]\n",
        b'{"item_id":"a","codes":[1,2,3]}\n{"item_id":"b","codes":[1,2,4]}\n{"item_id":"c","codes":[0,0,65]}\n',
        json.dumps({item: [f"<t_{code}>" for code in CODES[row]] for row, item in enumerate(ITEMS)}).encode(),
        parquet(item_id=ITEMS, codes=CODES),
        parquet(item_id=ITEMS, x=[1, 1, 0], y=[2, 2, 0], z=[3, 4, 65]),
        # The same row twice, and a row of another item
        b"item_id,codes\na,1-2-3\na,1-2-3\nb,1-2-4\nc,0-0-65\nd,9-9-9\n",
    ],
)  # fmt: skip
def test_codes_are_read_however_they_are_written(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "f").write_bytes(data)
    own = read_own_rows(tmp_path / "f", ITEMS)
    assert own.codes_N_L is not None
    assert own.codes_N_L.tolist() == CODES
    assert own.left_out == (1 if b"\nd," in data else 0)


@pytest.mark.parametrize(
    "data",
    [
        parquet(item_id=ITEMS, embedding=VECTORS),
        parquet(item_id=ITEMS, x=[0.5, -1.0, 0.0], y=[1.0, 2.5, 0.25]),
        b'item_id,embedding\na,"[0.5, 1.0]"\nb,"[-1.0, 2.5]"\nc,"[0.0, 0.25]"\n',
        b"item_id,e0,e1\na,0.5,1.0\nb,-1.0,2.5\nc,0.0,0.25\n",
        # A data frame's own row numbers are no dimension, and no codes.
        b",item_id,e0,e1\n0,a,0.5,1.0\n1,b,-1.0,2.5\n2,c,0.0,0.25\n",
        parquet(index=[0, 1, 2], item_id=ITEMS, embedding=VECTORS),
    ],
)
def test_vectors_are_read_however_they_are_written(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "f").write_bytes(data)
    own = read_own_rows(tmp_path / "f", ITEMS)
    assert own.vectors_N_D is not None
    assert own.vectors_N_D.tolist() == VECTORS


def test_rows_of_an_npy_are_named_by_number_or_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "f.npy").write_bytes(npy(VECTORS, np.float32))
    (tmp_path / "names").write_text("c\nb\na\n")
    by_number = read_own_rows(tmp_path / "f.npy", ["0", "1", "2"]).vectors_N_D
    by_name = read_own_rows(tmp_path / "f.npy", ITEMS, tmp_path / "names").vectors_N_D
    assert by_number is not None
    assert by_name is not None
    assert by_number.tolist() == by_name.tolist()[::-1] == VECTORS
    (tmp_path / "f.npy").write_bytes(npy(CODES, np.int32))
    codes = read_own_rows(tmp_path / "f.npy", ["0", "1", "2"]).codes_N_L
    assert codes is not None
    assert codes.tolist() == CODES


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"item_id,codes\na,1-2\nb,1-3\n", "1 of 3 items of the dataset have no row, the first 'c'"),
        (b"item_id,codes\na,1-2\nb,1-3\nc,1-2-3\n", "f:4: item 'c' has 3 values, but the first row has 2"),
        (
            b"item_id,codes\na,1-2\nb,1-3\nc,1-4\na,1-5\n",
            "f:5: item 'a' is repeated with other values, first at line 2",
        ),
        (b"item_id,codes\na,\nb,1\nc,1\n", "f:2: item 'a' has 0 values"),
        (b"item_id,codes\na,1\nb,99999\nc,1\n", r"f:3: item 'b' has codes \[99999.0\]; each must be a whole number"),
        (parquet(item_id=ITEMS, codes=[[1], [-1], [2]]), "item 'b' has codes"),
        (parquet(item_id=ITEMS, codes=[[1.5], [1.0], [2.0]]), "item 'a' has codes"),
        (parquet(item_id=ITEMS, codes=[list(range(9))] * 3), "have 9 codes; at most 8"),
        (parquet(item_id=ITEMS, embedding=[[1.0], [float("nan")], [2.0]]), "f:2: item 'b' has a value that is not"),
        (parquet(item_id=ITEMS, embedding=[[1.0], None, [2.0]]), "f:2: item 'b' has None; expected numbers"),
        (b"item_id,title\na,Soap\nb,Brush\nc,Towel\n", r"f:2: item 'a' has \['Soap'\]; expected numbers"),
        (b"who,codes\na,1\n", "no column item_id; the columns are who, codes"),
        (b"item_id\na\n", "there must be a column besides the item"),
        (b"item_id,codes\n", "there are no rows after the header"),
        (b"", "the file is empty"),
        (npy(VECTORS, np.float32), "3 of 3 items of the dataset have no row, .* with `item_ids`"),
        (npy(VECTORS[0], np.float32), r"expected an array \(items, values\) of numbers"),
        (npy([["x"]], object), "the .npy cannot be read"),
        (npy(VECTORS, np.float32)[:-8], "the .npy cannot be read"),
    ],
)
def test_files_that_do_not_fit_are_one_clear_line(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "f").write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        read_own_rows(tmp_path / "f", ITEMS)
    assert "\n" not in str(caught.value)


def test_codebooks_explain_ids_by_the_mean_of_what_has_a_code() -> None:
    vectors = np.array([[1, 0], [3, 0], [0, 4]], np.float32)
    first, second = fit_codebooks(np.array([[0, 0], [0, 1], [2, 0]]), vectors).codebooks
    assert first.tolist() == [[2, 0], [0, 0], [0, 4]]
    assert second.tolist() == [[-0.5, 0], [1, 0]]


PutTexts = Callable[[str, Sequence[str]], None]
TITLES = ["soft soap", "hard soap", "green tea", "black tea"]


def write(path: Path, **columns: Any) -> Path:
    path.write_bytes(parquet(item_id=[f"i{row:03}" for row in range(len(TITLES))], **columns))
    return path


def test_ids_are_stored_as_they_are_measured_and_extended(store: Store, tmp_path: Path, put_texts: PutTexts) -> None:
    put_texts("shop", TITLES)
    put_texts("later", [*TITLES, "white tea"])
    codes = [[0, 1], [0, 2], [5, 1], [5, 2]]
    summary = import_semantic_ids(store, "shop", write(tmp_path / "f", codes=codes))
    assert (summary.distinct_ids, summary.fit_for_training, summary.already_there) == (4, True, False)
    assert summary.version.sid_version.startswith("imported-2x6-")
    assert summary.figure("reconstruction_error", 2) is not None
    assert import_semantic_ids(store, "shop", tmp_path / "f").already_there
    extended = extend_semantic_ids(store, "later", "shop")
    with store.reading() as session:
        assert list(load_codes(session, summary.version).values()) == [tuple(row) for row in codes]
        later = load_codes(session, extended.version)
    assert len(set(later.values())) == 5
    assert {item: later[item] for item in ("i000", "i003")} == {"i000": (0, 1), "i003": (5, 2)}


def test_ids_that_items_share_are_fit_only_if_that_is_accepted(
    store: Store, tmp_path: Path, put_texts: PutTexts
) -> None:
    put_texts("shop", TITLES)
    file = write(tmp_path / "f", codes=[[0], [0], [1], [1]])
    assert not import_semantic_ids(store, "shop", file).fit_for_training
    assert import_semantic_ids(store, "shop", file, accept_shared=True).fit_for_training
    with pytest.raises(InputError, match="`codebook_size` is 1, but the file has code 1; use 2 or more"):
        import_semantic_ids(store, "shop", file, codebook_size=1)
    assert import_semantic_ids(store, "shop", file, codebook_size=64).settings["codebook_size"] == 64


def test_ids_are_made_of_ones_own_vectors(store: Store, tmp_path: Path, put_texts: PutTexts) -> None:
    put_texts("shop", TITLES)
    file = write(tmp_path / "f", embedding=[[9.0, 0.1], [8.0, 0.2], [0.1, 7.0], [0.2, 9.0]])
    summary = import_semantic_ids(store, "shop", file, purchases=TEXT_ALONE)
    assert summary.version.sid_version.startswith("rq-kmeans-4x256-")
    assert summary.settings["embedder"]["kind"] == "file"
    assert import_semantic_ids(store, "shop", file, purchases=TEXT_ALONE).already_there
    other = write(tmp_path / "g", embedding=[[9.0, 0.1], [8.0, 0.2], [0.1, 7.0], [0.2, 9.5]])
    assert not import_semantic_ids(store, "shop", other, purchases=TEXT_ALONE).already_there
    put_texts("later", [*TITLES, "white tea"])
    with pytest.raises(InputError, match="was made from vectors in a file"):
        extend_semantic_ids(store, "later", str(summary.version))
