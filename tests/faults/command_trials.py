"""Command lines that are right, and what can be wrong with one: drawn from a seed, so that each can be repeated."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from mask2former.commands import cli
from mask2former.commands.arguments import CommandParser
from mask2former.commands.table import find_command
from mask2former.config import CfgNode, get_cfg
from mask2former.data.shapes.prepare import prepare_shapes
from mask2former.data.shapes.writing import ShapesParameters
from tests.commands.test_train_own_data import CONFIG, MAPPERS, TINY
from tests.data_pipeline import own_data_trees as trees
from tests.data_pipeline import tool_trees
from tests.faults.fuzz.mutation import NASTY, change_bytes, change_json, change_png, change_text, change_zip

# A model of 100,000 weights.
_SMALL = """MODEL.BACKBONE.NAME D2SwinTransformer MODEL.SWIN.EMBED_DIM 8 MODEL.SWIN.DEPTHS [1,1,1,1]
    MODEL.SWIN.NUM_HEADS [1,1,2,2] MODEL.SWIN.WINDOW_SIZE 4 MODEL.SWIN.OUT_FEATURES ['res2','res3','res4','res5']
    SOLVER.MAX_ITER 1 MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS 4""".split()
TINY_MODEL = [*TINY, *_SMALL, "MODEL.WEIGHTS", ""]
_VIDEO_CONFIG = CONFIG.parents[1] / "video-instance-segmentation" / CONFIG.name
LITERALS = (
    *("", "''", "None", "null", "True", "-1", "0", "1", "1.5", "nan", "inf", "-inf", "1e30", "1e400", "2147483648"),
    *("9223372036854775808", "1" * 5000, "x", "x" * 300, "../../x", "/etc/passwd", "/dev/null", "[", "[]", "[[]]"),
    *("[None]", "['x']", "[1,2,3]", "[0]", "[-1,-1]", "[1e30]", "[nan]", "{}", "{'a': 1}", "a\0b", "\ud800", "('x',)"),
    *("(" * 200, "zoo://x", "http://x/y.pth", "file:///etc/passwd", "~", "~nobody/x", "%s", "{}{0}", "$HOME", "*", "?"),
)
# Longer runs are what was asked for, no fault.
_LENGTHS = ("SOLVER.MAX_ITER", "SOLVER.MAX_EPOCHS", "DATASETS.OWN.EPOCHS", "DATASETS.OWN.MIN_ITER")
_LONG = ("2147483648", "9223372036854775808", "1e30", "inf", "1" * 5000)
_TEXT_SUFFIXES = (".yaml", ".yml", ".txt", ".csv", ".xml", "")

_FEW = ("--size", "32", "--no-videos", "--num-workers", "1")
_THINGS = ("coco-instances", "labelme", "yolo", "voc", "cvat", "via", "label-studio", "supervisely")
LAYOUTS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "png tree": (trees.write_png_tree, "semantic"),
    "coco instances": (trees.write_coco_instances, "instance"),
    "coco panoptic": (trees.write_coco_panoptic, "panoptic"),
    "labelme": (trees.write_labelme, "instance"),
    **{name: (write, "instance") for name, (write, _) in tool_trees.LAYOUTS.items()},
    **{f"{name}, semantic": (write, "semantic") for name, (write, _) in tool_trees.SEMANTIC_LAYOUTS.items()},
}


@dataclass(frozen=True)
class Trial:
    """A command line, and what is wrong with it in words."""

    arguments: list[str]
    change: str
    may_name_outputs: bool = False  # so that anything may lie in the working folder
    data_root: Path | None = None  # of the data sets with a name


@dataclass(frozen=True)
class Workplace:
    """What commands work on, all of it right: data of every layout, a run of each task, a picture, a clip, results."""

    root: Path

    @classmethod
    def prepare(cls, root: Path) -> Workplace:
        """Draws and trains it, in a few seconds."""
        os.environ["DETECTRON2_DATASETS"] = str(root / "data")
        small = ShapesParameters(num_train=4, num_val=2, num_train_videos=2, num_val_videos=1, size=(32, 32))
        prepare_shapes(root / "data" / "shapes", small, num_workers=1)
        for name, (write, _) in LAYOUTS.items():
            write(root / "own" / name)
        for name, base in (("tiny.yaml", CONFIG), ("tiny_video.yaml", _VIDEO_CONFIG)):
            (root / name).write_text(f"_BASE_: {base}\n" + yaml.safe_dump(_tree_of(TINY_MODEL)))
        pid = os.fork()
        if not pid:  # what it registers and allocates is of no concern to the trials
            with Path(root / "training.txt").open("w") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            os._exit(cls._train(root))
        assert os.waitpid(pid, 0)[1] == 0, (root / "training.txt").read_text()
        clip = cv2.VideoWriter(str(root / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 5, (32, 32))
        for number in range(3):
            clip.write(np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8))
        clip.release()
        return cls(root)

    @staticmethod
    def _train(root: Path) -> int:
        config = ["--config-file", str(root / "tiny.yaml")]
        return cli.main(["train", *config, "--output", str(root / "run"), "SOLVER.CHECKPOINT_PERIOD", "1"])


def _tree_of(pairs: list[str]) -> dict[str, Any]:
    cfg = get_cfg()
    cfg.merge_from_list(pairs)
    tree: dict[str, Any] = {}
    for key in pairs[::2]:
        node, value = tree, cfg
        *parents, last = key.split(".")
        for parent in parents:
            node, value = node.setdefault(parent, {}), value[parent]
        node[last] = list(value[last]) if isinstance(value[last], tuple) else value[last]
    return tree


def draw_trial(workplace: Workplace, place: Path, name: str, *, only: str = "") -> Trial:
    """The trial of this name; fills the folder ``in`` of its place. ``only``: of this kind."""
    choices = random.Random(name)
    (place / "in").mkdir()
    kind = only or choices.choice(list(KINDS))
    trial = KINDS[kind](workplace, place, choices)
    return replace(trial, may_name_outputs=kind in ("option", "key", "config"))


def base_lines(workplace: Workplace, place: Path, choices: random.Random) -> list[list[str]]:
    """One right line of each command."""
    root, out = workplace.root, place / "out"
    config, run = ["--config-file", str(root / "tiny.yaml")], ["--weights", str(root / "run")]
    layout = choices.choice(list(LAYOUTS))
    own, picture = str(root / "own" / layout), str(root / "data/shapes/val/000001.jpg")
    mapper = ["INPUT.DATASET_MAPPER_NAME", MAPPERS[LAYOUTS[layout][1]]]
    weights = str(root / "run/model_final.pth")
    return [
        ["train", *config, "--output", str(out / "run")],
        ["train", *config, "--data", own, *mapper, "--output", str(out / "run"), "SOLVER.MAX_ITER", "1"],
        ["evaluate", *run, "--output", str(out / "run")],
        ["predict", picture, *run, "--output", str(out / "pictures"), "--save-masks"],
        ["predict", str(root / "clip.mp4"), *run, "--output", str(out / "videos"), "--save-masks"],
        ["convert", weights, str(out / f"x{choices.choice(['.pth', '.pkl', '.safetensors', ''])}"), *config],
        ["convert-dataset", own, str(out / "new"), "--to", choices.choice(["coco-panoptic", "png"])],
        ["visualize", *run, "--source", choices.choice(["annotation", "dataloader"]), "--output", str(out), "-n", "2"],
        ["analyze", *run, "--tasks", "flop", "parameter", "--size", "32", "32", "--output", str(out / "table.txt")],
        ["benchmark", *run, "--task", "eval", "--num-iters", "1", "--warmup", "0", "--size", "32", "32"],
        ["show-results", str(root / "run")],
        ["frames-to-video", str(root / "data/shapes/val"), "--output", str(out / "clips")],
        ["prepare", "shapes", "--output", str(out / "s"), "--num-train", "1", "--num-val", "1", *_FEW],
        _saved_results(workplace, choices),
    ]


def _saved_results(workplace: Workplace, choices: random.Random) -> list[str]:
    truth, found = workplace.root / "data/shapes", workplace.root / "run/inference/shapes_panoptic_val"
    panoptic = [str(truth / "annotations/panoptic_val.json"), str(truth / "panoptic_val")]
    instances = [str(truth / "annotations/instances_val.json"), str(found / "coco_instances_results.json")]
    options = ["--gt-json", "--gt-folder", "--pred-json", "--pred-folder"]
    return choices.choice(
        [
            ["evaluate", "coco", "--gt-json", instances[0], "--results-json", instances[1]],
            ["evaluate", "panoptic", *(part for pair in zip(options, panoptic * 2, strict=True) for part in pair)],
        ]
    )


def _wrong_option(workplace: Workplace, place: Path, choices: random.Random) -> Trial:
    """An option more, with any value; or an argument replaced, removed or repeated."""
    line = choices.choice(base_lines(workplace, place, choices))
    values = [*LITERALS, *_odd_places(place)]
    kind = choices.randrange(4)
    if kind == 0:
        option = choices.choice(_options_of(line) or ["--no-such-option"])
        given = [option, *choices.choices(values, k=choices.choice([0, 1, 1, 1, 2]))]
        return Trial([*line, *given], f"option {given!r:.200}")
    at = choices.randrange(1, len(line))
    if kind == 1:
        return Trial([*line[:at], *line[at + 1 :]], f"without {line[at]!r:.100}")
    if kind == 2:
        return Trial([*line[:at], line[at], *line[at:]], f"twice {line[at]!r:.100}")
    value = choices.choice(values)
    return Trial(
        [*line[:at], value, *line[at + 1 :]], f"{line[at]!r:.100} replaced by {value!r:.100}", may_name_outputs=True
    )


def _options_of(line: list[str]) -> list[str]:
    command = find_command(line[0])
    assert command is not None
    part: Any = __import__(command.module, fromlist=["run"])
    subcommands = getattr(part, "SUBCOMMANDS", {})
    part = subcommands.get(line[1], part)
    parser = CommandParser(prog="x")
    part.add_arguments(parser)
    # Those that open windows, cameras, processes and addresses, or import what is named.
    left_out = {"-h", "--help", "--show", "--webcam", "--num-machines", "--dist-url", "--num-gpus"}
    return [name for name in parser.option_names() if name not in left_out]


def _odd_places(place: Path) -> list[str]:
    """What is no file, no folder, or cannot be read."""
    folder = place / "in"
    (folder / "empty").mkdir()
    (folder / "file").write_bytes(b"")
    (folder / "nul.json").write_bytes(b"\0" * 100)
    (folder / "broken.yaml").write_text("a: [1\nb: {")
    os.mkfifo(folder / "pipe")
    (folder / "dangling").symlink_to(folder / "nothing")
    (folder / "loop").symlink_to(folder / "loop")
    names = ("empty", "file", "nul.json", "broken.yaml", "pipe", "dangling", "loop", "file/below", "nothing", "x" * 300)
    return [str(folder / name) for name in names] + ["/dev/null/x", "/proc/self/mem", str(place / "out" / ("y" * 300))]


def _wrong_key(workplace: Workplace, place: Path, choices: random.Random) -> Trial:
    """A key of the config with any value."""
    lines = [line for line in base_lines(workplace, place, choices) if "--config-file" in line or "--weights" in line]
    key = choices.choice(sorted(_keys()))
    value = choices.choice([v for v in LITERALS if key not in _LENGTHS or v not in _LONG])
    usual = _keys()[key]
    if isinstance(usual, tuple | list) and usual and choices.random() < 0.5:  # one of its entries
        entries = [repr(entry) for entry in usual]
        entries[choices.randrange(len(entries))] = value or "''"
        value = f"[{', '.join(entries)}]"
    return Trial([*choices.choice(lines), key, value], f"{key} {value!r:.100}")


@cache
def _keys() -> dict[str, Any]:
    """Every key of the config, with its value in the trials."""

    def below(node: CfgNode, prefix: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in node.items():
            found |= below(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else {prefix + key: value}
        return found

    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIG))
    cfg.merge_from_list(TINY_MODEL)
    return below(cfg, "")


def _wrong_data(workplace: Workplace, place: Path, choices: random.Random) -> Trial:
    """One or two files of own data changed."""
    layout = choices.choice(list(LAYOUTS))
    data = place / "in" / "data"
    shutil.copytree(workplace.root / "own" / layout, data)
    changes = [change_file(data, choices) for _ in range(choices.choice([1, 1, 1, 2]))]
    line = choices.choice(lines_of_data(data, layout, workplace))
    if line[0] == "train":
        line += ["SOLVER.MAX_ITER", choices.choice(["0", "1"])]
    return Trial([*line, "--output", str(place / "out/new")], f"{layout}: {'; '.join(changes)}")


def lines_of_data(data: Path, layout: str, workplace: Workplace) -> list[list[str]]:
    """Right lines, without an output, for data of a layout: training, and conversion to what can hold it."""
    task = LAYOUTS[layout][1]
    train = ["train", "--config-file", str(workplace.root / "tiny.yaml"), "--data", str(data)]
    targets = ["png", "coco-panoptic", *(_THINGS if task == "instance" else ())]
    return [[*train, "INPUT.DATASET_MAPPER_NAME", MAPPERS[task]]] + [
        ["convert-dataset", str(data), "--to", target] for target in targets
    ]


def change_file(folder: Path, choices: random.Random, *, only: str = "") -> str:
    """Changes a file below a folder, those with annotations more often; returns what was done.

    ``only`` is in the path of the file, if there is such a one.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    files = [path for path in files if only in path.relative_to(folder).as_posix()] or files
    if not files:
        return "no file is left"
    told = [path for path in files if path.suffix not in (".jpg", ".png")]
    path = choices.choice(told if told and choices.random() < 0.7 else files)
    name, kind = path.relative_to(folder).as_posix(), choices.randrange(14)
    if kind > 2:
        path.write_bytes(_changed(path, choices))
        return f"{name} changed"
    odd = choices.choice(list(_ODD_FILES))
    content = path.read_bytes()
    path.unlink()
    _ODD_FILES[odd](path, content)
    return f"{name} {odd}"


def _changed(path: Path, choices: random.Random) -> bytes:
    content = path.read_bytes()
    by_suffix = {".json": change_json, ".png": change_png, ".zip": change_zip, ".pth": change_zip}
    mutate = by_suffix.get(path.suffix, change_text if path.suffix in _TEXT_SUFFIXES else change_bytes)
    return mutate(content, choices)


def _deep(path: Path, content: bytes) -> None:
    path.write_bytes(b"[" * 100_000 + b"]" * 100_000)


_ODD_FILES: dict[str, Callable[[Path, bytes], object]] = {
    "missing": lambda path, content: None,
    "empty": lambda path, content: path.write_bytes(b""),
    "of NULs": lambda path, content: path.write_bytes(b"\0" * 1000),
    "with a byte-order mark": lambda path, content: path.write_bytes(b"\xef\xbb\xbf" + content),
    "in UTF-16": lambda path, content: path.write_bytes(content.decode("latin1").encode("utf-16")),
    "with a byte that is no UTF-8": lambda path, content: path.write_bytes(content[:10] + b"\xff" + content[10:]),
    "cut": lambda path, content: path.write_bytes(content[: len(content) // 2]),
    "twice in one": lambda path, content: path.write_bytes(content * 2),
    "deeply nested": _deep,
    "a folder": lambda path, content: path.mkdir(),
    "a pipe": lambda path, content: os.mkfifo(path),
    "a dangling link": lambda path, content: path.symlink_to("nothing"),
    "a link to itself": lambda path, content: path.symlink_to(path.name),
    "a link to a device": lambda path, content: path.symlink_to("/dev/zero"),
    "under another name": lambda path, content: path.with_name("other name\n" + path.name).write_bytes(content),
    "null": lambda path, content: path.write_bytes(b"null"),
    "number": lambda path, content: path.write_bytes(b"1e999"),
}


def _wrong_named_data(workplace: Workplace, place: Path, choices: random.Random) -> Trial:
    """A file of a data set with a name changed."""
    data = place / "in"
    shutil.copytree(workplace.root / "data", data, dirs_exist_ok=True)
    kind = choices.choice(list(NAMED))
    part = choices.choice(["train", "val"])
    change = change_file(data / "shapes", choices, only=choices.choice([f"{kind}_{part}", f"{kind}_", ""]))
    return Trial(line_of_named_data(workplace, place, kind), f"{kind}: {change}", data_root=data)


def line_of_named_data(workplace: Workplace, place: Path, kind: str) -> list[str]:
    """A right line that trains on the shapes data set."""
    line = ["train", "--config-file", str(workplace.root / NAMED[kind]), "--output", str(place / "out/run")]
    for key, part in (("TRAIN", "train"), ("TEST", "val")):
        line += [f"DATASETS.{key}", f"('shapes_{kind}_{part}',)"]
    return [*line, *_MAPPERS.get(kind, [])]


NAMED = {"panoptic": "tiny.yaml", "instance": "tiny.yaml", "sem_seg": "tiny.yaml", "video": "tiny_video.yaml"}
_MAPPERS = {
    "instance": [
        *("INPUT.DATASET_MAPPER_NAME", MAPPERS["instance"], "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "7"),
        *("MODEL.MASK_FORMER.TEST.PANOPTIC_ON", "False", "MODEL.MASK_FORMER.TEST.SEMANTIC_ON", "False"),
    ],
    "sem_seg": ["INPUT.DATASET_MAPPER_NAME", MAPPERS["semantic"], "MODEL.MASK_FORMER.TEST.PANOPTIC_ON", "False"],
    "video": ["DATASETS.DATASET_RATIO", "[]"],
}


def _wrong_config(workplace: Workplace, place: Path, choices: random.Random) -> Trial:
    """Values in the tree of a config file."""
    config = place / "in" / "config.yaml"
    content = (workplace.root / choices.choice(["tiny.yaml", "run/config.yaml"])).read_text()
    if choices.random() < 0.3:
        config.write_bytes(change_text(content.encode(), choices))
        return Trial(
            _with_config(workplace, place, choices, config), "text of the config changed", may_name_outputs=True
        )
    tree = yaml.safe_load(content)
    key = (
        choices.choice(sorted(_keys()))
        if choices.random() < 0.7
        else choices.choice(["_BASE_", "X", "MODEL", "", "SOLVER"])
    )
    value = choices.choice([v for v in NASTY if key not in _LENGTHS or not isinstance(v, int | float) or abs(v) < 100])
    node = tree
    *parents, last = key.split(".")
    for parent in parents:
        node = node.setdefault(parent, {})
    node[last] = value
    config.write_text(json.dumps(tree) if choices.random() < 0.1 else yaml.dump(tree))
    return Trial(
        _with_config(workplace, place, choices, config),
        f"{key}: {value!r:.100} in the config file",
        may_name_outputs=True,
    )


def _with_config(workplace: Workplace, place: Path, choices: random.Random, config: Path) -> list[str]:
    lines = [line for line in base_lines(workplace, place, choices) if "--config-file" in line]
    line = choices.choice(lines)
    at = line.index("--config-file")
    return [*line[: at + 1], str(config), *line[at + 2 :]]


def _wrong_run(workplace: Workplace, place: Path, choices: random.Random) -> Trial:
    """A file of a run changed, which then is resumed, evaluated, shown or converted."""
    in_out = choices.random() < 0.4
    run = place / ("out" if in_out else "in") / "run"
    shutil.copytree(workplace.root / "run", run)
    change = change_file(run, choices)
    out = place / "out"
    if in_out:
        return Trial(["train", "--resume", "--output", str(run), "SOLVER.MAX_ITER", "2"], f"resumed: {change}")
    weights, picture = ["--weights", str(run)], str(workplace.root / "data/shapes/val/000001.jpg")
    lines = [
        ["evaluate", *weights, "--output", str(out / "run")],
        ["predict", picture, *weights, "--output", str(out / "pictures")],
        ["visualize", *weights, "--source", "annotation", "--output", str(out), "-n", "1"],
        ["analyze", *weights, "--tasks", "parameter"],
        ["show-results", str(run)],
        ["convert", str(run), str(out / "x.safetensors")],
        ["convert", str(run), str(out / "folder")],
    ]
    return Trial(choices.choice(lines), change)


def _wrong_results(workplace: Workplace, place: Path, choices: random.Random) -> Trial:
    """Truth or saved predictions changed, which then are evaluated."""
    data = place / "in"
    shutil.copytree(workplace.root / "data/shapes/annotations", data / "truth" / "annotations")
    shutil.copytree(workplace.root / "data/shapes/panoptic_val", data / "truth" / "panoptic_val")
    shutil.copytree(workplace.root / "run/inference", data / "found")
    change = change_file(data, choices)
    line = _saved_results(workplace, choices)
    moved = {
        str(workplace.root / "data/shapes"): str(data / "truth"),
        str(workplace.root / "run/inference"): str(data / "found"),
    }
    for old, new in moved.items():
        line = [argument.replace(old, new) for argument in line]
    return Trial(line, change)


KINDS: dict[str, Callable[[Workplace, Path, random.Random], Trial]] = {
    "option": _wrong_option,
    "key": _wrong_key,
    "data": _wrong_data,
    "named data": _wrong_named_data,
    "config": _wrong_config,
    "run": _wrong_run,
    "results": _wrong_results,
}
