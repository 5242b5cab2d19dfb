"""The workloads: a ResNet-18, GPT-2 in two sizes, models of many small tensors; on random data, as only time counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MANY_SMALL", "WORKLOADS", "Workload", "gpt2", "gpt2_small", "replayed", "resnet", "resnet18"]


@dataclass
class Workload:
    """A model in training.

    Args:
        loss: (model, inputs, targets) -> scalar.
        held_out: (inputs, targets), as many examples as Lightning would give vizlog: 256.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    inputs: Tensor
    targets: Tensor
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor]
    held_out: tuple[Any, Any]

    def backward(self) -> None:
        self.optimizer.zero_grad()
        self.loss(self.model, self.inputs, self.targets).backward()

    def step(self) -> None:
        """One training step."""
        self.backward()
        self.optimizer.step()


class _Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut; with `width`, a bottleneck of 1x1, 3x3 and 1x1 (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int, width: int | None) -> None:
        super().__init__()
        if width is None:
            self.residual = nn.Sequential(
                *_convolution(inputs, outputs, 3, stride), nn.ReLU(), *_convolution(outputs, outputs, 3)
            )
        else:
            self.residual = nn.Sequential(
                *(*_convolution(inputs, width, 1), nn.ReLU()),
                *(*_convolution(width, width, 3, stride), nn.ReLU()),
                *_convolution(width, outputs, 1),
            )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Sequential(*_convolution(inputs, outputs, 1, stride))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.relu(self.residual(x) + self.shortcut(x))
        return output


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs)


def resnet(blocks: Sequence[int], *, expansion: int = 1, classes: int = 10) -> nn.Sequential:
    """A ResNet for 32x32 images; (2, 2, 2, 2) is ResNet-18, (3, 4, 6, 3) with expansion 4 ResNet-50."""
    layers: list[nn.Module] = [*_convolution(3, 64, 3), nn.ReLU()]
    channels = 64
    for stage, number in enumerate(blocks):
        width = 64 << stage
        for block in range(number):
            stride = 2 if stage and not block else 1
            layers.append(_Block(channels, width * expansion, stride, width if expansion > 1 else None))
            channels = width * expansion
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def resnet18() -> Workload:
    """CIFAR's ResNet-18 with batches of 32."""
    torch.manual_seed(0)
    model = resnet((2, 2, 2, 2))
    images, labels = torch.randn(288, 3, 32, 32), torch.randint(0, 10, (288,))
    return Workload(
        model,
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        images[:32],
        labels[:32],
        lambda model, inputs, targets: F.cross_entropy(model(inputs), targets),
        (images[32:], labels[32:]),
    )


def gpt2() -> Workload:
    """A GPT-2 of 6 layers and 384 features over 65 characters, with batches of 8 times 256 tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=65, n_positions=256, n_embd=384, n_layer=6, n_head=6, use_cache=False)
    config.bos_token_id = config.eos_token_id = 0
    model = GPT2LMHeadModel(config)
    tokens = torch.randint(0, 65, (264, 256))
    return Workload(
        model,
        torch.optim.AdamW(model.parameters(), lr=1e-3),
        tokens[:8],
        tokens[:8],
        lambda model, inputs, targets: model(input_ids=inputs, labels=targets).loss,
        ({"input_ids": tokens[8:], "labels": tokens[8:]}, None),
    )


def gpt2_small() -> Workload:
    """GPT-2 small in bfloat16 autocast on a CUDA device, with batches of 8 times 1,024 tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(use_cache=False)).cuda()
    tokens = torch.randint(0, 50_257, (40, 1024), device="cuda")

    def loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            found: Tensor = model(input_ids=inputs, labels=targets).loss
        return found

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    return Workload(
        model, optimizer, tokens[:8], tokens[:8], loss, ({"input_ids": tokens[8:], "labels": tokens[8:]}, None)
    )


def vit() -> Workload:
    """A ViT of 12 layers and 192 features over 4x4 patches of 32x32 images, with batches of 32."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 12, "num_attention_heads": 3}
    model = ViTForImageClassification(ViTConfig(image_size=32, patch_size=4, num_labels=10, **sizes))
    return _classifier(model, torch.randn(288, 3, 32, 32))


def mobilenet() -> Workload:
    """A MobileNetV2 on images of 96x96, with batches of 16."""
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    torch.manual_seed(0)
    model = MobileNetV2ForImageClassification(MobileNetV2Config(image_size=96, num_labels=10))
    return _classifier(model, torch.randn(272, 3, 96, 96))


def _classifier(model: nn.Module, images: Tensor) -> Workload:
    """A classifier of Hugging Face's on all images but the last 256, which are held out."""
    labels = torch.randint(0, 10, (len(images),))
    return Workload(
        model,
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        images[:-256],
        labels[:-256],
        lambda model, inputs, targets: F.cross_entropy(model(inputs).logits, targets),
        (images[-256:], labels[-256:]),
    )


WORKLOADS: dict[str, Callable[[], Workload]] = {"ResNet-18": resnet18, "GPT-2": gpt2}
MANY_SMALL: dict[str, Callable[[], Workload]] = {"ViT": vit, "MobileNetV2": mobilenet}
"""Models of hundreds of small tensors, where it counts what each takes, and not how many values it has."""


def replayed(work: Workload) -> Workload:
    """The same parameters, gradients and activations, with next to nothing computed between them.

    The leaves hand out, in the order in which they ran, what they gave once; what is computed between them, attention
    say, is left out. A step of seconds varies by more than what a logger adds to it; of this one that can be told
    exactly.
    """
    ran: list[tuple[nn.Module, Tensor]] = []
    leaves = [module for module in work.model.modules() if not module._modules]
    handles = [
        leaf.register_forward_hook(lambda leaf, _inputs, output: ran.append((leaf, output.detach()))) for leaf in leaves
    ]
    work.backward()
    for handle in handles:
        handle.remove()
    for leaf, output in ran:
        leaf.forward = lambda output=output: output
    work.model.forward = lambda: [leaf() for leaf, _ in ran][-1]
    gradients = {
        parameter: parameter.grad.clone() for parameter in work.model.parameters() if parameter.grad is not None
    }

    def loss(model: nn.Module, _inputs: Tensor, _targets: Tensor) -> Tensor:
        with torch.no_grad():
            model()
        return torch.stack([(parameter * gradient).sum() for parameter, gradient in gradients.items()]).sum()

    return replace(work, loss=loss)
