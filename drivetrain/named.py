"""The learner that a user names: by its id, by the id of a run that it made, or as a file.

Knows the words that stand for a learner. Does not know why it is wanted.
"""

from drivetrain.admit import admit_known, admit_learner
from drivetrain.config import Config
from drivetrain.errors import SettingError
from drivetrain.export import LearnerInfo
from drivetrain.layout import Layout, is_model_id
from drivetrain.run import Run
from drivetrain.store import Store


def named_learner(store: Store, layout: Layout, config: Config, word: str) -> LearnerInfo:
    """The learner that a model_id, the id of a committed run, or the path or uri of an export.pkl stands for.

    Raises SettingError, naming the learners that the root knows, if it is none of them.
    """
    known = known_id(store, layout, word)
    if known:
        return admit_known(store, layout, config, known)
    return admit_learner(store, layout, config.model_copy(update={"learner": word}))


def known_id(store: Store, layout: Layout, word: str) -> str | None:
    """The model_id of a learner in the root that an id of it, or of one of its committed runs, stands for.

    None for a file that is no copy of the root's own. Raises SettingError for what is neither.
    """
    if is_model_id(word) and store.exists(layout.export(word)):
        return word
    if "/" not in word and store.exists(layout.run(word).record):
        run = Run.find(store, layout, word)
        if run.committed() is None:
            raise SettingError(f"The run {word} is not committed yet. Run its own command again to finish it.")
        return run.record.model_id
    if store.exists(store.normalise(word)):
        return None
    known = ", ".join(store.names(f"{layout.root}/models")) or "none"
    raise SettingError(
        f"No learner {word!r}: expected the id of one under {layout.root}/models, of a committed run, or an export.pkl "
        f"that learn.export() wrote. The root knows: {known}."
    )
