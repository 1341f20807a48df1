"""probe: logistic regression on frozen features."""

from avssl.pipelines.evaluations.base import Finding, evaluation
from avssl.pipelines.evaluations.bench import Bench
from avssl.pipelines.evaluations.scored import judge

TEXT = (
    "Logistic regression on frozen, standardized features, fitted on the training split; its penalty is chosen by "
    "cross-validation there. It asks what a linear layer can read off the features."
)


@evaluation("probe", needs=("labels", "training"), quick_for=("pair", "encoder"))
def probe(bench: Bench) -> Finding:
    """The linear probe of every head."""
    probes = {head: bench.probe(head) for head in bench.heads}
    scores = {head: result.scores for head, result in probes.items()}
    found = judge(bench, scores, title="Linear probe", text=TEXT, prefix="probe/", by="linear probe")
    details = {head: {"C": result.c, "cross_validation": result.cv_accuracy} for head, result in probes.items()}
    return Finding(found.section, found.metrics, found.headlines, details)
