import torch

from mask2former.inference.frame_tracker import TRACKER_REGISTRY


@TRACKER_REGISTRY.register()
class LeftToRight:
    """Numbers things of a frame from left to right: right for a queue, in which nobody overtakes."""

    def __init__(self, cfg):
        pass

    def track_instances(self, instances):
        columns = torch.arange(instances.image_size[1], dtype=torch.float32)
        masks = instances.pred_masks.float().cpu()  # (N, H, W)
        centres = (masks.sum(1) * columns).sum(1) / masks.sum((1, 2)).clamp(min=1)
        track_ids = centres.argsort().argsort() + 1
        return type(instances)(instances.image_size, **instances.get_fields(), track_ids=track_ids)

    def track_panoptic(self, ids, segments_info):
        return ids, [{**info, "track_id": info["id"]} for info in segments_info]
