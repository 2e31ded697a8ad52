"""Words in an edit job: checked, pinned in the input list, and named in every output."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from bs_ray.batch.edit import EditShard
from bs_ray.batch.fetch import load_photos
from bs_ray.batch.input_list import JobChangedError
from bs_ray.batch.prepare import prepare, sight_of
from bs_ray.batch.rows import pack, pack_files, unpack
from bs_ray.config import EditJob
from bs_ray.images.rows import is_quarantined
from tests.batch.conftest import MakeJob

SMILING = {"positive": "person, smiling", "negative": "person, frowning", "strength": 2.0}


@pytest.fixture
def job(make_job: MakeJob, tmp_path: Path) -> EditJob:
    (tmp_path / "in").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "in" / "a.png")
    return make_job(sliders={"smile": 1.0, "smiling": SMILING})


def test_words_go_from_the_job_to_its_workers(job: EditJob, tmp_path: Path) -> None:
    prepared = prepare(job, Console())
    reference = prepared.references["smiling"]
    assert reference.startswith("smiling@w") and prepared.edits == {
        "": {"smile@1": 1.0, reference: 2.0}
    }
    assert prepared.stamp["words"][reference]["negative"] == "person, frowning"
    pinned = prepared.input_list.settings
    assert pinned["sliders"]["smiling"]["strength"] == 2.0

    worker = EditShard(prepared.job, pinned)
    [image] = prepared.input_list.shard(0)
    mixes: list[dict[str, float]] = [{"smile@1": 1.0}, {"smile@1": 1.0, reference: 2.0}]
    edits = {str(number): mix for number, mix in enumerate(mixes)}
    rows, files, *_ = load_photos(
        [image], prepared.job, edits, prepared.references, sight_of(prepared.job)
    )
    found = unpack(worker(pack(0, rows, pack_files(files))))
    worker.editor.close()
    assert not any(is_quarantined(row) for row in found)
    assert [row["mix"] for row in found] == mixes
    assert (found[0]["changes"][0] != found[1]["changes"][0]).any()


def test_other_words_are_another_job(job: EditJob) -> None:
    prepare(job, Console())
    prepare(job, Console())
    other = job.sliders | {"smiling": job.words["smiling"].model_copy(update={"eta": 4.0})}
    with pytest.raises(JobChangedError, match="smiling"):
        prepare(job.model_copy(update={"sliders": other}), Console())
