"""Any folder of media: the folder that holds a file is its class, folders named after splits are splits."""

from pathlib import Path

from avssl.data.datasets import register_dataset
from avssl.data.datasets.layout import class_name, class_names, media_files, split_name
from avssl.data.failures import DataError
from avssl.data.manifest import Manifest


@register_dataset("folder", clip_seconds=None, eval_clips=1, head=None)
def folder(root: Path, *, split: str = "train") -> Manifest:
    """A tree of audio and video files.

    The class of a file is the name of the folder that holds it; files directly under the root, or directly under a
    split's folder, have none. Folders of the top level named pretrain, train, val (valid, validation) or test are
    splits: ``train/dog/1.wav`` is of split train and class dog. The head is called "label"; it is absent where no file
    has a class.

    Args:
        root: The folder.
        split: Split of files that lie in no split's folder.
    """
    rows: list[dict[str, object]] = []
    for path in media_files(root):
        parts = path.split("/")[:-1]
        found = split_name(parts[0]) if parts else None
        classes = parts[1:] if found else parts
        rows.append(
            {
                "clip_id": path,
                "path": path,
                "split": found or split,
                "label.label": class_name(classes[-1]) if classes else None,
            }
        )
    if not rows:
        raise DataError(f"no media file under {root}: give the folder that holds them with --data.root")
    names = class_names([str(row["label.label"]) for row in rows if row["label.label"] is not None])
    if not names:
        rows = [{key: value for key, value in row.items() if key != "label.label"} for row in rows]
    return Manifest.from_rows(rows, root, {"label": names} if names else {})
