"""Wrong training programs: changes of the specimen, and the checks that must turn red for each."""

from harness.tests.training.wrong_data import DATA
from harness.tests.training.wrong_gradients import GRADIENTS
from harness.tests.training.wrong_runs import RUNS
from harness.tests.training.wrong_steps import STEP

WRONG_TRAINERS = (*DATA, *GRADIENTS, *STEP, *RUNS)
