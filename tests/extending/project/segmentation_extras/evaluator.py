from mask2former.distributed import gather_on_main
from mask2former.evaluation import EVALUATOR_REGISTRY, DatasetEvaluator


@EVALUATOR_REGISTRY.register()
class Confidence(DatasetEvaluator):
    """The mean over images of the highest score, in percent."""

    def __init__(self, cfg, dataset_name, output_dir):  # predictions may be written below output_dir
        self.reset()

    def reset(self):
        self.scores = []

    def process(self, inputs, outputs):  # a batch: what the model was given and what it gave, one dict an image
        for output in outputs:
            scores = output["instances"].scores
            self.scores.append(float(scores.max()) if len(scores) else 0.0)

    def evaluate(self):
        parts = gather_on_main(self.scores)  # of all processes
        if parts is None:
            return None
        scores = [score for part in parts for score in part]
        return {"confidence": {"mean": 100 * sum(scores) / max(len(scores), 1)}}
