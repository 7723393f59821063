# SPDX-License-Identifier: Apache-2.0
"""Encoder and projector, shared by queries and reference views; names are those of the published weights."""

from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet18

from anomalib_pose.weights import mismatched_keys, read_state_dict

CHANNELS = 128
"""Channels of a feature."""
IMAGE_SIZE = 256
"""Side in pixels of queries and views."""
CELL = 8
"""Side in pixels of a cell of the feature grid."""
GRID = IMAGE_SIZE // CELL
"""Cells along a side of the feature grid, where images keep their size."""
DESCRIPTOR = 256
"""Channels of a projected feature."""


class FeaturePyramid(nn.Module):
    """Feature pyramid network over the last three stages of a ResNet, with nearest-neighbor upsampling.

    The levels are numbered as in the published pyramid over all four stages; its finest level is never used.

    Args:
        widths: channels of the three stages, fine to coarse.
        channels: channels of every level.
    """

    def __init__(self, widths: tuple[int, int, int], channels: int) -> None:
        super().__init__()
        levels = list(enumerate(widths, start=1))
        self.inner_blocks = nn.ModuleDict(
            {str(level): nn.Sequential(nn.Conv2d(width, channels, 1)) for level, width in levels}
        )
        self.layer_blocks = nn.ModuleDict(
            {str(level): nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1)) for level, _ in levels}
        )
        for part in self.modules():
            if isinstance(part, nn.Conv2d) and part.bias is not None:
                nn.init.kaiming_uniform_(part.weight, a=1)
                nn.init.zeros_(part.bias)

    def forward(self, stages: list[Tensor]) -> list[Tensor]:
        """Compute the three levels, fine to coarse.

        Args:
            stages: outputs of the three stages (B, C, H, W), fine to coarse.
        """
        merged = self.inner_blocks["3"](stages[2])
        levels = [self.layer_blocks["3"](merged)]
        for level in (2, 1):
            lateral = self.inner_blocks[str(level)](stages[level - 1])
            merged = lateral + functional.interpolate(merged, size=lateral.shape[-2:], mode="nearest")
            levels.insert(0, self.layer_blocks[str(level)](merged))
        return levels


def _convolutions(count: int, *, upsample: bool) -> nn.Sequential:
    """Stack ``count`` convolutions with batch normalization and ReLU, each optionally followed by 2x upsampling."""
    parts: list[nn.Module] = []
    for _ in range(count):
        convolution = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        parts += [convolution, nn.BatchNorm2d(CHANNELS), nn.ReLU()]
        if upsample:
            parts.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
    return nn.Sequential(*parts)


class Encoder(nn.Module):
    """ResNet-18 and feature pyramid, summed on a grid of cells of 8 x 8 pixels (Looking3D, section 4.1).

    The initial weights are random (He), as in the paper; ``load_backbone`` loads others.
    """

    def __init__(self) -> None:
        super().__init__()
        self.backbone = resnet18(weights=None)
        del self.backbone.fc, self.backbone.avgpool
        self.fpn = FeaturePyramid((128, 256, 512), CHANNELS)
        self.panoptic_1 = _convolutions(3, upsample=False)
        self.panoptic_2 = _convolutions(1, upsample=True)
        self.panoptic_3 = _convolutions(2, upsample=True)

    def forward(self, images: Tensor) -> Tensor:
        """Compute features (B, 128, g, g).

        Args:
            images: RGB (B, 3, 8 g, 8 g) in [-1, 1].
        """
        net = self.backbone
        x = net.layer1(net.maxpool(net.relu(net.bn1(net.conv1(images)))))
        stages = []
        for stage in (net.layer2, net.layer3, net.layer4):
            x = stage(x)
            stages.append(x)
        fine, middle, coarse = self.fpn(stages)
        return self.panoptic_1(fine) + self.panoptic_2(middle) + self.panoptic_3(coarse)

    def load_backbone(self, path: str | Path) -> None:
        """Load other initial weights of the ResNet, such as ImageNet's.

        Args:
            path: file with the state dict of torchvision's or timm's ``resnet18``.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file does not hold these weights, or holds objects other than tensors.
        """
        content = read_state_dict(path, "the weights of a ResNet-18 as encoder_weights", "a ResNet-18")
        weights = {name: value for name, value in content.items() if not name.startswith("fc.")}
        mismatches = mismatched_keys(self.backbone.state_dict(), weights)
        if mismatches:
            msg = (
                f"{path} should hold the weights of torchvision's or timm's resnet18, but {len(mismatches)} entries "
                f"are missing, unknown or of another shape, {mismatches[0]!r} first."
            )
            raise ValueError(msg)
        self.backbone.load_state_dict(weights)


class Projector(nn.Module):
    """Projects features to unit descriptors; cells are matched by their dot products (section 4.2)."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Conv2d(CHANNELS, 1024, 1),
            nn.ReLU(),
            nn.Conv2d(1024, 1024, 1),
            nn.ReLU(),
            nn.Conv2d(1024, 1024, 1),
            nn.ReLU(),
            nn.Conv2d(1024, DESCRIPTOR, 1, bias=False),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Compute descriptors (B, 256, h, w).

        Args:
            features: features of the encoder (B, 128, h, w): the grid, or cells selected from it.
        """
        return functional.normalize(self.mlp(features).float(), dim=1)


def cells(grid: Tensor) -> Tensor:
    """Flatten a grid (B, C, g, g) to cells (B, g * g, C), row by row.

    Args:
        grid: grid of features, descriptors or weights.
    """
    return grid.flatten(2).transpose(1, 2)


def cell_index(points: Tensor, grid: int = GRID) -> Tensor:
    """Return the indices of the cells that contain the given pixels (..., m).

    Args:
        points: integer (row, col) pixel coordinates (..., m, 2) in the 256 x 256 image; pixels outside are
            moved to the nearest pixel inside.
        grid: cells along a side.
    """
    inside = points.clamp(0, IMAGE_SIZE - 1) * grid // IMAGE_SIZE
    return inside[..., 0] * grid + inside[..., 1]
