"""Which semantic IDs a next-item model learns best from: methods compared in use, with the same budget.

    python bench/sid_quality.py [--data beauty] [--seeds 3] [--only TEXT] [--keep FILE]

Each method makes IDs. The small model of `next_item.py` is trained on the training interactions over these IDs, and
ranks the whole catalogue for every user's valid and test interaction. Settings were chosen on valid. The seed changes
both IDs and model. Intervals are 95%, by a paired bootstrap over users of the seeds' mean, against the first method.
--keep FILE keeps each run as it ends, so that a stopped benchmark continues. Needs the real data (GR2_DATA).
"""

import argparse
import json
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from catalogues import load_sequences, prepare
from next_item import Budget, fit, rank

from curate.evaluation.metrics import ndcg_at_k, recall_at_k
from curate.sids.embedding.copurchases import Copurchases
from curate.sids.quantizers import Quantizer, ResidualKMeans
from curate.sids.unique_codes import complete_codes
from train.sids.rq_vae_training import RqVaeQuantizer

METHODS: dict[str, tuple[Quantizer, float]] = {
    "rq-kmeans, text": (ResidualKMeans(), 0.0),
    "rq-vae, text": (RqVaeQuantizer(), 0.0),
    "rq-vae + contrastive, text": (RqVaeQuantizer(contrastive_weight=3.0), 0.0),
    "rq-kmeans, text + co-purchases": (ResidualKMeans(), 1.5),
    "rq-vae, text + co-purchases": (RqVaeQuantizer(), 1.5),
    "rq-vae + contrastive, text + co-purchases": (RqVaeQuantizer(contrastive_weight=3.0), 1.5),
}
KS = (5, 10)


def run(job: tuple[Path, str, int]) -> dict:
    """Run one method with one seed. Returns the ranks of every user's valid and test item."""
    file, method, seed = job
    torch.set_num_threads(1)
    data = np.load(file)
    sequences = load_sequences(data)
    quantizer, weight = METHODS[method]
    quantizer = type(quantizer)(**{**quantizer.settings(), "seed": seed})
    started = time.perf_counter()
    _, vectors = Copurchases.fit(data["texts"], data["pairs"], weight, seed=seed)
    fitted, codes = quantizer.fit(vectors, data["pairs"], lambda _: None)
    ids, _ = complete_codes(
        codes,
        fitted.encode(vectors),
        fitted.codebooks,
        codebook_size=quantizer.codebook_size,
        random_levels=quantizer.random_levels,
        seed=seed,
    )
    seconds = time.perf_counter() - started
    model = fit([sequence[:-2] for sequence in sequences], ids, quantizer.codebook_size, seed, Budget())
    ranks = {
        split: rank(
            model,
            [sequence[:-cut] for sequence in sequences],
            np.array([sequence[-cut] for sequence in sequences]),
            ids,
            quantizer.codebook_size,
        ).tolist()
        for split, cut in (("valid", 2), ("test", 1))
    }
    return {
        "method": method,
        "seed": seed,
        "seconds": round(seconds, 1),
        "uniqueness": len(np.unique(ids, axis=0)) / len(ids),
        **ranks,
    }


def report(results: list[dict]) -> None:
    """Print a Markdown table for each split."""
    random = np.random.default_rng(0)
    methods = [method for method in METHODS if any(result["method"] == method for result in results)]
    for split in ("valid", "test"):
        print(f"\n{split}\n\n| IDs | R@5 | R@10 | N@10 | N@10 of each seed | N@10 against the first, 95% | seconds |")
        print("|---|---|---|---|---|---|---|")
        first_U = None
        for method in methods:
            runs = [result for result in results if result["method"] == method]
            ranks_S_U = np.array([result[split] for result in runs])
            ndcg_U = ndcg_at_k(ranks_S_U, 10).mean(axis=0)
            first_U = ndcg_U if first_U is None else first_U
            gain_U = ndcg_U - first_U
            draws = random.integers(len(gain_U), size=(1000, len(gain_U)))
            low, high = np.quantile(gain_U[draws].mean(axis=1), (0.025, 0.975))
            recalls = " | ".join(f"{recall_at_k(ranks_S_U, k).mean():.4f}" for k in KS)
            each = ", ".join(f"{value:.4f}" for value in ndcg_at_k(ranks_S_U, 10).mean(axis=1))
            gain = f"{gain_U.mean():+.4f} ({low:+.4f} to {high:+.4f})" if gain_U.any() else ""
            seconds = np.mean([result["seconds"] for result in runs])
            print(f"| {method} | {recalls} | {ndcg_U.mean():.4f} | {each} | {gain} | {seconds:.0f} |")


def main() -> None:
    """Run what is not kept yet, then report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="beauty")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args()
    kept = arguments.keep.read_text().splitlines() if arguments.keep and arguments.keep.exists() else []
    results = [json.loads(line) for line in kept]
    finished = {(result["method"], result["seed"]) for result in results}
    with tempfile.TemporaryDirectory() as folder:
        file = prepare(arguments.data, Path(folder))
        jobs = [
            (file, method, seed)
            for seed in range(arguments.seeds)
            for method in METHODS
            if arguments.only in method and (method, seed) not in finished
        ]
        with ProcessPoolExecutor(arguments.workers) as pool:
            for result in pool.map(run, jobs):
                results.append(result)
                valid = np.array(result["valid"])
                print(result["method"], result["seed"], f"valid N@10 {ndcg_at_k(valid, 10).mean():.4f}", flush=True)
                if arguments.keep:
                    with arguments.keep.open("a") as out:
                        out.write(json.dumps(result) + "\n")
    report(results)


if __name__ == "__main__":
    main()
