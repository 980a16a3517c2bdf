"""A network whose probabilities are sorted into bins while it is scored."""

from __future__ import annotations

from medical.evaluation.calibration import Calibration, Reliability
from medical.evaluation.engine import EvaluationCase, EvaluationPlan, Prediction, check_grid, without_strays
from medical.evaluation.network import Network
from medical.pictures.label_maps import read_any_label_map


class Calibrating:
    """Segments the scan of a case, and holds its probabilities against the reference.

    Args:
        network: With settings that keep probabilities.
        plan: What is scored; its targets are named.

    Raises:
        RequestError: The network has no probability of a target.
    """

    def __init__(self, network: Network, plan: EvaluationPlan) -> None:
        self.network, self.plan = network, plan
        self.calibration = Calibration(network.protocol, plan.targets)

    def __call__(self, case: EvaluationCase) -> Prediction:
        prediction = self.network(case)
        found = read_any_label_map(case.reference, self.plan.spec.label_values if self.plan.spec is not None else None)
        check_grid(prediction.grid, found.grid)
        reference, _ = without_strays(found.labels, self.plan.spec)
        assert prediction.probabilities is not None
        self.calibration.add(prediction.probabilities, reference)
        return prediction

    def results(self) -> tuple[Reliability, ...]:
        """Of all cases so far."""
        return self.calibration.results()
