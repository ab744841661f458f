"""What else one could take: well-known small models, by their names in timm.

Accuracies are ImageNet-1k top-1 as the models' authors published them, at these sizes; speeds do not depend
on weights, so peers are built with random ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from vitesse.errors import ConfigError, did_you_mean

PREFIX = "timm:"


@dataclass(frozen=True)
class Peer:
    """A timm model, its image side in pixels and its published top-1 as a fraction."""

    name: str
    side: int
    top1: float


PEERS = {
    peer.name: peer
    for peer in (
        Peer("mobilenetv2_100", 224, 0.720),
        Peer("mobilenetv3_large_100", 224, 0.752),
        Peer("mobilenetv4_conv_small", 224, 0.738),
        Peer("mobilenetv4_conv_medium", 256, 0.799),
        Peer("efficientnet_b0", 224, 0.771),
        Peer("efficientnet_b1", 240, 0.791),
        Peer("mobilevit_xxs", 256, 0.690),
        Peer("mobilevit_xs", 256, 0.748),
        Peer("mobilevitv2_050", 256, 0.702),
        Peer("mobilevitv2_100", 256, 0.781),
        Peer("fastvit_t8", 256, 0.756),
        Peer("fastvit_sa12", 256, 0.798),
        Peer("repvit_m0_9", 224, 0.787),
        Peer("efficientformerv2_s0", 224, 0.757),
        Peer("deit_tiny_patch16_224", 224, 0.722),
        Peer("swin_tiny_patch4_window7_224", 224, 0.813),
        Peer("resnet50", 224, 0.761),
    )
}


def chosen_peers(names: str) -> tuple[str, ...]:
    """`all`, or names separated by commas, as model names with their prefix.

    Raises:
        ConfigError: a name is none of `PEERS`.
    """
    wanted = (
        list(PEERS) if names == "all" else [name.strip().removeprefix(PREFIX) for name in names.split(",")]
    )
    for name in wanted:
        if name not in PEERS:
            raise ConfigError(f"--peers: unknown peer {name!r}; {did_you_mean(name, list(PEERS))}")
    return tuple(PREFIX + name for name in wanted)
