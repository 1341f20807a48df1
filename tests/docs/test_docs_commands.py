"""Every command line of README.md and docs/ is run, section by section, on data in miniature and with tiny models.

What a page leaves to the reader (PATH, RUN, FOLDER ...) is put in, and options that make a run short come last.
"""

import csv
import os
import re
import shlex
import shutil
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from forked_tools import ForkedTools
from miniature import TREES, Tree, miniature

from avssl.data.catalog import open_data

REPOSITORY = Path(__file__).parents[2]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (REPOSITORY / "docs").glob("*.md"))]
# How what is not run here begins, and why it is not.
NOT_RUN = {
    "make demo": "sets an environment up and trains for minutes; tools/demo.py is run",
    "make test": "is what runs this",
    "make docs": "sets an environment up; test_docs_site.py builds the site",
    "pip install": "needs a package index",
    "python tools/export.py": "takes half a minute, and tests of the exporter run it; its options are parsed instead",
    "python benchmarks": "measures for minutes or hours",
    "python tools/advise.py": "tries for minutes; test_advise.py runs it",
    "python -m mast": "is not a tool of avssl; tests of mast run it",
    "avssl pretrain --data videos/ --import my_parts.py": "test_docs_extending.py runs the parts of that page",
    "avssl evaluate --checkpoint runs/pretrain-videos --data esc50": "evaluates what the line before trained",
    "avssl pretrain --data videos/ --audio.model timm/": "needs weights of timm; test_adapters.py builds some",
}
# Options that make a run short; they come last and so win over the page's.
TRAINING = shlex.split("""--optim.max_steps 1 --optim.batch_size 4 --data.num_workers 0 --data.frame_size 32
    --data.num_frames 2 --log.validate_every 0 --runtime.precision 32-true --runtime.compile false
    --runtime.devices 1 --runtime.num_nodes 1 --wandb.mode disabled""")
AUDIO = shlex.split(
    "--audio.model mast_pico --audio.options '{embed_dim: 8, depths: [1, 1, 1, 1]}' --audio.num_mels 32"
)
VIDEO = shlex.split("--video.model tiny --video.crop_size 32")
SHORT = {
    "prepare": ["--workers", "0"],
    "extract_audio": ["--workers", "0"],
    "cache": ["--workers", "0"],
    "pretrain": TRAINING + AUDIO + VIDEO,
    "finetune": TRAINING,
    "crossval": TRAINING,
    "evaluate": ["--data.num_workers", "0"],
    "embed": ["--data.num_workers", "0"],
    "demo": shlex.split("""--pretrain.max_steps 1 --pretrain.batch_size 4 --finetune.max_steps 1 --finetune.batch_size 4
        --data.num_workers 0 --wandb.mode disabled"""),
}
SMALL_SETS = {
    "grid": "{test_clips: 3}",
    "demo": "{pretrain: 8, train_per_class: 1, test_per_class: 1}",
    "demo-sources": "{pretrain: 8, train: 24, val: 4, test: 24, sources: 4}",
}


def text_of(page: str) -> str:
    return (REPOSITORY / page).read_text(encoding="utf-8")


def blocks(text: str, *languages: str) -> list[str]:
    """The contents of a page's code blocks in one of ``languages``."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [content for language, content in fenced if language in languages]


def commands(page: str) -> dict[str, list[str]]:
    """Section -> its command lines, a continued line being one with the next."""
    sections: dict[str, list[str]] = {}
    for part in re.split(r"^## ", "## " + text_of(page), flags=re.MULTILINE)[1:]:
        lines = "\n".join(blocks(part, "", "bash", "sh")).replace("\\\n", " ").splitlines()
        found = [line for line in lines if re.match(r"(?:\w+ .*\| )?(?:python|avssl|torchrun|sbatch|make|pip) ", line)]
        runs = [line for line in found if not line.startswith(tuple(NOT_RUN))]
        sections.setdefault(part.split("\n")[0].lstrip("# "), []).extend(runs)
    if page in ("README.md", "docs/tutorial.md"):  # most of whose commands stand in sentences
        inline = re.findall(r"`((?:python tools/|avssl )[^`]+? --[^`]+)`", text_of(page))
        sections["in the text"] = [line for line in inline if not line.startswith(tuple(NOT_RUN))]
    return {section: found for section, found in sections.items() if found}


SECTIONS = {(page, section): found for page in PAGES for section, found in commands(page).items()}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB_", "AVSSL_"))}
    own = {"AVSSL_CACHE": str(tmp_path_factory.mktemp("cache")), "AVSSL_DATA": str(tmp_path_factory.mktemp("trees"))}
    return kept | own | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def tree(environment: dict[str, str]) -> Callable[[str], Path]:
    """The folder of a data set in miniature, made once."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = miniature(name, Path(environment["AVSSL_DATA"]) / name)
        return made[name]

    return folder


def write_examples(page: str, folder: Path) -> None:
    """The tables and YAMLs that a page shows as ``NAME``: and a block, and the media that it or its tables list."""
    text = text_of(page)
    media = [line for block in blocks(text, "text") for line in block.split()]
    for name, content in re.findall(r"`(\w+\.(?:csv|yaml))`:\n\n```\w+\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        (folder / name).write_text(content, encoding="utf-8")
        if name.endswith(".csv"):
            media += [row["path"] for row in csv.DictReader(content.splitlines())]
    tree = Tree(folder)
    for path in dict.fromkeys(media):
        tree.media(path, 5.0 if "long" in path else 1.0)


class Place:
    """A folder in which the commands of a section are run, with what they leave to the reader."""

    def __init__(
        self, folder: Path, tools: ForkedTools, environment: dict[str, str], tree: Callable[[str], Path], run: Path
    ) -> None:
        self.folder, self.tools, self.environment, self.tree, self.run_folder = folder, tools, environment, tree, run
        for name in ("configs", "tools"):
            (folder / name).symlink_to(REPOSITORY / name)

    def filled(self, words: list[str], name: str) -> list[str]:
        """The words of a command with real paths in the place of the page's, and ``name`` where it says NAME."""
        data = next((word for before, word in pairwise(words) if before == "--data"), None)
        config = re.search(r"configs/\w+/(\S+)\.yaml", " ".join(words))
        name = data if data in TREES else config[1] if config and config[1] in TREES else name
        sounds, videos = self.tree("fsdd"), self.folder / "videos"
        for path, source in ((videos, "vggsound"), (self.folder / "ESC-50", "esc50")):
            if not path.exists():
                path.symlink_to(self.tree(source))
        out: list[str] = []
        for word in words:
            if word == "RUN...":
                out.append(str(shutil.copytree(self.run_folder, self.folder / "other-run", dirs_exist_ok=True)))
                continue
            if word == "CHECKPOINT...":
                last = self.run_folder / "checkpoints" / "last.ckpt"
                out += [str(last), str(shutil.copy(last, self.folder / "other.ckpt"))]
                continue
            replaced = {
                "NAME": name,
                "RUN": str(self.run_folder),
                "FILE": "average.ckpt" if "CHECKPOINT..." in words else str(sounds / "recordings" / "0_lucas_0.wav"),
                "FILE...": str(sounds / "recordings" / "1_lucas_0.wav"),
                "FOLDER": str(sounds / "recordings"),
                "GRID": str(self.tree("grid")),
            }.get(word, word)
            replaced = re.sub(r"^PATH\b", str(self.tree(name)), replaced)
            replaced = replaced.replace("runs/NAME", "runs/fsdd").replace("/path/to/videos", str(videos))
            replaced = replaced.replace("/path/to/ESC-50", str(self.folder / "ESC-50")).replace("/shared/", "shared/")
            out.append(replaced.replace("s3://", f"file://{self.folder}/"))
        return out

    def run(self, command: str) -> None:
        """Runs one line of a page; asserts that it ends well."""
        piped, _, line = command.rpartition("| ")
        words = shlex.split(line, comments=True)
        if words[0] in ("torchrun", "sbatch"):  # one process in place of many
            script = next(k for k, word in enumerate(words) if word.endswith((".py", ".sbatch")))
            tool, words = "pretrain", words[script + 1 :]
        elif words[0] == "python":
            tool, words = Path(words[1]).stem, words[2:]
        else:
            tool, words = words[1].replace("-", "_"), words[2:]
        words = self.filled(words, "vggsound" if tool == "pretrain" else "fsdd") + self.short(tool, words)
        stdin = os.devnull
        if piped:  # arecord: raw samples
            (self.folder / "samples.raw").write_bytes(bytes(2 * 16000))
            stdin = str(self.folder / "samples.raw")
        script = REPOSITORY / "tools" / f"{tool}.py"
        done = self.tools.run(script, words, environment=self.environment, cwd=self.folder, stdin=stdin)
        assert done.returncode == 0, f"{command}\nrun as: {tool} {shlex.join(words)}\n{done.stdout}{done.stderr}"

    def short(self, tool: str, words: list[str]) -> list[str]:
        """What makes the command short."""
        out = list(SHORT.get(tool, ()))
        fresh = "--checkpoint" not in words or words[words.index("--checkpoint") + 1] == "none"
        if tool in ("finetune", "crossval") and fresh:
            out += AUDIO
        if tool == "crossval" and "--folds" in words:
            out += ["--folds", "fold=1..2"]
        text = " ".join(words)
        for name, options in SMALL_SETS.items():
            if re.search(rf"--data {name}(?![\w-])|/{name}\.yaml", text) or tool == name:
                out += ["--options" if tool in ("prepare", "extract_audio") else "--data.options", options]
        return out


@pytest.fixture(scope="module")
def place(
    forked_tools: ForkedTools,
    environment: dict[str, str],
    tree: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[Path], Place]:
    """Makes a place; RUN is a run that has fine-tuned on spoken digits."""
    make = partial(Place, tools=forked_tools, environment=environment, tree=tree, run=Path("runs/fsdd"))
    first = make(tmp_path_factory.mktemp("run"))
    first.run("python tools/finetune.py --config configs/finetune/fsdd.yaml --data.root PATH --output runs/fsdd")
    return partial(Place, tools=forked_tools, environment=environment, tree=tree, run=first.folder / "runs" / "fsdd")


@pytest.mark.parametrize(("page", "section"), SECTIONS, ids=[f"{page}-{section}" for page, section in SECTIONS])
def test_every_command_of_a_section_runs(
    page: str, section: str, place: Callable[[Path], Place], tmp_path: Path
) -> None:
    here = place(tmp_path)
    write_examples(page, tmp_path)
    for command in SECTIONS[page, section]:
        here.run(command)


def test_the_manifest_of_ones_own_data_is_written_by_its_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_examples("docs/data.md", tmp_path)
    (code,) = blocks(text_of("docs/data.md"), "python")
    exec(compile(code, "docs/data.md", "exec"), {})
    manifest = open_data("tags.parquet", cache_dir=tmp_path, workers=0)
    assert manifest.multilabel == {"tags"} and manifest.coverage(audio=True)["share"] == 1
    assert manifest.labels("tags").tolist() == [[1, 1], [0, 0], [1, 0], [-1, -1]]


def test_what_is_not_run_is_on_some_page() -> None:
    text = "\n".join(map(text_of, PAGES))
    assert [words for words in NOT_RUN if words not in text] == []


def test_no_command_is_overlooked() -> None:
    text = "\n".join(map(text_of, PAGES)).replace("\\\n", " ")
    lines = re.findall(r"^(?:python (?:tools|benchmarks)/|avssl |torchrun |arecord |sbatch ).*", text, re.MULTILINE)
    run = {command for found in SECTIONS.values() for command in found}
    assert len(lines) > 60 and [line for line in lines if line not in run and not line.startswith(tuple(NOT_RUN))] == []


def test_the_tests_that_a_page_names_are_there() -> None:
    named = {
        (page, name) for page in PAGES for name in re.findall(r"`(tests/[\w/.]+)", (REPOSITORY / page).read_text())
    }
    assert len(named) > 20 and not [(page, name) for page, name in named if not (REPOSITORY / name).exists()]
