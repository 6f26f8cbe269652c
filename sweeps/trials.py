"""The trials of a search as a table and as pictures."""

from collections import Counter
from pathlib import Path
from typing import Any

import optuna
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState

from sweeps.grid import show
from sweeps.render import plain, replace_file, write_sheet
from sweeps.results import Sheet
from sweeps.schema import SearchSpec

SHOWN = {TrialState.COMPLETE: "o", TrialState.PRUNED: "x"}


def write_trials(study: optuna.Study, spec: SearchSpec, scale: str, data_id: str, out: Path) -> int:
    """Prints the table of all trials, best first, writes it and the pictures; the exit status: 1 without a result."""
    trials = study.get_trials(deepcopy=False)
    states = Counter(trial.state for trial in trials)
    for trial in trials:
        if trial.state == TrialState.FAIL and "error" in trial.user_attrs:
            print(f"[trial {trial.number}] failed: {trial.user_attrs['error']}")
    if not states[TrialState.COMPLETE]:
        print("no trial is finished; the same command tries again")
        return 1
    sheet = trial_sheet(spec, trials, scale, data_id)
    print(f"\n{plain(sheet)}\n")
    for path in [*write_sheet(sheet, out / study.study_name), *draw(study, spec, out)]:
        print(f"written: {path}")
    return 0


def trial_sheet(spec: SearchSpec, trials: list[FrozenTrial], scale: str, data_id: str) -> Sheet:
    """Finished trials from the best to the worst, then those that were ended, the longest first."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    complete.sort(key=lambda trial: trial.value or 0.0, reverse=spec.maximize)
    pruned.sort(key=lambda trial: -(trial.last_step or 0))
    body = [
        [str(trial.number), *(number(trial.params.get(key)) for key in spec.space), number(trial.value), steps(trial)]
        for trial in [*complete, *pruned]
    ]
    heads = (key.removeprefix("model.") for key in spec.space)
    protocols = sorted({str(trial.user_attrs.get("protocol", "not stated")) for trial in complete})
    num_failed = sum(trial.state == TrialState.FAIL for trial in trials)
    return Sheet(
        title=f"{spec.title}: {'highest' if spec.maximize else 'lowest'} {spec.metric} of {len(body)} trials",
        groups=[(head, [""]) for head in ("trial", *heads, spec.metric, "steps")],
        body=body,
        caption=[
            f"{data_id}, scale {scale}, {spec.experiment}; {spec.metric}: {', '.join(protocols)}.",
            f"TPE, seed {spec.seed}, {spec.startup_trials} random trials first; {len(pruned)} trials ended by the "
            f"median pruner, {num_failed} failed or had their worker die.",
            "One run each: the noise of a seed is in these numbers.",
        ],
        warning="RENDERED SHAPES, NOT REAL IMAGES: no number here says anything about the papers' data."
        if data_id == "shapes"
        else "",
        breaks=[len(complete)] if complete and pruned else [],
    )


def number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else show(value)


def steps(trial: FrozenTrial) -> str:
    if trial.state == TrialState.PRUNED:
        return f"ended at {trial.last_step}"
    return number(trial.user_attrs.get("steps"))


def draw(study: optuna.Study, spec: SearchSpec, out: Path) -> list[Path]:
    """The metric against each key, and the validations of each trial against the training step."""
    paths = []
    for name, picture in (("slice", draw_slice), ("validations", draw_validations)):
        figure = Figure(layout="constrained")
        picture(figure, spec, [trial for trial in study.get_trials(deepcopy=False) if trial.state in SHOWN])
        paths.append(out / f"{study.study_name}_{name}.png")
        replace_file(paths[-1], figure)
    return paths


def draw_slice(figure: Figure, spec: SearchSpec, trials: list[FrozenTrial]) -> None:
    """One trial a point, darker the later; those that were ended are crosses, at their last validation."""
    figure.set_size_inches(2.6 * len(spec.space) + 0.8, 3.2)
    row = figure.subplots(1, len(spec.space), sharey=True, squeeze=False)[0]
    for axes, (key, parameter) in zip(row, spec.space.items(), strict=True):
        for state, marker in SHOWN.items():
            known = [t for t in trials if t.state == state and key in t.params and t.value is not None]
            x = [parameter.choices.index(t.params[key]) if parameter.choices else t.params[key] for t in known]
            style: Any = {"c": [t.number for t in known], "cmap": "viridis_r", "vmin": 0, "vmax": len(trials)}
            axes.scatter(x, [t.value for t in known], marker=marker, s=25, **style)
        if parameter.choices:
            axes.set_xticks(range(len(parameter.choices)), [show(choice) for choice in parameter.choices])
        if parameter.log:
            axes.set_xscale("log")
        axes.set_xlabel(key.rsplit(".", 1)[-1])
        axes.grid(alpha=0.3)
    row[0].set_ylabel(spec.metric)


def draw_validations(figure: Figure, spec: SearchSpec, trials: list[FrozenTrial]) -> None:
    """One trial a line; the best one in colour, those that were ended dashed."""
    figure.set_size_inches(6.4, 3.6)
    axes = figure.subplots()
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    best = (max if spec.maximize else min)(complete, key=lambda trial: trial.value or 0.0)
    for trial in trials:
        is_ended = trial.state == TrialState.PRUNED
        style: Any = {"color": "C0", "zorder": 3} if trial is best else {"color": "grey", "alpha": 0.6, "lw": 1}
        values = trial.intermediate_values
        axes.plot(
            list(values), list(values.values()), ls="--" if is_ended else "-", marker="." if is_ended else "", **style
        )
    axes.set(xlabel="training step", ylabel=spec.metric, title=f"best: trial {best.number}; dashed: ended early")
    axes.grid(alpha=0.3)
