"""What an adapter will cost in parameters and memory, from configs alone: no weights are loaded or made."""

from localora.lab.cost.predict import predict_cost
from localora.lab.cost.report import CostReport

__all__ = ["CostReport", "predict_cost"]
