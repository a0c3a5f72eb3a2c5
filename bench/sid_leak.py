"""How much semantic IDs reveal of the purchases that they were fitted on.

    python bench/sid_leak.py [--data beauty]

IDs that are fitted to all users are compared with IDs that leave one fold of users out. Both predict the next purchase
after a purchase. In training interactions of the fold's users, only the former were fitted to the purchase. In test
interactions, neither was. The next item is compared with nine others, drawn by how often items were bought. AUC is the
share of the nine that have a lower cosine with the item before; a tie counts half. It is measured on the vectors that
are quantized and on the IDs, each as the sum of its code vectors. If the gain of the former IDs is higher on training
purchases than on test purchases, the difference is what they memorise. Intervals are 95%, by a paired bootstrap over
purchases. Needs the real data (GR2_DATA). OMP_NUM_THREADS=1 is faster on a busy machine.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from measure import DATA, measure
from numpy.typing import NDArray

from curate.evaluation.metrics import mean_value
from curate.sids.assignment import load_pairs
from curate.sids.embedding.copurchases import Copurchases
from curate.sids.embedding.embedders import TfidfSvdEmbedder
from curate.sids.quantizers import ResidualKMeans, sum_codes
from curate.sids.settings import PurchaseSettings
from curate.sids.versions import load_items
from store import Store

FOLD = 0
OTHERS = 9
PAIRS = """
select before, item_id from (
    select *, lag(item_id) over (partition by user_id order by position) as before
    from interactions where dataset = ?
) where before is not null and before <> item_id and {} order by user_id, position
"""
CONDITIONS = {"train": f"split = 'train' and user_fold(user_id) = {FOLD}", "test": "split = 'test'"}


def auc(vectors_N_D: NDArray[np.float32], pairs_B_2: NDArray[np.int64], others_B_K: NDArray[np.int64]) -> NDArray:
    """Return the AUC of each pair (B): its second item against K others, by the cosine with its first."""
    lengths_N = np.linalg.norm(vectors_N_D, axis=1, keepdims=True)
    units_N_D = vectors_N_D / np.maximum(lengths_N, 1e-12)
    first_B_1_D = units_N_D[pairs_B_2[:, :1]]
    own_B_1 = (units_N_D[pairs_B_2[:, 1:]] * first_B_1_D).sum(axis=2)
    others_B_K = (units_N_D[others_B_K] * first_B_1_D).sum(axis=2)
    return ((own_B_1 > others_B_K) + 0.5 * (own_B_1 == others_B_K)).mean(axis=1)


def main() -> None:
    """Print one line for each representation of IDs and each kind of purchases."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="beauty")
    name = parser.parse_args().data
    with tempfile.TemporaryDirectory() as temporary:
        folder, files = str(Path(temporary) / "store"), DATA / name
        measure(
            "ingest", name, "--items", str(files / "items.jsonl"),
            "--interactions", str(files / "interactions.csv.gz"), "--store", folder,
        )  # fmt: skip
        store = Store.open(folder)
        with store.reading() as session:
            items = load_items(session, name)
            row_of = {item.item_id: row for row, item in enumerate(items)}
            fitted_on = {folds: load_pairs(session, name, items, folds) for folds in ((), (FOLD,))}
            pairs_by_split = {
                split: np.array(
                    [
                        (row_of[before], row_of[after])
                        for before, after in session.connection.execute(PAIRS.format(condition), [name]).fetchall()
                    ]
                )
                for split, condition in CONDITIONS.items()
            }
        texts = [item.text for item in items]
        texts_N_D = TfidfSvdEmbedder.fit(store.embeddings, texts).embed(texts)
    random, bought = np.random.default_rng(0), fitted_on[()][:, 1]
    others = {split: random.choice(bought, (len(pairs_B_2), OTHERS)) for split, pairs_B_2 in pairs_by_split.items()}
    quantizer = ResidualKMeans()
    read: dict[str, list[NDArray[np.float32]]] = {"vectors": [], "IDs": []}
    for pairs_P_2 in fitted_on.values():
        weight = PurchaseSettings().copurchase_weight
        _, vectors_N_D = Copurchases.fit(texts_N_D, pairs_P_2, weight, seed=quantizer.seed)
        fitted, codes_N_F = quantizer.fit(vectors_N_D, pairs_P_2, lambda _: None)
        read["vectors"].append(vectors_N_D)
        read["IDs"].append(sum_codes(codes_N_F, fitted.codebooks))
    print("| read by | purchases | n | AUC, IDs of all users | fold held out | difference, 95% |")
    print("|---|---|---|---|---|---|")
    for reading, both in read.items():
        for split, pairs_B_2 in pairs_by_split.items():
            all_B, held_out_B = (auc(vectors_N_D, pairs_B_2, others[split]) for vectors_N_D in both)
            gain = mean_value("gain", all_B - held_out_B)
            print(
                f"| {reading} | {split} | {gain.n:,} | {all_B.mean():.4f} | {held_out_B.mean():.4f} "
                f"| {gain.value:+.4f} ({gain.low:+.4f} to {gain.high:+.4f}) |"
            )


if __name__ == "__main__":
    main()
