from mask2former.commands.arguments import print_report
from mask2former.commands.setup import set_up
from mask2former.commands.table import register_command
from mask2former.data import DatasetCatalog

DESCRIPTION = "Print how many images each data set of DATASETS.TRAIN has."
register_command("count-images", module=__name__, summary="count the images that a run was trained on")


def add_arguments(parser):
    parser.add_model_options()
    parser.add_output_option("file for the numbers too")


def run(args):
    names = set_up(args).cfg.DATASETS.TRAIN
    print_report("\n".join(f"{name}: {len(DatasetCatalog.get(name))} images" for name in names), args.output)
