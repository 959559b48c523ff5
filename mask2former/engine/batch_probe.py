"""How many images a step fit into memory: measured on the model that is trained, at the size it is trained with."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from mask2former import distributed
from mask2former.config import CfgNode
from mask2former.data.presets import preset_of
from mask2former.engine.precision import Precision
from mask2former.modeling import build_model
from mask2former.structures import Instances

_NUM_OBJECTS = 10  # an image
_PROBED_SIDE = 256  # on a CPU: what is kept for the backward pass grows with the pixels
_SHARE = 0.5  # of the free memory of a CPU; images, gradients and what is computed with need the rest
_CUDA_SHARE = 0.85  # of the free memory of a GPU, since images differ in their numbers of objects
_COPIES = 4  # of the parameters: weights, gradients, two moments


def largest_batch(cfg: CfgNode, *, most: int) -> tuple[int, str]:
    """Images a step of all processes, at most ``most``, and why. At least one for each process."""
    processes = distributed.get_world_size()
    limit = max(most // processes, 1)
    with torch.random.fork_rng():
        model = build_model(cfg).train()
        device = next(model.parameters()).device
        precision = Precision.from_config(cfg, device.type)
        side = _training_side(cfg)

        def step(size: int, images: int) -> None:
            with precision.autocast():
                losses = model([_image(size, cfg) for _ in range(images)])
            total = torch.stack(list(losses.values())).sum()
            total.backward()
            model.zero_grad(set_to_none=True)

        if device.type == "cuda":
            batch, why = _try_on_cuda(model, device, limit, lambda images: step(side, images))
        else:
            batch, why = _estimate_on_cpu(model, limit * processes, side, step)
            batch = max(batch // processes, 1)
    return batch * processes, f"{why}, at most {most}"


def grow_while(fits: Callable[[int], bool], *, most: int) -> int:
    """The largest of 1, 2, 4, … up to ``most`` that fits, with all before it; at least 1."""
    batch = 1
    while batch * 2 <= most and fits(batch * 2):
        batch *= 2
    return batch


def _training_side(cfg: CfgNode) -> int:
    if preset_of(cfg).large_scale_jitter:
        return cfg.INPUT.IMAGE_SIZE
    if cfg.INPUT.CROP.ENABLED:
        return max(map(int, cfg.INPUT.CROP.SIZE))
    return max(cfg.INPUT.MIN_SIZE_TRAIN)


def _image(side: int, cfg: CfgNode) -> dict[str, Any]:
    classes = torch.arange(_NUM_OBJECTS) % cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    masks = torch.zeros(_NUM_OBJECTS, side, side, dtype=torch.bool)
    for index, mask in enumerate(masks):
        mask[index * side // _NUM_OBJECTS : (index + 1) * side // _NUM_OBJECTS] = True
    instances = Instances((side, side), gt_classes=classes, gt_masks=masks)
    image = torch.randint(0, 256, (len(cfg.MODEL.PIXEL_MEAN), side, side), dtype=torch.uint8)
    return {"image": image, "instances": instances, "height": side, "width": side}


def _estimate_on_cpu(model: nn.Module, most: int, side: int, step: Callable[[int, int], None]) -> tuple[int, str]:
    """What autograd keeps of one image, against the memory that is free."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    probed = min(side, _PROBED_SIDE)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step(probed, 1)
    weights = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()}
    activations = sum(size for pointer, size in kept.items() if pointer not in weights)
    image = max(activations * (side / probed) ** 2, 1)
    free = _free_memory()
    room = free * _SHARE - _COPIES * sum(weights.values())
    batch = grow_while(lambda images: images * image <= room, most=most)
    return batch, f"{image / 2**30:.2f} GiB an image of {side} x {side}, {free / 2**30:.1f} GiB of memory are free"


def _free_memory() -> int:
    """Bytes that can be had without swapping."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # elsewhere than on Linux: half of what there is
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _try_on_cuda(model: nn.Module, device: torch.device, most: int, step: Callable[[int], None]) -> tuple[int, str]:
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    moments = 2 * sum(parameter.nbytes for parameter in model.parameters())

    def fits(images: int) -> bool:
        torch.cuda.reset_peak_memory_stats(device)
        try:
            step(images)
        except torch.cuda.OutOfMemoryError:
            return False
        finally:
            model.zero_grad(set_to_none=True)
        return torch.cuda.max_memory_allocated(device) + moments <= free * _CUDA_SHARE

    batch = grow_while(fits, most=most)
    torch.cuda.empty_cache()
    return batch, f"the largest that a step was tried with, {free / 2**30:.1f} GiB of the GPU are free"
