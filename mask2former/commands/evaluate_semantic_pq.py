"""PQ of a semantic model, every class counting as stuff, from the sem_seg_predictions.json that evaluation writes."""

from __future__ import annotations

import argparse

from mask2former.commands.arguments import CommandParser

DESCRIPTION = (
    "PQ of a semantic model on a data set with a name, every class counting as stuff: metrics as JSON, from the "
    "sem_seg_predictions.json that evaluation writes, or from a folder of label maps."
)


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of the command."""
    parser.add_argument(
        "--dataset-name", default="ade20k_sem_seg_val", metavar="NAME", help="a semantic data set (%(default)s)"
    )
    parser.add_argument("--json-file", required=True, metavar="PATH", help="sem_seg_predictions.json, or a folder")
    parser.add_output_option("file for the metrics too")


def run(args: argparse.Namespace) -> None:
    """Print the metrics.

    Raises:
        InputError: the data set is not known, or a file is wrong.
    """
    import json
    import logging
    import sys

    from mask2former.commands.arguments import print_report
    from mask2former.data import register_builtin_datasets
    from mask2former.evaluation import evaluate_semantic_pq
    from mask2former.evaluation.protocol import metadata_names, metadata_path
    from mask2former.structures import MetadataCatalog

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    register_builtin_datasets()
    metadata = MetadataCatalog.get(args.dataset_name)
    results = evaluate_semantic_pq(
        metadata_path(metadata, "sem_seg_root", "PQ of a semantic model"),
        args.json_file,
        class_names=metadata_names(metadata, "stuff_classes", "PQ of a semantic model"),
        ignore_label=metadata.get("ignore_label", 255),
        dataset_id_to_contiguous_id=metadata.get("stuff_dataset_id_to_contiguous_id"),
    )
    print_report(json.dumps(results, indent=1), args.output)
