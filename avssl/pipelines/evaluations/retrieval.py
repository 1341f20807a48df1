"""retrieval: the video of a sound and the sound of a video, among all evaluated clips."""

from avssl.evaluation.report import Section, Table
from avssl.evaluation.retrieval import retrieval_intervals, retrieval_metrics
from avssl.pipelines.evaluations.base import Finding, Headline, evaluation
from avssl.pipelines.evaluations.bench import Bench

_WAYS = {"audio_to_video": "audio to video", "video_to_audio": "video to audio"}
TEXT = (
    "Every clip's sound asks for its own video among all, and the other way round, by cosine similarity of the "
    "embeddings of one projection. Nothing was trained on these clips or fitted to them."
)


@evaluation("retrieval", needs=("pair",), quick_for=("pair",))
def retrieval(bench: Bench) -> Finding:
    """R@1, R@5, R@10 and median rank both ways, with chance beside them."""
    audio, video = bench.joint
    metrics = retrieval_metrics(audio.features, video.features)
    metrics |= retrieval_intervals(audio.features, video.features, seed=bench.config.seed)
    headlines, rows = [], []
    for way, name in _WAYS.items():
        key = f"{way}/R@1"
        bounds = metrics[f"{key}_low"], metrics[f"{key}_high"]
        headlines.append(Headline(f"{name} R@1, {bench.clips}", key, metrics[key], *bounds))
        cells = [
            f"{metrics[f'{way}/R@{k}']:.1%} ({metrics[f'{way}/R@{k}_low']:.1%} to {metrics[f'{way}/R@{k}_high']:.1%})"
            for k in (1, 5, 10)
        ]
        spread = f"({metrics[f'{way}/median_rank_low']:g} to {metrics[f'{way}/median_rank_high']:g})"
        rows.append([name, *cells, f"{metrics[f'{way}/median_rank']:g} {spread}"])
    chance = [f"{metrics[f'chance/R@{k}']:.1%}" for k in (1, 5, 10)]
    rows.append(["chance", *chance, f"{metrics['chance/median_rank']:g}"])
    projection = f"projection {bench.subject.pair.retrieval}" if bench.subject.pair is not None else ""
    note = (
        f"Among {len(audio)} clips; embeddings: {bench.clips}, {projection}. In brackets 95 % intervals over queries."
    )
    table = Table("Zero-shot retrieval", ["", "R@1", "R@5", "R@10", "median rank"], rows, note)
    return Finding(Section("Zero-shot retrieval", TEXT, [table]), metrics, headlines)
