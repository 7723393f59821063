# SPDX-License-Identifier: Apache-2.0
"""Scores of clouds by an exported graph: render views, score them with the graph, average the scores on the points."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from anomalib_pose.data.images import read_image, resize_bicubic
from anomalib_pose.data.point_cloud.files import name_file_in_errors, read_xyz
from anomalib_pose.data.point_cloud.preprocessing import isolate_object
from anomalib_pose.data.point_cloud.rendered_cloud import RenderedCloud, RenderSettings, render_organized
from anomalib_pose.models.point_ad.aggregation import object_scores
from anomalib_pose.models.point_ad.cloud_grid import CloudGrid
from anomalib_pose.models.point_ad.export import Aggregation
from anomalib_pose.models.point_ad.image_scores import ImageScores
from anomalib_pose.models.point_ad.pictures import write_scored_cloud


@dataclass(frozen=True)
class CloudPrediction:
    """Scores of one cloud.

    Args:
        score: score of the object, in [0, 1].
        defective: whether the score is above the threshold; None without a threshold.
        point_map: scores of the grid's cells (s, s).
        points: positions of the cells (s, s, 3), in the unit of the recording.
        valid: cells that hold a point (s, s).
    """

    score: float
    defective: bool | None
    point_map: Tensor
    points: Tensor
    valid: Tensor

    def write(self, path: str | Path) -> None:
        """Write the points with their scores and colors as .ply.

        Args:
            path: the file.
        """
        write_scored_cloud(Path(path), self.points[self.valid], self.point_map[self.valid])


class PointADInferencer:
    """Scores clouds by a graph of ``anomalib export --model PointAD``, through OpenVINO and without CLIP.

    Args:
        path: ``model.xml`` or ``model.onnx``, with ``model.json`` beside it.
        settings: settings of the rendering, as at the model's validation; None for nine views of 336 pixels.
        device: OpenVINO's name of the device.
        seed: seed of the search for the plane under the object.
        precision: OpenVINO's ``INFERENCE_PRECISION_HINT``. Scores in ``"f32"`` are those of the model; ``"bf16"`` is
            faster on CPUs with BF16 instructions, where OpenVINO's own default is BF16.

    Raises:
        FileNotFoundError: if a file does not exist.
        ValueError: if the graph is not one of PointAD.
    """

    def __init__(
        self,
        path: str | Path,
        settings: RenderSettings | None = None,
        device: str = "CPU",
        seed: int = 0,
        precision: str = "f32",
    ) -> None:
        import openvino

        path = Path(path)
        if not path.is_file():
            msg = f"Expected an exported graph, found no file {path}."
            raise FileNotFoundError(msg)
        self.aggregation = Aggregation.read(path)
        self.settings = settings or RenderSettings()
        self.seed = seed
        self._graph = openvino.Core().compile_model(path, device, {"INFERENCE_PRECISION_HINT": precision})
        batch_size, _, height, _ = self._graph.input(0).get_partial_shape()
        if not {"pred_score", "anomaly_map"} <= {name for output in self._graph.outputs for name in output.names}:
            msg = f"{path} should have the outputs pred_score and anomaly_map, as PointAD's exported graphs do."
            raise ValueError(msg)
        self._batch_size = batch_size.get_length() if batch_size.is_static else 0
        self._size: int = height.get_length()

    def predict(self, xyz: str | Path, rgb: str | Path | None = None) -> CloudPrediction:
        """Score a recording in MVTec 3D-AD's form: an object on a plane.

        Args:
            xyz: organized cloud in meters, a .tiff.
            rgb: photograph of the object; None if there is no photograph.

        Raises:
            FileNotFoundError: if a file does not exist.
            ValueError: if a file cannot be read, sizes differ, or the recording shows only the plane.
        """
        path = Path(xyz)
        cells, image = read_xyz(path), None if rgb is None else read_image(Path(rgb))[0]
        with name_file_in_errors(path):
            points, photograph, _ = isolate_object(cells, image, seed=self.seed)
            cloud = render_organized(points, self.settings, rgb=photograph)
        return self.predict_views(cloud)

    def predict_views(self, cloud: RenderedCloud) -> CloudPrediction:
        """Score a cloud whose views are rendered.

        Args:
            cloud: cloud with views, and with a photograph if it is to contribute.
        """
        fused = self.aggregation.fuse_rgb and cloud.rgb is not None
        images = torch.cat([cloud.views, cloud.rgb[None]]) if fused and cloud.rgb is not None else cloud.views
        scores, maps = self._score_images(resize_bicubic(images.float() / 255, self._size))
        count = len(cloud.views)
        photograph = (maps[count], scores[count]) if fused else (None, None)
        result = object_scores(
            ImageScores(maps[:count], scores[:count], *photograph),
            CloudGrid(cloud.points, cloud.valid, cloud.organized, cloud.pixels, cloud.visible),
            self.aggregation.smoothing,
            self.aggregation.top_fraction,
        )
        score, threshold = float(result.score), self.aggregation.threshold
        defective = None if threshold is None else score > threshold
        return CloudPrediction(score, defective, result.point_map, cloud.points, cloud.valid)

    def _score_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute scores (n,) and maps (n, p, p); copies of an image fill up the last batch."""
        scores, maps = [], []
        for part in images.split(self._batch_size or len(images)):
            missing = max(0, self._batch_size - len(part))
            outputs = self._graph(torch.cat([part, part[:1].expand(missing, -1, -1, -1)]).numpy())
            scores.append(np.asarray(outputs["pred_score"])[: len(part)])
            maps.append(np.asarray(outputs["anomaly_map"])[: len(part)])
        return torch.from_numpy(np.concatenate(scores)), torch.from_numpy(np.concatenate(maps))
