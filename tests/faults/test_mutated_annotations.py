"""Whatever value stands anywhere in an annotation file, it is read or refused in a message of bounded length."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mask2former.data.own_data import read_labelme
from mask2former.errors import InputError
from mask2former.evaluation import evaluate_coco, evaluate_panoptic, evaluate_video
from mask2former.files.coco import read_instances
from tests.agreement.annotation_scene import content_of, write_scene
from tests.faults.fuzz.mutation import places, with_value
from tests.faults.test_panoptic_and_video_faults import picture, videos, write_labelme, write_panoptic

VALUES = [None, True, 0, -1, 1.5, 1e308, float("inf"), float("nan"), 2**70, "", "x", "1", [], [1], {}, [[]], "\ud800"]
Reader = Callable[[Any], object]


def instances(folder: Path) -> tuple[Any, Reader]:
    return content_of(form="polygons"), lambda content: read_instances("a.json", content=content).drop_empty()


def instance_truth(folder: Path) -> tuple[Any, Reader]:
    found = [{**a, "score": 0.5} for a in content_of()["annotations"]]
    (folder / "found.json").write_text(json.dumps(found))

    def read(content: Any) -> None:
        (folder / "truth.json").write_text(json.dumps(content))
        evaluate_coco(folder / "truth.json", folder / "found.json")

    return content_of(), read


def instance_results(folder: Path) -> tuple[Any, Reader]:
    truth = write_scene(folder / "data", content_of())

    def read(content: Any) -> None:
        (folder / "found.json").write_text(json.dumps(content))
        evaluate_coco(truth, folder / "found.json")

    return [{**a, "score": 0.5} for a in content_of()["annotations"]], read


def panoptic_truth(folder: Path) -> tuple[Any, Reader]:
    json_file = write_panoptic(folder / "data")
    content = json.loads(json_file.read_text())
    pngs = json_file.with_suffix("")

    def read(content: Any) -> None:
        json_file.write_text(json.dumps(content))
        evaluate_panoptic(json_file, pngs, json_file, pngs)

    return content, read


def video_truth(folder: Path) -> tuple[Any, Reader]:
    (folder / "found.json").write_text("[]")

    def read(content: Any) -> None:
        (folder / "videos.json").write_text(json.dumps(content))
        evaluate_video(folder / "videos.json", folder / "found.json")

    return videos(), read


def labelme(folder: Path) -> tuple[Any, Reader]:
    shapes: list[dict[str, Any]] = [
        {"label": "x", "points": [[1, 1], [9, 1], [9, 9]], "group_id": None},
        {"label": "m", "points": [[1, 1], [5, 5]], "shape_type": "mask", "mask": picture(5, 5)},
    ]
    root = write_labelme(folder / "data", *shapes)

    def read(content: Any) -> None:
        (root / "0.json").write_text(json.dumps(content))
        read_labelme(root, num_workers=1)

    return json.loads((root / "0.json").read_text()), read


FORMS = [instances, instance_truth, instance_results, panoptic_truth, video_truth, labelme]


@pytest.mark.parametrize("form", FORMS)
def test_any_value_anywhere_is_read_or_refused(form: Callable[[Path], tuple[Any, Reader]], tmp_path: Path) -> None:
    content, read = form(tmp_path)
    read(content)  # it is right as it is
    everywhere = list(places(content))

    @given(place=st.sampled_from(everywhere), value=st.sampled_from(VALUES))
    @settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
    def mutate(place: tuple[Any, ...], value: Any) -> None:
        message = ""
        try:
            read(with_value(content, place, value))
        except InputError as error:
            message = str(error)
        assert len(message) < 6000

    mutate()


def test_mixed_ids_of_videos_are_evaluated(tmp_path: Path) -> None:
    content = videos(lambda c: c["videos"][0].update(id="1"))
    (tmp_path / "videos.json").write_text(json.dumps(content))
    (tmp_path / "found.json").write_text(json.dumps([{**a, "score": 0.5} for a in content["annotations"]]))
    found = evaluate_video(tmp_path / "videos.json", tmp_path / "found.json")
    assert found["segm"]["AP"] == pytest.approx(100)
