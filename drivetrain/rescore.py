"""After a retrain: an old run's frozen manifest under a new learner, and the two runs side by side.

Knows two runs. Nothing of the old run is touched; the new one is a run like any other.
"""

from typing import Any

from drivetrain import site
from drivetrain.admit import admit_learner
from drivetrain.comparing import compare_and_publish, said_of
from drivetrain.config import Config
from drivetrain.console import say
from drivetrain.doctor import check_first
from drivetrain.errors import SettingError
from drivetrain.judge import judge_run
from drivetrain.manifest import find_plan
from drivetrain.reference import find_reference
from drivetrain.root import open_root
from drivetrain.run import Run
from drivetrain.score import begin_run, finish_run, forecast_of, result_of


def rescore_run(config: Config) -> dict[str, Any]:
    """Score an old run's images again under the config's learner, and compare the two runs.

    Needs ``root``, ``learner``, ``run``. Returns the job's result with ``comparison`` (the page) and ``agreement``; for
    a night whose new learner has a reference, the new verdict too. The same config again resumes. With ``dry_run`` it
    returns a forecast and writes nothing.
    """
    _, _, run_id = config.need("root", "learner", "run")
    store, layout = open_root(config, existing=True, dry_runs=True)
    old = Run.find(store, layout, run_id)
    if old.committed() is None:
        raise SettingError(f"The run {run_id} is not committed yet. Run its own command again to finish it.")
    # Its images are those of the old run, wherever the config points.
    check_first(config.model_copy(update={"images": None}))
    info = admit_learner(store, layout, config)
    plan = find_plan(store, layout, old.record.source, old.record.kind, old.record.name)
    if plan is None:
        raise SettingError(f"The plan of run {run_id} is gone from {layout.sources}.")
    new = begin_run(store, layout, plan, info, config, rescore_of=run_id)
    if new.record.run_id == run_id:
        raise SettingError(f"Run {run_id} was made by this very learner with these settings. Give the new --learner.")
    if new.committed():
        say(f"Run {new.record.run_id} is committed already; nothing to score.")
    if config.dry_run:
        return forecast_of([new], config)
    finish_run(new, config)
    comparison = compare_and_publish(store, layout, old, new)
    result = result_of(new)
    if new.record.kind == "night" and find_reference(store, layout, new):
        result = judge_run(store, layout, new, config)
    site.build(store, layout)
    return result | said_of(layout, comparison)
