#!/usr/bin/env python
"""PQ of a semantic model, every class counting as stuff, from the sem_seg_predictions.json that evaluation writes.

python tools/evaluate_pq_for_semantic_segmentation.py --dataset-name ade20k_sem_seg_val --json-file FILE
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone works without being installed

from mask2former.commands.cli import run_cli


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset-name", default="ade20k_sem_seg_val", help="a semantic data set (%(default)s)")
    parser.add_argument("--json-file", required=True, help="sem_seg_predictions.json, or a folder of label maps")
    parser.add_argument("--verbose", action="store_true", help="show the traceback of an error")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    return run_cli(lambda: evaluate(args.dataset_name, args.json_file), verbose=args.verbose)


def evaluate(dataset_name: str, predictions: str) -> None:
    """Prints the metrics as JSON."""
    from mask2former.data import register_builtin_datasets
    from mask2former.evaluation import evaluate_semantic_pq
    from mask2former.evaluation.protocol import metadata_field
    from mask2former.structures import MetadataCatalog

    register_builtin_datasets()
    metadata = MetadataCatalog.get(dataset_name)
    results = evaluate_semantic_pq(
        metadata_field(metadata, "sem_seg_root", "PQ of a semantic model"),
        predictions,
        class_names=metadata_field(metadata, "stuff_classes", "PQ of a semantic model"),
        ignore_label=metadata.get("ignore_label", 255),
        dataset_id_to_contiguous_id=metadata.get("stuff_dataset_id_to_contiguous_id"),
    )
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    sys.exit(main())
