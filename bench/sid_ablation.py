"""The paper's ablation of the means for unique semantic IDs, repeated: each means on and off, three seeds, real data.

    python bench/sid_ablation.py [--data beauty ml-100k] [--seeds 3] [--keep FILE] > docs/benchmarks/sid-ablation.md

There are 4 x 256 codes from text alone, as in the paper. The same fitted codes are counted with all four levels fitted,
and with three levels fitted and the last one drawn. Recommendation is measured by the small model of `next_item.py`
over the IDs with the last level drawn, in four epochs, on valid interactions of Beauty alone. --keep FILE keeps each
run as it ends, so that a stopped benchmark continues. Exit status 1 if EMA with a drawn last level leaves under 99.9%
unique.
"""

import argparse
import json
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from catalogues import load_sequences, prepare
from next_item import Budget, fit, rank

from curate.evaluation.metrics import ndcg_at_k
from curate.sids.measures import perplexity, reconstruction_error
from curate.sids.unique_codes import complete_codes
from train.sids.rq_vae_training import RqVaeQuantizer

CODES = 256
EPOCHS = 100
RECOMMENDED = "beauty"
CONFIGURATIONS: dict[str, dict] = {
    "none": {"kmeans_init": False, "ema_decay": 0.0},
    "k-means++": {"ema_decay": 0.0},
    "EMA alone": {"kmeans_init": False},
    "k-means++, EMA": {},
    "k-means++, EMA, diversity": {"diversity_weight": 0.1},
    "k-means++, EMA, reset of dead codes": {"reset_after": 20},
    "k-means++, EMA, contrastive": {"contrastive_weight": 3.0},
    "all": {"diversity_weight": 0.1, "reset_after": 20, "contrastive_weight": 3.0},
}
HEAD = """# Semantic-ID ablation

What each technique of the paper does for the uniqueness and quality of semantic IDs. `python bench/sid_ablation.py`
writes this page.

The IDs come from an RQ-VAE over TF-IDF-SVD text vectors with 4 x 256 codes, {epochs} epochs and {seeds} seeds. Values
are the mean over seeds ± half the range.

- **fitted**: share of unique IDs if all four levels are fitted.
- **drawn**: share of unique IDs if three levels are fitted and the last is drawn from the codes that are still free
  under its prefix. In brackets: the share that the three levels alone tell apart.
- **perplexity**: mean over the four fitted levels. 256 is perfectly even use.
- **reconstruction error**: share of the variance of the text vectors that the four fitted levels do not explain.
- **N@10**: NDCG@10 of a small next-item model over the IDs with a drawn level, on Beauty's valid interactions, with a
  third of the budget of `bench/sid_quality.py`.
"""
PAPER = """
## Comparison with the paper

GR2 (arXiv 2602.07774) on Amazon Beauty, with an embedder and an RQ-VAE whose sizes are not published:

| technique | paper: uniqueness | paper: recommendation | here |
|---|---|---|---|
| k-means++ initialisation | needed to start | | {kmeans} |
| EMA codebooks, decay 0.95-0.99 | 31.3% → 97.5% | essential | {ema} |
| random last level | 54% → 83%; with EMA ≥ 99.95% | essential | {drawn} |
| diversity loss | +0.6 points | marginal | {diversity} |
| reset of dead codes | -4.0 points | slightly negative | {reset} |
| contrastive InfoNCE | -13.2 points | the best quality | {contrastive} |
"""


def run(job: tuple[Path, str, str, int]) -> dict:
    """Run one configuration with one seed, fitted with four levels and with three."""
    file, name, configuration, seed = job
    torch.set_num_threads(1)
    data = np.load(file)
    vectors, pairs = data["texts"], data["pairs"]
    result: dict = {"data": name, "configuration": configuration, "seed": seed}
    for random_levels in (0, 1):
        quantizer = RqVaeQuantizer(
            epochs=EPOCHS, codebook_size=CODES, random_levels=random_levels, seed=seed, **CONFIGURATIONS[configuration]
        )
        fitted, codes = quantizer.fit(vectors, pairs, lambda _: None)
        ids, _ = complete_codes(
            codes,
            fitted.encode(vectors),
            fitted.codebooks,
            codebook_size=CODES,
            random_levels=random_levels,
            seed=seed,
        )
        result |= {
            ("drawn" if random_levels else "fitted"): share(ids),
            ("by_three_levels" if random_levels else "by_four_levels"): share(codes),
        }
        if random_levels == 0:
            result["perplexity"] = float(np.mean([perplexity(codes_N, CODES) for codes_N in codes.T]))
            result["reconstruction_error"] = reconstruction_error(codes, vectors, fitted)[-1]
    if name == RECOMMENDED:
        sequences = load_sequences(data)
        model = fit([sequence[:-2] for sequence in sequences], ids, CODES, seed, Budget(epochs=4))
        targets = np.array([sequence[-2] for sequence in sequences])
        ranks = rank(model, [sequence[:-2] for sequence in sequences], targets, ids, CODES)
        result["ndcg_at_10"] = float(ndcg_at_k(ranks, 10).mean())
    return result


def share(codes_N_L: np.ndarray) -> float:
    """Return the share of distinct rows."""
    return len(np.unique(codes_N_L, axis=0)) / len(codes_N_L)


def cell(runs: list[dict], figure: str, form: str = "{:.1%}") -> str:
    """Return the mean and half the range over seeds."""
    values = [run[figure] for run in runs if figure in run]
    if not values:
        return ""
    spread = (max(values) - min(values)) / 2
    return form.format(float(np.mean(values))) + (f" ± {form.format(spread)}" if spread else "")


def report(results: list[dict], seeds: int) -> str:
    """Return the page."""
    page = [HEAD.format(seeds=seeds, epochs=EPOCHS)]
    for name in dict.fromkeys(result["data"] for result in results):
        of_data = [result for result in results if result["data"] == name]
        page.append(
            f"\n## {name}\n\n| technique | fitted | drawn | perplexity | reconstruction error | N@10 |\n"
            "|---|---|---|---|---|---|"
        )
        for configuration in CONFIGURATIONS:
            runs = [result for result in of_data if result["configuration"] == configuration]
            page.append(
                f"| {configuration} | {cell(runs, 'fitted')} "
                f"| {cell(runs, 'drawn')} ({cell(runs, 'by_three_levels')}) | "
                f"{cell(runs, 'perplexity', '{:.0f}')} | {cell(runs, 'reconstruction_error')} | "
                f"{cell(runs, 'ndcg_at_10', '{:.4f}')} |"
            )
    page.append(PAPER.format(**differences([result for result in results if result["data"] == RECOMMENDED])))
    return "\n".join(page)


def differences(results: list[dict]) -> dict[str, str]:
    """Describe how each means changes the results on Beauty."""

    def mean(configuration: str, figure: str) -> float:
        return float(np.mean([result[figure] for result in results if result["configuration"] == configuration]))

    def change(before: str, after: str) -> str:
        return (
            f"{mean(before, 'fitted'):.1%} → {mean(after, 'fitted'):.1%}; "
            f"N@10 {mean(before, 'ndcg_at_10'):.4f} → {mean(after, 'ndcg_at_10'):.4f}"
        )

    base = "k-means++, EMA"
    return {
        "kmeans": change("none", "k-means++") + " (with EMA " + change("EMA alone", base) + ")",
        "ema": change("k-means++", base),
        "drawn": f"{mean('k-means++', 'fitted'):.1%} → {mean('k-means++', 'drawn'):.1%}; with EMA "
        f"{mean(base, 'fitted'):.1%} → {mean(base, 'drawn'):.1%}",
        "diversity": change(base, "k-means++, EMA, diversity"),
        "reset": change(base, "k-means++, EMA, reset of dead codes"),
        "contrastive": change(base, "k-means++, EMA, contrastive"),
    }


def main() -> None:
    """Run what is not kept yet, then write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", nargs="+", default=["beauty", "ml-100k"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args()
    kept = arguments.keep.read_text().splitlines() if arguments.keep and arguments.keep.exists() else []
    results = [json.loads(line) for line in kept]
    finished = {(result["data"], result["configuration"], result["seed"]) for result in results}
    with tempfile.TemporaryDirectory() as folder:
        files = {name: prepare(name, Path(folder)) for name in arguments.data}
        jobs = [
            (file, name, configuration, seed)
            for name, file in files.items()
            for seed in range(arguments.seeds)
            for configuration in CONFIGURATIONS
            if (name, configuration, seed) not in finished
        ]
        with ProcessPoolExecutor(arguments.workers) as pool:
            for result in pool.map(run, jobs):
                results.append(result)
                print(json.dumps(result), file=sys.stderr, flush=True)
                if arguments.keep:
                    with arguments.keep.open("a") as out:
                        out.write(json.dumps(result) + "\n")
    order = {name: place for place, name in enumerate(arguments.data)}
    results.sort(key=lambda result: (order.get(result["data"], 99), result["seed"]))
    print(report(results, arguments.seeds))
    ema = [result["drawn"] for result in results if "ema_decay" not in CONFIGURATIONS[result["configuration"]]]
    print(f"met: EMA with a drawn last level, least unique {min(ema):.4%} (bar 99.9%)", file=sys.stderr)
    sys.exit(min(ema) < 0.999)


if __name__ == "__main__":
    main()
