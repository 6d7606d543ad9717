"""Wrong training programs: changes of a specimen, and the checks that must turn red for each."""

from harness.faults.training.wrong_classes import CLASSES
from harness.faults.training.wrong_data import DATA
from harness.faults.training.wrong_epochs import OF_EPOCHS
from harness.faults.training.wrong_functions import OF_FUNCTIONS
from harness.faults.training.wrong_gradients import GRADIENTS
from harness.faults.training.wrong_runs import RUNS
from harness.faults.training.wrong_steps import STEP

WRONG_TRAINERS = (*DATA, *GRADIENTS, *STEP, *RUNS, *CLASSES, *OF_FUNCTIONS, *OF_EPOCHS)
