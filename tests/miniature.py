"""A tree of each known data set in miniature: the official annotation files, few lines long, and media of a moment."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from media_factory import write_media

from avssl.data.datasets.epic_sounds import CLASSES as EPIC_SOUNDS
from avssl.data.datasets.speech_commands import WORDS
from avssl.data.datasets.urbansound8k import CLASSES as CITY
from avssl.data.datasets.vggsound import VGGSOUND_CLASSES

KINETICS = ["bowling", "singing"]
MIDS = {"/m/09x0r": "Speech", "/m/05zppz": "Male speech, man speaking", "/t/dd00092": "Wind"}
GRID = ["bbaf1s", "bbaf2s", "lgbg3a", "lgbg4a", "prwi5n", "prwi6n", "swiozp", "swio7p"]
VIDEO_SUFFIXES = (".mp4", ".MP4", ".mpg")


class Tree:
    """Writes the files of a data set; files of one kind are one file under many names."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._originals: dict[tuple[str, float], Path] = {}

    def media(self, path: str, seconds: float = 1.0) -> None:
        """A sound, or a video with sound, as the name's ending says."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        original = self._originals.setdefault((target.suffix, seconds), target)
        if original is not target:
            os.link(original, target)
        elif target.suffix in VIDEO_SUFFIXES:
            write_media(target, seconds=seconds, fps=8, size=(64, 48), format="mp4")
        else:
            write_media(target, seconds=seconds, video_codec=None, audio_codec="pcm_s16le")

    def table(self, path: str, *lines: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def youtube_id(number: int) -> str:
    return f"{number:011d}"


def esc50(tree: Tree) -> None:
    names = ["dog", "rain", "rooster", "train"]
    rows = [(f"{fold}-{target}-A-{target}.wav", fold, target) for fold in range(1, 6) for target in range(len(names))]
    for name, _, _ in rows:
        tree.media(f"audio/{name}")
    lines = [f"{name},{fold},{target},{names[target]},{target < 3},{target},A" for name, fold, target in rows]
    tree.table("meta/esc50.csv", "filename,fold,target,category,esc10,src_file,take", *lines)


def urbansound8k(tree: Tree) -> None:
    lines = []
    for fold in range(1, 11):
        for number, name in enumerate(CITY[:2]):
            file = f"{fold}00-{number}-0-0.wav"
            tree.media(f"audio/fold{fold}/{file}")
            lines.append(f"{file},{fold}00,0.0,1.0,1,{fold},{number},{name}")
    tree.table("metadata/UrbanSound8K.csv", "slice_file_name,fsID,start,end,salience,fold,classID,class", *lines)


def speech_commands(tree: Tree) -> None:
    files = {voice: [f"{word}/{voice}_nohash_0.wav" for word in WORDS[:3]] for voice in ("0a", "1b", "2c", "3d")}
    for paths in files.values():
        for path in paths:
            tree.media(path)
    tree.media("_background_noise_/white_noise.wav")
    tree.table("validation_list.txt", *files["2c"])
    tree.table("testing_list.txt", *files["3d"])


def fsdd(tree: Tree) -> None:
    for digit in (0, 1, 2):
        for speaker in ("jackson", "lucas", "yweweler"):
            for take in (0, 5, 6):
                tree.media(f"recordings/{digit}_{speaker}_{take}.wav", 0.5)


def nsynth(tree: Tree) -> None:
    for number, split in enumerate(("train", "valid", "test")):
        notes = {}
        for family in (0, 1, 2):
            name = f"instrument_{family}{number:02}-060-100"
            tree.media(f"nsynth-{split}/audio/{name}.wav")
            fields = {"instrument_family": family, "instrument_source": 0, "pitch": 60 + family}
            notes[name] = fields | {"instrument_str": f"instrument_{family}{number:02}"}
        tree.table(f"nsynth-{split}/examples.json", json.dumps(notes))


def grid(tree: Tree) -> None:
    for name in GRID:
        tree.media(f"s1/{name}.mpg")


def vggsound(tree: Tree) -> None:
    lines = []
    for number in range(6):
        tree.media(f"video/{youtube_id(number)}_000030.mp4")
        label, split = VGGSOUND_CLASSES[number % 2], "test" if number > 3 else "train"
        lines.append(f'{youtube_id(number)},30,"{label}",{split}')
    tree.table("vggsound.csv", *lines)


def kinetics_sounds(tree: Tree) -> None:
    for part, first in (("train", 0), ("validate", 4), ("test", 8)):
        lines = []
        for number in range(first, first + 4):
            tree.media(f"{part}/{youtube_id(number)}_000012_000022.mp4")
            lines.append(f"{KINETICS[number % 2]},{youtube_id(number)},12,22,{part},0")
        tree.table(f"{part}.csv", "label,youtube_id,time_start,time_end,split,is_cc", *lines)


def audioset(tree: Tree) -> None:
    classes = [f'{number},{mid},"{name}"' for number, (mid, name) in enumerate(MIDS.items())]
    tree.table("class_labels_indices.csv", "index,mid,display_name", *classes)
    for part, first in (("balanced_train", 0), ("unbalanced_train", 4), ("eval", 8)):
        lines = []
        for number in range(first, first + 4):
            tree.media(f"{part}/{youtube_id(number)}.wav")
            labels = list(MIDS)[number % 3 :][:2]
            lines.append(f'{youtube_id(number)}, 30.000, 40.000, "{",".join(labels)}"')
        header = [f"# Segments csv\n# num_ytids=4, num_segs={len(lines)}, num_unique_labels=3, num_positive_labels=8"]
        tree.table(f"{part}_segments.csv", *header, "# YTID, start_seconds, end_seconds, positive_labels", *lines)


def epic_kitchens(tree: Tree) -> None:
    tree.table("EPIC_100_verb_classes.csv", "id,key,instances,category", "0,take,[],a", "1,cut,[],b", "2,wash,[],c")
    tree.table("EPIC_100_noun_classes.csv", "id,key,instances,category", "0,tap,[],a", "1,onion,[],b")
    header = (
        "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
        "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes"
    )
    for part, videos in (("train", ["P01_01", "P02_01"]), ("validation", ["P01_11", "P03_11"])):
        lines = []
        for video in videos:
            tree.media(f"{video[:3]}/videos/{video}.MP4", 4.0)
            for k in range(3):
                times = f"00:00:0{k}.50,00:00:0{k}.00,00:00:0{k + 1}.50"
                lines.append(f"{video}_{k},{video[:3]},{video},{times},1,2,x,x,{k},y,{k % 2},[],[]")
        tree.table(f"EPIC_100_{part}.csv", header, *lines)
    tree.table("EPIC_100_unseen_participant_ids_validation.csv", "participant_id", "P03")
    tree.table("EPIC_100_tail_verbs.csv", "verb", "2")
    tree.table("EPIC_100_tail_nouns.csv", "noun", "1")


def epic_sounds(tree: Tree) -> None:
    header = "annotation_id,participant_id,video_id,start_timestamp,stop_timestamp,start_sample,stop_sample,"
    for part, video in (("train", "P01_01"), ("validation", "P01_11")):
        tree.media(f"P01/videos/{video}.MP4", 4.0)
        lines = [
            f"{video}_{k},P01,{video},00:00:0{k}.000,00:00:0{k + 1}.500,0,1,x,{EPIC_SOUNDS[k]},{k}" for k in range(3)
        ]
        tree.table(f"EPIC_Sounds_{part}.csv", header + "description,class,class_id", *lines)


TREES: dict[str, Callable[[Tree], None]] = {
    "audioset": audioset,
    "audioset-20k": audioset,
    "epic-kitchens": epic_kitchens,
    "epic-sounds": epic_sounds,
    "esc10": esc50,
    "esc50": esc50,
    "fsdd": fsdd,
    "grid": grid,
    "kinetics-sounds": kinetics_sounds,
    "nsynth": nsynth,
    "speech-commands": speech_commands,
    "urbansound8k": urbansound8k,
    "vggsound": vggsound,
}


def miniature(name: str, root: Path) -> Path:
    """The folder ``root`` with the data set ``name`` in it, whole enough to prepare, train and evaluate on."""
    TREES[name](Tree(root))
    return root
