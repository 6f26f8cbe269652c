"""Numbers of a table that is counted on the networks' shapes, such as A-Table 2 and B-Table 8: nothing is trained."""

from experiments.config.experiment import Experiment
from experiments.costs.counts import count_cost, parts_of
from experiments.runtime.records import Record
from lightning_modules.base import count


def counted(experiment: Experiment) -> Record:
    """Parameters and, for one image, multiply-accumulates of the parts and sums, as the metrics of a record.

    "layers MACs" leaves out the two products inside attention, as counters do that look at layers alone.
    """
    cost, parts = count_cost(experiment), {part.name: part for part in parts_of(experiment)}
    metrics = cost.totals | {f"{name} MACs": number for name, number in cost.macs.items()}
    metrics["layers MACs"] = count_cost(experiment, attention=False).totals["model MACs"]
    if "encoder" in parts:
        modules = parts["encoder"].network.named_modules()  # type: ignore[union-attr]
        metrics["blocks parameters"] = sum(count(module) for name, module in modules if name.endswith("blocks"))
        metrics["both sides"] = metrics["encoder parameters"] + metrics["decoder parameters"]
    if "projector" in parts:
        (table,) = parts["projector"].inputs
        metrics["frozen table"] = table.numel()
    return {"metrics": metrics, "protocols": {}}
