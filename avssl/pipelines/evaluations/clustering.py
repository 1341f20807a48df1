"""clustering: do the classes form clusters in the features?"""

import numpy as np

from avssl.evaluation.clustering import cluster_metrics
from avssl.evaluation.report import Section, Table
from avssl.pipelines.evaluations.base import Finding, Headline, evaluation
from avssl.pipelines.evaluations.bench import Bench

_COLUMNS = ("NMI", "ARI", "V-measure", "silhouette", "davies_bouldin", "calinski_harabasz")
TEXT = (
    "NMI, ARI and V-measure compare k-means clusters of the features with the classes: 1 is perfect. Silhouette "
    "(higher is better), Davies-Bouldin (lower) and Calinski-Harabasz (higher) take the classes as clusters."
)


@evaluation("clustering", needs=("classes",), quick_for=("pair", "encoder", "classifier"))
def clustering(bench: Bench) -> Finding:
    """The six numbers for every head with one label a clip; several labels a clip make no partition."""
    metrics: dict[str, float] = {}
    headlines, rows = [], []
    for head in bench.heads:
        truth = bench.truth(head)
        if truth.ndim != 1 or not 2 <= len(np.unique(truth[truth >= 0])) < (truth >= 0).sum():
            continue
        found = cluster_metrics(bench.features.features, truth, seed=bench.config.seed)
        metrics |= {f"{head}/{name}": value for name, value in found.items() if name not in ("count", "classes")}
        name = f"{head} NMI of k-means, {bench.clips}"
        headlines.append(Headline(name, f"{head}/NMI", found["NMI"], found["NMI_low"], found["NMI_high"], ""))
        spans = [
            f"{found[name]:.3f} ({found[f'{name}_low']:.3f} to {found[f'{name}_high']:.3f})" for name in ("NMI", "ARI")
        ]
        rows.append([head, *spans, *(found[name] for name in _COLUMNS[2:]), int(found["count"])])
    names = [name.replace("_", "-").title() if "_" in name else name for name in _COLUMNS]
    note = "In brackets 95 % for these clusters: jackknife over the clips."
    tables = [Table("Clusters", ["head", *names, "clips"], rows, note)] if rows else []
    text = TEXT if rows else "No head has two classes with more clips than classes: there is nothing to cluster."
    return Finding(Section("Clusters", text, tables), metrics, headlines)
