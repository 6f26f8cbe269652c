"""The trials of a search as a table and as Optuna's pictures."""

import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import optuna
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization.matplotlib import plot_intermediate_values, plot_slice

from sweeps.grid import show
from sweeps.render import plain, replace_file, write_sheet
from sweeps.schema import SearchSpec
from sweeps.sheet import SHAPES_WARNING, Sheet


def write_trials(study: optuna.Study, spec: SearchSpec, scale: str, data: str, out: Path) -> int:
    """Prints the table of all trials, best first, writes it and the pictures; the exit status: 1 without a result."""
    trials = study.get_trials(deepcopy=False)
    for trial in trials:
        if trial.state == TrialState.FAIL and "error" in trial.user_attrs:
            print(f"[trial {trial.number}] failed: {trial.user_attrs['error']}")
    if all(trial.state != TrialState.COMPLETE for trial in trials):
        print("no trial is finished; the same command tries again")
        return 1
    sheet = trial_sheet(spec, trials, scale, data)
    print(f"\n{plain(sheet)}\n")
    for path in [*write_sheet(sheet, out / study.study_name), *draw(study, spec, out)]:
        print(f"written: {path}")
    return 0


def trial_sheet(spec: SearchSpec, trials: list[FrozenTrial], scale: str, data: str) -> Sheet:
    """Finished trials from the best to the worst, then pruned ones, the longest first."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    complete.sort(key=lambda trial: trial.value or 0.0, reverse=spec.maximize)
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    pruned.sort(key=lambda trial: -(trial.last_step or 0))
    body = []
    for trial in [*complete, *pruned]:
        steps = f"ended at {trial.last_step}" if trial.state == TrialState.PRUNED else trial.user_attrs.get("steps")
        values = [str(trial.number), *map(trial.params.get, spec.space), trial.value, steps]
        body.append([number(value) for value in values])
    heads = (key.removeprefix("model.") for key in spec.space)
    protocols = sorted({str(trial.user_attrs.get("protocol", "not stated")) for trial in complete})
    num_failed = sum(trial.state == TrialState.FAIL for trial in trials)
    return Sheet(
        title=f"{spec.title}: {'highest' if spec.maximize else 'lowest'} {spec.metric} of {len(body)} trials",
        groups=[(head, [""]) for head in ("trial", *heads, spec.metric, "steps")],
        body=body,
        caption=[
            f"{data}, scale {scale}, {spec.experiment}; {spec.metric}: {', '.join(protocols)}.",
            f"TPE, seed {spec.seed}, {spec.startup_trials} random trials first; {len(pruned)} trials ended by the "
            f"median pruner, {num_failed} failed or had their worker die.",
            "One run each: the noise of a seed is in these numbers.",
        ],
        warning=SHAPES_WARNING if data == "shapes" else "",
        breaks=[len(complete)] if complete and pruned else [],
    )


def number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else show(value)


def draw(study: optuna.Study, spec: SearchSpec, out: Path) -> list[Path]:
    """The metric against each key, and the validations of each trial against the training step."""
    paths = [out / f"{study.study_name}_{name}.png" for name in ("slice", "validations")]
    with plt.style.context("default"), warnings.catch_warnings():  # Optuna's pictures set a style for all that follow
        warnings.simplefilter("ignore")  # Optuna's words about a key with one value
        plt.switch_backend("agg")
        plot_slice(study, target_name=spec.metric)
        replace_file(paths[0], plt.gcf())
        plot_intermediate_values(study)
        replace_file(paths[1], plt.gcf())
        plt.close("all")
    return paths
