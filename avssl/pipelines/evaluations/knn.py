"""knn: nearest neighbours in frozen features."""

from avssl.evaluation.knn import TEMPERATURE, choose_k, knn_scores
from avssl.pipelines.evaluations.base import Finding, evaluation
from avssl.pipelines.evaluations.bench import Bench
from avssl.pipelines.evaluations.scored import judge


@evaluation("knn", needs=("labels", "training"), quick_for=("pair", "encoder"))
def knn(bench: Bench) -> Finding:
    """The k-NN classifier of every head.

    Raises:
        ValueError: ``knn_k`` is below 1.
    """
    given = bench.config.knn_k
    if given is not None and given < 1:
        raise ValueError(f"knn_k: must be at least 1, got {given}")
    ks, scores = {}, {}
    for head, names in bench.heads.items():
        train = bench.training_features
        ks[head] = given or choose_k(train, head, len(names), seed=bench.config.seed)
        scores[head] = knn_scores(train, bench.features, head, len(names), k=ks[head])
    chosen = ", ".join(f"k = {k} for {head}" for head, k in ks.items())
    how = "given" if given else "chosen by leaving one training clip out"
    text = (
        f"The nearest training clips by cosine similarity vote with weight exp(similarity / {TEMPERATURE:g}); "
        f"{chosen}, {how}. Nothing is trained here."
    )
    found = judge(bench, scores, title="Nearest neighbours", text=text, prefix="knn/", by="k-NN")
    return Finding(found.section, found.metrics, found.headlines, {"k": ks})
