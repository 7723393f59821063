# SPDX-License-Identifier: Apache-2.0
"""Several processes, workers and trainings at once, and test sets of one class."""

import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from anomalib.engine import Engine

from anomalib_pose.data import MAD
from anomalib_pose.models import SplatPose
from anomalib_pose.render.threads import small_operations
from anomalib_pose.sample_data.mad import write_mad

SETTINGS = {
    "steps": 40,
    "max_gaussians": 300,
    "bank_spacing": 40.0,
    "starts": 1,
    "surface_views": 4,
    "holdout_every": 8,
}

# Compiles kernels, and prints bits of their result.
RENDER = """
import torch
from anomalib_pose.render.ssim import ssim
first, second = torch.rand(2, 20, 20, 3, generator=torch.Generator().manual_seed(0))
first.requires_grad_()
value = ssim(first, second)
value.backward()
print(float(value).hex(), float(first.grad.double().sum()).hex())
"""


@pytest.fixture(scope="module")
def mad_root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "MAD"
    write_mad(root, "car", 0, 48, views=24, test_good=2, test_per_defect=1, progress=False)
    return root


def make_data(root: Path, workers: int = 0) -> MAD:
    return MAD(root=str(root), category="car", num_workers=workers)


def train(root: Path, folder: Path, seed: int = 0) -> torch.Tensor:
    """Train a small model; return the raw scores of the test set."""
    model = SplatPose(seed=seed, rasterizer="cpu", visualizer=False, **SETTINGS)
    engine = Engine(default_root_dir=folder, logger=False, devices=1, accelerator="cpu", enable_progress_bar=False)
    engine.fit(model, datamodule=make_data(root))
    return torch.cat([batch.pred_score for batch in engine.predict(model, datamodule=make_data(root))])


@pytest.mark.slow
def test_two_processes_share_a_cold_kernel_cache(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", RENDER]
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
    assert outputs[0][0] == outputs[1][0] == again.stdout
    assert list((tmp_path / "cache").rglob("*.nbi")), "kernels are cached"


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_load_the_same_batches(mad_root, start):
    def batches(workers: int) -> list[torch.Tensor]:
        data = make_data(mad_root, workers)
        data.setup()
        loader = data.test_dataloader()
        if workers:
            loader.multiprocessing_context = start
        return [batch.image for batch in loader]

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with small_operations():
        torch.rand(300, 300) @ torch.rand(300, 300)
    torch.rand(1000, 1000).exp().sum()  # the parent's threads run before the fork
    expected = batches(0)
    loaded = batches(2)
    torch.set_num_threads(before)
    assert len(expected) == len(loaded)
    assert all(torch.equal(a, b) for a, b in zip(expected, loaded, strict=True))


@pytest.mark.slow
def test_two_trainings_in_one_process_do_not_disturb_each_other(mad_root, tmp_path):
    alone = [train(mad_root, tmp_path / f"alone{seed}", seed) for seed in (0, 1)]
    again = train(mad_root, tmp_path / "again", 0)
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(train, mad_root, tmp_path / f"beside{seed}", seed) for seed in (0, 1)]
        beside = [job.result() for job in jobs]
    assert not torch.equal(*alone)
    assert torch.equal(again, alone[0])
    assert all(torch.equal(a, b) for a, b in zip(alone, beside, strict=True))


@pytest.mark.parametrize("label", [0, 1], ids=["only good", "only defective"])
def test_a_test_set_of_one_class_has_finite_metrics(mad_root, tmp_path, label):
    model = SplatPose(rasterizer="cpu", visualizer=False, **SETTINGS)
    engine = Engine(default_root_dir=tmp_path, logger=False, devices=1, accelerator="cpu", enable_progress_bar=False)
    data = make_data(mad_root)
    data.setup()
    for name in ("test_data", "val_data"):
        dataset = getattr(data, name)
        dataset.samples = dataset.samples[dataset.samples.label_index == label].reset_index(drop=True)
    data.setup = lambda stage=None: None
    engine.fit(model, datamodule=data)
    (results,) = engine.test(model, datamodule=data)
    assert results
    assert all(math.isfinite(value) for value in results.values()), results
    assert "image_AUROC" not in results
