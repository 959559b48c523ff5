import csv

from mask2former.data.own_data import DataClass, DataFormat, ImageEntry, OwnDataset, Segment, register_format
from mask2former.files.images import read_image_size


@register_format
class BoxTable(DataFormat):
    """train.csv and valid.csv with the columns file, class, x, y, width, height: a line for each object."""

    name, title, tasks = "box_table", "a table of boxes", ("instance",)

    def detect(self, path):
        return (path / "train.csv").is_file()

    def read(self, path, *, num_workers=None):
        texts = {part: (path / f"{part}.csv").read_text() for part in ("train", "valid")}
        tables = {part: list(csv.DictReader(text.splitlines())) for part, text in texts.items()}
        names = sorted({row["class"] for rows in tables.values() for row in rows})
        parts = {part: self.read_part(path, rows, names) for part, rows in tables.items()}
        classes = [DataClass(number, name, is_thing=True) for number, name in enumerate(names)]
        return OwnDataset(self.name, path, classes, parts)

    def read_part(self, path, rows, names):
        segments = {row["file"]: [] for row in rows}
        for row in rows:
            x, y, width, height = (float(row[key]) for key in ("x", "y", "width", "height"))
            polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
            number = len(segments[row["file"]]) + 1
            segments[row["file"]].append(Segment(names.index(row["class"]), [polygon], instance_id=number))
        return [
            ImageEntry(path / file, *read_image_size(path / file), image_id, tuple(found))
            for image_id, (file, found) in enumerate(segments.items())
        ]
