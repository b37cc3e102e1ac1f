"""Networks for images and videos."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn

from tests.benchmarks.torch_modules import BUILDERS, First, Made, Residual, Sequence, conv3x3, network


def _torchvision(name: str) -> Made:
    import torchvision

    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    return torchvision.models.get_model(name, weights=None, **options), (torch.randn(1, 3, 224, 224),)


for _name in (
    *("resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "shufflenet_v2_x1_0", "swin_t"),
    *("squeezenet1_1", "densenet121", "regnet_y_400mf", "mnasnet1_0", "googlenet", "convnext_tiny"),
):
    BUILDERS[_name] = lambda name=_name: _torchvision(name)


@network("deit_tiny")
def deit_tiny() -> Made:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768)
    return First(ViTModel(config, add_pooling_layer=False)), (torch.randn(1, 3, 224, 224),)


@network("mobilevit")
def mobilevit() -> Made:
    from transformers import MobileViTConfig, MobileViTModel

    config = MobileViTConfig(image_size=256, hidden_sizes=[64, 80, 96], neck_hidden_sizes=[16, 16, 24, 48, 64, 80, 320])
    return First(MobileViTModel(config)), (torch.randn(1, 3, 256, 256),)


def _segmentation(name: str, size: int) -> Made:
    import torchvision

    model = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=21)
    return First(model, "out"), (torch.randn(1, 3, size, size),)


for _name in ("lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "fcn_resnet50"):
    BUILDERS[_name] = lambda name=_name: _segmentation(name, 256)


def _block(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for start in (inputs, outputs):
        layers += [nn.Conv2d(start, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """The U-Net of Ronneberger et al. with a quarter of its channels."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64, 128)) -> None:
        super().__init__()
        pairs = list(zip((3, *widths[:-1]), widths, strict=True))
        self.down = nn.ModuleList(_block(a, b) for a, b in pairs)
        self.up = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, 2) for a, b in reversed(pairs[1:]))
        self.merge = nn.ModuleList(_block(2 * a, a) for a, _ in reversed(pairs[1:]))
        self.head = nn.Conv2d(widths[0], 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else nn.functional.max_pool2d(x, 2))
            skips.append(x)
        for up, merge, skip in zip(self.up, self.merge, reversed(skips[:-1]), strict=True):
            x = merge(torch.cat([up(x), skip], 1))
        return self.head(x)


@network("unet")
def unet() -> Made:
    return UNet(), (torch.randn(1, 3, 256, 256),)


class Heads(nn.Module):
    """Backbone and heads of a detector, without its boxes."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = self.head(list(self.backbone(x).values()))
        return out["bbox_regression"], out["cls_logits"]


@network("ssdlite320_heads")
def ssdlite() -> Made:
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    return Heads(ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)), (torch.randn(1, 3, 320, 320),)


class Pyramid(nn.Module):
    def __init__(self) -> None:
        from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

        super().__init__()
        self.backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.backbone(x).values())


@network("fpn_resnet18")
def fpn_resnet18() -> Made:
    return Pyramid(), (torch.randn(1, 3, 256, 256),)


class ConvSiLU(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs), nn.SiLU())


class CSP(nn.Module):
    """A cross-stage partial block of the YOLO family."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.a, self.b = ConvSiLU(width, width // 2), ConvSiLU(width, width // 2)
        self.blocks = nn.Sequential(*(ConvSiLU(width // 2, width // 2, 3) for _ in range(depth)))
        self.out = ConvSiLU(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.cat([self.blocks(self.a(x)), self.b(x)], 1))


class YOLO(nn.Module):
    """A backbone and neck as in YOLOv5 to YOLOX, with one head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvSiLU(3, 16, 3, 2)
        widths = (16, 32, 64, 128)
        self.stages = nn.ModuleList(
            nn.Sequential(ConvSiLU(a, b, 3, 2), CSP(b, 2)) for a, b in itertools.pairwise(widths)
        )
        self.lateral = ConvSiLU(128, 64)
        self.merge = nn.Sequential(ConvSiLU(128, 64), CSP(64, 1))
        self.head = nn.Conv2d(64, 85, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        outputs = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        top = nn.functional.interpolate(self.lateral(x), scale_factor=2.0, mode="nearest")
        return self.head(self.merge(torch.cat([top, outputs[1]], 1))).flatten(2).transpose(1, 2)


@network("yolo_csp")
def yolo_csp() -> Made:
    return YOLO(), (torch.randn(1, 3, 320, 320),)


@network("espcn")
def espcn() -> Made:
    layers = [nn.Conv2d(1, 64, 5, padding=2), nn.Tanh(), nn.Conv2d(64, 32, 3, padding=1), nn.Tanh()]
    return nn.Sequential(*layers, nn.Conv2d(32, 9, 3, padding=1), nn.PixelShuffle(3)), (torch.randn(1, 1, 128, 128),)


@network("edsr")
def edsr() -> Made:
    blocks = [Residual(nn.Sequential(conv3x3(32, 32), nn.ReLU(), conv3x3(32, 32))) for _ in range(6)]
    tail = [conv3x3(32, 128), nn.PixelShuffle(2), conv3x3(32, 3)]
    return nn.Sequential(conv3x3(3, 32), Residual(nn.Sequential(*blocks)), *tail), (torch.randn(1, 3, 96, 96),)


class CRNN(nn.Module):
    """Convolutions and a bidirectional LSTM, as in Shi et al., for text lines."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 32, 64, 128)
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            layers += [conv3x3(a, b), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d((2, 2) if b < 128 else (2, 1))]
        self.features = nn.Sequential(*layers)
        self.sequence = Sequence(nn.LSTM(512, 128, num_layers=2, bidirectional=True), 100)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        return self.sequence(x.flatten(1, 2).permute(2, 0, 1))


@network("crnn")
def crnn() -> Made:
    return CRNN(), (torch.randn(1, 1, 32, 160),)


def _video(name: str) -> Made:
    import torchvision

    return torchvision.models.get_model(name, weights=None), (torch.randn(1, 3, 8, 64, 64),)


BUILDERS["r3d_18"] = lambda: _video("r3d_18")
BUILDERS["mc3_18"] = lambda: _video("mc3_18")


class GroupBlock(nn.Module):
    """A residual block of diffusion networks: group normalization, SiLU, convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for _ in range(2):
            parts += [nn.GroupNorm(8, width), nn.SiLU(), conv3x3(width, width)]
        self.inner = nn.Sequential(*parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


class SpatialAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = (
            nn.GroupNorm(8, width),
            nn.Conv2d(width, 3 * width, 1),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, dim=-1)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.squeeze(1).transpose(1, 2).reshape(x.shape))


@network("diffusion_unet")
def diffusion_unet() -> Made:
    down = [conv3x3(4, 64), GroupBlock(64), nn.Conv2d(64, 128, 3, 2, 1), GroupBlock(128), SpatialAttention(128)]
    up = [GroupBlock(128), nn.Upsample(scale_factor=2), conv3x3(128, 64), GroupBlock(64), conv3x3(64, 4)]
    return nn.Sequential(*down, *up), (torch.randn(1, 4, 32, 32),)


@network("vae_decoder")
def vae_decoder() -> Made:
    layers: list[nn.Module] = [conv3x3(4, 64), SpatialAttention(64)]
    for _ in range(2):
        layers += [GroupBlock(64), nn.Upsample(scale_factor=2), conv3x3(64, 64)]
    return nn.Sequential(*layers, nn.GroupNorm(8, 64), nn.SiLU(), conv3x3(64, 3)), (torch.randn(1, 4, 16, 16),)
