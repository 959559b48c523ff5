import csv
from pathlib import Path

from mask2former.engine import HOOK_REGISTRY, WRITER_REGISTRY, Hook


@HOOK_REGISTRY.register()
class GradientNorm(Hook):
    """Writes the largest gradient of the run so far."""

    def __init__(self, cfg):
        self.largest = 0.0

    def after_step(self, trainer):
        gradients = [p.grad for p in trainer.unwrapped_model.parameters() if p.grad is not None]
        self.largest = max([self.largest, *(float(gradient.abs().max()) for gradient in gradients)])
        trainer.log.write(trainer.iteration, {"largest_gradient": self.largest})

    def state_dict(self):  # saved with checkpoints, so that a resumed run goes on
        return {"largest": self.largest}

    def load_state_dict(self, state):
        self.largest = state["largest"]


@WRITER_REGISTRY.register()
class CsvWriter:
    """metrics.csv: a line for each metric."""

    def __init__(self, cfg):
        self.path = Path(cfg.OUTPUT_DIR, "metrics.csv")

    def write(self, iteration, metrics):
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerows([iteration, name, value] for name, value in metrics.items())

    def close(self):
        pass
