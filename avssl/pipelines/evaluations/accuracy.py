"""accuracy: the classifier's own heads on the evaluated split."""

from avssl.pipelines.evaluations.base import Finding, evaluation
from avssl.pipelines.evaluations.bench import Bench
from avssl.pipelines.evaluations.scored import judge


@evaluation("accuracy", needs=("classifier", "labels"), quick_for=("classifier",))
def accuracy(bench: Bench) -> Finding:
    """Top-1 and the rest of every head."""
    text = f"The classifier's own heads on split {bench.config.split!r}."
    if bench.protocol.eval_clips > 1:
        what = bench.protocol.average
        text += f" Of each file, the {what} of {bench.protocol.eval_clips} clips, evenly spread, are averaged."
    if "video" in bench.subject.modalities:
        text += " Frames are seen in their centre crop only: clips are spread in time, not in space."
    return judge(bench, bench.scores(), title="Classification", text=text)
