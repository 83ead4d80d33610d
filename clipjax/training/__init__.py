"""One step of training, and what surrounds it: the state, its gradient, the loop over steps, a teacher.

    mesh = make_mesh(config.mesh)
    state = create_state(config, mesh)
    step = make_train_step(config, mesh, state)
    state, metrics = step(state, batch)

Nothing here reads or writes files: `clipjax.commands.train` gives the loop the functions that evaluate, save and log.
"""

from clipjax.training.check import check
from clipjax.training.gradients import make_loss_and_gradients
from clipjax.training.loop import TrainingError, loop
from clipjax.training.state import TrainState, abstract_state, create_state, eval_variables
from clipjax.training.step import batch_shapes, lower_step, make_train_step
from clipjax.training.teacher import Teacher, make_teacher

__all__ = [
    "Teacher",
    "TrainState",
    "TrainingError",
    "abstract_state",
    "batch_shapes",
    "check",
    "create_state",
    "eval_variables",
    "loop",
    "lower_step",
    "make_loss_and_gradients",
    "make_teacher",
    "make_train_step",
]
