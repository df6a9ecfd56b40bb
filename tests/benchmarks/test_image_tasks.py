"""The image tasks of the recipe are read as they were written, each class of both data sets in one of them."""

from pathlib import Path

from benchmarks import image_tasks

import tauspan as ts


def test_every_class_is_in_one_task_and_every_picture_is_read(tmp_path: Path) -> None:
    seen: list[str] = []
    for name, (pictures, names) in image_tasks.tasks():
        image_tasks.write_task(tmp_path / name, name, pictures, names)
        task = ts.Task.from_directory(tmp_path / name)
        assert task.label_names == list(names)
        for key, (images, labels) in pictures.items():
            rows = task.split(key)
            assert (rows.labels.tolist(), len(rows)) == (labels.tolist(), len(images))
            assert set(labels.tolist()) == set(range(5))
        seen += names
    assert sorted(seen) == sorted([*map(str, range(10)), *image_tasks.GARMENTS])
