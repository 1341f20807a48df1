"""Pictures of a run, each from plain arrays to one PNG."""

from avssl.evaluation.pictures.bars import head_to_head
from avssl.evaluation.pictures.conditions import condition_bars
from avssl.evaluation.pictures.confusion import confusion_matrix
from avssl.evaluation.pictures.curves import loss_curves
from avssl.evaluation.pictures.heat import HeatExample, heat_maps
from avssl.evaluation.pictures.lines import share_curves
from avssl.evaluation.pictures.maps import class_maps, tsne_before_after
from avssl.evaluation.pictures.matches import RetrievalExample, retrieval_examples
from avssl.evaluation.pictures.sheet import View, contact_sheet
from avssl.evaluation.pictures.style import drawn

__all__ = [
    "HeatExample",
    "RetrievalExample",
    "View",
    "class_maps",
    "condition_bars",
    "confusion_matrix",
    "contact_sheet",
    "drawn",
    "head_to_head",
    "heat_maps",
    "loss_curves",
    "retrieval_examples",
    "share_curves",
    "tsne_before_after",
]
