"""Average precision of instances in videos, over space and time: ground truth, evaluator, and the file to submit."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pycocotools import mask as coco_mask

from mask2former.distributed import gather_on_main
from mask2former.errors import InputError
from mask2former.evaluation.coco_ground_truth import checked_score, known_category, known_id, read_results
from mask2former.evaluation.protocol import (
    DatasetEvaluator,
    ModelInputs,
    ModelOutputs,
    Results,
    check_each_once,
    metadata_path,
)
from mask2former.evaluation.results import check_percentages, format_table
from mask2former.evaluation.video_average_precision import (
    Rle,
    compute_video_average_precision,
    join_frames,
    mean_visible_area,
)
from mask2former.files.annotation_values import listed_id
from mask2former.files.atomic import write_json
from mask2former.files.coco import names_apart
from mask2former.files.inputs import PathLike
from mask2former.files.json_files import require_keys
from mask2former.files.ytvis import Video, check_frames, read_videos
from mask2former.structures.masks import MaskTrack, bitmasks_to_rles
from mask2former.structures.metadata import MetadataCatalog
from mask2former.structures.segmentations import encode_segmentation, is_plain_area

logger = logging.getLogger(__name__)


class VideoGroundTruth:
    """Videos, categories and, where there are any, annotated tracks of a YouTube-VIS json.

    ``tracks`` is None for a file of videos alone, as the public validation and test sets are. A track has id, video_id,
    category_id, iscrowd, ``mask`` (the code of ``join_frames``) and ``area``, the mean over frames that show it.

    Raises:
        DatasetError: the file is missing or corrupt, or entries are incomplete or contradict others.
    """

    def __init__(self, json_file: PathLike) -> None:
        self.json_file = json_file
        annotations = read_videos(json_file, needs_files=False)
        self.videos = annotations.videos
        used = {track["category_id"] for track in annotations.tracks or ()}
        self.category_names: dict[int, str] = names_apart(annotations.categories, used)
        self.tracks: list[dict[str, Any]] | None = None
        if annotations.tracks is not None:
            self.tracks = [joined(track, self.videos[track["video_id"]]) for track in annotations.tracks]
            changed = sum(
                not is_plain_area(mean_visible_area(given["areas"]), joint["measured"])
                for given, joint in zip(annotations.tracks, self.tracks)
                if given.get("areas")
            )
            if changed:
                logger.warning(
                    "%s: areas of %d tracks are none that their masks can have: measured", json_file, changed
                )

    def video_id_of(self, given: Any) -> Any:
        """Return the video id as the json has it; it may be given as number or text.

        Raises:
            InputError: there is no such video.
        """
        video_id = listed_id(given, self.videos)
        if video_id not in self.videos:
            raise InputError(f"video id {given!r} is not among the {len(self.videos)} of {self.json_file}")
        return video_id


def read_video_results(path: PathLike, truth: VideoGroundTruth) -> list[dict[str, Any]]:
    """Return entries of a results file: video_id, category_id, score, segmentations (RLE or null for each frame).

    Raises:
        InputError: entries are incomplete, name an unknown video or category, or do not fit their video.
    """
    return read_results(path, lambda entry: _checked_result(entry, truth), kind="result", of="video")


def _checked_result(entry: Any, truth: VideoGroundTruth) -> dict[str, Any]:
    entry = require_keys(entry, ("video_id", "category_id", "score", "segmentations"), "result")
    video_id = known_id(entry, "video", truth.videos, truth.json_file)
    category_id = known_category(entry, truth.category_names)
    video = truth.videos[video_id]  # type: ignore[index]
    result = {"video_id": video_id, "category_id": category_id, "score": checked_score(entry["score"])}
    return joined({**result, "segmentations": check_frames(entry["segmentations"], video)}, video)


def joined(entry: Mapping[str, Any], video: Video) -> dict[str, Any]:
    """Return a track with ``mask`` and ``area`` in place of its segmentations, which ``check_frames`` returned.

    The area is the mean of ``areas`` where the file gives them and the masks can have them, else ``measured``.
    """
    size = (video.height, video.width)
    rles: list[Rle | None] = [s if s is None else encode_segmentation(s, size) for s in entry["segmentations"]]
    areas = [None if rle is None else float(coco_mask.area(rle)) for rle in rles]
    stated, measured = entry.get("areas") or areas, mean_visible_area(areas)
    kept = {key: value for key, value in entry.items() if key in ("video_id", "category_id", "score", "iscrowd")}
    area = mean_visible_area(stated)
    area = area if is_plain_area(area, measured) else measured
    return {**kept, "mask": join_frames(rles, size), "area": area, "measured": measured}


RESULTS_FILE = "results.json"  # the name that the evaluation server expects


class YTVISEvaluator(DatasetEvaluator):
    """Video AP and AR, over all categories and AP for each.

    Reads ``json_file`` and, where there are, ``thing_dataset_id_to_contiguous_id`` and ``thing_classes`` of the data
    set's metadata. Takes pred_scores, pred_labels (contiguous) and pred_masks, each (T, H, W) bool or a MaskTrack, of
    ``outputs[i]`` for the video ``inputs[i]["video_id"]``. With ``output_dir`` it writes results.json in the format
    that YouTube-VIS takes; for videos without annotations that is all.
    """

    def __init__(self, dataset_name: str, output_dir: PathLike | None = None) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        self._truth = VideoGroundTruth(metadata_path(metadata, "json_file", type(self).__name__))
        mapping = metadata.get("thing_dataset_id_to_contiguous_id")
        if mapping is None:
            mapping = {category_id: i for i, category_id in enumerate(sorted(self._truth.category_names))}
        self._dataset_ids = {contiguous: dataset_id for dataset_id, contiguous in mapping.items()}
        names = metadata.get("thing_classes")
        self._class_names = (
            self._truth.category_names
            if names is None
            else {self._dataset_ids[i]: name for i, name in enumerate(names)}
        )
        self._output_dir = None if output_dir is None else Path(output_dir)
        self.reset()

    def reset(self) -> None:
        self._results: list[dict[str, Any]] = []
        self._video_ids: list[Any] = []

    def process(self, inputs: ModelInputs, outputs: ModelOutputs) -> None:
        """Encode the instances of each video.

        Raises:
            InputError: a video is not in the ground truth, or instances have another size, an unknown class or a score
                that is not finite.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            video_id = self._truth.video_id_of(sample.get("video_id"))
            if "pred_masks" not in output:
                raise InputError(f"video {video_id!r}: no 'pred_masks' in the result, found {sorted(output)}")
            self._video_ids.append(video_id)
            self._results += self._encode(output, video_id)

    def evaluate(self) -> Results | None:
        """``{"segm": {AP, AP50, AP75, APs, APm, APl, AR1, AR10, AP-NAME, …}}`` in percent; None off the main process.

        It is empty where the videos have no annotations.

        Raises:
            InputError: a video of the ground truth was not processed, or twice.
        """
        parts = gather_on_main((self._results, self._video_ids))
        if parts is None:
            return None
        results = [result for part, _ in parts for result in part]
        path = None if self._output_dir is None else self._output_dir / RESULTS_FILE
        if path is not None:
            write_json(results, path)
        check_each_once(
            [video_id for _, video_ids in parts for video_id in video_ids],
            self._truth.videos,
            kind="video",
            source=self._truth.json_file,
        )
        if self._truth.tracks is None:
            where = "not written, there is no output folder" if path is None else f"written to {path}"
            logger.info("%s has no annotations: no AP; results %s", self._truth.json_file, where)
            return {}
        detections = [joined(result, self._truth.videos[result["video_id"]]) for result in results]
        return _report(self._truth, detections, names=self._class_names)

    def _encode(self, output: Mapping[str, Any], video_id: Any) -> list[dict[str, Any]]:
        name = f"prediction for video {video_id!r}"
        video = self._truth.videos[video_id]
        expected = (video.length, video.height, video.width)
        entries = []
        for score, label, masks in zip(output["pred_scores"], output["pred_labels"], output["pred_masks"], strict=True):
            if tuple(masks.shape) != expected:
                raise InputError(f"{name}: masks have shape {tuple(masks.shape)}, expected (T, H, W) = {expected}")
            if int(label) not in self._dataset_ids:
                raise InputError(f"{name}: class {label} is unknown, there are {sorted(self._dataset_ids)[:20]}")
            if not torch.isfinite(torch.as_tensor(score)):
                raise InputError(f"{name}: a score is not finite: {score}")
            entries.append(
                {
                    "video_id": video_id,
                    "category_id": self._dataset_ids[int(label)],
                    "score": float(score),
                    "segmentations": _encode_frames(masks),
                }
            )
        return entries


def evaluate_video(gt_json: PathLike, results_json: PathLike) -> Results:
    """Return AP and AR of a saved results file (dataset category ids). A video without an entry has no detection.

    Raises:
        InputError: a result is incomplete, of an unknown video or category, or does not fit its video; or the videos
            have no annotations.
        DatasetError: the ground truth is missing or wrong.
    """
    truth = VideoGroundTruth(gt_json)
    if truth.tracks is None:
        raise InputError(f"{gt_json} has no 'annotations': there is nothing to compare results with")
    return _report(truth, read_video_results(results_json, truth), names=truth.category_names)


def _report(truth: VideoGroundTruth, detections: Sequence[dict[str, Any]], *, names: Mapping[int, str]) -> Results:
    assert truth.tracks is not None
    precision = compute_video_average_precision(
        truth.tracks, detections, video_ids=list(truth.videos), category_ids=list(truth.category_names)
    )
    metrics = dict(precision.summary)
    logger.info(
        "video AP of masks on %s\n%s", truth.json_file, format_table(list(metrics), [[*map(float, metrics.values())]])
    )
    if len(names) > 1:  # with one category its AP is the AP
        by_name = [(names.get(i, str(i)), value) for i, value in precision.by_category.items()]
        logger.info("video AP of each category\n%s", format_table(("category", "AP"), by_name))
        metrics |= {f"AP-{name}": value for name, value in by_name}
    return check_percentages({"segm": metrics})


def _encode_frames(masks: Any) -> list[dict[str, Any] | None]:
    """Return run-length codes of masks (T, H, W), None for a frame without a pixel."""
    if isinstance(masks, MaskTrack):  # of a long video, encoded already
        return [rle if coco_mask.area(rle) else None for rle in masks.to_rles()]
    bitmaps = torch.as_tensor(masks)
    bitmaps = bitmaps if bitmaps.dtype == torch.bool else bitmaps > 0.5
    is_seen = bitmaps.flatten(1).any(dim=1).tolist()
    return [rle if seen else None for rle, seen in zip(bitmasks_to_rles(bitmaps), is_seen, strict=True)]
