from mask2former.modeling import POSTPROCESSING_REGISTRY
from mask2former.modeling.postprocess import infer_image


@POSTPROCESSING_REGISTRY.register()
def without_specks(class_logits, mask_logits, *, geometry, options, thing_ids=None):
    """As usual, but instances of less than four pixels are left out."""
    results = infer_image(class_logits, mask_logits, geometry=geometry, options=options, thing_ids=thing_ids)
    if "instances" in results:
        instances = results["instances"]
        results["instances"] = instances[instances.pred_masks.flatten(1).sum(1) >= 4]
    return results
