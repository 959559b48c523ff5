from mask2former.modeling import LOSS_REGISTRY


@LOSS_REGISTRY.register(name="soft_iou")
def soft_iou_loss(matched):
    """One minus the intersection over union of probabilities, of matched masks at the points where they are sampled."""
    probs, labels = matched.point_logits.sigmoid(), matched.point_labels  # (L, M, T, P)
    intersection = (probs * labels).sum(-1)
    union = (probs + labels - probs * labels).sum(-1)
    return matched.mean(1 - (intersection + 1) / (union + 1))  # (L,): one value for each layer
