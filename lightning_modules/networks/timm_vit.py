"""timm's VisionTransformer as MAE (He et al. 2022) fine-tunes it, also on maps of codes in place of pixels.

Shapes: C channels, H x W pixels or codes.
"""

from typing import Any

from torch import nn

from lightning_modules.checks import require
from lightning_modules.networks.encoders import pretrained_timm


def build_vit(
    shape: tuple[int, int, int], patch_size: int, dims: list[int], num_classes: int, drop_path: float = 0.0
) -> Any:
    """Of inputs (C, H, W), of random weights; logits are of the patches' mean after a LayerNorm.

    `dims`: blocks, heads, width. `drop_path`: of the last block, growing from 0 at the first. With a `patch_size` of 1
    the patch embedding is a linear layer of each place's C channels.
    """
    from timm.models.vision_transformer import VisionTransformer

    blocks, heads, width = dims
    network: Any = VisionTransformer(
        img_size=shape[1:],
        patch_size=patch_size,
        in_chans=shape[0],
        num_classes=num_classes,
        global_pool="avg",
        embed_dim=width,
        depth=blocks,
        num_heads=heads,
        drop_path_rate=drop_path,
    )
    nn.init.trunc_normal_(network.head.weight, std=2e-5)
    return network


def pretrained_vit(name: str, **options: Any) -> Any:
    """timm's model of this name. Raises ValueError where it is no ViT or has no weights, FileNotFoundError where these
    cannot be had."""
    network = pretrained_timm(name, "set model.pretrained='' to start from random weights", num_classes=0, **options)
    is_vit = hasattr(network, "blocks") and hasattr(network, "patch_embed")
    require(is_vit, f"model.pretrained={name}: is no vision transformer")
    return network


def load_pretrained(network: Any, name: str, new_patches: bool) -> None:
    """Gives `network` the weights of timm's model `name`, but for the last LayerNorm and the head and, with
    `new_patches`, the patch embedding. Positions are interpolated (bicubic) to the grid of `network`."""
    patch = pretrained_vit(name).patch_embed.patch_size[0]
    source = pretrained_vit(name, img_size=tuple(patch * side for side in network.patch_embed.grid_size))
    left_out = ("norm.", "fc_norm.", *(("patch_embed.",) if new_patches else ()))
    weights = {key: value for key, value in source.state_dict().items() if not key.startswith(left_out)}
    missing, unexpected = network.load_state_dict(weights, strict=False)
    kept = [key for key in missing if not key.startswith((*left_out, "head."))]
    require(
        not kept and not unexpected, f"model.pretrained={name}: is another ViT: {(kept + unexpected)[:3]} do not fit"
    )


def layer_groups(
    network: Any, lr: float, weight_decay: float, layer_decay: float, new_patches: bool
) -> list[dict[str, Any]]:
    """Parameter groups: of n blocks the i-th has the rate lr * layer_decay^(n + 1 - i), what is below them
    lr * layer_decay^(n + 1), the head lr. Vectors, positions and the class token have no weight decay.

    With `new_patches` the patch embedding, which is not pretrained, has the head's rate.
    """
    from timm.optim import param_groups_layer_decay

    is_new = {id(parameter) for parameter in network.patch_embed.parameters() if new_patches}
    groups = []
    for group in param_groups_layer_decay(network, weight_decay, network.no_weight_decay(), layer_decay=layer_decay):
        for new, scale in ((False, group["lr_scale"]), (True, 1.0)):
            if parameters := [each for each in group["params"] if (id(each) in is_new) == new]:
                groups.append({"params": parameters, "lr": lr * scale, "weight_decay": group["weight_decay"]})
    return groups
