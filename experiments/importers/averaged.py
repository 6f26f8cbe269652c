"""The averaged copy of the weights that SEED-Voken's files hold: a parameter's name without its dots, after `EMA`."""

from experiments.importers.family import Tensors, some

EMA = "model_ema."
COUNTERS = (f"{EMA}decay", f"{EMA}num_updates")
UNUSED = ("loss.", f"{EMA}loss")  # the discriminator's


def averaged(tensors: Tensors, origin: str) -> tuple[Tensors, str]:
    """The weights of the copy under the names of the raw ones, and that in words; as they are where there is none.

    Raises ValueError when only some of the weights have a copy, or a copy has no weight.
    """
    copies = {k: v for k, v in tensors.items() if k.startswith(EMA) and not k.startswith(UNUSED) and k not in COUNTERS}
    raw = {key: tensor for key, tensor in tensors.items() if not key.startswith(EMA)}
    if not copies:
        return raw, ""
    names = {key: EMA + key.replace(".", "") for key in raw if not key.startswith(UNUSED)}
    if missing := [name for name in names.values() if name not in copies]:
        raise ValueError(f"{origin}: lacks {some(missing)}: not all weights have their averaged copy")
    if extra := sorted(copies.keys() - set(names.values())):
        raise ValueError(f"{origin}: holds {some(extra)}, averaged copies of no weight in it")
    taken = {key: copies[names[key]] if key in names else tensor for key, tensor in raw.items()}
    return taken, f"taken: the averaged copy {EMA}*, to which the published numbers belong, not the raw weights"
