"""Pictures of a run, each from plain arrays to one PNG."""

from avssl.evaluation.pictures.bars import head_to_head
from avssl.evaluation.pictures.confusion import confusion_matrix
from avssl.evaluation.pictures.curves import loss_curves
from avssl.evaluation.pictures.matches import RetrievalExample, retrieval_examples
from avssl.evaluation.pictures.sheet import View, contact_sheet
from avssl.evaluation.pictures.tsne import tsne_before_after

__all__ = [
    "RetrievalExample",
    "View",
    "confusion_matrix",
    "contact_sheet",
    "head_to_head",
    "loss_curves",
    "retrieval_examples",
    "tsne_before_after",
]
